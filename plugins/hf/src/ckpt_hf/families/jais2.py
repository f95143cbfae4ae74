"""Jais 2: Llama with LayerNorm, biases everywhere, and an ungated squared-ReLU MLP."""

from __future__ import annotations

from ckpt_core.sdk import fact_is, key, layouts
from ckpt_hf import heads
from ckpt_hf.common import (
    ACTIVATION,
    ALL_BIASES_OR_NONE,
    ATTENTION_BIASES,
    MLP_BIASES,
    NORMS,
    Family,
    divides,
    norms,
)
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.weights import LAYER, LAYER_NORM_BIASES, MODEL_WITH_BIAS

# fmt: off
JAIS2 = LLAMA.replace("Jais2ForCausalLM",
    key("hidden_act", "mlp.activation", default="relu2", via=ACTIVATION),
    fact_is("mlp.gated", False),
    key("layer_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    norms("layer", *NORMS, bias=True),
    key("attention_bias", *ATTENTION_BIASES, default=True),
    key("mlp_bias", *MLP_BIASES, default=True),
    without=["rms_norm_eps"],
)

JAIS2_LAYER = LAYER.without("mlp.gate_proj.weight", "mlp.gate_proj.bias").extend(*LAYER_NORM_BIASES)
# fmt: on

FAMILIES = [
    Family(
        "jais2",
        JAIS2,
        layouts.Tables([MODEL_WITH_BIAS, JAIS2_LAYER]),
        divides,
        rewrites=ALL_BIASES_OR_NONE,
        heads=(heads.BARE,),
    )
]
