"""BLOOM and MPT: scores that fall with the distance (ALiBi), layer norms, and queries, keys and values in one tensor (bloom.cpp, mpt.cpp)."""

from __future__ import annotations

from ckpt_core.sdk import fact_is, key, key_is, layouts, row, values
from ckpt_gguf import weights
from ckpt_gguf.config import ALL_BIASES, BIAS_TENSORS, LAYER_NORMED, NORMS, Model, norms

# fmt: off
BLOOM = LAYER_NORMED.replace("bloom",
    key("attention.layer_norm_epsilon", *(f"{norm}.eps" for norm in ("tokens.norm", *NORMS)), type=values.positive),
    *norms("layer", "tokens.norm", bias=True),
    fact_is("attention.alibi", True),
    *ALL_BIASES,
    without=[*BIAS_TENSORS, "attention.rotary.*"],
)

MPT = LAYER_NORMED.replace("mpt",
    *norms("layer", *NORMS, bias=False),
    fact_is("attention.alibi", True),
    # with another largest slope, or with none, the model would be another one
    key_is("attention.max_alibi_bias", 8.0, default=0.0),
    key_is("attention.clamp_kqv", 0.0, or_absent=True, written=False, why="it limits the values of q, k and v"),
    without=[*BIAS_TENSORS, "attention.rotary.*"],
)

_EMBEDDING_NORM = (
    row("token_embd_norm.weight", "h", "embedding.norm.weight", dtype="fp32"),
    row("token_embd_norm.bias",   "h", "embedding.norm.bias",   dtype="fp32"),
)
# fmt: on

MODELS = [
    Model(
        "bloom",
        BLOOM,
        layouts.Tables([weights.UNROTATED_MODEL_WITH_BIAS.extend(*_EMBEDDING_NORM), weights.FUSED_LAYER]),
        ("bloom",),
        square=True,
    ),
    Model("mpt", MPT, layouts.Tables([weights.UNROTATED_MODEL, weights.FUSED_LAYER]), ("mpt",), square=True),
]
