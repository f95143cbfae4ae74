"""Tensors that are stored as codes and scales: encoded whole groups of native rows at a time.

A scale belongs to many values, and those of one native row may be of several canonical tensors (k and v of one head, gate and up). So a
group of rows is put together from all of them, wherever a transfer meets an element of it. Its codes and scales are written by the
transfer that has its first element, once; the others decode it to know what of theirs was stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

from ckpt_core import numpy as np
from ckpt_core.errors import CkptError
from ckpt_core.layout import Tile
from ckpt_core.lean import dataclass
from ckpt_core.storage.bytes.output import Checksum
from ckpt_core.storage.dtypes import DType, decode, encode
from ckpt_core.storage.scratch import scratch
from ckpt_core.storage.tensor import Operand, Quantised, Quantiser
from ckpt_core.tensors.assembly import LazyParameter
from ckpt_core.tensors.box import Box, tile_view
from ckpt_core.tensors.quantised import decoded

if TYPE_CHECKING:
    from ckpt_core.tensors.source import SourceFiles

_GROUP = 1 << 18
"""About how many values are encoded together, where fewer rows share a scale."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A native tensor that is stored as codes and scales: where they go, by their operands, and what it is made of.

    `pieces` are the canonical tensors in it, each with a flat tile over its elements; `checksums` are those that each operand is among.
    With `kept` nothing is encoded: the codes and scales that lie there are copied, and there are no pieces.
    """

    quantised: Quantised
    pieces: tuple[tuple[LazyParameter, Tile], ...]
    checksums: tuple[Checksum, ...]
    kept: Quantised | None = None

    @property
    def unit(self) -> int:
        """How many rows share a stored row of some operand: no fewer are encoded together, but at the end of a matrix."""
        all_rows = self.quantised.rows if self.kept is None else 1
        rows = [operand.rows or all_rows for operand in self.quantised.operands]
        return min(math.lcm(*rows), self.quantised.rows)

    @property
    def group(self) -> int:
        """How many rows are encoded together."""
        return self.unit * max(1, _GROUP // (self.unit * self.quantised.columns))

    @property
    def bytes_of_group(self) -> int:
        """How many bytes the rows that are encoded together take as float32."""
        return 4 * min(self.group, self.quantised.rows) * self.quantised.columns

    @property
    def bytes_of_unit(self) -> int:
        """How many bytes the fewest rows that are encoded together take as float32."""
        return 4 * self.unit * self.quantised.columns


@dataclass(frozen=True, slots=True)
class Stored:
    """A run of bytes of one operand: where it goes, in an output file."""

    operand: Operand
    checksum: Checksum
    offset: int
    data: np.ndarray


class Encoder:
    """Encodes the groups of one tensor as a transfer meets them. It keeps the last one: boxes that follow each other share one."""

    def __init__(self, encoded: Encoded, dtype: DType, source: SourceFiles) -> None:
        self._encoded, self.dtype, self._source = encoded, dtype, source
        self._last: tuple[tuple[int, int], list[Stored], np.ndarray] | None = None

    def groups(
        self, tile: Tile, current: tuple[LazyParameter, Box, np.ndarray]
    ) -> Iterator[tuple[Tile, np.ndarray, list[Stored]]]:
        """Each group of rows that a flat tile touches: the part of the tile in it, the values of that part as they are stored, which
        have the shape of its links, and what is to be written of the group here. `current` are the values that are at hand."""
        held, group = self._encoded.quantised, self._encoded.group
        first = tile.native_base[0] // held.columns
        last = (tile.native_base[0] + sum((link.size - 1) * link.stride for link in tile.links)) // held.columns
        for matrix in range(first // held.rows, last // held.rows + 1):
            for row in range(0, held.rows, group):
                start = (matrix * held.rows + row) * held.columns
                stop = start + min(group, held.rows - row) * held.columns
                if parts := tile.cut_native(0, start, stop):
                    stored, values = self._group(matrix, row, start, stop, current)
                    own = tile.cut_native(0, start, start + 1)
                    for number, part in enumerate(parts):
                        yield part, _elements(values, part, start), stored if own and not number else []

    def _group(
        self, matrix: int, row: int, start: int, stop: int, current: tuple[LazyParameter, Box, np.ndarray]
    ) -> tuple[list[Stored], np.ndarray]:
        if self._last is not None and self._last[0] == (matrix, row):
            return self._last[1:]
        held, rows = self._encoded.quantised, (stop - start) // self._encoded.quantised.columns
        arrays = self._copied(matrix, row, rows) or self._quantised(row, start, stop, current)
        stored = []
        for operand, checksum, array in zip(held.stored, self._encoded.checksums, arrays, strict=False):
            if operand in held.beside:
                offset = operand.stored.offset
            else:
                offset = operand.place(held.matrices, matrix, operand.span(held.matrices, row, rows)[0])
            if operand.rows or row == 0:  # what belongs to all rows is written with the first
                stored.append(Stored(operand, checksum, offset, np.ascontiguousarray(array)))
        numbers = decoded(held, arrays[: len(held.operands)], row, rows)
        found = encode(numbers, self.dtype).reshape(-1)
        self._last = (matrix, row), stored, found
        return stored, found

    def _copied(self, matrix: int, row: int, rows: int) -> list[np.ndarray]:
        """The codes and scales of a group as they lie in the source, where they are kept."""
        held = self._encoded.kept
        return [] if held is None else self._source.stored(held, matrix, row, rows)

    def _quantised(
        self, row: int, start: int, stop: int, current: tuple[LazyParameter, Box, np.ndarray]
    ) -> Sequence[np.ndarray]:
        """The codes and scales of a group, encoded."""
        held = self._encoded.quantised
        values = scratch("values", (stop - start,), np.dtype(np.float32))  # pieces cover every element
        for assembly, tile in self._encoded.pieces:
            for part in tile.cut_native(0, start, stop):
                _elements(values, part, start)[...] = self._floats(assembly, part, current)
        try:
            return cast(Quantiser, held.scheme).encode(values.reshape(-1, held.columns), row)
        except CkptError as problem:
            problem.problem = f"{held.operands[0].name!r} can't be quantised: {problem.problem}"
            raise

    def _floats(
        self, assembly: LazyParameter, part: Tile, current: tuple[LazyParameter, Box, np.ndarray]
    ) -> np.ndarray:
        """The values of the elements of a tile, float32, in the shape of its links."""
        box = _around(part)
        known, place, values = current
        if assembly.parameter.name == known.parameter.name and _inside(box, place):
            return decode(np.ascontiguousarray(tile_view(values, part, place)), assembly.value_dtype)
        return decode(
            np.ascontiguousarray(tile_view(self._source.read(assembly, box), part, box)), assembly.value_dtype
        )


def _elements(flat: np.ndarray, part: Tile, start: int) -> np.ndarray:
    """The elements of a flat tile as a view of a native tensor's elements from `start` on, in the shape of its links."""
    sizes = [link.size for link in part.links]
    strides = [link.stride * flat.itemsize for link in part.links]
    return np.lib.stride_tricks.as_strided(flat[part.native_base[0] - start :], sizes, strides)


def _around(tile: Tile) -> Box:
    """The smallest box that holds a tile."""
    last = list(tile.canonical_base)
    for link in tile.links:
        last[link.axis] += (link.size - 1) * link.step
    return tuple((first, stop + 1) for first, stop in zip(tile.canonical_base, last, strict=True))


def _inside(box: Box, other: Box) -> bool:
    return all(low <= start and stop <= high for (start, stop), (low, high) in zip(box, other, strict=True))
