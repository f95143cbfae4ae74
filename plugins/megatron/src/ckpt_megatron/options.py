"""Options that both formats with Megatron's optimizer have."""

from __future__ import annotations

from ckpt_core.sdk import Option

OPTIONS_OF_STATE = (
    Option(
        "adam",
        "whose Adam goes on from the state of a training: FusedAdam of TransformerEngine and Apex, or torch's AdamW where neither is installed",
        ("fused", "torch"),
        None,
        side="write",
    ),
    Option(
        "global_batch_size",
        "samples of one step, where the source does not say how many it consumed: Megatron counts them",
        int,
        None,
        side="write",
    ),
)
"""How the state of a training is written."""
