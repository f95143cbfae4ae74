"""Phi 1 and 2: parallel blocks behind one LayerNorm, partly rotated heads, and biases everywhere, on the logits too."""

from __future__ import annotations

from ckpt_core.sdk import fact_is, key, layouts, row
from ckpt_hf.common import (
    ALL_BIASES_OR_NONE,
    ATTENTION_BIASES,
    MLP_BIASES,
    Family,
    activation,
    norms,
    qk_norm,
    unbiased,
)
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import LAYER, LAYER_NORM_BIASES, MLP, MODEL

# fmt: off
PHI = LLAMA.replace("PhiForCausalLM",
    key("layer_norm_eps", "attention.norm.eps", "final_norm.eps", default=1e-5),
    norms("layer", "attention.norm", "final_norm", bias=True),
    fact_is("parallel", True),
    fact_is("shared_norm", True),
    *(fact_is(bias, True) for bias in (*ATTENTION_BIASES, *MLP_BIASES, "head.bias")),
    key("hidden_act", "mlp.activation", default="gelu_new", via=activation("gelu_new")),
    fact_is("mlp.gated", False),
    rotary_keys(partial=0.5),
    qk_norm("qk_layernorm", default=False, kind="layer", bias=True),
    unbiased("attention_bias", "mlp_bias"),
    without=["rms_norm_eps", "mlp.norm.kind"],
)

PHI_MODEL = MODEL.without("model.norm.weight").extend(
    row("model.final_layernorm.weight", "h", "final_norm.weight"),
    row("model.final_layernorm.bias",   "h", "final_norm.bias"),
    row("lm_head.bias",                 "v", "head.bias"),
)

PHI_LAYER = LAYER.without("self_attn.o_proj.weight", "self_attn.o_proj.bias", "post_attention_layernorm.weight", *MLP).extend(
    LAYER_NORM_BIASES[0],
    row("self_attn.q_layernorm.weight", "d", "attention.q_norm.weight"),
    row("self_attn.q_layernorm.bias",   "d", "attention.q_norm.bias"),
    row("self_attn.k_layernorm.weight", "d", "attention.k_norm.weight"),
    row("self_attn.k_layernorm.bias",   "d", "attention.k_norm.bias"),
    row("self_attn.dense.weight", "h (g r d)", "attention.out.weight"),
    row("self_attn.dense.bias",   "h",         "attention.out.bias"),
    row("mlp.fc1.weight",         "f h",       "mlp.up.weight"),
    row("mlp.fc1.bias",           "f",         "mlp.up.bias"),
    row("mlp.fc2.weight",         "h f",       "mlp.down.weight"),
    row("mlp.fc2.bias",           "h",         "mlp.down.bias"),
)
# fmt: on

FAMILIES = [Family("phi", PHI, layouts.Tables([PHI_MODEL, PHI_LAYER]), rewrites=ALL_BIASES_OR_NONE)]
