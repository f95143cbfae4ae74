"""StableLM: LayerNorm, a quarter of each head rotates, and blocks in sequence or side by side."""

from __future__ import annotations

from ckpt_core.sdk import configs, key, key_is, layouts
from ckpt_hf.common import QKV_BIASES, Family, groups, norms, unbiased, usual_head_dim
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import LAYER, LAYER_NORM_BIASES, MODEL_WITH_BIAS

# fmt: off
STABLELM = LLAMA.replace("StableLmForCausalLM",
    groups(32),
    usual_head_dim(),
    key("layer_norm_eps", "attention.norm.eps", "final_norm.eps", default=1e-5),
    norms("layer", "attention.norm", "final_norm", bias=True),
    key("use_parallel_residual", "parallel", "shared_norm", default=False),
    configs.where("!parallel", [configs.all_agree("attention.norm", "mlp.norm", why="all norms are alike")]),
    key("use_qkv_bias", *QKV_BIASES, default=False),
    rotary_keys(partial=0.25),
    key_is("qk_layernorm", False, or_absent=True, why="each head then has a norm with weights of its own"),
    unbiased("attention_bias", "mlp_bias"),
    without=["rms_norm_eps", "mlp.norm.kind"],
)
# fmt: on

FAMILIES = [Family("stablelm", STABLELM, layouts.Tables([MODEL_WITH_BIAS, LAYER.extend(*LAYER_NORM_BIASES)]))]
