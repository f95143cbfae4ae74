"""Helium: Llama with adjacent rotary pairs, and heads that fill the model."""

from __future__ import annotations

from ckpt_core.sdk import Architecture, key, layouts
from ckpt_hf.common import NORMS, QKV_BIASES, Family, groups, head_dim, norms
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import ADJACENT, LAYER, MODEL


def _fills(architecture: Architecture) -> str | None:
    """The output of attention is as wide as the model (modeling_helium.py)."""
    attention = architecture.decoder.layers[0].attention if architecture.decoder else None
    if attention and attention.heads * attention.head_dim != architecture.hidden:
        return f"its heads fill the model: attention.heads={attention.heads} of attention.head_dim={attention.head_dim} do not fill hidden={architecture.hidden}"
    return None


# fmt: off
HELIUM = LLAMA.replace("HeliumForCausalLM",
    groups(20),
    head_dim(default=128),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-8),
    norms("rms", *NORMS),
    key("attention_bias", *QKV_BIASES, default=False),  # the output has none (modeling_helium.py)
    rotary_keys(default_theta=100000.0),
)
# fmt: on

FAMILIES = [Family("helium", HELIUM, layouts.Tables([MODEL, LAYER.replace(*ADJACENT)]), _fills, padding=3)]
