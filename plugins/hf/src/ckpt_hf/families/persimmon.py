"""Persimmon: LayerNorm, also on q and k, with biases; fused q, k, v per head; an ungated squared-ReLU MLP."""

from __future__ import annotations

from ckpt_core.sdk import derived, fact_is, key, layouts, row
from ckpt_hf.common import (
    ACTIVATION,
    ALL_BIASES_OR_NONE,
    ATTENTION_BIASES,
    MLP_BIASES,
    NORMS,
    Family,
    norms,
    qk_norm,
    unbiased,
)
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import LAYER, LAYER_NORM_BIASES, MODEL

# fmt: off
PERSIMMON = LLAMA.replace("PersimmonForCausalLM",
    key("num_attention_heads", "attention.heads", "attention.groups"),
    derived(None, "attention.head_dim", "hidden_size / num_attention_heads"),
    key("layer_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    norms("layer", *NORMS, bias=True),
    qk_norm("qk_layernorm", default=True, kind="layer", bias=True),
    *(fact_is(bias, True) for bias in (*ATTENTION_BIASES, *MLP_BIASES)),
    key("hidden_act", "mlp.activation", default="relu2", via=ACTIVATION),
    fact_is("mlp.gated", False),
    rotary_keys(partial=0.5),
    unbiased("attention_bias", "mlp_bias"),
    without=["rms_norm_eps", "num_key_value_heads"],
)

PERSIMMON_MODEL = MODEL.without("model.norm.weight").extend(
    row("model.final_layernorm.weight", "h", "final_norm.weight"),
    row("model.final_layernorm.bias",   "h", "final_norm.bias"),
)

PERSIMMON_LAYER = LAYER.with_rows([one for one in LAYER.rows if "layernorm" in one.native]).extend(
    *LAYER_NORM_BIASES,
    row("self_attn.query_key_value.weight", "(g (q[r] + k + v) d) h", "attention.{part}.weight"),
    row("self_attn.query_key_value.bias",   "(g (q[r] + k + v) d)",   "attention.{part}.bias"),
    row("self_attn.q_layernorm.weight",     "d",                      "attention.q_norm.weight"),
    row("self_attn.q_layernorm.bias",       "d",                      "attention.q_norm.bias"),
    row("self_attn.k_layernorm.weight",     "d",                      "attention.k_norm.weight"),
    row("self_attn.k_layernorm.bias",       "d",                      "attention.k_norm.bias"),
    row("self_attn.dense.weight",           "h (g r d)",              "attention.out.weight"),
    row("self_attn.dense.bias",             "h",                      "attention.out.bias"),
    row("mlp.dense_h_to_4h.weight",         "f h",                    "mlp.up.weight"),
    row("mlp.dense_h_to_4h.bias",           "f",                      "mlp.up.bias"),
    row("mlp.dense_4h_to_h.weight",         "h f",                    "mlp.down.weight"),
    row("mlp.dense_4h_to_h.bias",           "h",                      "mlp.down.bias"),
)
# fmt: on

FAMILIES = [
    Family("persimmon", PERSIMMON, layouts.Tables([PERSIMMON_MODEL, PERSIMMON_LAYER]), rewrites=ALL_BIASES_OR_NONE)
]
