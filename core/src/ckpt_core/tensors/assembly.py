"""Canonical tensors as they lie on disk: lazy, unsharded, and read one box at a time."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ckpt_core.architecture import Parameter, same_value
from ckpt_core.errors import CkptError, FormatError, Problems
from ckpt_core.layout import Link, Native, Part, Scale, Tile, ValueMap
from ckpt_core.storage.archive.inflate import Inflated, inflated
from ckpt_core.storage.bytes import crc32
from ckpt_core.storage.bytes.files import FileState, OpenFiles, pread_into
from ckpt_core.storage.chunks.tensor import tiles
from ckpt_core.storage.dtypes import FP32, DType, decode, encode
from ckpt_core.storage.tensor import Record, StoredTensor, contiguous_strides
from ckpt_core.tensors.scratch import scratch
from ckpt_core.tensors.strided import ReadInto, WriteFrom, read_box

Box = tuple[tuple[int, int], ...]
"""A part of a tensor: (start, stop) per axis."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A stored tensor that holds the part of a native tensor which begins at `origin`."""

    origin: tuple[int, ...]
    stored: StoredTensor


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part of a canonical parameter in a file. The tile's one native dimension counts elements from `offset` bytes.

    `record` is what it lies in, where that has a checksum to be added up.
    """

    path: str
    dtype: DType
    offset: int
    tile: Tile
    record: Record | None = field(default=None, repr=False)

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
    return Tile(_flat_links(tile.links, tuple(strides)), tile.canonical_base, (base,))


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
class LazyParameter:
    """One canonical tensor and the blocks it is put together from.

    `blocks` cover the parameter exactly once; what they leave out (vocabulary padding that no file
    holds) reads as zeros. `copies` are duplicates, compared while the tensor is read.
    `rounded` holds the tensor in a narrower dtype: what is read, rounded, must be what these blocks hold.
    `averaged` are the blocks of further ranks that hold the whole tensor too, and differ: the value is the float32
    mean over `blocks` and all of them, and `dtype` is float32.
    `maps` turn stored into canonical values, in order, and `factors` multiply those.
    `fill` makes a tensor of one constant, without blocks; `added` one whose rows are weighted sums of those of others.
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

    @property
    def value_dtype(self) -> DType:
        """The dtype that holds the canonical values exactly: the stored one, or float32 after a map."""
        return FP32 if self.maps or self.factors or self.added or self.fill is not None else self.dtype

    @property
    def computed(self) -> bool:
        """Whether values are products that the stored dtype may have no element for; a power of two only shifts."""
        return bool(self.factors or self.added) or any(
            isinstance(step, Scale) and significant_bits(step.factor) > 0 for step in self.maps
        )

    @property
    def bits(self) -> int:
        """How many significant bits an exact value may take; what is more than float32 has was rounded to it.

        A product takes those of its factors, so that of two bf16 tensors is exact; of a sum nothing is promised.
        """
        if self.added or any(not isinstance(step, Scale) for step in self.maps):
            return _UNBOUNDED
        factors = [significant_bits(step.factor) for step in self.maps if isinstance(step, Scale)]
        return self.dtype.bits + sum(factors) + sum(factor.assembly.bits for factor in self.factors)

    @property
    def all_blocks(self) -> tuple[StoredPart, ...]:
        """Everything that is read to put the tensor together, and to check it."""
        own = (*self.blocks, *self.copies, *self.rounded, *(block for rank in self.averaged for block in rank))
        return (*own, *(block for term in self.added for block in term.assembly.all_blocks))

    def paths(self) -> set[str]:
        return {block.path for block in self.all_blocks}


_UNBOUNDED = 1 << 10
_PIECE = 1 << 20


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


class SourceFiles:
    """Open source files, each checked to be what it was when the plan was made."""

    def __init__(self, states: Iterable[FileState]) -> None:
        self._states = {state.path: state for state in states}
        self._files = OpenFiles()
        self._inflated: dict[str, Inflated | None] = {}

    def read(
        self, assembly: LazyParameter, box: Box, *, transient: bool = False, sums: Counter[str] | None = None
    ) -> np.ndarray:
        """The canonical values of `box`, a (start, stop) for each axis: an array of shape (stop - start, ...), C-contiguous, of raw
        elements of `assembly.value_dtype` (bf16 as uint16).

        `transient`: they may lie in this thread's buffer, where its next read replaces them. The box's contribution to the
        checksums of the records that it lies in is added to `sums`. `FormatError` where a file changed or is cut off, or
        where replicas differ that must agree.
        """
        shape = tuple(stop - start for start, stop in box)
        if assembly.fill is not None:
            return np.full(shape, assembly.fill, np.float32)
        if assembly.added:
            return self._mapped(assembly, box, self._sum(assembly.added, box))
        raw = scratch("raw", shape, assembly.dtype.numpy) if transient else np.empty(shape, assembly.dtype.numpy)
        if assembly.averaged:
            self._average(assembly, box, raw, sums)
        else:
            self._gather(assembly.blocks, box, raw, sums)
        for block in assembly.copies:
            for tile in block.within(box):
                self._compare(assembly, block, tile, tile_view(raw, tile, box), sums)
        for block in assembly.rounded:
            for tile in block.within(box):
                self._compare_rounded(assembly, block, tile, tile_view(raw, tile, box), sums)
        if not assembly.maps and not assembly.factors:
            return raw
        return self._mapped(assembly, box, decode(raw, assembly.dtype))

    def _mapped(self, assembly: LazyParameter, box: Box, values: np.ndarray) -> np.ndarray:
        for value_map in assembly.maps:
            values = value_map.apply(values)
        for factor in assembly.factors:
            values = values * self._factor(factor, box)
        return np.ascontiguousarray(values, dtype=np.float32)

    def _factor(self, factor: Factor, box: Box) -> np.ndarray:
        """The float32 values of a factor inside a box of the other tensor, with an axis of one wherever it has none."""
        inside = tuple(box[axis] for axis in factor.axes)
        values = decode(self.read(factor.assembly, inside), factor.assembly.value_dtype)
        return values.reshape([stop - start if axis in factor.axes else 1 for axis, (start, stop) in enumerate(box)])

    def _sum(self, terms: Sequence[WeightedRows], box: Box) -> np.ndarray:
        """The float32 rows of `box` of a sum; of each tensor no more is read than the rows between the first and the last that count."""
        (start, stop), *inner = box
        total = np.zeros([stop - start, *(high - low for low, high in inner)], np.float32)
        for term in terms:
            rows, weights = np.array(term.rows[start:stop]), np.array(term.weights[start:stop], np.float32)
            if not rows.size:
                continue
            first, last = int(rows.min()), int(rows.max()) + 1
            single = len(term.assembly.parameter.axes) < len(box)
            held = self.read(term.assembly, tuple(inner) if single else ((first, last), *inner))
            values = decode(held, term.assembly.value_dtype)
            values = values[None] if single else values
            for number in range(rows.shape[1]):
                share = weights[:, number].reshape(-1, *[1] * len(inner))
                part = np.zeros_like(total)  # a row that does not count may hold infinities
                total += np.multiply(share, values[rows[:, number] - first], out=part, where=share != 0)
        return total

    def _gather(self, blocks: Sequence[StoredPart], box: Box, raw: np.ndarray, sums: Counter[str] | None) -> None:
        """The elements of `box` out of blocks that cover the tensor; zeros where no block is."""
        parts = [(block, tile) for block in blocks for tile in block.within(box)]
        if sum(tile.elements for _, tile in parts) != raw.size:
            raw[...] = 0
        for block, tile in parts:
            self._fill(block, tile, tile_view(raw, tile, box), sums)

    def _average(self, assembly: LazyParameter, box: Box, mean: np.ndarray, sums: Counter[str] | None) -> None:
        ranks = (assembly.blocks, *assembly.averaged)
        mean[...] = 0
        for blocks in ranks:
            stored = scratch("stored", mean.shape, blocks[0].dtype.numpy)
            self._gather(blocks, box, stored, sums)
            mean += decode(stored, blocks[0].dtype)
        mean /= np.float32(len(ranks))

    def _fill(self, block: StoredPart, tile: Tile, view: np.ndarray, sums: Counter[str] | None) -> None:
        offset = block.offset + tile.native_base[0] * block.dtype.size
        add = None if sums is None or block.record is None else _adder(block.record, sums)
        with self._reading(block.path) as read:
            read_box(read, offset, [link.stride for link in tile.links], view, add)

    @contextlib.contextmanager
    def _reading(self, path: str) -> Iterator[ReadInto]:
        """How to read a file: its own bytes, or, of a tar in gzip, the inflated ones."""
        state = self._states.get(path)
        if path not in self._inflated:
            self._inflated[path] = inflated(path, state)
        if (contents := self._inflated[path]) is not None:
            yield contents.read_into
            return
        with self._files.descriptor(path, state) as descriptor:
            yield functools.partial(pread_into, descriptor, path=path)

    def _compare(
        self, assembly: LazyParameter, block: StoredPart, tile: Tile, view: np.ndarray, sums: Counter[str] | None
    ) -> None:
        copy = scratch("copy", view.shape, block.dtype.numpy)
        self._fill(block, tile, copy, sums)
        if block.dtype != assembly.dtype or not np.array_equal(_bits(copy), _bits(view)):
            self._check_records((block, *assembly.blocks))
            raise FormatError(
                f"two copies of {assembly.parameter.name} differ",
                file=block.path,
                expected=f"the values in {assembly.blocks[0].path}",
                fix="the checkpoint says they are one tensor (a tied head, a replicated parameter): find out which copy is right",
            )

    def _compare_rounded(
        self, assembly: LazyParameter, block: StoredPart, tile: Tile, view: np.ndarray, sums: Counter[str] | None
    ) -> None:
        copy = scratch("copy", view.shape, block.dtype.numpy)
        self._fill(block, tile, copy, sums)
        rounded = encode(decode(np.ascontiguousarray(view), assembly.dtype), block.dtype)
        if not np.array_equal(_bits(rounded), _bits(copy)):
            self._check_records((block, *assembly.blocks))
            raise FormatError(
                f"{assembly.parameter.name} in {assembly.dtype} does not round to its copy in {block.dtype}",
                file=assembly.blocks[0].path,
                expected=f"the values in {block.path}, before they were rounded",
                fix="one of them was changed after they were saved, or they are misread: read the copy alone, with --weights model",
            )

    def _check_records(self, blocks: Iterable[StoredPart]) -> None:
        """Of values that contradict each other, say which are damaged, where a checksum tells."""
        for record in {block.record for block in blocks if block.record is not None}:
            self.check_record(record)

    def check_record(self, record: Record) -> None:
        """Read a record for its checksum alone; `FormatError` if it is damaged."""
        crc, end = 0, record.offset + record.size
        with self._reading(record.file) as read:
            for start in range(record.offset, end, _PIECE):
                piece = bytearray(min(_PIECE, end - start))
                read(memoryview(piece), start)
                crc = crc32.crc32(piece, crc)
        record.check(crc)

    def recheck(self) -> None:
        """Raise `FormatError` if any source file changed since the plan was made."""
        for state in self._states.values():
            if FileState.of(state.path) != state:
                state.check(os.stat(state.path))

    def close(self) -> None:
        self._files.close()


def _adder(record: Record, sums: Counter[str]) -> WriteFrom:
    """Adds bytes at an offset of the file to the sum of the record that they are of."""

    key, end = record.key, record.offset + record.size

    def add(view: memoryview, offset: int) -> None:
        behind = end - offset - len(view)
        sums[key] ^= crc32.shifted(crc32.remainder(view), behind)

    return add


def _bits(array: np.ndarray) -> np.ndarray:
    """The elements as whole numbers of the same bits, by which a NaN equals itself, and -0 not 0."""
    return array.view(f"u{array.itemsize}")


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
                for dim, (start, size) in enumerate(zip(shard.origin, shard.stored.shape, strict=True)):
                    tiles = [part for tile in tiles for part in tile.cut_native(dim, start, start + size)]
                for tile in tiles:
                    stored = shard.stored
                    blocks.append(
                        StoredPart(
                            stored.file,
                            stored.dtype,
                            stored.offset,
                            flat_tile(tile, stored.strides, shard.origin),
                            stored.record,
                        )
                    )
            yield piece, blocks

    def _shape_problem(self, native: Native, shards: Sequence[Shard]) -> FormatError:
        whole = _whole_shape(shards)
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


def _whole_shape(shards: Sequence[Shard]) -> tuple[int, ...] | None:
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
    boxes = [(tuple(shard.origin), tuple(shard.stored.shape)) for shard in shards]
    ranks = {len(extent) for box in boxes for extent in box}
    if not ranks <= {len(shape)} or any(start < 0 for origin, _ in boxes for start in origin):
        return False
    return tiles(shape, boxes)


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
    )
