"""Jais 2: layer norms, an ungated MLP of squared ReLUs, and biases everywhere (jais2.cpp)."""

from __future__ import annotations

from ckpt_core.sdk import Activation, fact_is, layouts
from ckpt_gguf import weights
from ckpt_gguf.config import ALL_BIASES, BIAS_TENSORS, LAYER_NORMED, Model

# fmt: off
JAIS2 = LAYER_NORMED.replace("jais2",
    *ALL_BIASES,
    fact_is("mlp.activation", Activation.RELU_SQUARED),
    without=BIAS_TENSORS,
)
# fmt: on

_LAYER = weights.LAYER_NORM_LAYER.without("ffn_gate.weight", "ffn_gate.bias")

MODELS = [
    Model(
        "jais2",
        JAIS2,
        layouts.Tables([weights.MODEL_WITH_BIAS, _LAYER]),
        ("jais2",),
        square=True,
        as_many_keys=True,  # the biases of k and v are as wide as the model
    )
]
