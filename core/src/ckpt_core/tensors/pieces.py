"""Pieces: ranges of a canonical tensor's elements, in row-major order, each of which one task moves.

A piece begins where a leaf of the tensor's digest begins (`digest.LEAF`), so its worker hashes whole leaves. It has about
`PIECE` bytes. Such a range is ragged: it has the end of a row, whole rows, and the beginning of a row.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ckpt_core.layout import Tile, boxes_of_range
from ckpt_core.storage.tensor import contiguous_strides
from ckpt_core.tensors import digest
from ckpt_core.tensors.assembly import LazyParameter, StoredPart
from ckpt_core.tensors.box import Box, Loops, loops_of, within

PIECE = 64 << 20
"""About how many bytes a piece has: small enough to share among hundreds of workers, large enough to outweigh the cost of a task."""

_RAGGED = 1 << 20
"""The most bytes of a unit that may be cut anywhere: the runs in the file may become short, but they are few."""


_KEPT = 64
"""The most chunks of a piece for which cuts are cached. A tensor that is not cut may have thousands."""


def step_of(shape: Sequence[int], itemsize: int, tiles: Iterable[Tile]) -> int:
    """How many elements the pieces of a tensor have; `tiles` are its places in the output, `itemsize` is in bytes.

    Where a file has the axes in another order, a cut at any place would leave many short runs. Such a tensor is cut only between whole
    units, whose elements lie together in the file.
    """
    units = {size for tile in tiles if (size := unit(shape, tile)) * itemsize > _RAGGED}
    least = math.lcm(digest.LEAF, *units)
    return least * max(1, PIECE // (least * itemsize))


def size_rule() -> str:
    """The constants on which pieces depend. They are in the hash of the plan, so a run continues only one that cut in the same way."""
    return f"pieces of {PIECE} bytes, leaves of {digest.LEAF} elements"


def unit(shape: Sequence[int], tile: Tile) -> int:
    """How many elements of a tensor lie together in a flat tile. The units follow one another in the tensor's order.

    >>> from ckpt_core.layout import Link
    >>> experts, rows, columns = Link(4, 0, 1, 0, 6), Link(2, 1, 1, 0, 3), Link(3, 2, 1, 0, 1)
    >>> unit((4, 2, 3), Tile((experts, rows, columns), (0, 0, 0), (0,)))
    1
    >>> turned = Link(2, 1, 1, 0, 1), Link(3, 2, 1, 0, 2)
    >>> unit((4, 2, 3), Tile((experts, *turned), (0, 0, 0), (0,)))
    6
    """
    links = sorted((link for link in tile.links if link.size > 1), key=lambda link: (link.axis, -link.step))
    for number, link in enumerate(links):
        if any(link.stride < inner.stride for inner in links[number + 1 :]):
            return math.prod(shape[link.axis :])
    return 1


def ranges(elements: int, step: int) -> list[tuple[int, int]]:
    """The pieces of so many elements. A tensor without elements has one empty piece."""
    return [(start, min(start + step, elements)) for start in range(0, elements, step)] or [(0, 0)]


def boxes_between(shape: Sequence[int], elements: int, start: int, stop: int) -> Iterator[Box]:
    """The elements from `start` to `stop` as boxes of at most `elements`, in row-major order.

    They are the boxes of `boxes.boxes`, cut where the range begins and ends. So chunks begin in the same rows, whatever the pieces.
    """
    inner, axis = 1, len(shape)
    while axis > 0 and inner * shape[axis - 1] <= elements:
        axis -= 1
        inner *= shape[axis]
    if axis == 0:
        yield from _ragged(shape, start, stop)
        return
    rows, step = shape[axis - 1], max(1, elements // inner)
    at = start
    while at < stop:
        block, row = divmod(at // inner, rows)
        last = min(row // step * step + step, rows)
        end = min((block * rows + last) * inner, stop)
        yield from _ragged(shape, at, end)
        at = end


def chunks(shape: tuple[int, ...], elements: int, start: int, stop: int) -> Sequence[Box]:
    """The boxes of `boxes_between`, cached for all tensors of the same shape."""
    made = _chunks if stop - start <= _KEPT * elements else _chunks.__wrapped__
    return made(shape, elements, start, stop)


def cuts(tile: Tile, shape: tuple[int, ...], elements: int, start: int, stop: int) -> Sequence[list[Loops]]:
    """The part of a flat tile in each of `chunks`, cached for all tensors that are alike, as those of different layers are."""
    made = _cuts if stop - start <= _KEPT * elements else _cuts.__wrapped__
    return made(tile, shape, elements, start, stop)


@functools.lru_cache(maxsize=1 << 8)
def _chunks(shape: tuple[int, ...], elements: int, start: int, stop: int) -> list[Box]:
    return list(boxes_between(shape, elements, start, stop))


@functools.lru_cache(maxsize=1 << 8)
def _cuts(tile: Tile, shape: tuple[int, ...], elements: int, start: int, stop: int) -> list[list[Loops]]:
    return [loops_of(tile, box) for box in chunks(shape, elements, start, stop)]


def _ragged(shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    if stop - start == math.prod(shape):  # true also without elements
        yield tuple((0, size) for size in shape)
        return
    for origin, size in boxes_of_range(tuple(shape), start, stop - start):
        yield tuple((low, low + extent) for low, extent in zip(origin, size, strict=True))


def extent(shape: Sequence[int], tile: Tile) -> tuple[int, int]:
    """The smallest range that has all elements of a tile."""
    steps = contiguous_strides(tuple(shape))
    first = sum(base * step for base, step in zip(tile.canonical_base, steps, strict=True))
    return first, first + sum((link.size - 1) * link.step * steps[link.axis] for link in tile.links) + 1


def parts_of(shape: Sequence[int], tile: Tile, start: int, stop: int) -> list[Tile]:
    """The parts of a tile that lie in a range."""
    first, end = extent(shape, tile)
    if start <= first and end <= stop:
        return [tile]
    if end <= start or stop <= first:
        return []
    return [part for box in _ragged(shape, start, stop) for part in within(tile, box)]


def counted(shape: Sequence[int], tile: Tile, step: int) -> Iterator[tuple[int, int]]:
    """(number, elements) of the pieces of `step` elements that a tile has some of."""
    first, end = extent(shape, tile)
    low, high = first // step, (end - 1) // step
    if low == high:
        yield low, tile.elements
        return
    for number in range(low, high + 1):
        parts = parts_of(shape, tile, number * step, min((number + 1) * step, math.prod(shape)))
        if elements := sum(part.elements for part in parts):
            yield number, elements


def dealt(shape: Sequence[int], tiles: Iterable[Tile], step: int) -> list[list[tuple[int, int]]]:
    """For each piece, in their order: (number of a tile, elements) of the tiles that it has some of."""
    found: list[list[tuple[int, int]]] = [[] for _ in ranges(math.prod(shape), step)]
    for number, tile in enumerate(tiles):
        for piece, elements in counted(shape, tile, step):
            found[piece].append((number, elements))
    return found


def cut(assembly: LazyParameter, step: int) -> list[tuple[LazyParameter, int]]:
    """For each piece: the tensor with only those of its blocks that have some of the piece's elements, and the bytes to read.

    Only the elements of the piece can be read from it. Other tensors that the tensor is made of stay whole.
    """
    shape, merged = assembly.parameter.shape, assembly.merged
    lists = assembly.blocks, assembly.copies, assembly.rounded
    pieces = [dealt(shape, (block.tile for block in blocks), step) for blocks in lists]
    bases = [(None, 0) for _ in pieces[0]] if merged is None else cut(merged.base, step)
    found = []
    for *parts, (base, read) in zip(*pieces, bases, strict=True):
        some = [tuple(blocks[number] for number, _ in part) for blocks, part in zip(lists, parts, strict=True)]
        read += sum(
            share(blocks[number], elements)
            for blocks, part in zip(lists, parts, strict=True)
            for number, elements in part
        )
        over = None if merged is None or base is None else replace(merged, base=base)
        found.append((replace(assembly, blocks=some[0], copies=some[1], rounded=some[2], merged=over), read))
    return found


def share(block: StoredPart, elements: int) -> int:
    """The bytes of so many elements of a block."""
    return block.stored_bytes * elements // block.tile.elements
