"""A conversion that watches its own private memory. Prints JSON: bytes before, and the peak. Run: hungry.py JSON."""

from __future__ import annotations

import json
import re
import sys
import threading

from ckpt_core import convert


def private() -> int:
    """Bytes of this process that are its own: the page cache and shared libraries do not count."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(size) << 10 for size in re.findall(r"^Private_\w+:\s+(\d+) kB", file.read(), re.MULTILINE))


def watch(peak: list[int], done: threading.Event) -> None:
    while not done.wait(0.002):
        peak.append(private())


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    seen, done = [private()], threading.Event()
    thread = threading.Thread(target=watch, args=(seen, done))
    thread.start()
    receipt = convert(asked["source"], asked["destination"], **asked["arguments"])
    done.set()
    thread.join()
    print(json.dumps({"before": seen[0], "peak": max(seen), "samples": len(seen), "fingerprint": receipt.fingerprint}))
