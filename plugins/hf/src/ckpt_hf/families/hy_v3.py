"""Hy 3 (Tencent): norms of q and k, and experts that are chosen by sigmoids with a learned offset, beside a shared one."""

from __future__ import annotations

from ckpt_core.sdk import Table, configs, fact_is, ignore, key, layouts, row, values
from ckpt_hf import heads
from ckpt_hf.common import (
    ALL_BIASES_OR_NONE,
    NORMS,
    Family,
    dense_width,
    groups,
    head_dim,
    layers_with_experts,
    norms,
    unbiased,
)
from ckpt_hf.families.deepseek import PREDICTING_LAYER, SIGMOID_ROUTER
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.predictors import AFTER, BLOCK, NUMBERED_WITHOUT_COPIES, predictors, stored_predictors
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import EXPERTS, LAYER, MODEL, NAMES, QK_NORMS

# fmt: off
HY_V3 = LLAMA.replace("HYV3ForCausalLM",
    groups(8),
    head_dim(default=128),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in (*NORMS, "attention.qk_norm")), default=1e-5),
    norms("rms", "attention.qk_norm"),
    rotary_keys(default_theta=11158840.0),
    key("num_hidden_layers", "layers", type=values.layers),
    dense_width(),
    layers_with_experts(dense=1),
    key("moe_intermediate_size", "mlp.moe.ffn"),
    key("num_experts", "mlp.moe.experts", also=["num_local_experts"], default=192),
    key("num_shared_experts", "mlp.moe.shared.ffn", default=1, null=configs.REQUIRED, type=values.whole, times="moe_intermediate_size"),
    key("num_experts_per_tok", "mlp.moe.router.top_k", default=8),
    key("router_scaling_factor", "mlp.moe.router.scale", default=2.826),
    fact_is("mlp.moe.router.normalise", True),
    SIGMOID_ROUTER,
    predictors(),
    ignore("enable_moe_fp32_combine", why="a precision of a sum, not another function"),
    unbiased("mlp_bias"),
)

HY_V3_LAYER = LAYER.extend(
    *QK_NORMS,
    *EXPERTS[1:],
    row("mlp.router.gate.weight",          "x h", "mlp.router.weight",          under={"names": "stored"}),
    row("mlp.expert_bias",                 "x",   "mlp.router.correction_bias", dtype="fp32", under={"names": "stored"}),
    row("mlp.shared_mlp.gate_proj.weight", "f h", "mlp.shared.gate.weight",     under={"names": "stored"}),
    row("mlp.shared_mlp.up_proj.weight",   "f h", "mlp.shared.up.weight",       under={"names": "stored"}),
    row("mlp.shared_mlp.down_proj.weight", "h f", "mlp.shared.down.weight",     under={"names": "stored"}),
    row("mlp.gate.weight",                     "x h", "mlp.router.weight",          under={"names": "held"}),
    row("mlp.e_score_correction_bias",         "x",   "mlp.router.correction_bias", dtype="fp32", under={"names": "held"}),
    row("mlp.shared_experts.gate_proj.weight", "f h", "mlp.shared.gate.weight",     under={"names": "held"}),
    row("mlp.shared_experts.up_proj.weight",   "f h", "mlp.shared.up.weight",       under={"names": "held"}),
    row("mlp.shared_experts.down_proj.weight", "h f", "mlp.shared.down.weight",     under={"names": "held"}),
)
# fmt: on

FAMILIES = [
    Family(
        "hy_v3",
        HY_V3,
        layouts.Tables(
            [MODEL, HY_V3_LAYER, NUMBERED_WITHOUT_COPIES, Table(AFTER, to=BLOCK, rows=HY_V3_LAYER.rows)], [NAMES]
        ),
        leftovers=PREDICTING_LAYER,
        as_stored=stored_predictors,
        rewrites=ALL_BIASES_OR_NONE,
        heads=(heads.BARE,),
    )
]
