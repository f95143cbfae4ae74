"""Mixtures whose attention is Qwen 3's, with norms of q and k: dots.llm1, MiniMax M2, Ling 2, Mellum 2
(dots1.cpp, minimax-m2.cpp, bailingmoe2.cpp, mellum.cpp)."""

from __future__ import annotations

from ckpt_core.sdk import configs, layouts
from ckpt_gguf import weights
from ckpt_gguf.config import (
    CHOSEN,
    CORRECTED,
    DENSE_FIRST,
    QWEN3,
    QWEN3_MOE,
    ROUTED,
    ROUTER,
    SHARED_COUNT,
    SHARED_WIDTH,
    UNTIED,
    Model,
    always,
    feed_forward,
    score,
    windows,
)
from ckpt_gguf.rotary import rotary

# fmt: off
DOTS1 = QWEN3.replace("dots1",
    *DENSE_FIRST,
    *ROUTED,
    CORRECTED,
    SHARED_COUNT,
    score(),
    *UNTIED,
    without=["output.weight"],
)

MINIMAX_M2 = QWEN3.replace("minimax-m2",
    *CHOSEN,
    *feed_forward("expert_feed_forward_length", "mlp.moe.ffn"),
    score(),
    *always({f"{ROUTER}.normalise": True, f"{ROUTER}.correction_bias": True, "attention.qk_norm_whole": True}),
    rotary(partial=True),
    *UNTIED,
    without=["mlp.ffn", "output.weight"],
)

# q, k and v lie in one tensor, without a bias.
BAILINGMOE2 = QWEN3.replace("bailingmoe2",
    *DENSE_FIRST,
    *ROUTED,
    CORRECTED,
    SHARED_COUNT,
    *SHARED_WIDTH,
    score(),
    rotary(partial=True),
    *UNTIED,
    without=["output.weight", *(f"blk.*.attn_{part}.bias" for part in "qkv")],
)

MELLUM = QWEN3_MOE.replace("mellum",
    *windows(4, needed=False, listed=True),
    configs.where("attention.window", [configs.repeats("rope.freq_base_swa", "rope.freq_base")]),
    rotary(unscaled="attention.window"),
    *UNTIED,
    without=["output.weight"],
)
# fmt: on

_MINIMAX_LAYER = weights.OLMOE_LAYER.extend(weights.OFFSET)
_BAILING_LAYER = weights.DENSE_FIRST_LAYER.without(*weights.QKV).extend(weights.FUSED_QKV[0])

MODELS = [
    Model("dots1", DOTS1, layouts.Tables([weights.MODEL, weights.DENSE_FIRST_LAYER]), ("dots1",), as_many_keys=True),
    Model("minimax-m2", MINIMAX_M2, layouts.Tables([weights.MODEL, _MINIMAX_LAYER]), ("minimax_m2",)),
    Model("bailingmoe2", BAILINGMOE2, layouts.Tables([weights.MODEL, _BAILING_LAYER]), ("bailing_moe",), square=True),
    Model("mellum", MELLUM, layouts.Tables([weights.MODEL, weights.QWEN3_MOE_LAYER]), ("mellum",)),
]
