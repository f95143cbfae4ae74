"""Moving strided boxes between files and memory in large sequential pieces.

A box is a list of loops (size, stride in elements) over a file; `read_box` fills an array with one axis
per loop, `runs` says which bytes of one go where. Loops whose elements are adjacent in the file are merged into runs; runs
that lie close together are read in one go and picked apart in memory.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import mul
from types import EllipsisType

from ckpt_core import numpy as np
from ckpt_core.storage.scratch import place_between, scratch

# Reading a gap is cheaper than a system call up to about this many bytes of waste per run.
_NEAR = 16 << 10

ReadInto = Callable[[memoryview, int], None]
"""Fills a view with the bytes of a file from an offset on."""

WriteFrom = Callable[[memoryview, int], None]
"""Writes the bytes of a view to a file from an offset on."""


def _file_order(strides: Sequence[int]) -> list[int]:
    return sorted(range(len(strides)), key=lambda n: -strides[n])


@functools.lru_cache(maxsize=1 << 12)
def _run(sizes: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int]:
    """How many inner loops form one contiguous run, and its length in elements; loops are in file order."""
    length, merged = 1, 0
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size != 1 and stride != length:
            break
        length *= size
        merged += 1
    return merged, length


def _starts(sizes: Sequence[int], strides: Sequence[int]) -> Iterator[tuple[tuple[int, ...], int]]:
    """The indices of the loops outside a run, and where in the file each run begins; `strides` may have those inside it too."""
    for index in itertools.product(*map(range, sizes)):
        yield index, sum(map(mul, index, strides))


def read_box(
    read: ReadInto, offset: int, strides: Sequence[int], out: np.ndarray, add: WriteFrom | None = None
) -> None:
    """Fill `out` from a file: element (i, j, ...) lies at byte `offset` + itemsize * (i * strides[0] + ...).

    `strides` are in elements, one for each axis of `out`. `FormatError` from `read` where the file is too short.
    `add` is given the bytes of those elements and where they lie, with zeros for bytes between them.
    """
    if out.size == 0:
        return
    if len(strides) == 1 and strides[0] == 1 and out.flags.c_contiguous:  # most are one run
        run_bytes = _bytes_of(out)
        read(run_bytes, offset)
        if add is not None:
            add(run_bytes, offset)
        return
    order = _file_order(strides)
    ordered = out.transpose(order)
    sizes, steps = ordered.shape, tuple(strides[n] for n in order)
    merged, run = _run(sizes, steps)
    outer_sizes, outer_steps = sizes[: len(sizes) - merged], steps[: len(sizes) - merged]
    if ordered.flags.c_contiguous and not outer_sizes:
        read(_bytes_of(ordered), offset)
        if add is not None:
            add(_bytes_of(ordered), offset)
        return
    apart, near = _apart(outer_sizes, outer_steps, run, out.itemsize)
    for index, start in _starts(outer_sizes[:apart], outer_steps):
        place: tuple[int | EllipsisType, ...] = (*index, ...)  # the ellipsis keeps a view even of a single element
        if near:
            _read_near(read, offset + start * out.itemsize, steps[apart:], ordered[place], add)
        else:
            _read_run(read, offset + start * out.itemsize, ordered[place], add)


def _apart(sizes: Sequence[int], steps: Sequence[int], run: int, itemsize: int) -> tuple[int, bool]:
    """How many of the loops over runs stay loops over reads, the slowest first; and whether a read then is of several runs and the gaps between them."""
    runs, reach = math.prod(sizes), sum((size - 1) * step for size, step in zip(sizes, steps, strict=True)) + run
    for number, (size, step) in enumerate(zip(sizes, steps, strict=True)):
        if (reach - runs * run) * itemsize <= runs * _NEAR and reach <= 2 * runs * run + _NEAR:
            return number, True
        runs, reach = runs // size, reach - (size - 1) * step
    return len(sizes), False


def _read_near(read: ReadInto, offset: int, steps: Sequence[int], target: np.ndarray, add: WriteFrom | None) -> None:
    """Read runs and the gaps between them in one go; `steps` are in elements, one for each axis of `target`."""
    reach = sum((size - 1) * step for size, step in zip(target.shape, steps, strict=True)) + 1
    near = scratch("near", (reach,), target.dtype)
    read(_bytes_of(near), offset)
    picked = np.ndarray(target.shape, near.dtype, near, 0, [step * target.itemsize for step in steps])
    target[...] = picked
    if add is not None:
        near[...] = 0
        picked[...] = target
        add(_bytes_of(near), offset)


def _read_run(read: ReadInto, offset: int, target: np.ndarray, add: WriteFrom | None) -> None:
    direct = target.flags.c_contiguous
    buffer = target if direct else scratch("run", target.shape, target.dtype)
    read(_bytes_of(buffer), offset)
    if add is not None:
        add(_bytes_of(buffer), offset)
    if not direct:
        target[...] = buffer


def runs(values: np.ndarray, strides: Sequence[int], offset: int) -> Iterable[tuple[memoryview, int]]:
    """`values` as the bytes of runs in a file, and where each begins: element (i, j, ...) lies at byte `offset` + itemsize * (i * strides[0] + ...).

    `strides` are in elements, one for each axis of `values`, the largest first. The bytes may lie in this thread's buffer.
    """
    if values.size == 0:
        return ()
    if not values.flags.c_contiguous:
        values = _packed(values, place_between(0, offset))
    merged, _ = _run(values.shape, tuple(strides))
    outer = len(strides) - merged
    if not outer:  # most are one run
        return ((_bytes_of(values), offset),)
    starts = _starts(values.shape[:outer], strides)
    return ((_bytes_of(values[index]), offset + start * values.itemsize) for index, start in starts)


def woven(arrays: Sequence[np.ndarray], strides: Sequence[int], turn: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Arrays whose elements take turns in a file, `turn` of each at a time, as one array in this thread's buffer, and its strides.

    `strides` are those of the first, in elements, the largest first; the others are alike, and each begins `turn` elements behind the one before.
    """
    first = arrays[0]
    outer = sum(stride > turn for stride in strides)
    both = scratch("packed", (*first.shape[:outer], len(arrays), *first.shape[outer:]), first.dtype)
    for number, array in enumerate(arrays):
        np.moveaxis(both, outer, 0)[number] = array
    return both, (*strides[:outer], turn, *strides[outer:])


def _packed(values: np.ndarray, place: int) -> np.ndarray:
    """The same elements without gaps, in this thread's buffer, which begins at the byte `place` of a page."""
    packed = scratch("packed", values.shape, values.dtype, place)
    packed[...] = values
    return packed


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.data.cast("B")
