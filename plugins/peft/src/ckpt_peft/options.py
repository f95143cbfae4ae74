"""Options that the formats of adapters share."""

from __future__ import annotations

from ckpt_core.sdk import Checkpoint, Option

BASE = Option("base", "the model that the adapter was trained on, a checkpoint of any format", Checkpoint, side="read")
MERGE = Option(
    "merge",
    "the dtype of merged tensors: that of the base, as PEFT has it, or the float32 sum without rounding",
    ("base", "fp32"),
    "base",
    side="read",
)
