"""Granite 3: Llama whose embedding, blocks, scores and logits are each multiplied by a number; dense, and mixtures with and without shared experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Facts, configs, decided, fact_is, key, key_is, layouts, row, values
from ckpt_hf import heads, weights
from ckpt_hf.common import Family, unbiased
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.weights import LAYER, MLP, MODEL, NAMES


def _read_shared(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    name = "shared_intermediate_size"
    width = values.checked(name, config.get(name, 0), values.count)
    if width:
        facts["mlp.moe.shared.ffn"] = width


# fmt: off
MULTIPLIERS = [
    key("embedding_multiplier", "tokens.scale", default=1.0, null=configs.REQUIRED),
    key("residual_multiplier", "residual_scale", default=1.0, null=configs.REQUIRED),
    key("attention_multiplier", "attention.scale", default=1.0, null=configs.REQUIRED),
    key("logits_scaling", "head.scale", type=values.positive, via=values.reciprocal, default=1.0, null=configs.REQUIRED),
]

GRANITE = LLAMA.replace("GraniteForCausalLM", *MULTIPLIERS)

GRANITE_MOE = GRANITE.replace("GraniteMoeForCausalLM",
    key("num_local_experts", "mlp.moe.experts", default=8),
    key("num_experts_per_tok", "mlp.moe.router.top_k", default=2),
    key("intermediate_size", "mlp.moe.ffn"),
    fact_is("mlp.moe.router.score", "softmax"),
    fact_is("mlp.moe.router.normalise", True),
    key_is("position_embedding_type", "rope", or_absent=True, written=False),  # transformers 4.57 saves it
    unbiased("mlp_bias"),
    without=["mlp.ffn"],
)

GRANITE_MOE_SHARED = GRANITE_MOE.replace("GraniteMoeSharedForCausalLM",
    decided(["shared_intermediate_size"], ["mlp.moe.shared.ffn"], read=_read_shared,
            values={"shared_intermediate_size": [configs.value_of("mlp.moe.shared.ffn"), 0]},
            why="the width of the shared expert, which a width of 0, the class's own, leaves out"),
)

GRANITE_EXPERTS = (
    row("block_sparse_moe.router.layer.weight",  "x h",                 "mlp.router.weight",         under={"names": "stored"}),
    row("block_sparse_moe.input_linear.weight",  "x ((gate + up) f) h", "mlp.experts.{part}.weight", under={"names": "stored"}),
    row("block_sparse_moe.output_linear.weight", "x h f",               "mlp.experts.down.weight",   under={"names": "stored"}),
    row("block_sparse_moe.router.weight",        "x h",                 "mlp.router.weight",         under={"names": "held"}),
    row("block_sparse_moe.experts.gate_up_proj", "x ((gate + up) f) h", "mlp.experts.{part}.weight", under={"names": "held"}),
    row("block_sparse_moe.experts.down_proj",    "x h f",               "mlp.experts.down.weight",   under={"names": "held"}),
)

SHARED_EXPERT = (
    row("shared_mlp.input_linear.weight",  "((gate + up) f) h", "mlp.shared.{part}.weight"),
    row("shared_mlp.output_linear.weight", "h f",               "mlp.shared.down.weight"),
)
# fmt: on

_MOE_LAYER = LAYER.without(*MLP).extend(*GRANITE_EXPERTS)
GRANITE_LAYER, GRANITE_MOE_SHARED_LAYER = LAYER, _MOE_LAYER.extend(*SHARED_EXPERT)

FAMILIES = [
    Family("granite", GRANITE, weights.LLAMA, heads=(heads.BARE,)),
    Family("granitemoe", GRANITE_MOE, layouts.Tables([MODEL, _MOE_LAYER], [NAMES]), heads=(heads.BARE,)),
    Family(
        "granitemoeshared",
        GRANITE_MOE_SHARED,
        layouts.Tables([MODEL, GRANITE_MOE_SHARED_LAYER], [NAMES]),
        heads=(heads.BARE,),
    ),
]
