"""Getting written bytes to the disk while others are still being written.

A file is synced in the background when its last tensor is in it, and in between whenever much of it is dirty, so
that the final sync, which alone makes the output safe, finds little left to do.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from ckpt_core.engine.plan import Transfer

_DIRTY = 64 << 20


class Writeback:
    """Syncs output files in one background thread; a failed sync (a full disk) is raised by `finish`."""

    def __init__(self, transfers: Iterable[Transfer], sync: Callable[[str], None]) -> None:
        self._sync = sync
        self._left = Counter(path for transfer in transfers for path in transfer.files)
        self._dirty: defaultdict[str, int] = defaultdict(int)
        self._pool = ThreadPoolExecutor(1, "writeback")
        self._started: list[Future[None]] = []

    def written(self, transfer: Transfer) -> None:
        """Note that a transfer is in its files."""
        for path, count in transfer.files.items():
            self._left[path] -= 1
            self._dirty[path] += count
            if not self._left[path] or self._dirty[path] >= _DIRTY:
                self._dirty[path] = 0
                self._started.append(self._pool.submit(self._sync, path))

    def finish(self) -> None:
        """Wait for what was started; raise the first failure."""
        self._pool.shutdown(wait=True)
        for future in self._started:
            future.result()

    def abandon(self) -> None:
        """Start nothing more."""
        self._pool.shutdown(wait=True, cancel_futures=True)
