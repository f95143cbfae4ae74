"""GLM-4, dense and mixtures: heads of which a part rotates, in the dense ones by neighbouring pairs (chatglm.cpp, glm4.cpp, glm4-moe.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    Facts,
    Table,
    by_layer,
    configs,
    decided,
    fact_is,
    key,
    key_is,
    layouts,
    one_of,
    row,
    rules,
    values,
)
from ckpt_gguf import weights
from ckpt_gguf.config import BLOCKS, DENSE, GROUPS, NO_BIASES, NORMS, OUT_NORMS, ROUTER, Model, norms, read_groups
from ckpt_gguf.rotary import rotary


def _read_qk_norms(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    if config.get("blk.*.attn_q_norm.weight"):
        facts.update({"attention.qk_norm.kind": "rms", "attention.qk_norm.eps": facts["final_norm.eps"]})


# fmt: off
CHATGLM = DENSE.replace("chatglm", rotary(partial=True), without=NO_BIASES)

GLM4 = CHATGLM.replace("glm4",
    key("attention.layer_norm_rms_epsilon", *(f"{norm}.eps" for norm in (*NORMS, *OUT_NORMS)), type=values.positive),
    *norms("rms", *OUT_NORMS),
    key_is("nextn_predict_layers", 0, or_absent=True, written=False, why="of this architecture llama.cpp leaves out the layers that it counts"),
)

GLM4_MOE = DENSE.replace("glm4moe",
    BLOCKS,
    rotary(partial=True),
    decided(["blk.*.attn_q_norm.weight"], ["attention.qk_norm.*"], read=_read_qk_norms, values={"blk.*.attn_q_norm.weight": [False, True]},
            uses=["final_norm.eps"], why="the norms of q and k, of the epsilon of all others, are there where the file has their tensors"),
    by_layer("leading_dense_block_count", "mlp.moe", ~rules.first_layers(), default=0),
    configs.in_other_layers("feed_forward_length", "mlp.ffn", than="mlp.moe", unused="unused_ffn", fallback="mlp.moe.ffn", type=values.whole),
    key("expert_count", "mlp.moe.experts", type=values.whole),
    key("expert_used_count", f"{ROUTER}.top_k", type=values.whole),
    key("expert_feed_forward_length", "mlp.moe.ffn", type=values.whole),
    key("expert_shared_count", "mlp.moe.shared.ffn", type=values.whole, times="expert_feed_forward_length"),
    key("expert_weights_scale", f"{ROUTER}.scale", default=1.0, type=values.positive),
    key("expert_weights_norm", f"{ROUTER}.normalise", default=False, type=values.flag),
    key("expert_gating_func", f"{ROUTER}.score", default=2, via=one_of({2: "sigmoid", 0: "sigmoid", 1: "softmax"})),
    decided(GROUPS, [f"{ROUTER}.{name}" for name in ("groups", "group_top_k", "group_score")], read=read_groups,
            values={GROUPS: [(1, 1), (configs.value_of(f"{ROUTER}.groups"), configs.value_of(f"{ROUTER}.group_top_k"))]},
            why="llama.cpp takes the best groups by the sum of their two best experts, whatever the model"),
    fact_is(f"{ROUTER}.correction_bias", True),
    without=NO_BIASES,
)

_LAYER = weights.PAIRED_LAYER.without(*weights.MLP).extend(
    row("ffn_up.weight",   "((gate + up) f) h", "mlp.{part}.weight"),
    row("ffn_down.weight", "h f",               "mlp.down.weight"),
)

_MOE_LAYER = weights.LAYER.without("ffn_norm.weight").extend(
    # the norm before the experts has the name that others give to one behind the attention
    row("post_attention_norm.weight", "h", "mlp.norm.weight", dtype="fp32"),
    row("exp_probs_b.bias",           "x", "mlp.router.correction_bias", dtype="fp32"),
    *weights.QK_NORMS,
    *weights.EXPERTS,
    *weights.SHARED_EXPERT,
)
_PREDICTOR = Table(weights.AFTER, to=weights.BLOCK, rows=_MOE_LAYER.rows)
# fmt: on

MODELS = [
    Model("chatglm", CHATGLM, layouts.Tables([weights.MODEL, _LAYER]), ("glm",), square=True),
    Model("glm4", GLM4, layouts.Tables([weights.MODEL, _LAYER.extend(*weights.OUT_NORMS)]), ("glm4",)),
    Model(
        "glm4moe",
        GLM4_MOE,
        layouts.Tables([weights.MODEL, _MOE_LAYER, *weights.PREDICTORS, _PREDICTOR]),
        ("glm4_moe", "solar_open", "sarvam_moe"),
    ),
]
