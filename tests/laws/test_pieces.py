"""Cutting tensors: pieces have every element once, in whatever chunks, and know just the blocks that hold some of theirs."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_core.layout import Link, Tile
from ckpt_core.tensors import digest, pieces
from ckpt_core.tensors.box import boxes
from ckpt_core.tensors.pieces import boxes_between, counted, dealt, ranges, step_of, unit

SHAPES = st.lists(st.integers(1, 7), max_size=4).map(tuple)


def elements_of(shape: tuple[int, ...], box: tuple[tuple[int, int], ...]) -> list[int]:
    """The numbers of the elements of a box, in row-major order."""
    return np.arange(math.prod(shape)).reshape(shape)[tuple(slice(*side) for side in box)].reshape(-1).tolist()


@st.composite
def tiles(draw: st.DrawFn) -> tuple[tuple[int, ...], Tile]:
    """A shape and a flat tile of it: some ranges of its axes, each axis in one loop or in two, in any order in the file."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3).map(tuple))
    links, base = [], []
    for axis, size in enumerate(shape):
        low = draw(st.integers(0, size - 1))
        extent = draw(st.integers(1, size - low))
        base.append(low)
        half = draw(st.sampled_from([one for one in (1, 2, 3) if extent % one == 0]))
        links += [(extent // half, axis, half), (half, axis, 1)]
    order = draw(st.permutations(links))
    stride, placed = 1, []
    for size, axis, step in reversed(order):
        placed.append(Link(size, axis, step, 0, stride))
        stride *= size
    return shape, Tile(tuple(draw(st.permutations(placed))), tuple(base), (draw(st.integers(0, 9)),))


def canonical(shape: tuple[int, ...], tile: Tile) -> list[tuple[int, int]]:
    """(place in the file, number of the element) of all elements of a tile."""
    numbers = np.arange(math.prod(shape)).reshape(shape)
    found = []
    for index in itertools.product(*(range(link.size) for link in tile.links)):
        place = list(tile.canonical_base)
        for i, link in zip(index, tile.links, strict=True):
            place[link.axis] += i * link.step
        native = tile.native_base[0] + sum(i * link.stride for i, link in zip(index, tile.links, strict=True))
        found.append((native, int(numbers[tuple(place)])))
    return sorted(found)


@given(st.integers(0, 99), st.integers(1, 40))
def test_pieces_have_each_element_once(elements: int, step: int) -> None:
    found = ranges(elements, step)
    assert [number for start, stop in found for number in range(start, stop)] == list(range(elements))
    assert all(start % step == 0 for start, _ in found) and found


@given(SHAPES, st.integers(1, 60), st.data())
def test_boxes_of_a_piece_are_those_of_its_tensor(shape: tuple[int, ...], chunk: int, data: st.DataObject) -> None:
    """In order, each element once, and none of them across two boxes of the whole tensor."""
    total = math.prod(shape)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    found = [elements_of(shape, box) for box in boxes_between(shape, chunk, start, stop)]
    assert [number for box in found for number in box] == list(range(start, stop))
    whole = {number: index for index, box in enumerate(boxes(shape, chunk)) for number in elements_of(shape, box)}
    assert all(len({whole[number] for number in box}) == 1 for box in found)
    assert list(boxes_between(shape, chunk, 0, total)) == list(boxes(shape, chunk))


@settings(max_examples=200)
@given(tiles(), st.integers(1, 40))
def test_a_tile_is_known_to_the_pieces_that_have_some_of_it(placed: tuple, step: int) -> None:
    shape, tile = placed
    expected = Counter(number // step for _, number in canonical(shape, tile))
    assert dict(counted(shape, tile, step)) == expected
    found = dealt(shape, [tile, tile], step)
    assert len(found) == len(ranges(math.prod(shape), step))
    for piece, known in enumerate(found):
        assert known == ([(0, expected[piece]), (1, expected[piece])] if expected[piece] else [])


@settings(max_examples=200)
@given(tiles())
def test_units_lie_in_the_order_of_the_tensor(placed: tuple) -> None:
    """In the file, no element of a unit lies among those of another one."""
    shape, tile = placed
    size = unit(shape, tile)
    assert math.prod(shape) % size == 0
    units = [number // size for _, number in canonical(shape, tile)]
    assert units == sorted(units)


@given(tiles(), st.integers(1, 30), st.integers(1, 99), st.integers(1, 4), st.integers(0, 40))
def test_a_piece_begins_with_a_leaf_and_with_a_unit(
    placed: tuple, leaf: int, piece: int, itemsize: int, ragged: int
) -> None:
    shape, tile = placed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "LEAF", leaf)
        patch.setattr(pieces, "PIECE", piece)
        patch.setattr(pieces, "_RAGGED", ragged)
        step = step_of(shape, itemsize, [tile])
    assert step % leaf == 0
    size = unit(shape, tile)
    assert size * itemsize <= ragged or step % size == 0
    assert step * itemsize <= max(piece, math.lcm(leaf, size) * itemsize)
