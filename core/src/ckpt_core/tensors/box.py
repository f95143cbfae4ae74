"""Boxes of a tensor: parts that are read, computed and written at a time, and what a tile covers of them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ckpt_core import numpy as np
from ckpt_core.layout import Link, Tile
from ckpt_core.storage.tensor import contiguous_strides

_steps = functools.lru_cache(maxsize=1 << 12)(contiguous_strides)

Box = tuple[tuple[int, int], ...]
"""A part of a tensor: (start, stop) per axis."""


def within(tile: Tile, box: Box) -> list[Tile]:
    """The parts of a tile inside a box."""
    first, last = tile.canonical_base, list(tile.canonical_base)
    for link in tile.links:
        last[link.axis] += link.step * (link.size - 1)
    cut = []
    for axis, (start, stop) in enumerate(box):
        if last[axis] < start or stop <= first[axis]:
            return []
        if first[axis] < start or stop <= last[axis]:
            cut.append((axis, start, stop))
    tiles = [tile]
    for axis, start, stop in cut:
        tiles = [part for one in tiles for part in one.cut_canonical(axis, start, stop)]
    return tiles


def tile_view(raw: np.ndarray, tile: Tile, box: Box) -> np.ndarray:
    """The elements of a box that a tile covers, as a writable view of the box's values.

    `raw` has the shape of `box`, (stop - start) for each axis, and is C-contiguous; the view has an axis for each link of the
    tile, of the link's size.
    """
    steps = _steps(raw.shape)
    sizes = [link.size for link in tile.links]
    strides = [link.step * steps[link.axis] * raw.itemsize for link in tile.links]
    return np.ndarray(sizes, raw.dtype, raw, _first(tile, box, steps) * raw.itemsize, strides)


class Loops(NamedTuple):
    """Elements of a box and where they lie in a file, as loops over both: the slowest of the file first, and those that are one in both
    places are one.
    """

    start: int
    """The first of them, among the values of the box."""
    offset: int
    """Where it lies in the file, in elements."""
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    """Of the loops in the file, in elements."""
    inside: tuple[int, ...]
    """Of the loops among the values of the box, in elements."""

    def view(self, raw: np.ndarray) -> np.ndarray:
        """The elements as a writable view of the box's values, C-contiguous, with an axis for each loop."""
        if self.inside == (1,):
            return raw.reshape(-1)[self.start : self.start + self.sizes[0]]
        size = raw.itemsize
        return np.ndarray(self.sizes, raw.dtype, raw, self.start * size, _in_bytes(self.inside, size))


@functools.lru_cache(maxsize=1 << 10)
def _in_bytes(steps: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    return tuple(step * itemsize for step in steps)


def loops_of(tile: Tile, box: Box) -> list[Loops]:
    """Where the elements of a box lie that a flat tile covers."""
    steps = _steps(tuple(stop - start for start, stop in box))
    return [Loops(_first(one, box, steps), one.native_base[0], *_loops(one.links, steps)) for one in within(tile, box)]


def _first(tile: Tile, box: Box, steps: Sequence[int]) -> int:
    """The first element of a tile among the values of a box."""
    return sum((base - low) * step for base, (low, _), step in zip(tile.canonical_base, box, steps, strict=True))


@functools.lru_cache(maxsize=1 << 12)
def _loops(links: tuple[Link, ...], steps: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The sizes of the loops of a flat tile, their strides in the file, and those in a box: once for all boxes and tensors that are alike."""
    loops = sorted(
        ((link.size, link.stride, link.step * steps[link.axis]) for link in links if link.size != 1),
        key=lambda loop: -loop[1],
    )
    merged: list[tuple[int, int, int]] = []
    for size, stride, step in loops or [(1, 1, 1)]:
        if merged and merged[-1][1] == size * stride and merged[-1][2] == size * step:
            size *= merged.pop()[0]
        merged.append((size, stride, step))
    sizes, strides, inside = zip(*merged, strict=True)
    return sizes, strides, inside


def boxes(shape: Sequence[int], elements: int) -> Iterator[Box]:
    """Cut a shape into boxes of at most `elements` elements, in row-major order; a single element is never cut."""
    inner = 1
    axis = len(shape)
    while axis > 0 and inner * shape[axis - 1] <= elements:
        axis -= 1
        inner *= shape[axis]
    if axis == 0:
        yield tuple((0, size) for size in shape)
        return
    step = max(1, elements // inner)
    rest = tuple((0, size) for size in shape[axis:])
    for index in np.ndindex(*shape[: axis - 1]):
        fixed = tuple((i, i + 1) for i in index)
        for start in range(0, shape[axis - 1], step):
            yield (*fixed, (start, min(start + step, shape[axis - 1])), *rest)
