"""Which tensor of a GPT model holds what: Megatron's tables, and what NeMo's own code adds to them.

legacy   model.language_model.encoder.layers.N.self_attention.query_key_value.weight
mcore    model.decoder.layers.N.self_attention.linear_qkv.weight
TE       model.language_model.encoder.layers.N.self_attention.layernorm_qkv.weight   (transformer_engine alone)
"""

from __future__ import annotations

import re

from ckpt_core.sdk import Table, drop, layouts, row
from ckpt_megatron.sdk import LegacySpelling, plain_name
from ckpt_megatron.sdk import weights as megatron

OUTPUT = "output_layer.weight"
TIED_COPY = "word_embeddings.weight"  # on the last of several pipeline stages
ROTARY = "language_model.rotary_pos_emb.inv_freq"  # on every stage

# fmt: off
CHOICES = [
    megatron.INTERLEAVED,
    layouts.Choice("megatron_legacy", (False, True), default=False,
                   help="q, k and v of each rank lie as [3, heads, head_dim] instead of [heads, 3, head_dim]"),
    layouts.Choice("separate_gate", (False, True), default=False,
                   help="geglu, reglu, swiglu without `fast-`: two linear layers instead of one twice as wide"),
]

ORDER = layouts.fragment("qkv", [
    ("((q[r] + k + v) g d)",                       {"megatron_legacy": True,  "rotary_interleaved": False}),
    ("(g (q[r] + k + v) d)",                       {"megatron_legacy": False, "rotary_interleaved": False}),
    ("(g (q[r (e c + o)] + k[(e c + o)] + v[d]))", {"rotary_interleaved": True}),
])

LAYER = Table(megatron.LAYER, to="layers.{l}", rows=[
    *megatron.NORMS,
    row("self_attention.linear_qkv.weight", "<qkv> h",           "attention.{part}.weight", tp="g"),
    row("self_attention.linear_qkv.bias",   "<qkv>",             "attention.{part}.bias",   tp="g"),
    *megatron.ATTENTION,
    row("mlp.linear_fc1.weight",            "((gate + up) f) h", "mlp.{part}.weight", tp="f", when="mlp.gated",  under={"separate_gate": False}),
    row("mlp.linear_fc1.bias",              "((gate + up) f)",   "mlp.{part}.bias",   tp="f", when="mlp.gated",  under={"separate_gate": False}),
    row("mlp.linear_fc1.weight",            "f h",               "mlp.up.weight",     tp="f", when="!mlp.gated", under={"separate_gate": False}),
    row("mlp.linear_fc1.bias",              "f",                 "mlp.up.bias",       tp="f", when="!mlp.gated", under={"separate_gate": False}),
    *megatron.FC2,
    *megatron.ROUTER,
    *megatron.EXPERTS,
    row("mlp.linear_fc1.weight",            "f h",               "mlp.gate.weight",   tp="f", under={"separate_gate": True}),
    row("mlp.linear_fc1.bias",              "f",                 "mlp.gate.bias",     tp="f", under={"separate_gate": True}),
    row("mlp.dense_h_to_4h_2.weight",       "f h",               "mlp.up.weight",     tp="f", under={"separate_gate": True}),
    row("mlp.dense_h_to_4h_2.bias",         "f",                 "mlp.up.bias",       tp="f", under={"separate_gate": True}),
])

TABLES = layouts.Tables(
    [megatron.MODEL.extend(drop("rotary_pos_emb.inv_freq", why="computed from the base")), LAYER],
    CHOICES,
    [ORDER, megatron.HEAD],
)

# TransformerEngine's whole layer, which the code before Megatron-Core could use in place of its own.
_TE_LAYER = [
    (".self_attention.layernorm_qkv.layer_norm_", ".input_layernorm."),
    (".self_attention.layernorm_qkv.",            ".self_attention.linear_qkv."),
    (".self_attention.proj.",                     ".self_attention.linear_proj."),
    (".layernorm_mlp.layer_norm_",                ".pre_mlp_layernorm."),
    (".layernorm_mlp.fc1_",                       ".mlp.linear_fc1."),
    (".layernorm_mlp.fc2_",                       ".mlp.linear_fc2."),
]
# fmt: on

_LEGACY = LegacySpelling(norm="layernorm")


def plain(name: str) -> str:
    """The name that the tables use for an unwrapped one; layers keep their numbers.

    >>> plain("language_model.encoder.layers.3.post_attention_layernorm.weight")
    'decoder.layers.3.pre_mlp_layernorm.weight'
    >>> plain("word_embeddings.weight")
    'output_layer.weight'
    """
    if name == TIED_COPY:
        return OUTPUT
    name = plain_name(name)
    for te, own in _TE_LAYER:
        name = name.replace(te, own)
    return name


def is_legacy(stored: list[str]) -> bool:
    """Whether unwrapped names are those of the code before Megatron-Core."""
    return any(name.startswith("language_model.") for name in stored)


def legacy(name: str, tied_copy: bool) -> str:
    """The name before Megatron-Core of a tensor of the tables."""
    if tied_copy:
        return TIED_COPY
    return _LEGACY.name(name, tied=False)


def stacked(name: str) -> str:
    """A name without the layer's number, as distributed checkpoints have it."""
    return re.sub(r"^decoder\.layers\.\d+\.", "decoder.layers.", name)
