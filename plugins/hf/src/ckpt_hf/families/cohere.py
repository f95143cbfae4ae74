"""Cohere 1 and 2: parallel blocks behind one norm, adjacent rotary pairs, scaled logits; 2 rotates in layers with a window only."""

from __future__ import annotations

from ckpt_core.sdk import configs, fact_is, ignore, key, key_is, layouts
from ckpt_hf import heads
from ckpt_hf.common import ALL_BIASES_OR_NONE, Family, alternating_windows, norms, rotated_with_window, unbiased
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import ADJACENT, LAYER, MODEL

# fmt: off
COHERE = LLAMA.replace("CohereForCausalLM",
    key("layer_norm_eps", "attention.norm.eps", "final_norm.eps", default=1e-5),
    norms("layer", "attention.norm", "final_norm"),
    fact_is("parallel", True),
    fact_is("shared_norm", True),
    key("logit_scale", "head.scale", default=0.0625, null=configs.REQUIRED),
    key("tie_word_embeddings", "head.tied", default=True),
    rotary_keys(default_theta=500000.0),
    key_is("use_qk_norm", False, or_absent=True, why="each head then has a norm with weights of its own"),
    ignore("model_max_length", why="a length of the tokenizer"),
    unbiased("mlp_bias"),
    without=["rms_norm_eps", "mlp.norm.kind"],
)

COHERE2 = COHERE.replace("Cohere2ForCausalLM",
    alternating_windows(4096, period=4, period_key="sliding_window_pattern"),
    ignore("_sliding_window_pattern", why="saved by transformers since 4.53 beside the layer_types that it gave"),
    rotary_keys(always=False),
    rotated_with_window(),
    # Of the code that the first files were trained with; other values would be another model.
    key_is("position_embedding_type", "rope_gptj", or_absent=True, written=False),
    key_is("rotary_pct", 1.0, or_absent=True, written=False),
    key_is("order_of_interleaved_layers", "local_attn_first", or_absent=True, written=False),
    key_is("use_embedding_sharing", True, or_absent=True, written=False),
    key_is("use_gated_activation", True, or_absent=True, written=False),
    key_is("use_parallel_block", True, or_absent=True, written=False),
    key_is("use_parallel_embedding", False, or_absent=True, written=False),
    configs.repeats("layer_switch", "sliding_window_pattern", written=False),
)

COHERE_LAYER = LAYER.replace(*ADJACENT).without("post_attention_layernorm.weight")
# fmt: on

FAMILIES = [
    Family("cohere", COHERE, layouts.Tables([MODEL, COHERE_LAYER]), rewrites=ALL_BIASES_OR_NONE, heads=(heads.BARE,)),
    Family("cohere2", COHERE2, layouts.Tables([MODEL, COHERE_LAYER]), rewrites=ALL_BIASES_OR_NONE, heads=(heads.BARE,)),
]
