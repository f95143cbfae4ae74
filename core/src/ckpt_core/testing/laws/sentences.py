"""Tables, the sentences that are declared beside them, and the names under which files hold what they say."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase as fnmatch

import pytest

from ckpt_core.api import plan_conversion
from ckpt_core.architecture import Architecture
from ckpt_core.checkpoint import Placement
from ckpt_core.errors import CkptError
from ckpt_core.layout import Row
from ckpt_core.plugins.discovery import require
from ckpt_core.testing.laws.base import Law
from ckpt_core.testing.met import Met, meeting
from ckpt_core.testing.quirks import Golden
from ckpt_core.testing.workshop import Workshop
from ckpt_core.verify.declared import FILE, Declared, Sentences
from ckpt_core.verify.tracer import Trace, hold_against_declared


class Said(Law):
    """What the tables say is declared, borne out where it says so, reached by the kit, and found under the right numbers."""

    def test_what_it_writes_is_declared(self, workshop: Workshop, model: Architecture) -> None:
        """Every tensor lies where a line of `sentences.txt` puts it; a line that is missing is printed, to be read and added.

        The base model is written in each of `Quirks.choices` too.
        """
        plugin = require(self.format)
        if not Sentences.beside(plugin.module):
            pytest.skip(
                "the format ships no sentences.txt, by which `ckpt selftest` could know what its tables must say"
            )
        choices: Sequence[Mapping[str, str]] = ({}, *(self.quirks.choices if model == workshop.base() else ()))
        for options in choices:
            for layout in self.quirks.layouts():
                try:
                    arguments = workshop.arguments(layout, None, **options)
                    plan = plan_conversion(workshop.source(model), workshop.new(), **arguments)
                except CkptError:
                    assert layout.asked() or options, "the whole model can always be written"
                    continue
                seen, target = Trace(), plan.target
                hold_against_declared(seen, plugin, target)
                under = "".join(f" -o {name}={value}" for name, value in options.items())
                assert not seen.departed, f"tables and {FILE} differ{under}: {seen.departed[0]}"
                undeclared = {*seen.undeclared}
                lines = {str(Declared.of(one.native.row)) for one in target.placements if one.native.name in undeclared}
                assert not lines, f"lines for {FILE}{under}:\n" + "\n".join(sorted(lines))

    def test_what_bears_a_sentence_out_exists(self) -> None:
        """The last column names cases of `Quirks.goldens`, or checkpoints that `Quirks.shown` says where to find."""
        known = {golden.name for golden in self.quirks.golden_cases()} | self.quirks.shown.keys()
        lines = Sentences.beside(require(self.format).module)
        unknown = {name: line.native for line in lines for name in line.shown_by if name not in known}
        assert not unknown, "; ".join(f"{FILE} says that {name} shows {native}" for name, native in unknown.items()) + (
            f", and there is no such golden; there are: {', '.join(sorted(known)) or 'none'}"
        )

    def test_a_golden_bears_out_what_is_said_of_it(self, golden: Golden) -> None:
        """A line that names it is a line by which it is read."""
        claimed = [line for line in Sentences.beside(require(self.format).module) if golden.name in line.shown_by]
        if not claimed:
            pytest.skip(f"{FILE} says of no tensor that {golden.name} shows it")
        with meeting() as met:
            self._read(golden.checkpoint)
        rows = [Declared.of(native.row) for native in met.read]
        wrong = [str(line) for line in claimed if not any(_same(line, said) for said in rows)]
        assert not wrong, f"{golden.name} is not read by these lines of {FILE}, which name it:\n" + "\n".join(wrong)

    def test_every_row_and_key_is_reached(self, workshop: Workshop) -> None:
        """By a model of the kit, in some choice, or by a golden: of what nothing reaches, nothing is known."""
        with meeting() as met:
            for _ in self._all_plans(workshop):
                pass
            for golden in self.quirks.golden_cases():
                if "refused" not in golden.case:
                    self._read(golden.checkpoint)
        silent = [name for name in met.unreached if not self._excused(name)]
        assert not silent, (
            f"no model of Quirks.models and no golden reaches: {'; '.join(silent)}. Add a model or a golden that has it, or give "
            "the reason in Quirks.unreached"
        )
        idle = [
            pattern for pattern in self.quirks.unreached if not any(fnmatch(name, pattern) for name in _everything(met))
        ]
        assert not idle, f"Quirks.unreached names what is not a row, key or parameter: {', '.join(idle)}"

    def _all_plans(self, workshop: Workshop) -> Iterator[object]:
        for model in self.quirks.models.values():
            for options in ({}, *self.quirks.choices):
                try:
                    yield plan_conversion(
                        workshop.source(model), workshop.new(), **workshop.arguments(None, None, **options)
                    )
                except CkptError:
                    assert options, "the whole model can always be written"

    def _excused(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.quirks.unreached)

    def test_layers_and_ranks_are_in_their_order(self, workshop: Workshop) -> None:
        """By the names in the written files: a reader and a writer that exchange layers, or ranks, agree with each other."""
        for layout in self.quirks.layouts():
            try:
                plan = plan_conversion(workshop.source(workshop.base()), workshop.new(), **workshop.arguments(layout))
            except CkptError:
                assert layout.asked(), "the whole model can always be written"
                continue
            names = self._names(workshop.converted(workshop.source(workshop.base()), layout))
            wrong = [*layers_out_of_order(plan.target.placements, names)]
            if layout.tp == 1 or layout.ep == 1:  # a tensor that both divide is counted in either order
                wrong += ranks_out_of_order(plan.target.placements)
            assert not wrong, f"{layout}: {wrong[0]}"

    def _names(self, folder: str) -> Mapping[tuple[str, int], str]:
        """What files call their tensors, by file and byte, as far as the entries know it."""
        entries = [] if self.quirks.entries is None else self.quirks.entries.find(folder)
        return {(os.path.relpath(one.file, folder), one.offset): one.key for one in entries if one.offset is not None}


def _same(line: Declared, said: Declared) -> bool:
    return line.native == said.native and line.says_the_same(said)


def _everything(met: Met) -> Iterator[str]:
    yield from (*met.rows, *met.keys)
    yield from (f"{row.partition('(')[2].rstrip(')')}" for row in met.rows)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def layers_out_of_order(placements: Sequence[Placement], names: Mapping[tuple[str, int], str]) -> Iterator[str]:
    """Tensors of one row and file whose names count otherwise than their layers."""
    rows: dict[tuple[Row, str, tuple[str, ...]], list[tuple[int, str]]] = {}
    for one in placements:
        if one.native.layer is not None:
            stored = names.get((one.file, one.offset), one.native.name)
            alike = tuple(re.sub(r"\d+", "#", part.parameter, count=1) for part in one.native.pieces)
            rows.setdefault((one.native.row, one.file, alike), []).append((one.native.layer, stored))
    for (_, file, _), layers in rows.items():
        ordered = sorted(layers)
        for (low, before), (high, after) in itertools.pairwise(ordered):
            if low != high and _numbers(before) >= _numbers(after):
                yield f"layer {low} is called {before!r} in {file}, and layer {high} {after!r}"


def ranks_out_of_order(placements: Sequence[Placement]) -> Iterator[str]:
    """Tensors of one name whose files count otherwise than what ranks hold of them."""
    held: dict[str, list[tuple[tuple[int, ...], str]]] = {}
    for one in placements:
        if one.native.row.splits and one.native.pieces:
            start = min(
                part.tile.canonical_base
                for part in one.native.pieces
                if part.parameter == one.native.pieces[0].parameter
            )
            held.setdefault(one.native.name, []).append((start, one.file))
    for name, shares in held.items():
        ordered = sorted(shares)
        if len({start for start, _ in ordered}) < len(ordered) or len({file for _, file in ordered}) < len(ordered):
            continue  # ranks that hold the same, or one file for several ranks
        for (_, before), (_, after) in itertools.pairwise(ordered):
            if _numbers(before) > _numbers(after):
                yield f"{before} holds what comes before {after} of {name!r}"
