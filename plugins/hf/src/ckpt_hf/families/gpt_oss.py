"""gpt-oss: mixtures of experts whose gates are clamped, biases everywhere, sinks, and a window in every second layer.

These are the files with weights of two bytes. The published ones have their experts in MXFP4, which `quantization_config` says.
"""

from __future__ import annotations

from ckpt_core.sdk import Activation, fact_is, ignore, key, key_is, layouts, row
from ckpt_hf.common import (
    ATTENTION_BIASES,
    MLP_BIASES,
    NORMS,
    Family,
    alias,
    alternating_windows,
    groups,
    head_dim,
    unbiased,
)
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import LAYER, MLP, MODEL

# The class has these where nothing is said (configuration_gpt_oss.py).
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
# transformers until 5.12 has both numbers in its code and reads no key for them; 5.24 reads both.
_FIXED = (
    "versions of transformers differ in whether they read it, and all of them take this number where it is left out"
)

# fmt: off
GPT_OSS = LLAMA.replace("GptOssForCausalLM",
    groups(8),
    head_dim(default=64),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    key("attention_bias", *ATTENTION_BIASES, default=True),
    fact_is("attention.sinks", True),
    alternating_windows(128),
    rotary_keys(default_theta=150000.0, usual=_YARN),
    *ignore("initial_context_length", why="the number that original_max_position_embeddings says, which the class reads"),
    *ignore("hidden_act", why="the experts have one activation, whatever it says"),
    fact_is("mlp.activation", Activation.GELU_QUICK),
    key_is("swiglu_alpha", 1.702, or_absent=True, written=False, why=_FIXED),
    key_is("swiglu_limit", 7.0, or_absent=True, why=_FIXED),
    fact_is("mlp.clamp", 7.0),
    fact_is("mlp.up_offset", 1.0),
    *(fact_is(path, True) for path in MLP_BIASES),
    key("num_local_experts", "mlp.moe.experts", also=["num_experts"], default=128),
    key("intermediate_size", "mlp.moe.ffn", default=2880),
    key("num_experts_per_tok", "mlp.moe.router.top_k", default=4),
    alias("experts_per_token", "num_experts_per_tok"),
    fact_is("mlp.moe.router.score", "softmax"),
    fact_is("mlp.moe.router.normalise", True),
    fact_is("mlp.moe.router.bias", True),
    unbiased("mlp_bias"),
    without=["mlp.ffn"],
)

# Stored as the matrices [in, out] that x is multiplied by; the columns of gate and up take turns.
GPT_OSS_LAYER = LAYER.without(*MLP).extend(
    row("self_attn.sinks",                "(g r)",               "attention.sinks.weight"),
    row("mlp.router.weight",              "x h",                 "mlp.router.weight"),
    row("mlp.router.bias",                "x",                   "mlp.router.bias"),
    row("mlp.experts.gate_up_proj",       "x h (f (gate + up))", "mlp.experts.{part}.weight"),
    row("mlp.experts.gate_up_proj_bias",  "x (f (gate + up))",   "mlp.experts.{part}.bias"),
    row("mlp.experts.down_proj",          "x f h",               "mlp.experts.down.weight"),
    row("mlp.experts.down_proj_bias",     "x h",                 "mlp.experts.down.bias"),
)
# fmt: on

FAMILIES = [Family("gpt_oss", GPT_OSS, layouts.Tables([MODEL, GPT_OSS_LAYER]))]
