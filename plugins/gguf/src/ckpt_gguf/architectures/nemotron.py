"""Nemotron: layer norms with biases, whose weights are stored less one elsewhere, and an MLP with the square of ReLU (nemotron.cpp)."""

from __future__ import annotations

from ckpt_core.sdk import Activation, configs, layouts, row
from ckpt_gguf import weights
from ckpt_gguf.config import LAYER_NORMED, NORMS, UNTIED, Model, always, norms
from ckpt_gguf.rotary import rotary

# fmt: off
NEMOTRON = LAYER_NORMED.replace("nemotron",
    # the converter finds the number under a name that norms of both kinds have
    configs.repeats("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),
    *norms("layer", *NORMS, bias=True, zero_centred=True),
    *always({"mlp.activation": Activation.RELU_SQUARED}),
    rotary(partial=True, named=True),
    *UNTIED,
    without=["output.weight"],
)

_NORMS = (
    row("attn_norm.weight", "h", "attention.norm.weight", dtype="fp32", via=weights.LESS_ONE),
    row("ffn_norm.weight",  "h", "mlp.norm.weight",       dtype="fp32", via=weights.LESS_ONE),
)
_MODEL = weights.MODEL_WITH_BIAS.replace(row("output_norm.weight", "h", "final_norm.weight", dtype="fp32", via=weights.LESS_ONE))
# fmt: on

MODELS = [
    Model(
        "nemotron",
        NEMOTRON,
        layouts.Tables([_MODEL, weights.LAYER_NORM_LAYER.replace(*_NORMS)]),
        ("nemotron",),
        square=True,
    )
]
