"""Buffers that a thread uses again and again.

A fresh chunk-sized array is fresh memory: the kernel hands it out page by page, zeroed, which costs more than
reading the file into it. Each thread therefore keeps one buffer per purpose.
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


def scratch(purpose: str, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An uninitialised C-contiguous array in this thread's buffer for `purpose`; the next call for it reuses the memory."""
    buffers = _buffers.kept
    size = math.prod(shape) * dtype.itemsize
    buffer = buffers.get(purpose)
    if buffer is None or buffer.size < size:
        buffer = buffers[purpose] = np.empty(max(size, 1), np.uint8)
    return np.ndarray(shape, dtype, buffer)
