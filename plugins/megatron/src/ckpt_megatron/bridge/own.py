"""Megatron-Bridge itself, where it is installed: its loader calls what a checkpoint says, so it is not asked.

It makes the `_target_` of every section of `run_config.yaml`, with the arguments given there. The session `real_bridge` runs it on
checkpoints that we wrote.
"""

from __future__ import annotations

from ckpt_core.sdk import judgement


def judged() -> judgement.Judgement | None:
    """The hook `ckpt_logits`."""
    if not judgement.installed("megatron.bridge"):
        return None
    why = "its loader calls what the checkpoint names, which is not done with one that may be a stranger's"
    return judgement.Judgement(judgement.named("megatron-bridge"), cannot=why)
