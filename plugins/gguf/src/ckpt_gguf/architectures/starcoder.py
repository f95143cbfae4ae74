"""StarCoder (GPT-BigCode): GPT-2 whose heads share one key and value (starcoder.cpp)."""

from __future__ import annotations

from ckpt_core.sdk import layouts
from ckpt_gguf import weights
from ckpt_gguf.config import GPT2, Model

STARCODER = GPT2.replace("starcoder")

MODELS = [
    Model(
        "starcoder",
        STARCODER,
        layouts.Tables([weights.MODEL_WITH_POSITIONS, weights.FUSED_LAYER]),
        ("gpt_bigcode",),
        square=True,
    )
]
