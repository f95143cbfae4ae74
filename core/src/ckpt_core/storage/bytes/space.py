"""Room on a disk: how much there is, and that of a file, taken before its data is there.

The file then lies in few pieces, ext4 spends a fifth less CPU time on writing it, and a disk that has no room for all of it
says so at once. `os.posix_fallocate` would do more than that: where a file system can't, it writes to every block.
"""

from __future__ import annotations

import ctypes
import errno
import os

_C = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_C, "fallocate64", None) or getattr(_C, "fallocate", None)  # Linux alone has one
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def free_space(folder: str) -> tuple[int, str] | None:
    """The bytes that this user may still write in a folder (or where it would be), and the mount point it is on.

    None where the file system does not say.
    """
    place = os.path.realpath(folder)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    try:
        status = os.statvfs(place)
    except OSError:
        return None
    if not status.f_blocks:
        return None
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    return status.f_bavail * status.f_frsize, place


def take_space(descriptor: int) -> None:
    """Take the space of a whole file, at its present size, where the file system knows how; what it holds stays.

    Raises `OSError` if the disk, or a quota, is full.
    """
    size = os.fstat(descriptor).st_size
    if _fallocate is not None and size and _fallocate(descriptor, 0, 0, size):
        reason = ctypes.get_errno()
        if reason in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(reason, os.strerror(reason))
