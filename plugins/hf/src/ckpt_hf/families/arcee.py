"""Arcee: Llama with an ungated squared-ReLU MLP."""

from __future__ import annotations

from ckpt_core.sdk import fact_is, key, layouts
from ckpt_hf.common import ACTIVATION, ALL_BIASES_OR_NONE, NORMS, Family, divides
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.weights import LAYER, MODEL

# fmt: off
ARCEE = LLAMA.replace("ArceeForCausalLM",
    key("hidden_act", "mlp.activation", default="relu2", via=ACTIVATION),
    fact_is("mlp.gated", False),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
)

ARCEE_LAYER = LAYER.without("mlp.gate_proj.weight", "mlp.gate_proj.bias")
# fmt: on

FAMILIES = [Family("arcee", ARCEE, layouts.Tables([MODEL, ARCEE_LAYER]), divides, rewrites=ALL_BIASES_OR_NONE)]
