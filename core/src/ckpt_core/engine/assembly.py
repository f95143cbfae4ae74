"""Canonical tensors as they lie on disk: lazy, unsharded, and read one box at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ckpt_core.architecture import Parameter
from ckpt_core.engine.scratch import scratch
from ckpt_core.engine.strided import read_box
from ckpt_core.errors import CkptError, FormatError, Problems
from ckpt_core.layout import Link, Native, Tile, ValueMap
from ckpt_core.storage.dtypes import FP32, DType, decode
from ckpt_core.storage.files import FileState, OpenFiles
from ckpt_core.storage.tensor import StoredTensor, contiguous_strides

Box = tuple[tuple[int, int], ...]
"""A part of a tensor: (start, stop) per axis."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A stored tensor that holds the part of a native tensor which begins at `origin`."""

    origin: tuple[int, ...]
    stored: StoredTensor


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a canonical parameter in a file. The tile's one native dimension counts elements from `offset` bytes."""

    path: str
    dtype: DType
    offset: int
    tile: Tile

    def within(self, box: Box) -> list[Tile]:
        """The parts of the tile inside a box."""
        tiles = [self.tile]
        for axis, (start, stop) in enumerate(box):
            tiles = [part for tile in tiles for part in tile.cut_canonical(axis, start, stop)]
        return tiles


def flat_tile(tile: Tile, strides: Sequence[int], origin: Sequence[int] | None = None) -> Tile:
    """A tile over native dimensions as a tile over one dimension of elements."""
    origin = origin or (0,) * len(strides)
    base = sum((start - zero) * stride for start, zero, stride in zip(tile.native_base, origin, strides, strict=True))
    links = tuple(Link(link.size, link.axis, link.step, 0, link.stride * strides[link.dim]) for link in tile.links)
    return Tile(links, tile.canonical_base, (base,))


@dataclass(frozen=True, slots=True)
class Assembly:
    """One canonical tensor and the blocks it is put together from.

    `blocks` cover the parameter exactly once; what they leave out (vocabulary padding that no file
    holds) reads as zeros. `copies` are duplicates, compared while the tensor is read.
    `maps` turn stored into canonical values, in order. `fill` makes a tensor of one constant, without blocks.
    """

    parameter: Parameter
    dtype: DType
    blocks: tuple[Block, ...]
    copies: tuple[Block, ...] = ()
    maps: tuple[ValueMap, ...] = ()
    fill: float | None = None

    @property
    def value_dtype(self) -> DType:
        """The dtype that holds the canonical values exactly: the stored one, or float32 after a map."""
        return FP32 if self.maps or self.fill is not None else self.dtype

    def paths(self) -> set[str]:
        return {block.path for block in (*self.blocks, *self.copies)}


class Source:
    """Open source files, each checked to be what it was when the plan was made."""

    def __init__(self, states: Iterable[FileState]) -> None:
        self._states = {state.path: state for state in states}
        self._files = OpenFiles(os.O_RDONLY)

    def read(self, assembly: Assembly, box: Box, *, transient: bool = False) -> np.ndarray:
        """The canonical values of `box` as raw elements of `assembly.value_dtype`, C-contiguous.

        `transient`: they may lie in this thread's buffer, where its next read replaces them.
        """
        shape = tuple(stop - start for start, stop in box)
        if assembly.fill is not None:
            return np.full(shape, assembly.fill, np.float32)
        covered = sum(tile.elements for block in assembly.blocks for tile in block.within(box))
        size = int(np.prod(shape, dtype=np.int64))
        raw = scratch("raw", shape, assembly.dtype.numpy) if transient else np.empty(shape, assembly.dtype.numpy)
        if covered != size:
            raw[...] = 0
        for block in assembly.blocks:
            for tile in block.within(box):
                self._fill(block, tile, tile_view(raw, tile, box))
        for block in assembly.copies:
            for tile in block.within(box):
                self._compare(assembly, block, tile, tile_view(raw, tile, box))
        if not assembly.maps:
            return raw
        values = decode(raw, assembly.dtype)
        for value_map in assembly.maps:
            values = value_map.apply(values)
        return np.ascontiguousarray(values, dtype=np.float32)

    def _fill(self, block: Block, tile: Tile, view: np.ndarray) -> None:
        offset = block.offset + tile.native_base[0] * block.dtype.size
        with self._files.descriptor(block.path, self._states.get(block.path)) as descriptor:
            read_box(descriptor, block.path, offset, [link.stride for link in tile.links], view)

    def _compare(self, assembly: Assembly, block: Block, tile: Tile, view: np.ndarray) -> None:
        copy = np.empty(view.shape, block.dtype.numpy)
        self._fill(block, tile, copy)
        if block.dtype != assembly.dtype or not np.array_equal(
            copy.view(np.uint8), np.ascontiguousarray(view).view(np.uint8)
        ):
            raise FormatError(
                f"two copies of {assembly.parameter.name} differ",
                file=block.path,
                expected=f"the values in {assembly.blocks[0].path}",
                fix="the checkpoint says they are one tensor (a tied head, a replicated parameter): find out which copy is right",
            )

    def recheck(self) -> None:
        """Raise `FormatError` if any source file changed since the plan was made."""
        for state in self._states.values():
            if FileState.of(state.path) != state:
                state.check(os.stat(state.path))

    def close(self) -> None:
        self._files.close()


def tile_view(raw: np.ndarray, tile: Tile, box: Box) -> np.ndarray:
    """The elements of a box that a tile covers, one axis per link, as a writable view of the box's values."""
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


@dataclass
class Assembler:
    """Puts canonical tensors together from native ones, and accounts for every element."""

    parameters: Mapping[str, Parameter]
    file: str
    _blocks: dict[str, list[Block]] = field(default_factory=dict)
    _copies: dict[str, list[Block]] = field(default_factory=dict)
    _maps: dict[str, tuple[ValueMap, ...]] = field(default_factory=dict)
    problems: Problems = field(init=False)

    def __post_init__(self) -> None:
        self.problems = Problems(f"reading {self.file}")

    def add(self, native: Native, shards: Sequence[Shard], replica: bool = False) -> None:
        """Enter a native tensor; its `shards` must tile it exactly. `replica`: it only repeats values entered before."""
        if not tiles_exactly(native.shape, shards):
            self.problems.add(self._shape_problem(native, shards))
            return
        for piece in native.pieces:
            target = self._copies if replica or native.row.copy else self._blocks
            into = target.setdefault(piece.parameter, [])
            maps = (native.row.via,) if native.row.via else ()
            if self._maps.setdefault(piece.parameter, maps) != maps:
                self.problems.add(CkptError(f"{piece.parameter} is stored under two value maps", file=self.file))
            for shard in shards:
                tiles = [piece.tile]
                for dim, (start, size) in enumerate(zip(shard.origin, shard.stored.shape, strict=True)):
                    tiles = [part for tile in tiles for part in tile.cut_native(dim, start, start + size)]
                for tile in tiles:
                    stored = shard.stored
                    into.append(
                        Block(stored.file, stored.dtype, stored.offset, flat_tile(tile, stored.strides, shard.origin))
                    )

    def _shape_problem(self, native: Native, shards: Sequence[Shard]) -> FormatError:
        if len(shards) == 1 and not any(shards[0].origin):
            found = f"shape {shards[0].stored.shape}"
        else:
            found = "; ".join(f"{shard.stored.shape} at {shard.origin}" for shard in shards[:4]) or "nothing"
        return FormatError(
            f"tensor {native.name!r} does not have the shape of this architecture",
            file=shards[0].stored.file if shards else self.file,
            found=found,
            expected=self.expected_shape(native),
        )

    def expected_shape(self, native: Native) -> str:
        """The shape of a native tensor with the sentence and the axis sizes it follows from."""
        axes = {str(axis): None for piece in native.pieces for axis in self.parameters[piece.parameter].axes}
        return f"shape {native.shape}: {native.row.sentence} with {' '.join(axes)}"

    def finish(self) -> dict[str, Assembly]:
        """The canonical tensors; raises every problem found, missing and doubled elements by name among them."""
        found: dict[str, Assembly] = {}
        for name, parameter in self.parameters.items():
            blocks = tuple(self._blocks.get(name, ()))
            elements = sum(block.tile.elements for block in blocks)
            dtypes = {block.dtype for block in blocks}
            if elements != parameter.elements and not self.problems.found:
                self.problems.add(
                    FormatError(
                        f"{name} has {elements} elements in the files",
                        file=self.file,
                        expected=f"{parameter.elements} ({parameter})",
                    )
                )
            elif len(dtypes) > 1:
                kinds = ", ".join(sorted(dtype.name for dtype in dtypes))
                self.problems.add(FormatError(f"the shards of {name} have different dtypes: {kinds}", file=self.file))
            elif blocks and not blocks[0].dtype.floating:
                self.problems.add(
                    FormatError(
                        f"{name} is stored as {blocks[0].dtype}", file=blocks[0].path, expected="a floating dtype"
                    )
                )
            elif blocks:
                found[name] = Assembly(
                    parameter, blocks[0].dtype, blocks, tuple(self._copies.get(name, ())), self._maps[name]
                )
        self.problems.raise_any()
        return found


def tiles_exactly(shape: Sequence[int], shards: Sequence[Shard]) -> bool:
    """Whether shards cover a shape without gap or overlap."""
    total = 0
    for shard in shards:
        if len(shard.origin) != len(shape) or len(shard.stored.shape) != len(shape):
            return False
        for start, size, whole in zip(shard.origin, shard.stored.shape, shape, strict=True):
            if start < 0 or start + size > whole:
                return False
        total += shard.stored.elements
    if total != int(np.prod(shape, dtype=object)):
        return False
    ordered = sorted(shards, key=lambda shard: shard.origin)
    for number, shard in enumerate(ordered):
        for other in ordered[number + 1 :]:
            if other.origin and other.origin[0] >= shard.origin[0] + shard.stored.shape[0]:
                break
            if _overlap(shard, other):
                return False
    return True


def _overlap(one: Shard, two: Shard) -> bool:
    return all(
        a < b + other and b < a + size
        for a, size, b, other in zip(one.origin, one.stored.shape, two.origin, two.stored.shape, strict=True)
    )


def resized(assembly: Assembly, parameter: Parameter) -> Assembly:
    """The same tensor with another number of rows on axis 0: cut, or padded with zeros (vocabulary padding)."""
    rows = min(parameter.shape[0], assembly.parameter.shape[0])

    def cut(blocks: Iterable[Block]) -> tuple[Block, ...]:
        return tuple(replace(block, tile=tile) for block in blocks for tile in block.tile.cut_canonical(0, 0, rows))

    return replace(assembly, parameter=parameter, blocks=cut(assembly.blocks), copies=cut(assembly.copies))
