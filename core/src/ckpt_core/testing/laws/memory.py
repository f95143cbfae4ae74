"""A plan fits its memory."""

from __future__ import annotations

from ckpt_core.api import plan_conversion
from ckpt_core.architecture import Architecture, architecture_of, facts_of
from ckpt_core.testing.laws.base import Law
from ckpt_core.testing.workshop import Workshop

_BUDGET = 256 << 20


class BoundedMemory(Law):
    """A model 500 times as large is planned within the same memory."""

    def test_memory_is_bounded(self, workshop: Workshop) -> None:
        small = plan_conversion(
            workshop.source(workshop.base()), workshop.new(), **workshop.arguments(), max_memory=_BUDGET
        )
        large = enlarged(workshop.base(), 24)
        for layout in self.quirks.layouts():
            source = workshop.source(large, sparse=True)
            plan = plan_conversion(source, workshop.new(), **workshop.arguments(layout), max_memory=_BUDGET)
            assert plan.bytes_written > 400 * small.bytes_written
            assert plan.peak_memory <= _BUDGET, (
                f"{plan.bytes_written >> 20} MiB need {plan.peak_memory >> 20} MiB of memory"
            )


def enlarged(architecture: Architecture, factor: int) -> Architecture:
    """The same model with every width `factor` times as large."""
    wide = (
        "hidden",
        "vocabulary",
        "padded_vocabulary",
        "ffn",
        "head_dim",
        "kv_rank",
        "q_rank",
        "nope_dim",
        "rope_dim",
        "value_dim",
    )
    facts = facts_of(architecture)
    for path, value in facts.items():
        if path.rpartition(".")[2] in wide and type(value) is int:
            facts[path] = value * factor
    return architecture_of(facts, "an enlarged model")
