"""What is written reads back bit for bit, and what is read writes back byte for byte."""

from __future__ import annotations

import pytest

from ckpt_core import numpy as np
from ckpt_core.api import fingerprint, plan_conversion, read_checkpoint
from ckpt_core.architecture import Architecture, Facts, Parameter, architecture_of, facts_of
from ckpt_core.engine.run import run_plan
from ckpt_core.errors import Refusal
from ckpt_core.opened import OpenCheckpoint
from ckpt_core.plugins.discovery import require
from ckpt_core.storage.bytes.stored import read_small
from ckpt_core.testing.laws.base import Law, assert_same_weights
from ckpt_core.testing.quirks import Ranks
from ckpt_core.testing.workshop import SIDECARS, Workshop, bare, rewrites_in
from ckpt_core.verify.difference import compare


class Lens(Law):
    """Writing and reading undo each other, in every layout, dtype and choice."""

    def test_what_is_written_reads_back(self, workshop: Workshop, model: Architecture, layout: Ranks) -> None:
        source = workshop.source(model)
        out = workshop.converted(source, layout)
        with OpenCheckpoint(read_checkpoint(source)) as before, OpenCheckpoint(self._read(out)) as after:
            _assert_same_tensors(before, after)
            assert list(compare(before.checkpoint, after.checkpoint)) == []
            for name in before:
                assert after[name].dtype == before[name].dtype
        assert fingerprint(out, format=self.format, options=self.quirks.read_options) == fingerprint(source)

    def test_what_is_read_writes_back(self, workshop: Workshop, model: Architecture, layout: Ranks) -> None:
        first = workshop.converted(workshop.source(model), layout)
        second = workshop.write(first, layout)
        assert_same_weights(first, second, self._weight_files(workshop, first, layout))

    def test_a_receipt_is_not_needed(self, workshop: Workshop, model: Architecture) -> None:
        source = workshop.source(model)
        out = bare(workshop.write(source))
        found = [difference.subject for difference in compare(read_checkpoint(source), self._read(out))]
        assert set(found) <= {"tokens.vocabulary"}, "a reader may miss the true vocabulary, and nothing else"

    def test_every_layout_leads_to_every_other(self, workshop: Workshop) -> None:
        """Changing the layout gives the very files that writing in that layout gives."""
        source, layouts = workshop.source(workshop.base()), self.quirks.layouts()
        direct = {layout: workshop.converted(source, layout) for layout in layouts}
        for one, two in zip(layouts, [*layouts[1:], layouts[0]], strict=True):
            again = workshop.write(direct[one], two)
            assert_same_weights(direct[two], again, self._weight_files(workshop, source, two))

    def test_a_vocabulary_that_ranks_do_not_divide(self, workshop: Workshop) -> None:
        """It is padded for the ranks that ask for it, and no longer when they are gone."""
        widest, tokens = max(self.quirks.tp), workshop.base().tokens
        if widest == 1 or tokens is None:
            pytest.skip("no tensor parallel ranks, or no tokens")
        odd = tokens.vocabulary - (tokens.vocabulary % widest or widest) + 1
        facts = facts_of(workshop.base()) | {"tokens.vocabulary": odd, "tokens.padded_vocabulary": odd}
        source = workshop.source(architecture_of(Facts(facts), "an odd vocabulary"))
        whole, wide = Ranks(), Ranks(tp=widest)
        try:
            split = workshop.write(source, wide)
        except Refusal as refusal:
            assert "vocab" in str(refusal), f"it does not say that the vocabulary is why:\n{refusal}"
            return
        with OpenCheckpoint(read_checkpoint(source)) as before, OpenCheckpoint(self._read(split)) as after:
            _assert_same_tensors(before, after)
        if self.quirks.keeps_padding:
            return
        direct, again = workshop.write(source, whole), workshop.write(split, whole)
        assert_same_weights(direct, again, self._weight_files(workshop, source, whole))

    def test_every_dtype_is_kept(self, workshop: Workshop, dtype: str) -> None:
        source = workshop.source(workshop.base(), dtype)
        out = workshop.write(source, self.quirks.layouts()[-1])
        checkpoint = self._read(out)
        assert list(compare(read_checkpoint(source), checkpoint)) == []
        assert dtype in {assembly.dtype.name for assembly in checkpoint.tensors.values()}

    def test_every_choice_of_an_option(self, workshop: Workshop) -> None:
        """It leaves the model as it is, or the receipt tells of the rewrite."""
        source = workshop.source(workshop.base())
        for option in require(self.format).info.options:
            values = option.kind if isinstance(option.kind, tuple) else ("true", "false") if option.kind is bool else ()
            for value in values if option.side != "read" else ():
                try:
                    out = workshop.write(source, None, None, **{option.name: value})
                except Refusal:
                    continue
                found = list(compare(read_checkpoint(source), self._read(out)))
                assert found == [] or rewrites_in(out), (
                    f"-o {option.name}={value} changes the model, and no receipt says so"
                )

    def test_notes_travel_or_are_named(self, workshop: Workshop) -> None:
        source = workshop.source(workshop.base())
        known = read_checkpoint(source).notes
        dst = workshop.new()
        plan = plan_conversion(source, dst, **workshop.arguments())
        named = ", ".join(loss.subject for loss in plan.losses)
        run_plan(plan, dst)
        found = self._read(dst).notes
        lost = [name for name, value in known.items() if found.get(name) != value and name not in named]
        assert lost == [], f"{', '.join(lost)} did not arrive, and no loss says so: give `said` to the Target"

    def test_sidecars_travel(self, workshop: Workshop) -> None:
        if not self.quirks.sidecars:
            pytest.skip("this format carries no other files")
        out = workshop.write(workshop.source(workshop.base(), sidecars=True))
        carried = self._read(out).sidecars
        found = {path: read_small(sidecar.path) for path, sidecar in carried.items()}
        assert {path: found.get(path) for path in SIDECARS} == SIDECARS


def true_rows(parameter: Parameter) -> int | None:
    """How many rows are tokens: in a vocabulary without padding all of them, though another layout may add some. None for all
    rows of what has no shape."""
    return parameter.shape[0] if parameter.true_rows is None and parameter.shape else parameter.true_rows


def _assert_same_tensors(before: OpenCheckpoint, after: OpenCheckpoint) -> None:
    """Every tensor has the bits that it had, in the rows that are tokens: padding may come and go."""
    for name in before:
        rows = true_rows(before.checkpoint.tensors[name].parameter)
        one, two = (side[name].raw()[... if rows is None else slice(rows)] for side in (before, after))
        assert one.shape == two.shape, f"{name} has the shape {one.shape}, and {two.shape} came back"
        assert np.array_equal(_bits(one), _bits(two)), f"{name} came back with other values"


def _bits(raw: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
