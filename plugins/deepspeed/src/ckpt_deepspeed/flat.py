"""Tensors kept as ranges of a flattened one: what ZeRO makes of a model's parameters.

The pieces of a tensor, put one after the other, are its elements row by row. A range of a flattened tensor is at most
a few boxes of the tensor itself (the end of a row, whole rows, the beginning of a row), so that a tensor in pieces is
a tensor in shards, as any other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from ckpt_core.sdk import StoredTensor, lazy, schema


@schema.dataclass(frozen=True, slots=True)
class Flat:
    """A tensor in pieces, each a contiguous one-dimensional range of a file. `shape` is None where no file says it."""

    pieces: tuple[StoredTensor, ...]
    shape: tuple[int, ...] | None = None

    @property
    def elements(self) -> int:
        return sum(piece.elements for piece in self.pieces)


Kept = Flat | StoredTensor
"""A parameter as files keep it."""


def piece(stored: StoredTensor, start: int, count: int) -> StoredTensor:
    """Elements [start, start + count) of a one-dimensional tensor."""
    return replace(stored, shape=(count,), strides=(1,), offset=stored.offset + start * stored.dtype.size)


def pieces_of(sequence: Sequence[StoredTensor], start: int, count: int) -> tuple[StoredTensor, ...]:
    """Elements [start, start + count) of one-dimensional tensors put one after the other; fewer if they end before."""
    found, position = [], 0
    for stored in sequence:
        low, high = max(start, position), min(start + count, position + stored.elements)
        if low < high:
            found.append(piece(stored, low - position, high - low))
        position += stored.elements
    return tuple(found)


def shards_of(kept: Kept, shape: tuple[int, ...] | None = None) -> list[lazy.Shard]:
    """A parameter as shards: of its own shape, or of `shape` where no file says it."""
    if isinstance(kept, StoredTensor):
        return lazy.whole(kept)
    shape = kept.shape if kept.shape is not None else shape
    if shape is None or kept.elements != math.prod(shape):
        return [
            lazy.Shard((0,), piece(stored, 0, stored.elements)) for stored in kept.pieces
        ]  # fits nothing, and is told so
    starts = itertools.accumulate((stored.elements for stored in kept.pieces), initial=0)
    return lazy.ranges_as_shards(shape, zip(starts, kept.pieces, strict=False))
