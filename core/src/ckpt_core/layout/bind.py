"""Tables bound to an architecture: the native tensors of any rank, and where each parameter lies in them."""

from __future__ import annotations

import functools
import math
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ckpt_core.architecture import Architecture, Layer, Parameter, Stack, parameters
from ckpt_core.errors import CkptError, Problems, Refusal, did_you_mean
from ckpt_core.layout.affine import Link, Tile, boxes_of_range
from ckpt_core.layout.choices import Chosen, both_of, is_met, words_of
from ckpt_core.layout.sentence import Affine, Sentence, SentenceError, expand, parse
from ckpt_core.layout.split import ROWS, IndexRange, Ranks, shares
from ckpt_core.layout.table import Row, Table, Tables
from ckpt_core.lean import dataclass

NO_PLACE = "has no place in this format"
_SUGGESTIONS, _COMPARED = 50, 2000


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a canonical parameter inside a native tensor."""

    parameter: str
    tile: Tile


@dataclass(frozen=True, slots=True)
class Native:
    """One native tensor of one rank: its name, its shape, and the parameters it holds.

    `layer` is the global index of its layer, None outside layers; `predictor` that of the layer that predicts a further token which
    it belongs to. `padding` counts elements that hold zeros.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Part, ...]
    row: Row
    layer: int | None = None
    padding: int = 0
    predictor: int | None = None

    def block(self, rank: int, ranks: int) -> Native:
        """One of `ranks` equal blocks along the first dimension; `Refusal` where they are not equal."""
        if self.shape[0] % ranks:
            raise Refusal(f"tp={ranks} does not divide the {self.shape[0]} rows of {self.name}")
        rows = self.shape[0] // ranks
        return self.box((rank * rows, *([0] * (len(self.shape) - 1))), (rows, *self.shape[1:]))

    def box(self, origin: Sequence[int], shape: tuple[int, ...]) -> Native:
        """The elements in a box of the tensor, as a tensor of their own."""
        parts = []
        for part in self.pieces:
            tiles = [part.tile]
            for dim, (start, size) in enumerate(zip(origin, shape, strict=True)):
                tiles = [cut for tile in tiles for cut in tile.cut_native(dim, start, start + size)]
            for tile in tiles:
                base = tuple(at - start for at, start in zip(tile.native_base, origin, strict=True))
                parts.append(Part(part.parameter, Tile(tile.links, tile.canonical_base, base)))
        padding = math.prod(shape) - sum(part.tile.elements for part in parts) if self.padding else 0
        return replace(self, shape=shape, pieces=tuple(parts), padding=padding)

    def flat_range(self, start: int, stop: int) -> Iterator[tuple[int, Native]]:
        """Elements [start, stop) of the flattened tensor, as boxes that lie one after the other, each with how many elements of the range come
        before it."""
        before = 0
        for origin, shape in boxes_of_range(self.shape, start, stop - start):
            yield before, self.box(origin, shape)
            before += math.prod(shape)


class BoundTables:
    """The tables of `choices`, bound to `architecture`. `sizes` gives sizes to axes that no parameter has (padding).

    Choices that are left out have their defaults. `tables` are then those with the rows of the choices alone.
    Raises `CkptError` for a choice or a value that the tables do not declare.
    """

    def __init__(
        self,
        tables: Tables | Iterable[Table],
        architecture: Architecture,
        choices: Chosen | None = None,
        *,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        self.format = tables if isinstance(tables, Tables) else Tables(tables)
        self.choices = self.format.chosen(choices)
        self.tables = self.format.under(self.choices)
        self.architecture = architecture
        self.sizes = dict(sizes or {})
        self.parameters = parameters(architecture)

    def natives(self, ranks: Ranks | None = None) -> dict[str, Native]:
        """Every native tensor of one rank by name, in table order.

        Raises `Refusal` naming every parameter that no row holds, `SentenceError` where a row does not fit
        its parameters, `SplitError` where the ranks do not divide an axis.
        """
        named: dict[str, Native] = {}
        problems = Problems("the format's tables do not hold this architecture")
        claimed: dict[str, int] = dict.fromkeys(self.parameters, 0)
        for native in self._natives(ranks or {}, problems):
            if native.name in named:
                problems.add(CkptError(f"two rows claim the native tensor {native.name!r}"))
            named[native.name] = native
            if not native.row.copy:
                for piece in native.pieces:
                    claimed[piece.parameter] += 1
        problems.raise_any()
        for name, pieces in claimed.items():
            if not pieces:
                problems.add(Refusal(f"parameter {self.parameters[name]} {NO_PLACE}", fix=self._elsewhere(name)))
        for name, native in named.items():
            for dimension, axes in native.row.splits:
                if axes == ROWS:
                    try:
                        named[name] = native.block(*(ranks or {}).get(dimension, (0, 1)))
                    except Refusal as problem:
                        problems.add(problem)
        problems.raise_any()
        return named

    def _natives(self, ranks: Ranks, problems: Problems) -> Iterator[Native]:
        for table in self.tables:
            stack = self._stack_of(table)
            if stack is None and ("{l}" in table.to or table.is_of_predictors):
                continue
            subjects: Iterable[tuple[int | None, Layer | Architecture]] = [(None, self.architecture)]
            if stack is not None and table.is_of_predictors:
                subject = stack.layers[-1] if "{l}" in table.to else self.architecture
                subjects = ((index, subject) for index in range(stack.predictors.count if stack.predictors else 0))
            elif stack is not None and "{l}" in table.native:
                subjects = enumerate(stack.layers)
            # Layers that are alike have the same rows: those that hold nothing of one hold nothing of the next.
            before, rows = None, list[Row]()
            for layer, subject in subjects:
                if subject != before:
                    before, rows = subject, [row for row in table.rows if row.applies_to(subject, ranks)]
                held = []
                for row in rows:
                    try:
                        bound = _BoundRow(self, table, row, stack, layer)
                        yield from bound.natives(ranks)
                    except CkptError as problem:
                        problems.add(problem)
                    else:
                        if not bound.parts:
                            continue
                    held.append(row)
                rows = held

    def _elsewhere(self, name: str) -> str | None:
        """The choices under which another row holds a parameter, as advice; None if there are none."""
        for table in self.format:
            for row in table.rows:
                under = both_of(table.under, row.under) or ()
                template = (
                    re.escape(join(table.to, row.canonical)).replace(r"\{l\}", r"\d+").replace(r"\{part\}", r"\w+")
                )
                if not row.copy and not is_met(under, self.choices) and re.fullmatch(template, name):
                    return f"it has one under {words_of(under)}"
        return None

    def _stack_of(self, table: Table) -> Stack | None:
        if table.is_of_predictors:
            return self.architecture.stacks.get(table.to.partition("predictors.{l}")[0])
        prefix, found, _ = table.to.partition("layers.{l}")
        return self.architecture.towers.get(prefix) if found else None


@functools.lru_cache(1 << 10)
def _expanded(
    sentence: Sentence, sizes: tuple[tuple[str, int], ...], parts: frozenset[str | None]
) -> tuple[tuple[int, ...], tuple[Affine, ...]]:
    """`expand`, once for all layers and ranks that are alike."""
    return expand(sentence, dict(sizes), parts.__contains__)


class _BoundRow:
    """One row applied to one layer (or to all of them, if its tensor stacks layers)."""

    def __init__(self, layout: BoundTables, table: Table, row: Row, stack: Stack | None, layer: int | None) -> None:
        self.row, self.sizes, self.table = row, layout.sizes, table
        self.sentence: Sentence = parse(row.sentence)
        self.template = join(table.to, row.canonical)
        self.layer = layer
        self.after = len(stack.layers) + layer if stack is not None and layer is not None else None
        self.layers: list[int | None] = [layer]
        if "{l}" in self.template and layer is None:
            if stack is None or "l" not in self.sentence.names():
                raise SentenceError("neither the native name nor the sentence says which layer", row.sentence)
            self.layers = [*range(len(stack.layers))]
        self.parts = self._parts(layout.parameters)

    def _parts(self, known: Mapping[str, Parameter]) -> dict[str | None, Parameter]:
        """The parameters this row holds in its (first) layer, by part. Empty if the row does not apply."""
        first = self.layers[0]
        if "{part}" not in self.template:
            name = self.template.format(l=first)
            return {None: known[name]} if name in known else {}
        named = {part: self.template.format(l=first, part=part) for part in sorted(self.sentence.part_names())}
        return {part: known[name] for part, name in named.items() if name in known}

    def natives(self, ranks: Ranks) -> Iterator[Native]:
        """The native tensors of one rank: one, or one per index that the native name runs over."""
        if not self.parts:
            return
        whole = self._whole_sizes()
        splits = dict(self.row.splits)
        held = {part: shares(splits, ranks, whole, self.row.sentence, part) for part in self.parts}
        sizes = {**self.sizes, **self._finer_sizes(), **self._held_sizes(whole, held)}
        if len(self.layers) > 1 or self.layer is None:
            sizes["l"] = len(self.layers)
        shape, affines = _expanded(self.sentence, tuple(sizes.items()), frozenset(self.parts))
        padding = sum(affine.elements for affine in affines if affine.padding)
        filled = [affine for affine in affines if not affine.padding and affine.elements]
        native = join(self.table.native, self.row.native)
        of_predictor = self.table.is_of_predictors
        layer, predictor = (None, self.layer) if of_predictor else (self.layer, None)
        # The tensors that a name runs over (experts) are alike, but for the start of their pieces on the axis that it runs over.
        first, made = 0, list[tuple[Part, int | None]]()
        for number, bound in enumerate(self._bindings(ranks, whole)):
            axis, index = next(iter(bound.items()), ("", 0))
            if not number:
                first = index
                for affine in filled:
                    place = self._number_of(axis, affine.part)
                    made += [(piece, place) for piece in self._pieces(affine, bound, held)]
                self._check_cover([piece for piece, _ in made], bound, held)
            pieces = tuple(_moved(piece, place, index - first) for piece, place in made)
            name = native.format(l=self.layer, after=self.after, **bound)
            yield Native(name, shape, pieces, self.row, layer, padding, predictor)

    def _number_of(self, axis: str, part: str | None) -> int | None:
        """Which axis of a part is called so; None if it has none."""
        names = [one.name for one in self.parts[part].axes] if part in self.parts else []
        return names.index(axis) if axis in names else None

    def _bindings(self, ranks: Ranks, whole: Mapping[str, int]) -> Iterator[dict[str, int]]:
        """The indices a native name runs over, besides layers: `experts.{x}.up` has one tensor per expert."""
        names = [name for _, name, _, _ in string.Formatter().parse(self.row.native) if name and name != "l"]
        if not names:
            yield {}
            return
        (axis,) = names
        size = whole.get(axis)
        if size is None:
            raise SentenceError(
                f"{self.row.native!r} runs over {axis!r}, which its parameters do not have", self.row.sentence
            )
        start, count = shares(dict(self.row.splits), ranks, {axis: size}, self.row.sentence).get(axis, (0, size))
        for index in range(start, start + count):
            yield {axis: index}

    def _whole_sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for parameter in self.parts.values():
            for axis in parameter.axes:
                if sizes.setdefault(axis.name, axis.size) != axis.size:
                    found = f"{axis.name}={sizes[axis.name]} and {axis}"
                    raise SentenceError(f"axis {axis.name!r} has two sizes in one tensor: {found}", self.row.sentence)
        return sizes

    def _held_sizes(
        self, whole: Mapping[str, int], held: Mapping[str | None, Mapping[str, IndexRange]]
    ) -> dict[str, int]:
        """The size of every axis on this rank: parts may hold different indices of one axis, but equally many."""
        sizes: dict[str, int] = {}
        for part, parameter in self.parts.items():
            for axis in parameter.axes:
                _, size = held[part].get(axis.name, (0, whole[axis.name]))
                if sizes.setdefault(axis.name, size) != size:
                    found = f"{sizes[axis.name]} and {size} of {axis}"
                    raise SentenceError(f"the parts of one tensor hold different shares: {found}", self.row.sentence)
        return sizes

    def _finer_sizes(self) -> dict[str, int]:
        return {
            name: size
            for parameter in self.parts.values()
            for axis in parameter.axes
            for term in axis.terms
            for name, size in term
        }

    def _pieces(
        self, affine: Affine, bound: Mapping[str, int], by_part: Mapping[str | None, Mapping[str, IndexRange]]
    ) -> list[Part]:
        """The tiles of one affine part: one, or one per layer if the native tensor stacks layers."""
        if affine.part not in self.parts:
            raise SentenceError(
                "a part of the sentence names no parameter", self.row.sentence, expected=", ".join(map(str, self.parts))
            )
        parameter, held = self.parts[affine.part], by_part[affine.part]
        canonical = [bound.get(axis.name, held.get(axis.name, (0, axis.size))[0]) for axis in parameter.axes]
        numbers = {axis.name: number for number, axis in enumerate(parameter.axes)}
        finer = self._finer_places(affine, parameter, canonical)
        links = []
        for step in affine.steps:
            if step.axis == "l" and "l" not in numbers:
                continue
            if step.axis in numbers:
                links.append(Link(step.size, numbers[step.axis], 1, step.dim, step.step))
            elif step.axis in finer:
                number, canonical_step = finer[step.axis]
                links.append(Link(step.size, number, canonical_step, step.dim, step.step))
            else:
                axes = " ".join(map(str, parameter.axes))
                raise SentenceError(
                    f"axis {step.axis!r} does not belong to {parameter.name}", self.row.sentence, expected=axes
                )
        tile = Tile(tuple(links), tuple(canonical), affine.base)
        stacking = next((step for step in affine.steps if step.axis == "l"), None)
        if stacking is None:
            return [Part(parameter.name, tile)]
        pieces = []
        for index, layer in enumerate(self.layers):
            base = list(affine.base)
            base[stacking.dim] += index * stacking.step
            pieces.append(Part(self.template.format(l=layer, part=affine.part), tile._replace(native_base=tuple(base))))
        return pieces

    def _finer_places(self, affine: Affine, parameter: Parameter, canonical: list[int]) -> dict[str, tuple[int, int]]:
        """Canonical axis number and step of every finer axis this part names; moves `canonical` to their term."""
        named = {step.axis for step in affine.steps}
        places: dict[str, tuple[int, int]] = {}
        for number, axis in enumerate(parameter.axes):
            base = 0
            for term in axis.terms:
                size = math.prod(count for _, count in term)
                if named & {name for name, _ in term}:
                    canonical[number] += base
                    step = size
                    for name, count in term:
                        step //= max(count, 1)
                        places[name] = (number, step)
                base += size
        return places

    def _check_cover(
        self, pieces: Sequence[Part], bound: Mapping[str, int], by_part: Mapping[str | None, Mapping[str, IndexRange]]
    ) -> None:
        """Every element of this rank's share of every parameter must have its place in the sentence."""
        for part, parameter in self.parts.items():
            held = by_part[part]
            expected = math.prod(
                1 if axis.name in bound else held.get(axis.name, (0, axis.size))[1] for axis in parameter.axes
            )
            for layer in self.layers:
                name = parameter.name if len(self.layers) == 1 else self.template.format(l=layer, part=part)
                placed = sum(piece.tile.elements for piece in pieces if piece.parameter == name)
                if placed != expected:
                    axes = " ".join(map(str, parameter.axes))
                    raise SentenceError(
                        f"the sentence places {placed} of the {expected} elements of {name}",
                        self.row.sentence,
                        expected=f"each axis once: {axes}",
                    )


def _moved(piece: Part, axis: int | None, by: int) -> Part:
    """The piece `by` indices further on an axis of its parameter."""
    if axis is None or not by:
        return piece
    return Part(piece.parameter, _moved_tile(piece.tile, axis, by))


@functools.lru_cache(1 << 13)
def _moved_tile(tile: Tile, axis: int, by: int) -> Tile:
    """The same one for all layers that are alike."""
    base = (*tile.canonical_base[:axis], tile.canonical_base[axis] + by, *tile.canonical_base[axis + 1 :])
    return Tile(tile.links, base, tile.native_base)


def account(
    natives: Mapping[str, Native],
    tables: Iterable[Table],
    found: Iterable[str],
    file: str,
    places: Mapping[str, str] | None = None,
) -> list[CkptError]:
    """Problems for native tensors that are missing or that no row or drop claims. Copies may be absent.

    `places` says in which file each of those found lies, if they are not all in `file`.
    """
    found, places = set(found), places or {}
    tables = list(tables)
    unclaimed = sorted(name for name in found - natives.keys() if not any(table.drops_name(name) for table in tables))
    missing = sorted(name for name, native in natives.items() if name not in found and not native.row.copy)
    problems = [
        CkptError(f"tensor {name!r} is missing", file=file, fix=_nearest(name, number, unclaimed))
        for number, name in enumerate(missing)
    ]
    problems += [
        CkptError(
            f"tensor {name!r} is not part of this architecture",
            file=places.get(name, file),
            fix=_nearest(name, number, missing),
        )
        for number, name in enumerate(unclaimed)
    ]
    return problems


def _nearest(name: str, number: int, known: Sequence[str]) -> str | None:
    """The nearest of `known` names, for the first problems: where all of 45,000 names are wrong, that would take minutes."""
    return did_you_mean(name, known[:_COMPARED]) if number < _SUGGESTIONS else None


def join(prefix: str, name: str) -> str:
    """Two dotted names as one; either may be empty."""
    return f"{prefix}.{name}" if prefix and name else prefix or name
