"""Canonical tensors as they lie on disk: lazy, unsharded, and described block by block (`source` reads them)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace

from ckpt_core import numpy as np
from ckpt_core.architecture import Axis, Parameter, same_value
from ckpt_core.errors import CkptError, FormatError, Problems
from ckpt_core.layout import Link, Native, Part, Scale, Tile, ValueMap, boxes_of_range
from ckpt_core.lean import dataclass
from ckpt_core.storage.dtypes import FP32, DType
from ckpt_core.storage.tensor import Quantised, Record, StoredTensor, contiguous_strides
from ckpt_core.tensors.box import Box, Loops, within


@dataclass(frozen=True, slots=True)
class Shard:
    """A stored tensor that holds the part of a native tensor which begins at `origin`."""

    origin: tuple[int, ...]
    stored: StoredTensor


def whole(stored: StoredTensor) -> list[Shard]:
    """The one shard of a tensor that lies in one place."""
    return [Shard((0,) * len(stored.shape), stored)]


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part of a canonical parameter in a file. The tile's one native dimension counts elements from `offset` bytes.

    `record` is what it lies in, where that has a checksum to be added up. `quantised`: the elements are numbers that are computed.
    """

    path: str
    dtype: DType
    offset: int
    tile: Tile
    record: Record | None = field(default=None, repr=False)
    quantised: Quantised | None = None

    @classmethod
    def of(cls, stored: StoredTensor, tile: Tile) -> StoredPart:
        """A part of a stored tensor; the tile is flat."""
        return cls(stored.file, stored.dtype, stored.offset, tile, stored.record, stored.quantised)

    def byte_of(self, loops: Loops) -> int:
        """Where in the file the first value of a box lies, if what `loops` have of the box lies there in the same order."""
        return self.offset + (loops.offset - loops.start) * self.dtype.size

    @property
    def paths(self) -> frozenset[str]:
        """The files that it is read from."""
        return frozenset([self.path]) if self.quantised is None else self.quantised.files

    @property
    def stored_bytes(self) -> int:
        """How many bytes it takes in files; of numbers that are computed, its share of those that they are computed of."""
        held = self.quantised
        if held is None:
            return self.tile.elements * self.dtype.size
        return -(-held.stored_bytes * self.tile.elements // (held.matrices * held.rows * held.columns))

    def in_float32(self) -> StoredPart:
        """The same part; numbers that are computed are not rounded to a narrower dtype."""
        if self.quantised is None or self.dtype == FP32:
            return self
        return replace(self, dtype=FP32, offset=self.offset // self.dtype.size * FP32.size)

    def within(self, box: Box) -> list[Tile]:
        """The parts of the tile inside a box."""
        return within(self.tile, box)


def placed(shape: Sequence[int]) -> Tile:
    """The tile of a tensor that lies in a file as it is."""
    links = tuple(Link(size, axis, 1, axis, 1) for axis, size in enumerate(shape))
    return Tile(links, (0,) * len(shape), (0,) * len(shape))


def flat_tile(tile: Tile, strides: Sequence[int], origin: Sequence[int] | None = None) -> Tile:
    """A tile over native dimensions as a tile over one dimension of elements."""
    return _flat_tile(tile, tuple(strides), tuple(origin or (0,) * len(strides)))


# Tensors of alike layers have equal tiles. A plan has a hundred thousand, and holds each of them once.
@functools.lru_cache(maxsize=1 << 13)
def _flat_tile(tile: Tile, strides: tuple[int, ...], origin: tuple[int, ...]) -> Tile:
    base = sum((start - zero) * stride for start, zero, stride in zip(tile.native_base, origin, strides, strict=True))
    return Tile(_flat_links(tile.links, strides), tile.canonical_base, (base,))


@functools.lru_cache(maxsize=4096)
def _flat_links(links: tuple[Link, ...], strides: tuple[int, ...]) -> tuple[Link, ...]:
    """Most tensors of a model are of one of few shapes: those of all its experts share one tuple."""
    return tuple(Link(link.size, link.axis, link.step, 0, link.stride * strides[link.dim]) for link in links)


@dataclass(frozen=True, slots=True)
class Factor:
    """A tensor that another one is multiplied by, element by element; `axes` are its axes' numbers in the other."""

    assembly: LazyParameter
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WeightedRows:
    """Rows of a tensor that are added up: row i of the sum gets `weights[i][k]` times row `rows[i][k]`, for every k.

    A tensor with one axis less than the sum is a single row.
    """

    assembly: LazyParameter
    rows: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class LowRank:
    """`scale * up @ down`, added to those elements of a tensor that `tile` covers; its native dimensions are (out, in).

    `up` is [out, rank], `down` [rank, in]. `magnitude` [out] is DoRA's. `turned`: the framework keeps the weight as [in, out], which
    decides in which order it sums the squares of a norm. `narrowed`: the product is rounded to the dtype of the tensor
    before it is added, and not only the sum.
    """

    up: LazyParameter
    down: LazyParameter
    scale: float
    tile: Tile
    magnitude: LazyParameter | None = None
    turned: bool = False
    narrowed: bool = False

    @property
    def factors(self) -> tuple[LazyParameter, ...]:
        """The tensors it is made of."""
        return (self.up, self.down) if self.magnitude is None else (self.up, self.down, self.magnitude)


@dataclass(frozen=True, slots=True)
class Merged:
    """A tensor, and what is added to it. `dtype` is that of the sum; without updates the tensor is rounded to it."""

    base: LazyParameter
    updates: tuple[LowRank, ...]
    dtype: DType

    @property
    def blocks(self) -> tuple[StoredPart, ...]:
        """Everything that is read for it."""
        factors = (factor for update in self.updates for factor in update.factors)
        return (*self.base.all_blocks, *(block for factor in factors for block in factor.all_blocks))

    @property
    def working_bytes(self) -> int:
        """How many bytes the factors of the largest update take while they are multiplied."""
        sizes = (sum(factor.parameter.elements for factor in update.factors) for update in self.updates)
        return 12 * max(sizes, default=0)  # as float32, and as float64

    def over(self, base: LazyParameter, rows: int) -> Merged:
        """The same for a base with `rows` rows on axis 0; updates lose those that it does not have."""
        cut = (replace(update, tile=tile) for update in self.updates for tile in update.tile.cut_canonical(0, 0, rows))
        return replace(self, base=base, updates=tuple(cut))


@dataclass(frozen=True, slots=True)
class LazyParameter:
    """One canonical tensor and the blocks it is put together from.

    `blocks` cover the parameter exactly once; what they leave out (vocabulary padding that no file
    holds) reads as zeros. `copies` are duplicates, compared while the tensor is read.
    `rounded` holds the tensor in a narrower dtype: what is read, rounded, must be what these blocks hold.
    `averaged` are the blocks of further ranks that hold the whole tensor too, and differ: the value is the float32
    mean over `blocks` and all of them, and `dtype` is float32.
    `maps` turn stored into canonical values, in order, and `factors` multiply those.
    `fill` makes a tensor of one constant, without blocks; `added` one whose rows are weighted sums of those of others.
    `merged` makes one of another tensor, and of what is added to it; `dtype` is that of the sum. No value may be below `least`,
    and with `float32` every one must be a value of float32, whatever dtype it is stored in.
    """

    parameter: Parameter
    dtype: DType
    blocks: tuple[StoredPart, ...]
    copies: tuple[StoredPart, ...] = ()
    maps: tuple[ValueMap, ...] = ()
    factors: tuple[Factor, ...] = ()
    fill: float | None = None
    rounded: tuple[StoredPart, ...] = ()
    averaged: tuple[tuple[StoredPart, ...], ...] = ()
    added: tuple[WeightedRows, ...] = ()
    merged: Merged | None = None
    least: float | None = None
    float32: bool = False

    @property
    def value_dtype(self) -> DType:
        """The dtype that holds the canonical values exactly: the stored one, or float32 after a map."""
        return FP32 if self.maps or self.factors or self.added or self.fill is not None else self.dtype

    @property
    def computed(self) -> bool:
        """Whether values are products that the stored dtype may have no element for; a power of two only shifts."""
        if not self.maps:
            return bool(self.factors or self.added)
        scaled = any(isinstance(step, Scale) and significant_bits(step.factor) > 0 for step in self.maps)
        return scaled or bool(self.factors or self.added)

    @property
    def bits(self) -> int:
        """How many significant bits an exact value may take; what is more than float32 has was rounded to it.

        A product takes those of its factors, so that of two bf16 tensors is exact; of a sum nothing is promised.
        """
        if self.added or any(not isinstance(step, Scale) for step in self.maps):
            return _UNBOUNDED
        factors = [significant_bits(step.factor) for step in self.maps if isinstance(step, Scale)]
        own = min(self.dtype.bits, FP32.bits) if self.float32 else self.dtype.bits
        return own + sum(factors) + sum(factor.assembly.bits for factor in self.factors)

    @property
    def all_blocks(self) -> tuple[StoredPart, ...]:
        """Everything that is read to put the tensor together, and to check it."""
        own = (*self.blocks, *self.copies, *self.rounded, *(block for rank in self.averaged for block in rank))
        parts = (*(factor.assembly for factor in self.factors), *(term.assembly for term in self.added))
        merged = () if self.merged is None else self.merged.blocks
        return (*own, *(block for part in parts for block in part.all_blocks), *merged)

    @property
    def value_blocks(self) -> tuple[StoredPart, ...]:
        """The blocks of the values themselves: of a merged tensor those of the one that is merged into."""
        return self.blocks if self.merged is None else self.merged.base.value_blocks

    @property
    def is_quantised(self) -> bool:
        """Whether values are computed of codes and scales."""
        return any(block.quantised is not None for block in self.value_blocks)

    @property
    def unrounded(self) -> LazyParameter:
        """The same tensor; what is computed of codes and scales is float32, and not rounded to the dtype that its tools round to."""
        if self.merged is not None or not self.is_quantised or self.dtype == FP32:
            return self
        return replace(
            self,
            dtype=FP32,
            blocks=tuple(block.in_float32() for block in self.blocks),
            copies=tuple(block.in_float32() for block in self.copies),
        )

    def paths(self) -> set[str]:
        return {path for block in self.all_blocks for path in block.paths}


_UNBOUNDED = 1 << 10


def significant_bits(factor: float) -> int:
    """How many bits a product with `factor` may take more than its other factor: none for a power of two.

    A factor that float32 holds, but for the last bits of a float64, is that one: the engine multiplies by it.

    >>> significant_bits(0.125), significant_bits(3.0), significant_bits(3.0000000000000004), significant_bits(12**0.5)
    (0, 2, 2, 52)
    """
    nearest = float(np.float32(factor))
    fraction = abs(math.frexp(nearest if same_value(nearest, factor) else factor)[0])
    if fraction in (0.0, 0.5):
        return 0
    whole = int(math.ldexp(fraction, 53))
    return 53 - ((whole & -whole).bit_length() - 1)


@dataclass
class ParameterBuilder:
    """Puts canonical tensors together from native ones, and accounts for every element.

    A part of a parameter that the same row had before, from another rank or file, is a replica: it must hold the same
    values, and is compared while the parameter is read.
    """

    parameters: Mapping[str, Parameter]
    file: str
    _blocks: dict[str, list[StoredPart]] = field(default_factory=dict)
    _copies: dict[str, list[StoredPart]] = field(default_factory=dict)
    _rounded: dict[str, list[StoredPart]] = field(default_factory=dict)
    _averaged: dict[str, list[tuple[StoredPart, ...]]] = field(default_factory=dict)
    _maps: dict[str, tuple[ValueMap, ...]] = field(default_factory=dict)
    _places: set[tuple] = field(default_factory=set)
    problems: Problems = field(init=False)

    def __post_init__(self) -> None:
        self.problems = Problems(f"reading {self.file}")

    def add(self, native: Native, shards: Sequence[Shard]) -> None:
        """Enter a native tensor; its `shards` must tile it exactly."""
        for part, blocks in self._stored_parts(native, shards):
            into = self._copies if native.row.copy or self._is_replica(native, part) else self._blocks
            into.setdefault(part.parameter, []).extend(blocks)

    def _is_replica(self, native: Native, part: Part) -> bool:
        """Whether the row had these elements of the parameter before, and from now on that it had them."""
        place = native.row.native, part.parameter, part.tile.canonical_base, _loops(part.tile.links)
        known = place in self._places
        self._places.add(place)
        return known

    def add_rounded(self, native: Native, shards: Sequence[Shard]) -> None:
        """Enter a native tensor to whose values those entered with `add` must round."""
        for part, blocks in self._stored_parts(native, shards):
            self._rounded.setdefault(part.parameter, []).extend(blocks)

    def add_averaged(self, native: Native, ranks: Sequence[Sequence[Shard]]) -> None:
        """Enter a native tensor that several ranks hold whole and not alike: its value is their float32 mean."""
        self.add(native, ranks[0])
        for shards in ranks[1:]:
            for part, blocks in self._stored_parts(native, shards):
                self._averaged.setdefault(part.parameter, []).append(tuple(blocks))

    def _stored_parts(self, native: Native, shards: Sequence[Shard]) -> Iterator[tuple[Part, list[StoredPart]]]:
        """The parts of parameters in a native tensor, each with where it is stored."""
        if not tiles_exactly(native.shape, shards):
            self.problems.add(self._shape_problem(native, shards))
            return
        for piece in native.pieces:
            maps = (native.row.via,) if native.row.via else ()
            if self._maps.setdefault(piece.parameter, maps) != maps:
                self.problems.add(CkptError(f"{piece.parameter} is stored under two value maps", file=self.file))
            blocks = []
            for shard in shards:
                tiles = [piece.tile]
                if len(shards) > 1:
                    for dim, (start, size) in enumerate(zip(shard.origin, shard.stored.shape, strict=True)):
                        tiles = [part for tile in tiles for part in tile.cut_native(dim, start, start + size)]
                for tile in tiles:
                    flat = flat_tile(tile, shard.stored.strides, shard.origin)
                    blocks.append(StoredPart.of(shard.stored, flat))
            yield piece, blocks

    def _shape_problem(self, native: Native, shards: Sequence[Shard]) -> FormatError:
        whole = whole_shape(shards)
        if whole is not None and tiles_exactly(whole, shards):
            found = f"shape {whole}"
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

    def finish(self) -> dict[str, LazyParameter]:
        """The canonical tensors; raises every problem found, missing and doubled elements by name among them."""
        found: dict[str, LazyParameter] = {}
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
                averaged = tuple(self._averaged.get(name, ()))
                found[name] = LazyParameter(
                    parameter,
                    FP32 if averaged else blocks[0].dtype,
                    blocks,
                    tuple(self._copies.get(name, ())),
                    self._maps[name],
                    rounded=tuple(self._rounded.get(name, ())),
                    averaged=averaged,
                )
        self.problems.raise_any()
        return found


def of_shards(name: str, shape: Sequence[int], shards: Sequence[Shard]) -> LazyParameter:
    """A tensor of `shape` that `shards` of one dtype tile, as one that is read when it is asked for; its axes have numbers for names."""
    parts = []
    for origin, stored in ((shard.origin, shard.stored) for shard in shards):
        flat = flat_tile(placed(stored.shape)._replace(canonical_base=tuple(origin)), stored.strides)
        parts.append(StoredPart.of(stored, flat))
    axes = tuple(Axis(str(axis), size) for axis, size in enumerate(shape))
    return LazyParameter(Parameter(name, axes), shards[0].stored.dtype, tuple(parts))


def whole_shape(shards: Sequence[Shard]) -> tuple[int, ...] | None:
    """How far shards of one number of dimensions reach; None without any."""
    if len({len(extent) for shard in shards for extent in (shard.origin, shard.stored.shape)}) != 1:
        return None
    ends = [[start + size for start, size in zip(shard.origin, shard.stored.shape, strict=True)] for shard in shards]
    return tuple(map(max, zip(*ends, strict=True)))


@functools.lru_cache(maxsize=4096)
def _loops(links: tuple[Link, ...]) -> tuple[tuple[int, int, int], ...]:
    """Which elements of a parameter links run over, wherever the native tensor has them."""
    return tuple(sorted((link.axis, link.step, link.size) for link in links))


def tiles_exactly(shape: Sequence[int], shards: Sequence[Shard]) -> bool:
    """Whether shards cover a shape without gap or overlap."""
    if len(shards) == 1 and shards[0].stored.shape == shape and shards[0].origin == (0,) * len(shape):
        return True  # as most are
    boxes = [(tuple(shard.origin), tuple(shard.stored.shape)) for shard in shards]
    ranks = {len(extent) for box in boxes for extent in box}
    if not ranks <= {len(shape)} or any(start < 0 for origin, _ in boxes for start in origin):
        return False
    from ckpt_core.storage.chunks.tensor import tiles

    return tiles(shape, boxes)


def ranges_as_shards(shape: tuple[int, ...], ranges: Iterable[tuple[int, StoredTensor]]) -> list[Shard]:
    """Ranges of the flattened elements of a tensor of `shape`, each one-dimensional and with its first element, as shards of the tensor.

    A range is at most a few boxes: the end of a row, whole rows, the beginning of a row.
    """
    found = []
    for start, flat in ranges:
        taken = 0
        for origin, size in boxes_of_range(shape, start, flat.elements):
            offset = flat.offset + taken * flat.dtype.size
            found.append(Shard(origin, replace(flat, shape=size, strides=contiguous_strides(size), offset=offset)))
            taken += math.prod(size)
    return found


def within_box(shard: Shard, start: Sequence[int], size: Sequence[int]) -> Shard | None:
    """The part of a shard in a box, whose origin counts from there; None where they do not meet."""
    low = [max(*pair) for pair in zip(shard.origin, start, strict=True)]
    high = [
        min(first + extent, begin + length)
        for first, extent, begin, length in zip(shard.origin, shard.stored.shape, start, size, strict=True)
    ]
    if any(one >= other for one, other in zip(low, high, strict=True)):
        return None
    skipped = sum(
        (at - first) * stride for at, first, stride in zip(low, shard.origin, shard.stored.strides, strict=True)
    )
    stored = replace(
        shard.stored,
        shape=tuple(stop - begin for begin, stop in zip(low, high, strict=True)),
        offset=shard.stored.offset + skipped * shard.stored.dtype.size,
    )
    return Shard(tuple(at - begin for at, begin in zip(low, start, strict=True)), stored)


def with_rows(tensors: Mapping[str, LazyParameter], parameters: Mapping[str, Parameter]) -> dict[str, LazyParameter]:
    """The same tensors as `parameters` has them: where the number of rows on axis 0 is another, cut or padded with zeros."""
    return {
        name: resized(assembly, parameters[name])
        if parameters[name].shape != assembly.parameter.shape
        else replace(assembly, parameter=parameters[name])
        for name, assembly in tensors.items()
    }


def resized(assembly: LazyParameter, parameter: Parameter) -> LazyParameter:
    """The same tensor with another number of rows on axis 0: cut, or padded with zeros (vocabulary padding)."""
    rows = min(parameter.shape[0], assembly.parameter.shape[0])

    def cut(blocks: Iterable[StoredPart]) -> tuple[StoredPart, ...]:
        return tuple(replace(block, tile=tile) for block in blocks for tile in block.tile.cut_canonical(0, 0, rows))

    return replace(
        assembly,
        parameter=parameter,
        blocks=cut(assembly.blocks),
        copies=cut(assembly.copies),
        rounded=cut(assembly.rounded),
        averaged=tuple(map(cut, assembly.averaged)),
        merged=None
        if assembly.merged is None
        else assembly.merged.over(resized(assembly.merged.base, parameter), rows),
    )
