"""Tensors of a distributed optimizer that are stored flat (`fully_sharded_model_space`).

A model tensor of shape [L, 2F, H] that tensor parallel ranks cut into four along its second axis is kept as
[L, 4, 1, F/2 * H]: how many shards there are along each axis, then the elements of one shard. Data parallel ranks
cut the last axis again, wherever their share of all parameters ends.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from ckpt_core.sdk import StoredTensor, chunked, dtypes, schema


@schema.dataclass(frozen=True)
class FlattenedTensor:
    """A tensor of `shape`, of which `flat` has the shards."""

    flat: chunked.ChunkedTensor
    shape: tuple[int, ...]

    @property
    def dtype(self) -> dtypes.DType:
        return self.flat.dtype

    def stored(self) -> Iterator[tuple[tuple[int, ...], StoredTensor]]:
        """The origin of each box that lies in one piece, and its bytes."""
        shard = tuple(size // count for size, count in zip(self.shape, self.flat.shape, strict=False))
        for origin, stored in self.flat.stored():
            for index in itertools.product(*map(range, stored.shape[:-1])):
                corner = [(first + step) * size for first, step, size in zip(origin, index, shard, strict=False)]
                skipped = sum(step * stride for step, stride in zip(index, stored.strides, strict=False))
                start = origin[-1]
                for inside, sizes, at in boxes(shard, start, start + stored.shape[-1]):
                    place = tuple(first + step for first, step in zip(corner, inside, strict=True))
                    offset = stored.offset + (skipped + at - start) * stored.dtype.size
                    yield place, StoredTensor.contiguous(stored.file, stored.dtype, sizes, offset)


def unflattened(flat: chunked.ChunkedTensor, shape: tuple[int, ...]) -> FlattenedTensor | None:
    """The tensor of `shape` that `flat` holds shard by shard, or None if it can't be one."""
    *grid, elements = flat.shape or (0,)
    if len(grid) != len(shape) or any(not count or size % count for size, count in zip(shape, grid, strict=True)):
        return None
    return FlattenedTensor(flat, shape) if math.prod(grid) * elements == math.prod(shape) else None


def boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """The boxes that make up a range of a tensor's elements in row-major order: origin, shape, first element.

    >>> list(boxes((3, 4), 3, 9))
    [((0, 3), (1, 1), 3), ((1, 0), (1, 4), 4), ((2, 0), (1, 1), 8)]
    """
    if start >= stop:
        return
    if len(shape) < 2:
        yield (start,) * len(shape), (stop - start,) * len(shape), start
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # the rows that are whole
    if first > last:  # a part of one row
        for origin, sizes, at in boxes(shape[1:], start - last * row, stop - last * row):
            yield (last, *origin), (1, *sizes), at + last * row
        return
    yield from _part(shape, first - 1, start, first * row)
    if first < last:
        yield (first, *([0] * (len(shape) - 1))), (last - first, *shape[1:]), first * row
    yield from _part(shape, last, last * row, stop)


def _part(
    shape: Sequence[int], row: int, start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int]]:
    begin = row * math.prod(shape[1:])
    for origin, sizes, at in boxes(shape[1:], start - begin, stop - begin):
        yield (row, *origin), (1, *sizes), at + begin
