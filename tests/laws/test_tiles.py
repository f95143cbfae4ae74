"""Cutting affine maps, cutting shapes into boxes, and moving strided boxes to and from files."""

from __future__ import annotations

import math
import tempfile
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_core.errors import FormatError
from ckpt_core.layout import Link, Tile
from ckpt_core.storage.bytes.files import pread_into, pwrite_all
from ckpt_core.storage.dtypes import FP32
from ckpt_core.storage.tensor import StoredTensor, contiguous_strides
from ckpt_core.tensors.assembly import Shard, flat_tile, tiles_exactly
from ckpt_core.tensors.box import boxes, loops_of, tile_view
from ckpt_core.tensors.strided import read_box, runs
from ckpt_tests.packing import points


@st.composite
def tiles(draw: st.DrawFn) -> Tile:
    """A bijection between parts of two index spaces of one to three dimensions, with gaps and offsets on both sides."""
    axes, dims = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(1, 4), min_size=0, max_size=5))
    axis = [draw(st.integers(0, axes - 1)) for _ in sizes]
    dim = [draw(st.integers(0, dims - 1)) for _ in sizes]

    def steps(places: list[int]) -> list[int]:
        """Mixed-radix steps per place, in a drawn nesting order; a step may leave a gap."""
        found = [0] * len(places)
        for place in set(places):
            step = draw(st.integers(1, 2))
            for n in draw(st.permutations([n for n, here in enumerate(places) if here == place])):
                found[n] = step
                step *= sizes[n] + draw(st.integers(0, 1))
        return found

    links = tuple(Link(*numbers) for numbers in zip(sizes, axis, steps(axis), dim, steps(dim), strict=True))
    base = st.integers(0, 3)
    return Tile(links, tuple(draw(base) for _ in range(axes)), tuple(draw(base) for _ in range(dims)))


@settings(max_examples=300)
@given(tiles(), st.data())
def test_a_cut_keeps_exactly_what_lies_in_the_range(tile: Tile, data: st.DataObject) -> None:
    start = data.draw(st.integers(-1, 20))
    stop = data.draw(st.integers(start, 40))
    for side, cut, places in (
        (0, tile.cut_canonical, len(tile.canonical_base)),
        (1, tile.cut_native, len(tile.native_base)),
    ):
        for place in range(places):
            kept = [point for part in cut(place, start, stop) for point in points(part)]
            expected = [point for point in points(tile) if start <= point[side][place] < stop]
            assert sorted(kept) == sorted(expected)


@given(tiles())
def test_cutting_everywhere_gives_single_elements(tile: Tile) -> None:
    parts = [tile]
    for dim, low in enumerate(tile.native_base):
        high = low + 1 + sum((link.size - 1) * link.stride for link in tile.links if link.dim == dim)
        parts = [cut for part in parts for index in range(low, high) for cut in part.cut_native(dim, index, index + 1)]
    assert all(part.elements == 1 for part in parts)
    assert sorted(point for part in parts for point in points(part)) == sorted(points(tile))


@given(tiles())
def test_elements_counts_the_points(tile: Tile) -> None:
    assert tile.elements == len(points(tile)) == len(set(points(tile)))


@given(tiles(), st.data())
def test_a_flat_tile_counts_elements_of_a_row_major_tensor(tile: Tile, data: st.DataObject) -> None:
    shape = [
        low + 1 + sum((link.size - 1) * link.stride for link in tile.links if link.dim == dim)
        for dim, low in enumerate(tile.native_base)
    ]
    origin = [data.draw(st.integers(0, low)) for low in tile.native_base]
    strides = contiguous_strides(tuple(size - zero for size, zero in zip(shape, origin, strict=True)))
    flat = [
        (canonical, (sum((i - zero) * step for i, zero, step in zip(native, origin, strides, strict=True)),))
        for canonical, native in points(tile)
    ]
    assert points(flat_tile(tile, strides, origin)) == flat


@given(tiles(), st.data())
def test_a_tile_view_shows_the_tile_inside_a_box(tile: Tile, data: st.DataObject) -> None:
    shape = [1 + max(canonical[axis] for canonical, _ in points(tile)) for axis in range(len(tile.canonical_base))]
    whole = np.arange(math.prod(shape)).reshape(shape)
    box = tuple(sorted((data.draw(st.integers(0, size)), data.draw(st.integers(0, size)))) for size in shape)
    box = tuple((low, high) for low, high in box)
    inside = np.ascontiguousarray(whole[tuple(slice(*bounds) for bounds in box)])
    parts = [tile]
    for axis, bounds in enumerate(box):
        parts = [part for one in parts for part in one.cut_canonical(axis, *bounds)]
    for part in parts:
        assert list(tile_view(inside, part, box).reshape(-1)) == [whole[canonical] for canonical, _ in points(part)]


@given(tiles(), st.data())
def test_loops_have_the_elements_of_a_tile_in_the_order_of_the_file(tile: Tile, data: st.DataObject) -> None:
    shape = [1 + max(canonical[axis] for canonical, _ in points(tile)) for axis in range(len(tile.canonical_base))]
    whole = np.arange(math.prod(shape)).reshape(shape)
    box = tuple(sorted((data.draw(st.integers(0, size)), data.draw(st.integers(0, size)))) for size in shape)
    box = tuple((low, high) for low, high in box)
    inside = np.ascontiguousarray(whole[tuple(slice(*bounds) for bounds in box)])
    reach = [1 + max(native[dim] for _, native in points(tile)) for dim in range(len(tile.native_base))]
    flat = flat_tile(tile, contiguous_strides(tuple(reach)))
    seen = {}
    for loops in loops_of(flat, box):
        view = loops.view(inside)
        assert list(loops.strides) == sorted(loops.strides, reverse=True)
        for index in np.ndindex(*view.shape):
            place = loops.offset + sum(i * step for i, step in zip(index, loops.strides, strict=True))
            assert place not in seen
            seen[place] = view[index]
    covered = [all(low <= i < high for i, (low, high) in zip(place, box, strict=True)) for place, _ in points(flat)]
    assert seen == {
        native[0]: whole[place] for (place, native), is_inside in zip(points(flat), covered, strict=True) if is_inside
    }


@given(st.lists(st.integers(0, 5), max_size=4), st.integers(1, 40))
def test_boxes_cover_a_shape_once_in_row_major_order(shape: list[int], limit: int) -> None:
    whole = np.arange(math.prod(shape)).reshape(shape)
    seen = []
    for box in boxes(shape, limit):
        part = whole[tuple(slice(*bounds) for bounds in box)]
        assert part.size <= limit
        seen += list(part.reshape(-1))
    assert seen == list(range(whole.size))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(1, 30))
def test_boxes_are_as_large_as_the_limit_lets_them(shape: list[int], limit: int) -> None:
    """No more than the rows that fit, and no fewer: neighbours never fit one box together along the cut axis."""
    count = len(list(boxes(shape, limit)))
    assert (count == 1) == (math.prod(shape) <= limit)
    inner = 1
    for axis in range(len(shape) - 1, -1, -1):
        if inner * shape[axis] > limit:
            assert count == math.prod(shape[:axis]) * -(-shape[axis] // (limit // inner))
            break
        inner *= shape[axis]


# --- strided reading and writing ------------------------------------------------------------------------------------------


@st.composite
def strided(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """Sizes and strides (in any order of loops) that never meet twice, and an offset in elements."""
    sizes = draw(st.lists(st.integers(0, 6), max_size=4))
    strides = [0] * len(sizes)
    step = draw(st.sampled_from([1, 1, 2, 5]))
    for n in draw(st.permutations(range(len(sizes)))):
        strides[n] = step
        step *= max(1, sizes[n])
        step += draw(st.sampled_from([0, 0, 1, 3000]))
    return sizes, strides, draw(st.integers(0, 7))


@pytest.mark.parametrize("dtype", ["<u2", "<f4", "|u1"])
@settings(max_examples=150)
@given(where=strided(), turned=st.booleans())
def test_read_box_is_a_numpy_view(dtype: str, where: tuple, turned: bool) -> None:
    sizes, strides, offset = where
    reach = 1 + sum((size - 1) * step for size, step in zip(sizes, strides, strict=True) if size) + offset
    values = np.random.default_rng(len(sizes)).integers(0, 250, reach).astype(dtype)
    item = values.itemsize
    expected = np.lib.stride_tricks.as_strided(values[offset:], sizes, [step * item for step in strides])
    out = np.zeros(sizes[::-1], dtype).T if turned else np.zeros(sizes, dtype)
    with tempfile.TemporaryFile() as file:
        file.write(b"head" + values.tobytes())
        file.flush()
        read_box(partial(pread_into, file.fileno(), path="file"), 4 + offset * item, strides, out)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", ["<u2", "<f4"])
@settings(max_examples=150)
@given(where=strided(), turned=st.booleans())
def test_runs_are_those_of_a_numpy_view(dtype: str, where: tuple, turned: bool) -> None:
    sizes, strides, offset = where
    loops = sorted(zip(sizes, strides, strict=True), key=lambda loop: -loop[1])  # the slowest first
    sizes, strides = [size for size, _ in loops], [step for _, step in loops]
    reach = 1 + sum((size - 1) * step for size, step in zip(sizes, strides, strict=True) if size) + offset
    before = np.full(reach, 7, dtype)
    item = before.itemsize
    values = np.random.default_rng(len(sizes)).integers(0, 250, sizes).astype(dtype)
    expected = before.copy()
    np.lib.stride_tricks.as_strided(expected[offset:], sizes, [step * item for step in strides])[...] = values
    with tempfile.TemporaryFile() as file:
        file.write(before.tobytes())
        file.flush()
        turned_or_not = np.array(values, order="F" if turned else "C")
        for view, start in runs(turned_or_not, strides, offset * item):
            pwrite_all(file.fileno(), view, start)
        file.seek(0)
        after = np.frombuffer(file.read(), dtype)
    np.testing.assert_array_equal(after, expected)


def test_reading_past_the_end_is_an_error_that_names_the_file() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(10))
        file.flush()
        with pytest.raises(FormatError, match="truncated") as caught:
            read_box(partial(pread_into, file.fileno(), path="shard-2.bin"), 4, [1], np.empty(4, "<f4"))
    assert caught.value.file == "shard-2.bin"


# --- shards that must tile a tensor -------------------------------------------------------------------------------------


def shard(origin: tuple[int, ...], shape: tuple[int, ...]) -> Shard:
    return Shard(origin, StoredTensor.contiguous("file", FP32, shape, 0))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data())
def test_shards_tile_exactly_when_every_element_is_covered_once(shape: list[int], data: st.DataObject) -> None:
    shards, count = [], np.zeros(shape, int)
    for _ in range(data.draw(st.integers(0, 4))):
        low = [data.draw(st.integers(0, size - 1)) for size in shape]
        size = [data.draw(st.integers(1, whole - start)) for start, whole in zip(low, shape, strict=True)]
        shards.append(shard(tuple(low), tuple(size)))
        count[tuple(slice(start, start + n) for start, n in zip(low, size, strict=True))] += 1
    assert tiles_exactly(shape, shards) == bool((count == 1).all())


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.data())
def test_a_grid_of_shards_tiles_exactly(shape: list[int], data: st.DataObject) -> None:
    """Random shards hardly ever fit; a grid always does, and one less or one twice never."""
    cuts = [[0, *sorted(data.draw(st.sets(st.integers(1, size - 1)))), size] if size > 1 else [0, 1] for size in shape]
    grid = []
    for index in np.ndindex(*(len(cut) - 1 for cut in cuts)):
        low = tuple(cut[i] for cut, i in zip(cuts, index, strict=True))
        grid.append(shard(low, tuple(cut[i + 1] - start for cut, i, start in zip(cuts, index, low, strict=True))))
    grid = data.draw(st.permutations(grid))
    assert tiles_exactly(shape, grid)
    assert not tiles_exactly(shape, grid[1:])
    assert not tiles_exactly(shape, [*grid, grid[0]])


def test_no_shards_tile_an_empty_tensor_only() -> None:
    assert tiles_exactly((0, 3), [])
    assert not tiles_exactly((1, 3), [])
