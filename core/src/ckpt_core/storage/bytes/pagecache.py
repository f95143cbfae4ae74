"""The kernel's cache of file pages: what a conversion leaves in it, and when what it writes goes on to the disk.

A conversion that fits in memory leaves there what it read and wrote, as `cp` does: the model is loaded next. Of one that does not fit
pages would only push out what others keep there, and the source before it is read; each is dropped when the conversion is done with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading

from ckpt_core.lean import dataclass
from ckpt_core.storage.bytes.files import pread_into
from ckpt_core.storage.bytes.memory import memory

_C = ctypes.CDLL(None, use_errno=True)
_sync_file_range = getattr(_C, "sync_file_range", None)  # Linux alone has one
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

_LARGEST = 2 << 20  # bytes of the largest folio
_WRITE = 2  # SYNC_FILE_RANGE_WRITE of sync_file_range(2)


@dataclass(frozen=True, slots=True)
class Kept:
    """What of a conversion stays in the cache: both sides where both fit in the memory that is available, else the output where that does."""

    source: bool = True
    output: bool = True

    @classmethod
    def of(cls, read: int, written: int) -> Kept:
        """For so many bytes; both, where the system does not say what it has."""
        _, available = memory()
        return cls() if available is None else cls(read + written <= available, written <= available)


def start_writeback(descriptor: int, *, drop: bool = False) -> None:
    """Have the kernel begin to write what is dirty of a file and, with `drop`, forget what of it is on the disk already.

    Waits for nothing and promises nothing; it leaves little to do for the sync that does.
    """
    if not drop and _sync_file_range is not None:
        _sync_file_range(descriptor, 0, 0, _WRITE)
    else:
        drop_pages(descriptor, 0, 0)


def drop_pages(descriptor: int, offset: int, size: int) -> None:
    """Have the kernel forget whole pages in a range of a file, those that are clean and that nobody else has mapped; with a size of 0 to its end.

    Of dirty ones it begins to write those it finds. What is dropped by mistake is only read again.
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # a file system need not know such hints
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)


class ReadOnce(threading.local):
    """Reads files as `pread_into` does, and drops what was read. It remembers what each thread read last."""

    def __init__(self) -> None:
        self._start, self._end = ("", 0), ("", 0)

    def read_into(self, descriptor: int, view: memoryview, offset: int, path: str) -> None:
        """Fill `view` from `offset`. The kernel keeps many pages as one, and drops only whole ones: of what lies right before, the last is tried again."""
        size = len(view)
        pread_into(descriptor, view, offset, path)
        if self._end != (path, offset):
            self._start = path, offset
        self._end = path, offset + size
        start = max(self._start[1], offset - _LARGEST)
        drop_pages(descriptor, start, offset + size - start)
