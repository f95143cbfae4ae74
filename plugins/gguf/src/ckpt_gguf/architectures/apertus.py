"""Apertus: norms of q and k, and an ungated MLP whose activation has learned numbers, which lie in the metadata (apertus.cpp)."""

from __future__ import annotations

from ckpt_core.sdk import Activation, layouts, row
from ckpt_gguf import weights
from ckpt_gguf.config import QWEN3, UNTIED, Model, always
from ckpt_gguf.rotary import STRETCHING, rotary

# fmt: off
APERTUS = QWEN3.replace("apertus",
    *always({"mlp.gated": False, "mlp.activation": Activation.XIELU}),
    rotary(loads=STRETCHING),
    *UNTIED,
    without=["output.weight"],
)

_LAYER = weights.QWEN3_LAYER.without("ffn_gate.weight", "ffn_gate.bias").extend(
    row("xielu.alpha_p", "1",  "mlp.xielu_a.weight",     dtype="fp32"),
    row("xielu.alpha_n", "1",  "mlp.xielu_b.weight",     dtype="fp32"),
    row("xielu.beta",    "()", "mlp.xielu_slope.weight", dtype="fp32"),
    row("xielu.eps",     "()", "mlp.xielu_edge.weight",  dtype="fp32"),
)
# fmt: on

MODELS = [
    Model(
        "apertus",
        APERTUS,
        layouts.Tables([weights.MODEL, _LAYER]),
        ("apertus",),
        listed={"xielu.alpha_n": (1,), "xielu.alpha_p": (1,), "xielu.beta": (), "xielu.eps": ()},
    )
]
