"""Tensors with a product of two narrow matrices added to them, as LoRA has it, computed while they are read.

    merged = W + scale * up @ down                                           up [out, rank], down [rank, in]
    merged = magnitude / norm(W + scale * up @ down) * (W + ...)             DoRA: the norm of each row of out, over in

All of it in float32, and rounded once to the dtype of the tensor. Every float32 operation has one result, whatever part of a
tensor is asked for, so that a tensor has one digest. The order of the operations is the one by which PEFT's own merge comes out
on a CPU, bit for bit: torch takes its products from MKL and its norms from AVX2 (torch 2.13, measured).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ckpt_core import numpy as np
from ckpt_core.errors import FormatError, Refusal
from ckpt_core.layout import Link, Tile
from ckpt_core.storage.dtypes import decode, encode
from ckpt_core.tensors.assembly import LazyParameter, LowRank, Merged
from ckpt_core.tensors.box import Box, boxes, tile_view, within

Read = Callable[[LazyParameter, Box], "np.ndarray"]
"""The raw elements of a box of a tensor, in its value dtype."""

_OUT, _IN = 0, 1  # the dimensions of a product
_TILE, _COLUMNS = 1 << 15, 1 << 11  # elements of a product at a time, and columns: what fits into the second cache
_SUMMED = 192  # ranks that MKL's sgemm sums before it adds the sum to those before
_NARROW = 3  # rows, or columns, up to which MKL takes a product without fused operations
_LANES = 8  # float32 numbers in a register of AVX2
_STEP = 1 << 20  # elements at a time, where a whole tensor is read for its norms


def update_tile(tile: Tile, out: int, into: int) -> Tile:
    """A tile over native dimensions as one over (out, in), which are its dimensions `out` and `into`; the others have one index."""
    places = {out: _OUT, into: _IN}
    links = tuple(
        Link(link.size, link.axis, link.step, places[link.dim], link.stride)
        for link in tile.links
        if link.dim in places
    )
    return Tile(links, tile.canonical_base, (tile.native_base[out], tile.native_base[into]))


def merged_values(merged: Merged, box: Box, raw: np.ndarray, read: Read, norms: dict[str, np.ndarray]) -> np.ndarray:
    """The raw elements of `box`, of dtype `merged.dtype`, where the base has the elements `raw`, in its value dtype.

    `read` reads everything else. `norms` keeps the norms for which a whole tensor had to be read.
    """
    values = _own_floats(raw, merged.base)
    for update in merged.updates:
        for tile in within(update.tile, box):
            part = _Part(tile, box)
            _change(merged, update, part, values, read, norms)
    found = encode(values, merged.dtype)
    if merged.dtype.name == "fp16" and np.isinf(found).sum() > np.isinf(values).sum():
        raise Refusal(
            f"{merged.base.parameter.name} does not fit fp16 when it is merged",
            found=f"a value of {np.abs(values[np.isfinite(values)]).max():g}",
            expected="at most 65504",
            fix="keep the float32 sums",
        )
    return found


def _floats(held: LazyParameter, box: Box, read: Read) -> np.ndarray:
    """The values of a box as a float32 array of its own."""
    return _own_floats(read(held, box), held)


def _own_floats(raw: np.ndarray, held: LazyParameter) -> np.ndarray:
    """Raw elements of a tensor as a float32 array of its own, which may be changed."""
    return np.array(decode(raw, held.value_dtype), np.float32, order="C", copy=True)


class _Part:
    """The part of a product that a tile covers: which rows and columns, and where they lie in the values of a box."""

    def __init__(self, tile: Tile, box: Box) -> None:
        links = sorted(range(len(tile.links)), key=lambda n: (tile.links[n].dim, -tile.links[n].stride))
        self._order, self._tile, self._box = links, tile, box
        self._sizes = [tile.links[n].size for n in links]
        self.rows = _indices(tile, _OUT)
        self.columns = _indices(tile, _IN)

    def of(self, values: np.ndarray) -> np.ndarray:
        """The elements as a matrix of its own, [rows, columns]."""
        return self._view(values).reshape(len(self.rows), len(self.columns)).copy()

    def put(self, values: np.ndarray, matrix: np.ndarray) -> None:
        """Replace the elements by those of a matrix."""
        self._view(values)[...] = matrix.reshape(self._sizes)

    def _view(self, values: np.ndarray) -> np.ndarray:
        return tile_view(values, self._tile, self._box).transpose(self._order)


def _indices(tile: Tile, dim: int) -> np.ndarray:
    """The native indices of a tile in one dimension, in the order of its loops, the slowest first."""
    found = np.array([tile.native_base[dim]])
    for link in sorted((link for link in tile.links if link.dim == dim), key=lambda link: -link.stride):
        found = (found[:, None] + np.arange(link.size) * link.stride).reshape(-1)
    return found


def _change(
    merged: Merged, update: LowRank, part: _Part, values: np.ndarray, read: Read, norms: dict[str, np.ndarray]
) -> None:
    added = _sum(merged, update, part, values, read)
    if update.magnitude is not None:
        whole = len(part.columns) == update.down.parameter.shape[1]
        norm = row_norms(added, update.turned) if whole else _norms_of(merged, update, read, norms)[part.rows]
        if not norm.all():
            raise FormatError(
                f"a row of {merged.base.parameter.name} is zero when it is merged, and DoRA divides by its norm",
                file=update.up.blocks[0].path,
            )
        magnitude = _rows(update.magnitude, part.rows, read)
        added *= (magnitude / norm)[:, None]
    part.put(values, added)


def _sum(merged: Merged, update: LowRank, part: _Part, values: np.ndarray, read: Read) -> np.ndarray:
    """W + scale * up @ down, for the rows and columns of a part."""
    up = _rows(update.up, part.rows, read)
    first, last = int(part.columns.min()), int(part.columns.max()) + 1
    rank = update.down.parameter.shape[0]
    down = _floats(update.down, ((0, rank), (first, last)), read)[:, part.columns - first]
    narrow = min(update.up.parameter.shape[0], update.down.parameter.shape[1]) <= _NARROW
    delta = product(up, down, fused=not narrow)
    delta *= np.float32(update.scale)
    if update.narrowed:
        delta = decode(encode(delta, merged.dtype), merged.dtype)
    delta += part.of(values)
    return delta


def _rows(held: LazyParameter, rows: np.ndarray, read: Read) -> np.ndarray:
    """Some rows of a tensor, float32."""
    first, last = int(rows.min()), int(rows.max()) + 1
    inner = tuple((0, size) for size in held.parameter.shape[1:])
    return _floats(held, ((first, last), *inner), read)[rows - first]


# --- arithmetic --------------------------------------------------------------------------------------------------------


def product(up: np.ndarray, down: np.ndarray, *, fused: bool = True) -> np.ndarray:
    """up @ down [out, in], float32, summed over the rank in its order; the elements do not depend on how many are computed.

    `fused`: each product is added without being rounded first. float64 holds a product of two float32 numbers exactly, so that
    rounding the sum of it to float32 is a fused operation, but where the sum lies within 2**-29 of the middle of two numbers.
    """
    out, into = up.shape[0], down.shape[1]
    found = np.zeros((out, into), np.float32)
    for start, stop in _summed_together(up.shape[1]):
        one, other = up[:, start:stop], down[start:stop]
        if start == 0:
            _accumulate(found, one, other, fused)
        else:
            further = np.zeros_like(found)
            _accumulate(further, one, other, fused)
            found += further
    return found


def _summed_together(rank: int) -> Iterator[tuple[int, int]]:
    """The ranges of the rank that MKL sums apart: one up to 192, two halves up to twice as many, and then 192 each."""
    step = _SUMMED if rank > 2 * _SUMMED else rank // 2 // 4 * 4 if rank > _SUMMED else rank
    return ((start, min(start + step, rank)) for start in range(0, rank, step))


def _accumulate(found: np.ndarray, up: np.ndarray, down: np.ndarray, fused: bool) -> None:
    """Add up @ down to `found`, one rank after the other, in tiles that stay in the cache."""
    kind = np.dtype(np.float64 if fused else np.float32)
    left, right = up.astype(kind), down.astype(kind)
    out, into = found.shape
    width = min(into, _COLUMNS)
    height = max(1, _TILE // max(width, 1))
    buffer = np.empty((height, width), kind)
    for row in range(0, out, height):
        for column in range(0, into, width):
            tile = found[row : row + height, column : column + width]
            term = buffer[: tile.shape[0], : tile.shape[1]]
            for rank in range(left.shape[1]):
                np.multiply(left[row : row + height, rank : rank + 1], right[rank, column : column + width], out=term)
                np.add(term, tile, out=tile, dtype=kind, casting="same_kind")


def row_norms(matrix: np.ndarray, turned: bool) -> np.ndarray:
    """The L2 norm of each row of a float32 matrix, its squares summed in torch's order.

    That is in eight lanes, which are summed at the end, where a row lies contiguously in memory; one after the other in a matrix that
    is kept `turned`, where eight rows are summed at a time.
    """
    rows, columns = matrix.shape
    lanes = 1 if turned else _LANES
    even = columns - columns % lanes
    sums = np.zeros((rows, lanes), np.float32)
    for start in range(0, even, lanes):
        part = matrix[:, start : start + lanes]
        sums += part * part
    total = sums[:, 0].copy()
    for lane in range(1, lanes):
        total += sums[:, lane]
    for column in range(even, columns):
        total += matrix[:, column] * matrix[:, column]
    return np.sqrt(total)


def _norms_of(merged: Merged, update: LowRank, read: Read, known: dict[str, np.ndarray]) -> np.ndarray:
    """The norms of all rows of out, for which all of the tensor is read: an embedding's rows of out are its columns."""
    parameter = merged.base.parameter
    key = f"{parameter.name} {update.up.parameter.name}"
    if key in known:
        return known[key]
    out, into = update.up.parameter.shape[0], update.down.parameter.shape[1]
    squares, norms = np.zeros(out, np.float32), np.zeros(out, np.float32)
    for box in boxes(parameter.shape, max(_STEP, math.prod(parameter.shape[1:]))):
        values = _floats(merged.base, box, read)
        for tile in within(update.tile, box):
            part = _Part(tile, box)
            added = _sum(merged, update, part, values, read)
            if len(part.columns) == into:
                norms[part.rows] = row_norms(added, update.turned)
                continue
            for column in np.argsort(part.columns, kind="stable"):
                squares[part.rows] += added[:, column] * added[:, column]
    known[key] = np.where(squares > 0, np.sqrt(squares), norms)
    return known[key]
