"""Hunyuan, dense and mixtures: norms of q and k after they are rotated; and Hy 3, before (hunyuan-vl.cpp, hunyuan-moe.cpp, hy-v3.cpp)."""

from __future__ import annotations

from ckpt_core.sdk import by_layer, configs, fact_is, ignore, key, key_is, layouts, row, rules, same_as, values
from ckpt_gguf import weights
from ckpt_gguf.config import MIXTURE, QWEN3, ROUTED, ROUTER, Model, feed_forward, score, there

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
# Which layers have experts their tensors say. The offset of the router has a name without an end.
HY_V3 = QWEN3.replace("hy_v3",
    by_layer("blk.*.ffn_gate_inp.weight?", "mlp.moe", rules.each()),
    configs.in_other_layers("feed_forward_length", "mlp.ffn", than="mlp.moe", unused="unused_ffn", fallback="mlp.moe.ffn", type=values.whole),
    *ROUTED,
    there("blk.*.exp_probs_b", f"{ROUTER}.correction_bias"),
    key("expert_shared_feed_forward_length", "mlp.moe.shared.ffn", type=values.whole),
    score(default=2),
    key_is("nextn_predict_layers", 0, or_absent=True, written=False, why="layers that predict further tokens are not read"),
)
# fmt: on

_HY_V3_LAYER = weights.DENSE_FIRST_LAYER.without("exp_probs_b.bias").extend(
    row("exp_probs_b", "x", "mlp.router.correction_bias", dtype="fp32")
)
_MOE_LAYER = weights.QWEN3_MOE_LAYER.extend(*weights.SHARED_EXPERT)

MODELS = [
    Model("hunyuan-dense", HUNYUAN, layouts.Tables([weights.MODEL, weights.QWEN3_LAYER]), ("hunyuan_v1_dense",)),
    Model("hy_v3", HY_V3, layouts.Tables([weights.MODEL, _HY_V3_LAYER]), ("hy_v3",)),
    Model("hunyuan-moe", HUNYUAN_MOE, layouts.Tables([weights.MODEL, _MOE_LAYER]), ("hunyuan_v1_moe",)),
]
