"""A tensor that is still bytes in a file."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ckpt_core.storage.dtypes import DType


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements.

    >>> contiguous_strides((2, 3, 4))
    (12, 4, 1)
    """
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Shape and dtype of a tensor, and where its elements lie in a file.

    `offset` is the byte position of element (0, ..., 0); `strides` count elements
    and are row-major unless the framework saved a view (torch does).
    """

    file: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]

    @classmethod
    def contiguous(cls, file: str, dtype: DType, shape: tuple[int, ...], offset: int) -> StoredTensor:
        return cls(file, dtype, shape, offset, contiguous_strides(shape))

    @property
    def elements(self) -> int:
        return math.prod(self.shape)
