"""Ling 2 (Bailing MoE 2): norms of q and k, half of each head rotates, experts as DeepSeek V3 has them, and names of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, Table, configs, decided, ignore, key, key_is, layouts, row, values
from ckpt_hf.common import NORMS, QKV_BIASES, Family, groups, head_dim, norms, unbiased
from ckpt_hf.families.deepseek import (
    PREDICTING_LAYER,
    SHARED_EXPERTS,
    SIGMOID_ROUTER,
    dense_layers,
    groups_by_two_best,
)
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.predictors import AFTER, BLOCK, NUMBERED_WITHOUT_COPIES, predictors, stored_predictors
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import EXPERTS, LAYER, LM_HEAD


def _read_normalise(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    if not values.checked("norm_topk_prob", config.get("norm_topk_prob", True), values.flag):
        raise CkptError("key 'norm_topk_prob' is false, which the code beside the files does not read", expected="true")
    # of a single expert the score is taken as it is (modeling_bailing_moe_v2.py)
    facts["mlp.moe.router.normalise"] = facts["mlp.moe.router.top_k"] > 1


# fmt: off
# Keys of the code beside the files, in which other values would be another model.
CODE = [
    key_is("score_function", "sigmoid", or_absent=True, written=False),
    key_is("moe_router_enable_expert_bias", True, or_absent=True, written=False),
    key_is("use_rmsnorm", True, or_absent=True, written=False),
    *ignore("moe_shared_expert_intermediate_size", why="the width that num_shared_experts says, which is read"),
    *ignore("router_dtype", why="a precision, not another function"),
    *ignore("output_dropout", "mtp_loss_scaling_factor", why="training only"),
    *ignore("max_window_layers", why="no layer has a window"),
]

BAILING_MOE_2 = LLAMA.replace("BailingMoeV2ForCausalLM",
    groups(4),
    head_dim(default=128),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in (*NORMS, "attention.qk_norm")), default=1e-6),
    norms("rms", "attention.qk_norm"),
    key_is("use_qk_norm", True, or_absent=True),
    key("use_qkv_bias", *QKV_BIASES, default=False),
    key("use_bias", "attention.out_bias", default=False),
    rotary_keys(default_theta=600000.0, partial=1.0),
    dense_layers(1),
    key("moe_intermediate_size", "mlp.moe.ffn"),
    key("num_experts", "mlp.moe.experts", default=256),
    key("num_shared_experts", "mlp.moe.shared.ffn", default=1, null=configs.REQUIRED, type=values.whole, times="moe_intermediate_size"),
    key("num_experts_per_tok", "mlp.moe.router.top_k", default=8),
    key("routed_scaling_factor", "mlp.moe.router.scale", default=1.0),
    decided(["norm_topk_prob"], ["mlp.moe.router.normalise"], read=_read_normalise, values={"norm_topk_prob": [True]}, uses=["mlp.moe.router.top_k"],
            why="the scores of the chosen experts are divided by their sum, but for that of a single one"),
    groups_by_two_best(8, 4, experts="num_experts"),
    SIGMOID_ROUTER,
    predictors(),
    CODE,
    unbiased("attention_bias", "mlp_bias"),
)

MODEL = Table(rows=[
    row("model.word_embeddings.weight", "v h", "embedding.tokens.weight"),
    row("model.norm.weight",            "h",   "final_norm.weight"),
    *LM_HEAD,
])

BAILING_LAYER = LAYER.with_rows([one for one in LAYER.rows if not one.native.startswith("self_attn")]).extend(
    row("attention.query_key_value.weight", "((q[g r] + k[g] + v[g]) d) h", "attention.{part}.weight"),
    row("attention.query_key_value.bias",   "((q[g r] + k[g] + v[g]) d)",   "attention.{part}.bias"),
    row("attention.query_layernorm.weight", "d",                            "attention.q_norm.weight"),
    row("attention.key_layernorm.weight",   "d",                            "attention.k_norm.weight"),
    row("attention.dense.weight",           "h (g r d)",                    "attention.out.weight"),
    row("attention.dense.bias",             "h",                            "attention.out.bias"),
    *EXPERTS[:4],  # no version of transformers holds its experts otherwise than the files
    row("mlp.gate.expert_bias",             "x",                            "mlp.router.correction_bias", dtype="fp32"),
    *SHARED_EXPERTS,
)
# fmt: on

FAMILIES = [
    # The class is beside the files; transformers has none.
    Family(
        "bailing_moe",
        BAILING_MOE_2,
        layouts.Tables(
            [MODEL, BAILING_LAYER, NUMBERED_WITHOUT_COPIES, Table(AFTER, to=BLOCK, rows=BAILING_LAYER.rows)],
            decided={"names": "stored"},
        ),
        leftovers=PREDICTING_LAYER,
        as_stored=stored_predictors,
        heads=(),
    )
]
