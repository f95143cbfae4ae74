"""DeepSpeed itself, where it is installed: it has no model, so it says why it does not judge.

It loads weights into an engine, which the job's own script makes of a model that it builds: one of transformers, or of
Megatron-DeepSpeed, whose code is in no package. `tests/real/check_deepspeed.py` builds such a job.
"""

from __future__ import annotations

from ckpt_core.sdk import judgement


def judged() -> judgement.Judgement | None:
    """The hook `ckpt_logits`."""
    if not judgement.installed("deepspeed"):
        return None
    return judgement.Judgement(
        judgement.named("deepspeed"), cannot="it loads into a model that the job's own script builds"
    )
