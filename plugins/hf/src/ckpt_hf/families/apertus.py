"""Apertus: Llama with norms of q and k, and an ungated MLP whose activation is learned."""

from __future__ import annotations

from ckpt_core.sdk import Activation, fact_is, key, key_is, layouts, row
from ckpt_hf import heads
from ckpt_hf.common import ALL_BIASES_OR_NONE, NORMS, Family, activation, norms, unbiased
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import LAYER, MLP, MODEL, QK_NORMS

# The class has these where nothing is said (configuration_apertus.py, 5.24).
_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 12000000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_NORMS = (*NORMS, "attention.qk_norm")

# fmt: off
APERTUS = LLAMA.replace("ApertusForCausalLM",
    key("rms_norm_eps", *(f"{norm}.eps" for norm in _NORMS), default=1e-5),
    norms("rms", *_NORMS),
    rotary_keys(default_theta=12000000.0, usual=_SCALING),
    key("hidden_act", "mlp.activation", default="xielu", via=activation(xielu=Activation.XIELU)),
    fact_is("mlp.gated", False),
    unbiased("mlp_bias"),
    # of the framework that trained it
    key_is("qk_norm", True, or_absent=True, written=False),
    key_is("post_norm", False, or_absent=True, written=False),
)

# transformers saves the constants of the activation as it saves what it learned, and does not find them itself where a file lacks them.
APERTUS_LAYER = LAYER.without(*MLP, "input_layernorm.weight", "post_attention_layernorm.weight").extend(
    *QK_NORMS,
    row("attention_layernorm.weight",   "h",   "attention.norm.weight"),
    row("feedforward_layernorm.weight", "h",   "mlp.norm.weight"),
    row("mlp.up_proj.weight",           "f h", "mlp.up.weight"),
    row("mlp.down_proj.weight",         "h f", "mlp.down.weight"),
    row("mlp.act_fn.alpha_p",           "1",   "mlp.xielu_a.weight"),
    row("mlp.act_fn.alpha_n",           "1",   "mlp.xielu_b.weight"),
    row("mlp.act_fn.beta",              "()",  "mlp.xielu_slope.weight"),
    row("mlp.act_fn.eps",               "()",  "mlp.xielu_edge.weight"),
)
# fmt: on

FAMILIES = [
    Family(
        "apertus",
        APERTUS,
        layouts.Tables([MODEL, APERTUS_LAYER]),
        rewrites=ALL_BIASES_OR_NONE,
        heads=(heads.BARE, heads.TAGGED),
        padding=3,
    )
]
