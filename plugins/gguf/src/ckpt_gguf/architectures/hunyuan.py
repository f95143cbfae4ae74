"""Hunyuan, dense and mixtures: norms of q and k after they are rotated (hunyuan-vl.cpp, hunyuan-moe.cpp)."""

from __future__ import annotations

from ckpt_core.sdk import fact_is, ignore, key, layouts, same_as, values
from ckpt_gguf import weights
from ckpt_gguf.config import MIXTURE, QWEN3, ROUTER, Model, feed_forward

# fmt: off
HUNYUAN = QWEN3.replace("hunyuan-dense",
    fact_is("attention.qk_norm_after_rotary", True),
)

HUNYUAN_MOE = HUNYUAN.replace("hunyuan-moe",
    *MIXTURE,
    *feed_forward("expert_feed_forward_length", "mlp.moe.ffn"),
    key("expert_shared_feed_forward_length", "mlp.moe.shared.ffn", default=same_as("feed_forward_length"), type=values.whole),
    *ignore("expert_shared_count", why="expert_shared_feed_forward_length says it", written=lambda facts: 1),
    fact_is(f"{ROUTER}.normalise", True),
    without=["mlp.ffn"],
)
# fmt: on

_MOE_LAYER = weights.QWEN3_MOE_LAYER.extend(*weights.SHARED_EXPERT)

MODELS = [
    Model("hunyuan-dense", HUNYUAN, layouts.Tables([weights.MODEL, weights.QWEN3_LAYER]), ("hunyuan_v1_dense",)),
    Model("hunyuan-moe", HUNYUAN_MOE, layouts.Tables([weights.MODEL, _MOE_LAYER]), ("hunyuan_v1_moe",)),
]
