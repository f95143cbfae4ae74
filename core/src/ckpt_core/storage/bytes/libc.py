"""Functions of the C library that Python does not have; None where the C library has none either. What moves no bytes loads nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable


@functools.cache
def sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """sync_file_range(2): descriptor, offset, bytes, flags. Only Linux has it."""
    return _function(["sync_file_range"], "iqqI")


@functools.cache
def fallocate() -> Callable[[int, int, int, int], int] | None:
    """fallocate(2): descriptor, mode, offset, bytes. Only Linux has it. `reason` says why it failed."""
    return _function(["fallocate64", "fallocate"], "iiqq")


def reason() -> int:
    """The error number of the last call of this thread."""
    import ctypes

    return ctypes.get_errno()


def _function(names: list[str], arguments: str) -> Callable[[int, int, int, int], int] | None:
    import ctypes

    kinds = {"i": ctypes.c_int, "I": ctypes.c_uint, "q": ctypes.c_int64}
    library = ctypes.CDLL(None, use_errno=True)
    found = next((function for name in names if (function := getattr(library, name, None)) is not None), None)
    if found is not None:
        found.argtypes = [kinds[one] for one in arguments]
    return found
