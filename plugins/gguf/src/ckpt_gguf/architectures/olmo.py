"""OLMo 1: a Llama whose layer norms have no weights (olmo.cpp)."""

from __future__ import annotations

from ckpt_core.sdk import key, key_is, layouts, values
from ckpt_gguf import weights
from ckpt_gguf.config import DENSE, NO_BIASES, NORMS, Model, norms

# fmt: off
OLMO = DENSE.replace("olmo",
    key("attention.layer_norm_epsilon", *(f"{norm}.eps" for norm in NORMS), type=values.positive),
    *norms("layer", *NORMS, weight=False),
    key_is("attention.clamp_kqv", 0.0, or_absent=True, written=False, why="it limits the values of q, k and v"),
    without=[*NO_BIASES, "attention.layer_norm_rms_epsilon"],
)
# fmt: on

_TABLES = layouts.Tables(
    [
        weights.MODEL.without("output_norm.weight"),
        weights.PAIRED_LAYER.without("attn_norm.weight", "ffn_norm.weight"),
    ]
)

MODELS = [Model("olmo", OLMO, _TABLES, ("olmo",), square=True)]
