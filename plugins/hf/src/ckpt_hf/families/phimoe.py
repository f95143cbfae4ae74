"""Phi-3.5-MoE: Mixtral with biases, norms that subtract the mean, and experts that are chosen one after the other."""

from __future__ import annotations

from ckpt_core.sdk import fact_is, ignore, key, key_is, layouts, row
from ckpt_hf import heads
from ckpt_hf.common import ATTENTION_BIASES, NORMS, Family, norms
from ckpt_hf.families.mixtral import MIXTRAL, MIXTRAL_LAYER
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import LAYER_NORM_BIASES, MODEL_WITH_BIAS, NAMES

# fmt: off
PHIMOE = MIXTRAL.replace("PhimoeForCausalLM",
    norms("layer", *NORMS, bias=True),
    key("attention_bias", *ATTENTION_BIASES, default=False),
    key("lm_head_bias", "head.bias", default=False),
    # transformers 5.24 asks for the factors of short texts whatever the length is, and version 4 for those of the length, as the model was trained
    rotary_keys(default_theta=1000000.0, by_length=True),
    key("num_local_experts", "mlp.moe.experts", default=16),
    key_is("num_experts_per_tok", 2, or_absent=True),  # the class chooses two, whatever it says
    fact_is("mlp.moe.router.top_k", 2),
    key("router_jitter_noise", "mlp.moe.router.margin", default=0.01),
    fact_is("mlp.moe.router.normalise", False),
    ignore("input_jitter_noise", why="training only"),
)

_HELD = {"mlp.gate.weight": row("mlp.router.weight", "x h", "mlp.router.weight", under={"names": "held"})}
PHIMOE_LAYER = MIXTRAL_LAYER.with_rows([*(_HELD.get(one.native, one) for one in MIXTRAL_LAYER.rows), *MIXTRAL_LAYER.drops]).extend(*LAYER_NORM_BIASES)
# fmt: on

FAMILIES = [
    Family(
        "phimoe",
        PHIMOE,
        layouts.Tables([MODEL_WITH_BIAS.extend(row("lm_head.bias", "v", "head.bias")), PHIMOE_LAYER], [NAMES]),
        heads=(heads.BARE, heads.SCORED),
    )
]
