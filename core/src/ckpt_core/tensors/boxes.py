"""Boxes of a tensor: parts that are read, computed and written at a time, and what a tile covers of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ckpt_core.layout import Tile
from ckpt_core.storage.tensor import contiguous_strides

Box = tuple[tuple[int, int], ...]
"""A part of a tensor: (start, stop) per axis."""


def within(tile: Tile, box: Box) -> list[Tile]:
    """The parts of a tile inside a box."""
    tiles = [tile]
    for axis, (start, stop) in enumerate(box):
        tiles = [part for one in tiles for part in one.cut_canonical(axis, start, stop)]
    return tiles


def tile_view(raw: np.ndarray, tile: Tile, box: Box) -> np.ndarray:
    """The elements of a box that a tile covers, as a writable view of the box's values.

    `raw` has the shape of `box`, (stop - start) for each axis, and is C-contiguous; the view has an axis for each link of the
    tile, of the link's size.
    """
    steps = contiguous_strides(raw.shape)
    start = sum((base - low) * step for base, (low, _), step in zip(tile.canonical_base, box, steps, strict=True))
    flat = raw.reshape(-1)[start:]
    sizes = [link.size for link in tile.links]
    strides = [link.step * steps[link.axis] * raw.itemsize for link in tile.links]
    return np.lib.stride_tricks.as_strided(flat, sizes, strides)


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
