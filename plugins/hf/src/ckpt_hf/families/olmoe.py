"""OLMoE: a mixture in every layer, and norms on the whole width of q and k."""

from __future__ import annotations

from ckpt_core.sdk import configs, fact_is, key, key_is, layouts
from ckpt_hf import heads
from ckpt_hf.common import ALL_BIASES_OR_NONE, NORMS, Family, norms, unbiased, usual_head_dim
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.weights import EXPERTS, LAYER, MLP, MODEL, NAMES, WHOLE_QK_NORMS

# fmt: off
OLMOE = LLAMA.replace("OlmoeForCausalLM",
    usual_head_dim(),  # the norm of q is as wide as the model
    key("rms_norm_eps", *(f"{norm}.eps" for norm in (*NORMS, "attention.qk_norm")), default=1e-5),
    norms("rms", "attention.qk_norm"),
    fact_is("attention.qk_norm_whole", True),
    key("num_experts", "mlp.moe.experts", also=["num_local_experts"], default=64, null=configs.REQUIRED),
    key("intermediate_size", "mlp.moe.ffn"),
    key("num_experts_per_tok", "mlp.moe.router.top_k", default=8),
    key("norm_topk_prob", "mlp.moe.router.normalise", default=False),
    fact_is("mlp.moe.router.score", "softmax"),
    key_is("clip_qkv", None, or_absent=True, why="it limits the values of q, k and v"),
    unbiased("mlp_bias"),
    without=["mlp.ffn"],
)

OLMOE_LAYER = LAYER.without(*MLP).extend(
    *WHOLE_QK_NORMS,
    *EXPERTS,
)
# fmt: on

FAMILIES = [
    Family(
        "olmoe", OLMOE, layouts.Tables([MODEL, OLMOE_LAYER], [NAMES]), rewrites=ALL_BIASES_OR_NONE, heads=(heads.BARE,)
    )
]
