"""OLMo 2 and FlexOlmo, its mixture: norms on the outputs of the blocks instead of their inputs, and on the whole width of q and k."""

from __future__ import annotations

from ckpt_core.sdk import configs, fact_is, key, layouts, row
from ckpt_hf import heads
from ckpt_hf.common import ALL_BIASES_OR_NONE, Family, norms, unbiased
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import EXPERTS, LAYER, MLP, MODEL, NAMES, WHOLE_QK_NORMS

_NORMS = ("attention.out_norm", "mlp.out_norm", "attention.qk_norm", "final_norm")

# fmt: off
OLMO2 = LLAMA.replace("Olmo2ForCausalLM",
    key("rms_norm_eps", *(f"{norm}.eps" for norm in _NORMS), default=1e-5),
    norms("rms", *_NORMS),
    fact_is("attention.qk_norm_whole", True),
    unbiased("mlp_bias"),
    without=["attention.norm.kind", "mlp.norm.kind"],
)

OLMO2_LAYER = LAYER.without("input_layernorm.weight", "post_attention_layernorm.weight").extend(
    *WHOLE_QK_NORMS,
    row("post_attention_layernorm.weight",   "h",       "attention.out_norm.weight"),
    row("post_feedforward_layernorm.weight", "h",       "mlp.out_norm.weight"),
)

FLEX_OLMO = OLMO2.replace("FlexOlmoForCausalLM",
    key("rms_norm_eps", *(f"{norm}.eps" for norm in _NORMS), default=1e-6),
    rotary_keys(default_theta=500000.0),
    key("num_experts", "mlp.moe.experts", also=["num_local_experts"], default=7, null=configs.REQUIRED),
    key("intermediate_size", "mlp.moe.ffn"),
    key("num_experts_per_tok", "mlp.moe.router.top_k", default=5),
    key("norm_topk_prob", "mlp.moe.router.normalise", default=False),
    fact_is("mlp.moe.router.score", "softmax"),
    without=["mlp.ffn"],
)

FLEX_OLMO_LAYER = OLMO2_LAYER.without(*MLP).extend(
    *EXPERTS,
)
# fmt: on

FAMILIES = [
    Family(
        "olmo2",
        OLMO2,
        layouts.Tables([MODEL, OLMO2_LAYER]),
        rewrites=ALL_BIASES_OR_NONE,
        heads=(heads.BARE, heads.SCORED),
        padding=1,
    ),
    Family(
        "flex_olmo",
        FLEX_OLMO,
        layouts.Tables([MODEL, FLEX_OLMO_LAYER], [NAMES]),
        rewrites=ALL_BIASES_OR_NONE,
        heads=(heads.BARE,),
    ),
]
