"""Which of torchtitan's models an architecture is, and how its names are made."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ckpt_core.sdk import Architecture, CkptError, Refusal, layouts

LLAMA3, QWEN3, DEEPSEEK_V3 = "llama3", "qwen3", "deepseek_v3"
_ROTARY: dict[str, layouts.Value] = {LLAMA3: "pairs", QWEN3: "halves", DEEPSEEK_V3: "pairs"}


def model_of(architecture: Architecture, asked: Any, file: str) -> str:
    """The model: the one that was `asked` for, or the only one that can have these layers. `CkptError` for what none has."""
    stack = architecture.decoder
    if stack is None or architecture.encoder is not None:
        raise CkptError("torchtitan has no model of this kind", file=file, expected="a decoder")
    layer = stack.layers[0]
    if layer.latent_attention is not None:
        found = DEEPSEEK_V3
    elif layer.attention is not None:
        own = layer.attention.qk_norm is not None or layer.attention.q_bias or layer.moe is not None
        found = QWEN3 if own or any(other.moe for other in stack.layers) else LLAMA3
    else:
        raise CkptError("torchtitan has no model of this kind", file=file, expected="layers with attention")
    if asked not in (None, found) and (DEEPSEEK_V3 in (asked, found) or found == QWEN3):
        raise Refusal(f"the model is not torchtitan's {asked}", file=file, found=found, fix=f"use -o model={found}")
    return str(asked or found)


def choices_of(names: Collection[str], model: str) -> dict[str, layouts.Value]:
    """The choices by which tensors are called `names`."""
    return {
        "rotary": _ROTARY[model],
        "head": "output" if "output.weight" in names else "lm_head",
        "qkv": "qkv_linear" if any(".attention.qkv_linear." in name for name in names) else "bare",
        "experts": "bare" if any(".moe.experts." in name for name in names) else "routed_experts",
    }


def rotary_of(model: str) -> dict[str, layouts.Value]:
    """The choice that the model decides, whatever its names."""
    return {"rotary": _ROTARY[model]}
