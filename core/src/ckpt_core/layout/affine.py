"""Where the elements of a canonical parameter lie in a native tensor: affine maps, and cutting them.

A `Tile` says: for indices i_1 .. i_n within the sizes of its links,

    canonical index on axis a = canonical_base[a] + sum of link.step   * i   over links with that axis
    native index in dim m     = native_base[m]    + sum of link.stride * i   over links with that dim

so it is a bijection between a part of a parameter and a part of a native tensor. Cutting a tile
by a range on either side gives smaller tiles; that one operation serves shards on disk, chunks in
memory and slices a user asks for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple


# Links and tiles are tuples, because a plan has hundreds of thousands: they are made, hashed and compared without running Python code.
class Link(NamedTuple):
    """One loop of a tile: `size` indices, `step` apart on canonical `axis`, `stride` apart in native `dim`."""

    size: int
    axis: int
    step: int
    dim: int
    stride: int


class Tile(NamedTuple):
    """A part of a canonical parameter and its place in a native tensor; see the module's docstring."""

    links: tuple[Link, ...]
    canonical_base: tuple[int, ...]
    native_base: tuple[int, ...]

    @property
    def elements(self) -> int:
        return _elements(self.links)

    def cut_canonical(self, axis: int, start: int, stop: int) -> list[Tile]:
        """The parts of the tile whose canonical index on `axis` lies in [start, stop)."""
        loops = [(n, link.step, link.size) for n, link in enumerate(self.links) if link.axis == axis]
        return self._parts(loops, self.canonical_base[axis], start, stop)

    def cut_native(self, dim: int, start: int, stop: int) -> list[Tile]:
        """The parts of the tile whose native index in `dim` lies in [start, stop)."""
        loops = [(n, link.stride, link.size) for n, link in enumerate(self.links) if link.dim == dim]
        return self._parts(loops, self.native_base[dim], start, stop)

    def _parts(self, loops: list[tuple[int, int, int]], base: int, start: int, stop: int) -> list[Tile]:
        last = base
        for _, step, size in loops:
            last += step * (size - 1)
        if last < start or stop <= base:  # most cuts are of these two kinds: outside,
            return []
        if start <= base and last < stop:  # or inside
            return [self]
        if len(loops) == 1:
            number, step, size = loops[0]
            first, end = max(0, -((base - start) // step)), min(size, -((base - stop) // step))
            return [self._narrowed({number: (first, end - first)})] if first < end else []
        return [self._narrowed(choice) for choice in _cut(_outermost_first(loops), base, start, stop)]

    def _narrowed(self, choice: dict[int, tuple[int, int]]) -> Tile:
        canonical, native, links = list(self.canonical_base), list(self.native_base), list(self.links)
        for n, (start, count) in choice.items():
            link = links[n]
            canonical[link.axis] += start * link.step
            native[link.dim] += start * link.stride
            links[n] = Link(count, link.axis, link.step, link.dim, link.stride)
        return Tile(tuple(links), tuple(canonical), tuple(native))


@functools.lru_cache(1 << 12)
def _elements(links: tuple[Link, ...]) -> int:
    return math.prod(link.size for link in links)


def _outermost_first(loops: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    return sorted(loops, key=lambda loop: -loop[1])


def _cut(loops: list[tuple[int, int, int]], base: int, start: int, stop: int) -> Iterator[dict[int, tuple[int, int]]]:
    """Index ranges (start, count) per loop such that base + sum of step * index lies in [start, stop)."""
    if not loops:
        if start <= base < stop:
            yield {}
        return
    (n, step, size), *inner = loops
    reach = sum(inner_step * (inner_size - 1) for _, inner_step, inner_size in inner)
    first_touched = max(0, -((base + reach - start) // step))
    last_touched = min(size - 1, (stop - 1 - base) // step)
    first_whole = max(0, -((base - start) // step))
    last_whole = min(size - 1, (stop - 1 - reach - base) // step)
    if first_whole > last_whole:
        first_whole, last_whole = last_touched + 1, last_touched
    for index in range(first_touched, first_whole):
        yield from ({n: (index, 1), **choice} for choice in _cut(inner, base + index * step, start, stop))
    if first_whole <= last_whole:
        yield {n: (first_whole, last_whole - first_whole + 1)}
    for index in range(max(last_whole + 1, first_whole), last_touched + 1):
        yield from ({n: (index, 1), **choice} for choice in _cut(inner, base + index * step, start, stop))


def boxes_of_range(shape: tuple[int, ...], start: int, count: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(origin, size) of the boxes that hold elements [start, start + count) of a tensor, in that order."""
    if count and not shape:
        yield (), ()
        return
    row = math.prod(shape[1:])
    while count:
        index, inside = divmod(start, row)
        if whole := count // row if inside == 0 else 0:
            yield (index, *([0] * (len(shape) - 1))), (whole, *shape[1:])
            taken = whole * row
        else:
            taken = min(count, row - inside)
            for origin, size in boxes_of_range(shape[1:], inside, taken):
                yield (index, *origin), (1, *size)
        start, count = start + taken, count - taken
