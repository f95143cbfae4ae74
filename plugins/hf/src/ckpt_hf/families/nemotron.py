"""Nemotron: zero-centred LayerNorm with bias (layernorm1p), an ungated squared-ReLU MLP, partly rotated heads."""

from __future__ import annotations

from ckpt_core.sdk import fact_is, key, layouts
from ckpt_hf.common import ACTIVATION, ALL_BIASES_OR_NONE, NORMS, Family, norms
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import LAYER, LAYER_NORM_BIASES, MODEL_WITH_BIAS

# fmt: off
NEMOTRON = LLAMA.replace("NemotronForCausalLM",
    key("hidden_act", "mlp.activation", default="relu2", via=ACTIVATION),
    key("norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    norms("layer", *NORMS, bias=True, zero_centred=True),
    fact_is("mlp.gated", False),
    rotary_keys(partial=0.5),
    without=["rms_norm_eps"],
)
# fmt: on

FAMILIES = [
    Family(
        "nemotron",
        NEMOTRON,
        layouts.Tables([MODEL_WITH_BIAS, LAYER.extend(*LAYER_NORM_BIASES)]),
        rewrites=ALL_BIASES_OR_NONE,
    )
]
