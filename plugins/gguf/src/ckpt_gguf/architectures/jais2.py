"""Jais 2: layer norms, biases everywhere, and an MLP with the square of ReLU (jais2.cpp)."""

from __future__ import annotations

from ckpt_core.sdk import Activation, layouts
from ckpt_gguf import weights
from ckpt_gguf.config import ALL_BIASES, BIAS_TENSORS, LAYER_NORMED, Model, always

# fmt: off
JAIS2 = LAYER_NORMED.replace("jais2",
    *ALL_BIASES,
    *always({"mlp.activation": Activation.RELU_SQUARED}),
    without=BIAS_TENSORS,
)
# fmt: on

MODELS = [
    Model(
        "jais2",
        JAIS2,
        layouts.Tables([weights.MODEL_WITH_BIAS, weights.LAYER_NORM_LAYER]),
        ("jais2",),
        square=True,
        as_many_keys=True,
    )
]
