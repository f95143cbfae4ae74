"""Buffers that a thread uses again and again.

A fresh chunk-sized array is fresh memory: the kernel hands it out page by page, zeroed, which costs more than
reading the file into it. Each thread therefore keeps one buffer per purpose.

Where a buffer begins decides how fast the kernel copies between it and a page of a file. It uses `rep movs`, which takes (AMD Zen 4, Linux 6.18,
2 MiB at a time) half as long again to write where the two places differ by no multiple of 32 bytes, and up to six times as long, to read or to write, where
the place that is written is a few bytes ahead of the one that is read, modulo a page: then each load seems to need the store just before it. NumPy's own memory begins 16 bytes
behind a page, and the data of a safetensors file at any multiple of 8. So buffers begin at a page, or at the `place` in one that suits both files.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

from ckpt_core import numpy as np


class _Buffers(threading.local):
    """Those of a thread, by purpose."""

    def __init__(self) -> None:
        self.kept: dict[str, np.ndarray] = {}


_buffers = _Buffers()

_PAGE = 4096
_LINE = 64  # bytes of a line of the processor's cache


def scratch(purpose: str, shape: Sequence[int], dtype: np.dtype, place: int = 0) -> np.ndarray:
    """An uninitialised C-contiguous array in this thread's buffer for `purpose`; the next call for it reuses the memory.

    It begins at the byte `place` of a page, a multiple of 8.
    """
    buffers = _buffers.kept
    room = math.prod(shape) * dtype.itemsize + _PAGE
    buffer = buffers.get(purpose)
    if buffer is None or buffer.size < room:
        memory = np.empty(room + _PAGE, np.uint8)
        buffer = buffers[purpose] = memory[-memory.ctypes.data % _PAGE :]
    return np.ndarray(shape, dtype, buffer, place)


def place_between(source: int, target: int) -> int:
    """Where in a page a buffer should begin that is filled from the byte `source` of a file, and written to the byte `target` of another one.

    >>> place_between(24, 4096 + 16), place_between(8, 4096 + 16)
    (16, 2064)
    """
    place = target % _LINE // 8 * 8
    return place + _PAGE // 2 if 0 < (place - source) % _PAGE < _LINE else place
