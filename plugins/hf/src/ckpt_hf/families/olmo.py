"""OLMo 1: Llama with LayerNorm that has no weights."""

from __future__ import annotations

from ckpt_core.sdk import key_is, layouts
from ckpt_hf import heads
from ckpt_hf.common import ALL_BIASES_OR_NONE, NORMS, Family, norms, unbiased
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.weights import LAYER, MODEL

# fmt: off
OLMO = LLAMA.replace("OlmoForCausalLM",
    norms("layer", *NORMS, weight=False, eps=1e-5),
    key_is("clip_qkv", None, or_absent=True, why="it limits the values of q, k and v"),
    unbiased("mlp_bias"),
    without=["rms_norm_eps"],
)

TABLES = layouts.Tables([
    MODEL.without("model.norm.weight"),
    LAYER.without("input_layernorm.weight", "post_attention_layernorm.weight"),
])
# fmt: on

FAMILIES = [Family("olmo", OLMO, TABLES, rewrites=ALL_BIASES_OR_NONE, heads=(heads.BARE, heads.SCORED), padding=1)]
