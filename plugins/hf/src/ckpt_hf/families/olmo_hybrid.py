"""OLMo-Hybrid: delta nets with norms on the inputs of their blocks, and the layers of OLMo 2, which attend and may not rotate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Activation, configs, fact_is, ignore, key, key_is, layouts, one_of, row, same_as
from ckpt_hf import heads
from ckpt_hf.common import ALL_BIASES_OR_NONE, Family, norms
from ckpt_hf.families.olmo2 import OLMO2, OLMO2_LAYER
from ckpt_hf.families.qwen3_next import delta_layers
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import MODEL

_NORMS = ("attention.out_norm", "mlp.out_norm", "attention.qk_norm", "final_norm", "delta.norm", "mlp.norm")


def _every_fourth(layers: int, config: Mapping[str, Any]) -> list[bool]:
    attends = [index % 4 == 3 for index in range(layers)]
    return attends if any(attends) else [*attends[1:], True]


# fmt: off
OLMO_HYBRID = OLMO2.replace("OlmoHybridForCausalLM",
    delta_layers(_every_fourth),
    configs.fact_as("mlp.norm?", "delta?"),
    configs.fact_as("mlp.out_norm?", "attention?"),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in _NORMS), default=1e-6),
    norms("rms", "delta.norm", "mlp.norm"),
    norms("rms", "delta.head_norm", eps=1e-5),  # whatever rms_norm_eps is
    rotary_keys(always=False, null_theta=True),
    key("linear_num_key_heads", "delta.key_heads", default=same_as("num_attention_heads")),
    key("linear_num_value_heads", "delta.value_heads", default=same_as("num_attention_heads")),
    key("linear_key_head_dim", "delta.key_dim"),
    key("linear_value_head_dim", "delta.value_dim"),
    key("linear_conv_kernel_dim", "delta.conv", default=4),
    key("linear_allow_neg_eigval", "delta.beta_scale", default=True, via=one_of({True: 2.0, False: 1.0})),
    ignore("linear_a_log_min", "linear_a_log_max", "linear_dt_min", "linear_dt_max", "linear_dt_init_floor", why="of the initialisation"),
    # the convolutions of the delta nets have the activation of the MLP, which the schema knows as SiLU alone
    key_is("hidden_act", "silu", or_absent=True),
    fact_is("mlp.activation", Activation.SILU),
)

# transformers 5.24 saves the first norm of a layer that attends under a name of the layers with delta nets; it reads both names. It also
# saves the three convolutions as equal thirds of their rows, which are the three only where keys and values are equally wide: other
# files of its making are refused by the shapes of these tensors, and the published ones have them right.
_NAMES = layouts.Choice("names", ("published", "saved", "held"), default="published",
    help="names of tensors as published files have them, as transformers saves them, or as it holds them in memory")
_IN_FILES = {"names": ("published", "saved")}

OLMO_HYBRID_LAYER = OLMO2_LAYER.without("post_attention_layernorm.weight").extend(
    row("post_attention_layernorm.weight", "h",            "attention.out_norm.weight", under={"names": ("published", "held")}),
    row("feedforward_layer_norm.weight",   "h",            "attention.out_norm.weight", under={"names": "saved"}),
    row("attention_layer_norm.weight",     "h",            "delta.norm.weight",         under=_IN_FILES),
    row("input_layernorm.weight",          "h",            "delta.norm.weight",         under={"names": "held"}),
    row("feedforward_layer_norm.weight",   "h",            "mlp.norm.weight",           under=_IN_FILES),
    row("post_attention_layernorm.weight", "h",            "mlp.norm.weight",           under={"names": "held"}),
    row("linear_attn.q_proj.weight",       "(g dk) h",     "delta.q.weight"),
    row("linear_attn.k_proj.weight",       "(g dk) h",     "delta.k.weight"),
    row("linear_attn.v_proj.weight",       "(g r dv) h",   "delta.v.weight"),
    row("linear_attn.g_proj.weight",       "(g r dv) h",   "delta.z.weight"),
    row("linear_attn.b_proj.weight",       "(g r) h",      "delta.b.weight"),
    row("linear_attn.a_proj.weight",       "(g r) h",      "delta.a.weight"),
    row("linear_attn.q_conv1d.weight",     "(g dk) 1 t",   "delta.q_conv.weight",       under=_IN_FILES),
    row("linear_attn.k_conv1d.weight",     "(g dk) 1 t",   "delta.k_conv.weight",       under=_IN_FILES),
    row("linear_attn.v_conv1d.weight",     "(g r dv) 1 t", "delta.v_conv.weight",       under=_IN_FILES),
    row("linear_attn.conv1d.weight",       "(q_conv[g dk] + k_conv[g dk] + v_conv[g r dv]) 1 t", "delta.{part}.weight", under={"names": "held"}),
    row("linear_attn.A_log",               "(g r)",        "delta.a_log.weight"),
    row("linear_attn.dt_bias",             "(g r)",        "delta.dt_bias.weight"),
    row("linear_attn.o_norm.weight",       "dv",           "delta.head_norm.weight"),
    row("linear_attn.o_proj.weight",       "h (g r dv)",   "delta.out.weight"),
)
# fmt: on

FAMILIES = [
    Family(
        "olmo_hybrid",
        OLMO_HYBRID,
        layouts.Tables([MODEL, OLMO_HYBRID_LAYER], [_NAMES]),
        rewrites=ALL_BIASES_OR_NONE,
        heads=(heads.BARE,),
        padding=100277,
    )
]
