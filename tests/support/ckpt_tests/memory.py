"""How much memory of its own this process takes, watched while something runs."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def private() -> int:
    """Bytes of this process that are its own: the page cache and shared libraries do not count."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(size) << 10 for size in re.findall(r"^Private_\w+:\s+(\d+) kB", file.read(), re.MULTILINE))


@contextmanager
def watched(every: float = 0.002) -> Iterator[list[int]]:
    """A list of what `private` is: first before the block, then, until its end, `every` so many seconds."""
    seen, done = [private()], threading.Event()

    def watch() -> None:
        while not done.wait(every):
            seen.append(private())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
