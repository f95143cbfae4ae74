"""What a target does not say of a training whose moments it takes along: the counters and numbers that its files have no place for."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ckpt_core.ledger import Loss
from ckpt_core.text import plural
from ckpt_core.training.state import Training

SAID = (
    "iterations",
    "consumed_samples",
    "consumed_tokens",
    "loss_scale",
    "clip_grad",
    "schedule.step",
    "schedule.sample",
)
"""What a writer may say of a state besides groups, steps and tensors: fields of `Training`, and in which unit it says where the schedule stands."""


def unsaid_of(training: Training, says: Collection[str]) -> Iterator[Loss]:
    """A loss for all that the state has and the target, which `says` some of `SAID`, does not."""
    iterations, samples, tokens = training.iterations, training.consumed_samples, training.consumed_tokens
    if iterations not in (None, training.step) and "iterations" not in says:
        why = "the target counts the steps of the optimizer alone"
        yield Loss(
            "unsaid",
            f"{plural(iterations, 'iteration')}, of which the optimizer made {plural(training.step, 'step')}",
            why,
        )
    for count, what in ((samples, "sample"), (tokens, "token")):
        if count is not None and f"consumed_{what}s" not in says:
            why = "the target has no such count: its loader of data is told otherwise where it goes on"
            yield Loss("unsaid", plural(count, f"consumed {what}"), why)
    if training.loss_scale is not None and "loss_scale" not in says:
        why = "how long it has lasted is not known: a run in fp16 begins with its own"
        yield Loss("dropped", f"loss scale {training.loss_scale:g}", why)
    if training.clip_grad is not None and "clip_grad" not in says:
        clipped = (
            f"gradients that are clipped at {training.clip_grad:g}" if training.clip_grad else "gradients as they are"
        )
        yield Loss("unsaid", clipped, "the files do not say it: it is an argument of the program that goes on")
    schedule = training.schedule
    position, usual = schedule.position, (training.step, iterations) if schedule.unit == "step" else (samples,)
    if position is not None and position not in usual and f"schedule.{schedule.unit}" not in says:
        why = f"that of the source stands after {plural(position, schedule.unit)}: the target counts otherwise, and writes that of the optimizer"
        yield Loss("assumed", f"a schedule of the learning rate that stands after {plural(training.step, 'step')}", why)
