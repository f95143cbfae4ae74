"""A tensor that is still bytes in a file."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ckpt_core.errors import FormatError
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
class Record:
    """`size` bytes from byte `offset` of `file` on whose CRC-32 the file tells: a member of a zip archive."""

    file: str
    name: str
    offset: int
    size: int
    crc: int

    @property
    def key(self) -> str:
        """What tells it from all others."""
        return f"{self.offset} {self.file}"

    def check(self, crc: int) -> None:
        """`FormatError` if the CRC-32 of its bytes is not the one that the file tells."""
        if crc != self.crc:
            raise FormatError(
                f"the record {self.name!r} is damaged: its checksum is wrong",
                file=self.file,
                found=f"CRC-32 {crc:08x} of the {self.size} bytes from byte {self.offset} on",
                expected=f"{self.crc:08x}",
                fix="copy the file again",
            )


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Shape and dtype of a tensor, and where its elements lie in a file.

    `offset` is the byte position of element (0, ..., 0); `strides` count elements
    and are row-major unless the framework saved a view (torch does). `record` is what it lies in, where that has a checksum.
    """

    file: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]
    record: Record | None = None

    @classmethod
    def contiguous(cls, file: str, dtype: DType, shape: tuple[int, ...], offset: int) -> StoredTensor:
        return cls(file, dtype, shape, offset, contiguous_strides(shape))

    @property
    def elements(self) -> int:
        return math.prod(self.shape)
