"""Phi 1 and 2: attention and MLP beside one another behind one layer norm, and biases everywhere, on the logits too (phi2.cpp)."""

from __future__ import annotations

from ckpt_core.sdk import fact_is, key, layouts, row, values
from ckpt_gguf import weights
from ckpt_gguf.config import ALL_BIASES, BIAS_TENSORS, LAYER_NORMED, UNTIED, Model
from ckpt_gguf.rotary import rotary

# fmt: off
PHI2 = LAYER_NORMED.replace("phi2",
    key("attention.layer_norm_epsilon", "attention.norm.eps", "final_norm.eps", type=values.positive),
    fact_is("parallel", True),
    fact_is("shared_norm", True),
    rotary(partial=True),
    *ALL_BIASES,
    fact_is("head.bias", True),
    *UNTIED,
    without=[*BIAS_TENSORS, "output.weight", "mlp.norm.kind", "mlp.norm.bias"],
)

_HEAD_BIAS = row("output.bias", "v", "head.bias", dtype="fp32")
_LAYER = weights.LAYER_NORM_LAYER.without("ffn_norm.weight", "ffn_norm.bias")
# fmt: on

MODELS = [
    Model("phi2", PHI2, layouts.Tables([weights.MODEL_WITH_BIAS.extend(_HEAD_BIAS), _LAYER]), ("phi",), square=True)
]
