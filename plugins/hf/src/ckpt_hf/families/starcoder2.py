"""StarCoder2: LayerNorm, biases everywhere, an ungated MLP."""

from __future__ import annotations

from ckpt_core.sdk import fact_is, ignore, key, key_is, layouts, row
from ckpt_hf.common import (
    ACTIVATION,
    ALL_BIASES_OR_NONE,
    ATTENTION_BIASES,
    MLP_BIASES,
    NORMS,
    Family,
    alias,
    groups,
    norms,
)
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.weights import LAYER, LAYER_NORM_BIASES, MLP, MODEL_WITH_BIAS

# fmt: off
STARCODER2 = LLAMA.replace("Starcoder2ForCausalLM",
    groups(2),
    key("hidden_act", "mlp.activation", default="gelu_pytorch_tanh", via=ACTIVATION),
    key("norm_epsilon", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    norms("layer", *NORMS, bias=True),
    fact_is("mlp.gated", False),
    key("use_bias", *ATTENTION_BIASES, *MLP_BIASES, default=True),
    key("tie_word_embeddings", "head.tied", default=True),
    key("sliding_window", "attention.window", default=None),
    # The first files carry keys of the code that they were trained with, beside those that the class reads.
    key_is("mlp_type", "default", or_absent=True, written=False),
    key_is("norm_type", "layer_norm", or_absent=True, written=False),
    key_is("scale_attn_weights", True, or_absent=True, written=False),
    key_is("activation_function", "gelu", or_absent=True, written=False),
    alias("layer_norm_epsilon", "norm_epsilon"),
    ignore("rms_norm_eps", why="it has no RMSNorm; norm_epsilon is read"),
    ignore("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", why="a precision of the training code, not another function"),
    without=["attention_bias", "mlp_bias"],
)

STARCODER2_LAYER = LAYER.without(*MLP).extend(
    *LAYER_NORM_BIASES,
    row("mlp.c_fc.weight",   "f h", "mlp.up.weight"),
    row("mlp.c_fc.bias",     "f",   "mlp.up.bias"),
    row("mlp.c_proj.weight", "h f", "mlp.down.weight"),
    row("mlp.c_proj.bias",   "h",   "mlp.down.bias"),
)
# fmt: on

FAMILIES = [
    Family("starcoder2", STARCODER2, layouts.Tables([MODEL_WITH_BIAS, STARCODER2_LAYER]), rewrites=ALL_BIASES_OR_NONE)
]
