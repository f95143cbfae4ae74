"""No fact of a model is lost in silence: it is expressed, or rewritten exactly, or refused by its name."""

from __future__ import annotations

import pytest

from ckpt_core.api import plan_conversion
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.engine.run import run_plan
from ckpt_core.errors import CkptError
from ckpt_core.opened import OpenCheckpoint
from ckpt_core.plugins.discovery import require
from ckpt_core.testing.examples import calm_numbers
from ckpt_core.testing.functions import apart, outputs
from ckpt_core.testing.laws.base import TOLERANCE, Law
from ckpt_core.testing.variations import Variation, names_a_fact, variations
from ckpt_core.testing.workshop import Workshop, bare, told_by
from ckpt_core.verify.difference import compare


class NothingSilent(Law):
    """Whatever differs from the base model in one fact is written as it is, or its refusal names the fact."""

    def test_a_fact_is_expressed_or_refused_by_name(self, workshop: Workshop, variation: Variation) -> None:
        """Written as it is; or as another model, which the plan tells of and which computes the same; or refused."""
        source = workshop.source(variation.architecture, values=calm_numbers)
        plan, out = None, workshop.new()
        try:
            plan = plan_conversion(source, out, **workshop.arguments())
            run_plan(plan, out)
        except CkptError as refusal:
            assert variation.fact not in self.quirks.expresses, (
                f"Quirks.expresses has {variation.fact!r}, but:\n{refusal}"
            )
            assert plan is None, "what cannot be written must be refused by the plan"
            # Of several families, the nearest one may lack something else.
            nearest = len(require(self.format).info.families) > 1 and names_a_fact(str(refusal))
            assert nearest or variation.named_in(str(refusal)), f"it does not name {variation.fact}:\n{refusal}"
            return
        before, after = plan.source, self._read(bare(out))
        found = [
            difference
            for difference in compare(before, after)
            if difference.subject != "tokens.vocabulary" or variation.fact == "tokens.vocabulary"
        ]
        if found:
            told = told_by(plan) - told_by(workshop.plan_of_base)
            assert told, f"{variation.fact} is written, and lost: {found}"
            assert_same_function(variation, workshop.plan_of_base.source, before, after, told)

    def test_what_it_expresses_is_known(self) -> None:
        known = variations(next(iter(self.quirks.models.values())))
        unknown = [name for name in self.quirks.expresses if name not in known]
        assert not unknown, f"Quirks.expresses names no variation: {unknown}; there are: {', '.join(known)}"


def assert_same_function(
    variation: Variation, base: Checkpoint, before: Checkpoint, after: Checkpoint, told: set[str]
) -> None:
    """`after`, the variation written as another model, computes what `before` does, and `base` does not.

    What is inert must be there, bit for bit.
    """
    pytest.importorskip("torch", reason="a rewritten model is judged by what it computes, and that takes torch")
    with OpenCheckpoint(base) as one, OpenCheckpoint(before) as two, OpenCheckpoint(after) as three:
        plain, wanted, written = outputs(one, two, three)
    error, moved = apart(written, wanted), apart(plain, wanted)
    assert error <= TOLERANCE, f"{told} is not exact with {variation.fact}: the output differs by {error:.2g}"
    if variation.inert:
        lost = [difference for difference in compare(before, after) if difference.subject in before.tensors]
        assert not lost, f"{told} loses what no output shows: {lost}"
    else:
        assert moved > 10 * TOLERANCE, f"{variation.fact} moves the output by {moved:.2g} at most: that proves nothing"
