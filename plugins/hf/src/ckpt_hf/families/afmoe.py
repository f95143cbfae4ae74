"""AFMoE (Arcee Trinity): norms on both sides of each block, a gate on the output of attention, and rotary positions in layers with a window only."""

from __future__ import annotations

from ckpt_core.sdk import by_layer, configs, fact_is, ignore, key, key_is, layouts, row, rules, values
from ckpt_hf import heads
from ckpt_hf.common import (
    NORMS,
    Family,
    alternating_windows,
    dense_width,
    head_dim,
    norms,
    rotated_with_window,
    scaled_embedding,
    unbiased,
)
from ckpt_hf.families.deepseek import SHARED_EXPERTS, SIGMOID_ROUTER
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import EXPERTS, LAYER, MODEL, NAMES, QK_NORMS

_NORMS = (*NORMS, "attention.out_norm", "mlp.out_norm", "attention.qk_norm")

# fmt: off
AFMOE = LLAMA.replace("AfmoeForCausalLM",
    head_dim(default=128),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in _NORMS), default=1e-5),
    norms("rms", *_NORMS),
    fact_is("attention.out_gate", True),
    key_is("attention_bias", False, or_absent=True, why="q then has a bias, and the gate has none"),
    alternating_windows(1024, period=4, period_key="global_attn_every_n_layers"),
    rotary_keys(always=False),
    rotated_with_window(),
    scaled_embedding("mup_enabled", "hidden_size", default=False),
    key("num_hidden_layers", "layers", type=values.layers),
    dense_width(),
    by_layer("num_dense_layers", "mlp.moe", rules.some(~rules.first_layers()), default=1, null=configs.REQUIRED),
    key("moe_intermediate_size", "mlp.moe.ffn"),
    key("num_experts", "mlp.moe.experts", also=["num_local_experts"], default=64, null=configs.REQUIRED),
    key("num_shared_experts", "mlp.moe.shared.ffn", default=2, null=configs.REQUIRED, type=values.whole, times="moe_intermediate_size"),
    key("num_experts_per_tok", "mlp.moe.router.top_k", default=6),
    key("route_scale", "mlp.moe.router.scale", default=1.0),
    fact_is("mlp.moe.router.normalise", True),
    SIGMOID_ROUTER,
    # Of the code beside the published files, in which other values would be another model.
    key_is("score_func", "sigmoid", or_absent=True, written=False),
    key_is("route_norm", True, or_absent=True, written=False),
    *(key_is(one, 1, or_absent=True, written=False) for one in ("n_group", "topk_group", "num_expert_groups", "num_limited_groups")),
    ignore("load_balance_coeff", "use_grouped_mm", why="of training, or of how to run it"),
    unbiased("mlp_bias"),
)

AFMOE_LAYER = LAYER.without("post_attention_layernorm.weight").extend(
    row("self_attn.gate_proj.weight",      "(g r d) h", "attention.gate.weight"),
    *QK_NORMS,
    row("post_attention_layernorm.weight", "h",         "attention.out_norm.weight"),
    row("pre_mlp_layernorm.weight",        "h",         "mlp.norm.weight"),
    row("post_mlp_layernorm.weight",       "h",         "mlp.out_norm.weight"),
    row("mlp.router.gate.weight",          "x h",       "mlp.router.weight"),
    row("mlp.expert_bias",                 "x",         "mlp.router.correction_bias", dtype="fp32"),
    *EXPERTS[1:],
    *SHARED_EXPERTS,
)
# fmt: on

FAMILIES = [Family("afmoe", AFMOE, layouts.Tables([MODEL, AFMOE_LAYER], [NAMES]), heads=(heads.BARE,))]
