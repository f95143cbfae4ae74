"""A tensor that is still bytes in a file."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from ckpt_core import numpy as np
from ckpt_core.errors import FormatError
from ckpt_core.lean import dataclass
from ckpt_core.storage.dtypes import DType


@functools.lru_cache(maxsize=4096)
def _shared(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape and its strides, the same two objects for all tensors of this shape: a model has few shapes and many tensors."""
    return shape, contiguous_strides(shape)


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
    A `quantised` tensor is a view of numbers that no file holds: see there for what `offset` counts.
    """

    file: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]
    record: Record | None = None
    quantised: Quantised | None = None

    @classmethod
    def contiguous(cls, file: str, dtype: DType, shape: tuple[int, ...], offset: int) -> StoredTensor:
        shape, strides = _shared(shape)
        return cls(file, dtype, shape, offset, strides)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def moved_to(self, file: str, offsets: Mapping[str, int]) -> StoredTensor:
        """A quantised tensor whose operands lie in a file, at `offsets` by their names."""
        held = self.quantised
        assert held is not None
        operands, beside = (
            tuple(one.moved_to(file, offsets[one.name]) for one in part) for part in (held.operands, held.beside)
        )
        return replace(self, file=file, quantised=replace(held, operands=operands, beside=beside))


class Scheme(Protocol):
    """How the numbers of matrices are computed of what is stored in their place: a frozen dataclass, for plans compare, print and
    pickle it."""

    def decode(self, stored: Sequence[np.ndarray], first: int, rows: int) -> np.ndarray:
        """Rows `first` to `first + rows` of a matrix, float32 [rows, columns].

        `stored` has an array for each operand: its rows that belong to them, [stored rows, width], as raw elements, or as float32
        if it is a scale. Where several rows of numbers share one stored row, the first of them may be before `first`. What is
        returned is used before the next rows are computed: it may lie in a buffer of the thread (`lazy.scratch`).
        """
        ...


class Quantiser(Scheme, Protocol):
    """A scheme by which values are stored, too."""

    def encode(self, values: np.ndarray, first: int) -> Sequence[np.ndarray]:
        """What is stored of rows of a matrix from row `first` on, float32 [rows, columns]: for each operand its rows,
        [stored rows, width], as raw elements. `CkptError` for values that can't be stored."""
        ...


@dataclass(frozen=True, slots=True)
class Operand:
    """A stored tensor that numbers are computed of, called `name` in its file: codes, scales, zero points.

    Its rows have `width` elements. `stored_rows` of them belong to `rows` rows of numbers, the last of them perhaps to fewer; with
    `rows` 0 all of them belong to every row of a matrix. `scale`: values are multiplied or divided by its own, which must be finite; bytes are exponents (E8M0).
    """

    name: str
    stored: StoredTensor
    width: int
    rows: int = 1
    stored_rows: int = 1
    scale: bool = False

    def moved_to(self, file: str, offset: int) -> Operand:
        """The same, to be stored at byte `offset` of a file."""
        stored = self.stored
        there = StoredTensor(file, stored.dtype, stored.shape, offset, stored.strides, quantised=stored.quantised)
        return Operand(self.name, there, self.width, self.rows, self.stored_rows, self.scale)

    def span(self, matrices: int, first: int, rows: int) -> tuple[int, int]:
        """Which stored rows of a matrix belong to `rows` rows of numbers from row `first` on: (start, stop)."""
        each = self.stored.elements // self.width // matrices
        if not self.rows:
            return 0, each
        last = -(-(first + rows) // self.rows) * self.stored_rows
        return first // self.rows * self.stored_rows, min(each, last)

    def place(self, matrices: int, matrix: int, start: int) -> int:
        """The byte in the file at which stored row `start` of a matrix begins."""
        each = self.stored.elements // self.width // matrices
        return self.stored.offset + (matrix * each + start) * self.width * self.stored.dtype.size


@dataclass(frozen=True, slots=True)
class Quantised:
    """Numbers that are computed of `operands`: `matrices` of them, each of [rows, columns].

    `beside` lies with them in the files and no number depends on it (a scale of activations): it goes along where codes are kept.
    `what` is the scheme in words. `exact`: the dtype of its tensors holds every number as it is.

    A `StoredTensor` of them is a view of all the matrices as they would lie in memory, row by row: its `offset` counts the bytes
    that its dtype, to which the numbers are rounded, would take there, and its `file` is that of the first operand.
    """

    scheme: Scheme
    operands: tuple[Operand, ...]
    matrices: int
    rows: int
    columns: int
    beside: tuple[Operand, ...] = ()
    what: str = "codes and scales"
    exact: bool = False

    @property
    def stored(self) -> tuple[Operand, ...]:
        """Everything of it that lies in files."""
        return (*self.operands, *self.beside)

    def tensor(self, dtype: DType, shape: tuple[int, ...]) -> StoredTensor:
        """All of the numbers as a tensor of `shape`, in row-major order, rounded to `dtype`."""
        if math.prod(shape) != self.matrices * self.rows * self.columns:
            raise ValueError(f"{self.matrices} matrices [{self.rows}, {self.columns}] are no tensor of shape {shape}")
        shape, strides = _shared(shape)
        return StoredTensor(self.operands[0].stored.file, dtype, shape, 0, strides, quantised=self)

    @property
    def files(self) -> frozenset[str]:
        """The files that operands lie in."""
        return frozenset(operand.stored.file for operand in self.stored)

    @property
    def stored_bytes(self) -> int:
        """How many bytes of files hold the numbers."""
        return sum(operand.stored.elements * operand.stored.dtype.size for operand in self.stored)


@dataclass(frozen=True)
class StateDict:
    """The named tensors of a file; where they lie under a key `wrapper`, `beside` is what else the file holds, in words."""

    tensors: dict[str, StoredTensor]
    wrapper: str = ""
    beside: tuple[str, ...] = ()
