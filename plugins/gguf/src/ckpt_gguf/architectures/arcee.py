"""Arcee, a Llama with an ungated MLP, and AFMoE (Trinity), a mixture with norms on both sides of each block (arcee.cpp, afmoe.cpp)."""

from __future__ import annotations

from ckpt_core.sdk import Activation, derived, fact_is, key, layouts, row, values
from ckpt_gguf import weights
from ckpt_gguf.config import (
    DENSE,
    DENSE_FIRST,
    NO_BIASES,
    NORMS,
    OUT_NORMS,
    QWEN3,
    ROUTED,
    ROUTER,
    SHARED_COUNT,
    Model,
    always,
    no_rope,
    norms,
    own_theta,
    score,
    windows,
)
from ckpt_gguf.rotary import FREQUENCIES, rotary

# fmt: off
ARCEE = DENSE.replace("arcee",
    *always({"mlp.gated": False, "mlp.activation": Activation.RELU_SQUARED}),
    rotary(loads=(FREQUENCIES,)),
    without=NO_BIASES,
)

AFMOE = QWEN3.replace("afmoe",
    key("attention.layer_norm_rms_epsilon", *(f"{norm}.eps" for norm in (*NORMS, *OUT_NORMS, "attention.qk_norm")), type=values.positive),
    *norms("rms", *OUT_NORMS),
    derived(None, "tokens.scale", "hidden ** 0.5", rounding="none", tolerance=1e-6, of_facts=True),
    fact_is("attention.out_gate", True),
    *windows(4),
    own_theta(),
    rotary(always=False),
    no_rope(),
    *DENSE_FIRST,
    *ROUTED,
    fact_is(f"{ROUTER}.correction_bias", True),
    SHARED_COUNT,
    score(default=2),
)

_AFMOE_LAYER = weights.DENSE_FIRST_LAYER.extend(
    *weights.OUT_NORMS,
    row("attn_gate.weight", "(g r d) h", "attention.gate.weight"),
)
# fmt: on

MODELS = [
    Model(
        "arcee",
        ARCEE,
        layouts.Tables([weights.MODEL, weights.PAIRED_LAYER.without("ffn_gate.weight", "ffn_gate.bias")]),
        ("arcee",),
    ),
    Model("afmoe", AFMOE, layouts.Tables([weights.MODEL, _AFMOE_LAYER]), ("afmoe",)),
]
