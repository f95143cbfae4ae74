"""Mixtral: Mistral with a mixture in every layer."""

from __future__ import annotations

from ckpt_core.sdk import fact_is, key, layouts, row
from ckpt_hf.common import Family, groups
from ckpt_hf.families.llama import MISTRAL
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import LAYER, MLP, MODEL, NAMES

# fmt: off
MIXTRAL = MISTRAL.replace("MixtralForCausalLM",
    groups(8),
    key("rms_norm_eps", "attention.norm.eps", "mlp.norm.eps", "final_norm.eps", default=1e-5),
    key("sliding_window", "attention.window", default=None),
    rotary_keys(default_theta=1000000.0),
    key("num_local_experts", "mlp.moe.experts", default=8),
    key("intermediate_size", "mlp.moe.ffn"),
    key("num_experts_per_tok", "mlp.moe.router.top_k", default=2),
    fact_is("mlp.moe.router.score", "softmax"),
    fact_is("mlp.moe.router.normalise", True),
    without=["mlp.ffn"],
)

# Versions 4 and 5 both save and load these names.
MIXTRAL_LAYER = LAYER.without(*MLP).extend(
    row("block_sparse_moe.gate.weight",           "x h",                 "mlp.router.weight",         under={"names": "stored"}),
    row("block_sparse_moe.experts.{x}.w1.weight", "f h",                 "mlp.experts.gate.weight",   under={"names": "stored"}),
    row("block_sparse_moe.experts.{x}.w2.weight", "h f",                 "mlp.experts.down.weight",   under={"names": "stored"}),
    row("block_sparse_moe.experts.{x}.w3.weight", "f h",                 "mlp.experts.up.weight",     under={"names": "stored"}),
    row("mlp.gate.weight",                        "x h",                 "mlp.router.weight",         under={"names": "held"}),
    row("mlp.experts.gate_up_proj",               "x ((gate + up) f) h", "mlp.experts.{part}.weight", under={"names": "held"}),
    row("mlp.experts.down_proj",                  "x h f",               "mlp.experts.down.weight",   under={"names": "held"}),
)
# fmt: on

FAMILIES = [Family("mixtral", MIXTRAL, layouts.Tables([MODEL, MIXTRAL_LAYER], [NAMES]))]
