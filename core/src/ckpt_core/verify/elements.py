"""Where a layout sentence puts single elements, read off the sentence itself.

`ckpt_core.layout` makes affine maps of sentences, and tiles of those; all data moves by tiles. Here nothing is made of a
sentence: it is followed from the outermost factor to the innermost for one element after the other, so that the tracer
can hold the two against each other.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from ckpt_core import numpy as np
from ckpt_core.architecture import Axis, Parameter
from ckpt_core.layout import Native, Part, Tile, parse
from ckpt_core.layout.sentence import Name, Node, One, Padding, Product, Sum
from ckpt_core.lean import dataclass

_EXHAUSTIVE = 1 << 14
_ALONG_AXIS = 1 << 11
_SEED = 20240229


@dataclass(frozen=True, slots=True)
class StrayElement:
    """An element that lies elsewhere in a native tensor than a sentence puts it; `found` and `expected` in words."""

    tensor: str
    axis: str
    index: int
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.tensor}: index {self.index} of axis {self.axis} lies {self.found}, where the declared {self.expected}"


def sampled(shape: Sequence[int]) -> np.ndarray:
    """Indices [place, axis]: all of a small shape; of a large one every index of every axis, the others zero, then at random."""
    if math.prod(shape) <= _EXHAUSTIVE:
        return np.indices(shape).reshape(len(shape), math.prod(shape)).T
    random = np.random.default_rng(_SEED)
    rows = []
    for axis, size in enumerate(shape):
        along = (
            np.arange(size) if size <= _ALONG_AXIS else np.unique(np.linspace(0, size - 1, _ALONG_AXIS, dtype=np.int64))
        )
        for highest in (np.ones_like(shape), shape):
            places = random.integers(0, highest, (len(along), len(shape)))
            places[:, axis] = along
            rows.append(places)
    return np.concatenate(rows)


def departure(
    native: Native, known: Mapping[str, Parameter], sentence: str, padding: Mapping[str, int] | None = None
) -> StrayElement | None:
    """The first element of a native tensor that does not lie where `sentence` puts it; `padding` gives the sizes of axes
    that no parameter has.

    The tensor is what the sentence describes for this rank's share of the parameters, or a block of its rows; or a block of
    rows of the whole model's tensor, where ranks cut that without regard to what its rows are.
    """
    pieces = [_Part.of(piece, native, known, sentence) for piece in native.pieces]
    own = {axis.name: count for part in pieces for axis, count in zip(part.axes, part.count, strict=True)}
    whole = {axis.name: axis.size for part in pieces for one in part.siblings for axis in one.axes} | dict(
        padding or {}
    )
    wrong = _first(native, sentence, pieces, whole | own, shared=True)
    return wrong and _first(native, sentence, pieces, whole, shared=False) and wrong


@dataclass(frozen=True, slots=True)
class _Part:
    """One tile of a native tensor: of which part it is, and which share of the parameter the tensor holds, axis by axis."""

    name: str | None
    layer: int
    axes: tuple[Axis, ...]
    start: tuple[int, ...]
    count: tuple[int, ...]
    tile: Tile
    siblings: tuple[Parameter, ...]
    parts: frozenset[str | None]

    @classmethod
    def of(cls, piece: Part, native: Native, known: Mapping[str, Parameter], sentence: str) -> _Part:
        prefix, name = _named(piece.parameter, native.row.canonical)
        names = [name, *sorted(parse(sentence).part_names())] if name is not None else [None]
        named = {part: f"{prefix}{native.row.canonical.format(part=part)}" for part in names}
        alike = {part: known[parameter] for part, parameter in named.items() if parameter in known}
        tiles = [other.tile for other in native.pieces if other.parameter == piece.parameter]
        axes = known[piece.parameter].axes
        start = tuple(min(tile.canonical_base[axis] for tile in tiles) for axis in range(len(axes)))
        count = tuple(max(_reach(tile, axis) for tile in tiles) - low for axis, low in enumerate(start))
        layers = dict.fromkeys(
            other.parameter for other in native.pieces if _named(other.parameter, native.row.canonical)[1] == name
        )
        return cls(
            name,
            list(layers).index(piece.parameter),
            axes,
            start,
            count,
            piece.tile,
            tuple(alike.values()),
            frozenset(alike),
        )


def _named(parameter: str, canonical: str) -> tuple[str, str | None]:
    """What stands before a row's canonical name in a parameter's, and the part that it is."""
    before, part, after = canonical.partition("{part}")
    match = re.fullmatch(rf"(.*?){re.escape(before)}{'([^.]+)' if part else '()'}{re.escape(after)}", parameter)
    return (match[1], match[2] or None) if match else ("", None)


def _reach(tile: Tile, axis: int) -> int:
    """One more than the last canonical index on an axis."""
    return tile.canonical_base[axis] + 1 + sum((one.size - 1) * one.step for one in tile.links if one.axis == axis)


def _first(
    native: Native, sentence: str, parts: Sequence[_Part], axes: Mapping[str, int], shared: bool
) -> StrayElement | None:
    """The first departure if axes have these sizes; `shared`: they are those of the tensor's share, and indices count from its start."""
    finer = {
        name: size
        for part in parts
        for one in part.siblings
        for axis in one.axes
        for term in axis.terms
        for name, size in term
    }
    sizes = tuple((finer | dict(axes) | {"l": 1 + max((part.layer for part in parts), default=0)}).items())
    rows: int | None = None
    for piece, part in zip(native.pieces, parts, strict=True):
        start = part.start if shared else (0,) * len(part.start)
        based = tuple(base - low for base, low in zip(part.tile.canonical_base, start, strict=True))
        tile = Tile(part.tile.links, based, part.tile.native_base)
        found = _in_tile(sentence, native.shape, sizes, part.parts, part.name, part.layer, part.axes, tile)
        rows = found.rows if rows is None else rows
        if found.words is not None or found.rows != rows:
            place = tuple(index + low for index, low in zip(found.place, start, strict=True))
            apart = [axis for axis, index in enumerate(found.place) if index]
            axis = apart[0] if apart else 0
            return StrayElement(
                piece.parameter,
                part.axes[axis].name,
                place[axis],
                f"at {list(found.lies)} of {native.name}",
                f"`{sentence}` {found.words or f'has it {abs(found.rows - rows)} rows off'}",
            )
    return None


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found in a tile: how many rows of the sentence's tensor lie before the native one; if something is
    wrong, what the sentence says of the element at `place`, which lies at `lies`."""

    rows: int
    place: tuple[int, ...]
    lies: tuple[int, ...]
    words: str | None = None


@functools.lru_cache(1 << 12)
def _in_tile(
    sentence: str,
    shape: tuple[int, ...],
    sizes: tuple[tuple[str, int], ...],
    parts: frozenset[str | None],
    part: str | None,
    layer: int,
    axes: tuple[Axis, ...],
    tile: Tile,
) -> _Found:
    """The elements of one tile against the sentence; looked at once for all layers and ranks that are alike."""
    steps = sampled([link.size for link in tile.links])
    place = np.tile(np.array(tile.canonical_base, np.int64), (len(steps), 1))
    lies = np.tile(np.array(tile.native_base, np.int64), (len(steps), 1))
    for number, link in enumerate(tile.links):
        place[:, link.axis] += steps[:, number] * link.step
        lies[:, link.dim] += steps[:, number] * link.stride

    def found(number: int, rows: int, words: str | None = None) -> _Found:
        return _Found(rows, tuple(map(int, place[number])), tuple(map(int, lies[number])), words)

    said = _Element(dict(sizes), parts, part, layer, axes, place).dims(sentence)
    if said is None:
        return found(0, 0, "names an axis that it does not have")
    extents, belongs, holds = said
    if extents == shape == ():
        return found(0, 0)
    if len(shape) == 1 < len(extents):  # kept flat, as optimizers keep parameters
        belongs = np.ravel_multi_index(tuple(belongs.T), extents)[:, None]
        extents = (math.prod(extents),)
    height, *widths = extents
    if len(belongs[0]) != len(shape) or tuple(widths) != shape[1:] or height % max(shape[0], 1):
        return found(0, 0, f"describes a tensor of {[height, *widths]}, not {list(shape)}")
    rows = int(belongs[0, 0]) // max(shape[0], 1) * shape[0]
    belongs[:, 0] -= rows
    wrong = np.flatnonzero(~holds | (belongs != lies).any(axis=1))
    if not len(wrong):
        return found(0, rows)
    first = min(map(int, wrong), key=lambda number: (np.count_nonzero(place[number]), tuple(place[number])))
    words = f"puts it at {list(map(int, belongs[first]))}" if holds[first] else "has no place for it"
    return found(first, rows, words)


@dataclass(frozen=True, slots=True)
class _Element:
    """Elements of one part, by their indices [place, axis] in the tensor's share of the parameter."""

    sizes: Mapping[str, int]
    parts: frozenset[str | None]
    part: str | None
    layer: int
    axes: tuple[Axis, ...]
    place: np.ndarray

    def dims(self, sentence: str) -> tuple[tuple[int, ...], np.ndarray, np.ndarray] | None:
        """The shape that a sentence describes, where it puts each element [place, dim], and whether it does.

        None if it names an axis that the tensor does not have.
        """
        read = parse(sentence)
        if not {*read.names(), *read.padding_names()} <= {*self.sizes, *self.parts}:
            return None
        found = [self.follow(node) for node in read.dims]
        if not found:  # a single number
            return (), np.zeros((len(self.place), 0), np.int64), np.ones(len(self.place), bool)
        shape = tuple(size for size, _, _ in found)
        return shape, np.stack([index for _, index, _ in found], axis=1), np.all([held for _, _, held in found], axis=0)

    def follow(self, node: Node) -> tuple[int, np.ndarray, np.ndarray]:
        """The size of what a node describes, the index of each element in it, and whether the element is in it."""
        nowhere, all_of_them = np.zeros(len(self.place), np.int64), np.ones(len(self.place), bool)
        match node:
            case One():
                return 1, nowhere, all_of_them
            case Padding(axis=axis):
                return self.sizes[axis], nowhere, ~all_of_them
            case Name(name=name, own=own) if name in self.parts:
                size, index, held = (1, nowhere, all_of_them) if own is None else self.follow(own)
                return size, index, held & (name == self.part)
            case Name(name=name):
                index, held = self.along(name)
                return self.sizes[name], index, held
            case Product(factors=factors):
                return self.nested(factors)
            case Sum(terms=terms):
                return self.joined(terms)

    def nested(self, factors: Iterable[Node]) -> tuple[int, np.ndarray, np.ndarray]:
        """Row-major: each factor counts blocks of all that is inside it."""
        total, where, within = 1, np.zeros(len(self.place), np.int64), np.ones(len(self.place), bool)
        for factor in factors:
            size, index, held = self.follow(factor)
            total, where, within = total * size, where * size + index, within & held
        return total, where, within

    def joined(self, terms: Iterable[Node]) -> tuple[int, np.ndarray, np.ndarray]:
        """One term after the other; an element lies in the one that holds it."""
        total, where, within = 0, np.zeros(len(self.place), np.int64), np.zeros(len(self.place), bool)
        for term in terms:
            size, index, held = self.follow(term)
            where, within, total = np.where(held, total + index, where), within | held, total + size
        return total, where, within

    def along(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The index on an axis, or on a finer one, and whether the element has one."""
        if name == "l":
            return np.full(len(self.place), self.layer, np.int64), np.ones(len(self.place), bool)
        for number, axis in enumerate(self.axes):
            index = self.place[:, number]
            if axis.name == name:
                return index, np.ones(len(index), bool)
            before = 0
            for term in axis.terms:
                size, inner = math.prod(count for _, count in term), 1
                for finer, count in reversed(term):
                    if finer == name:
                        return (index - before) // inner % max(count, 1), (index >= before) & (index < before + size)
                    inner *= max(count, 1)
                before += size
        return np.zeros(len(self.place), np.int64), np.zeros(len(self.place), bool)
