"""The kernel's cache of file pages: which pages a conversion leaves in it, and when its output goes to the disk.

If source and output fit in memory, their pages stay in the cache, as after `cp`: the model is usually loaded next. If they do not fit, their
pages would push out those of other programs. So the conversion drops each page when it is done with it.
"""

from __future__ import annotations

import contextlib
import os
import threading

from ckpt_core.lean import dataclass
from ckpt_core.storage.bytes import libc
from ckpt_core.storage.bytes.files import pread_into
from ckpt_core.storage.bytes.memory import memory

_LARGEST = 2 << 20  # bytes of the largest folio
_WRITE = 2  # SYNC_FILE_RANGE_WRITE of sync_file_range(2)


@dataclass(frozen=True, slots=True)
class Kept:
    """Which pages of a conversion stay in the cache: those of both sides if both fit in the available memory, else those of the output if it fits."""

    source: bool = True
    output: bool = True

    @classmethod
    def of(cls, read: int, written: int) -> Kept:
        """For a conversion that reads and writes so many bytes. Both stay where the system does not say how much memory is available."""
        _, available = memory()
        return cls() if available is None else cls(read + written <= available, written <= available)


def start_writeback(descriptor: int, *, drop: bool = False) -> None:
    """Have the kernel begin to write the dirty pages of a file and, with `drop`, forget its pages that are on the disk already.

    It does not wait, and promises nothing. The sync at the end then has little left to write.
    """
    if not drop and (sync_file_range := libc.sync_file_range()) is not None:
        sync_file_range(descriptor, 0, 0, _WRITE)
    else:
        drop_pages(descriptor, 0, 0)


def drop_pages(descriptor: int, offset: int, size: int) -> None:
    """Have the kernel forget the whole pages in a range of a file that are clean and that nobody has mapped. A size of 0 means to the end.

    The kernel begins to write dirty pages in the range. A page that is dropped too early is only read again.
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # a file system need not know such hints
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)


class ReadOnce(threading.local):
    """Reads files as `pread_into` does, and drops what was read. It remembers what each thread read last."""

    def __init__(self) -> None:
        self._start, self._end = ("", 0), ("", 0)

    def read_into(self, descriptor: int, view: memoryview, offset: int, path: str) -> None:
        """Fill `view` from `offset`, and drop these pages.

        The kernel keeps many pages as one folio, and drops only whole folios. So the last folio of the range before, which was
        not whole then, is dropped again.
        """
        size = len(view)
        pread_into(descriptor, view, offset, path)
        if self._end != (path, offset):
            self._start = path, offset
        self._end = path, offset + size
        start = max(self._start[1], offset - _LARGEST)
        drop_pages(descriptor, start, offset + size - start)
