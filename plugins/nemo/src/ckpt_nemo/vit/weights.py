"""Which tensor of a NeMo ViT holds what (nemo/collections/vision, v1.19.0_mm to v2.4.0). Layer numbers are those of the whole stack."""

from __future__ import annotations

from collections.abc import Collection

from ckpt_core.sdk import FormatError, Table, layouts, row

LAYERS = "backbone.transformer.layers"
LINEAR, CONVOLUTION = "linear_encoder", "conv1"
ABSOLUTE, PARAMETERS = "learned_absolute", "learned_parameters"


def patch_layer(names: Collection[str], file: str) -> str:
    """How a model cuts images, which its tensors say alone: every NeMo 2 has a convolution, whatever the config's version."""
    held = [layer for layer in (LINEAR, CONVOLUTION) if f"backbone.{layer}.weight" in names]
    if len(held) != 1:
        found = "both" if held else "neither"
        raise FormatError(
            "there is no one layer for patches",
            file=file,
            found=found,
            expected=f"backbone.{LINEAR}.weight or backbone.{CONVOLUTION}.weight",
        )
    return held[0]


# fmt: off
CHOICES = [
    layouts.Choice("patch_layer", (LINEAR, CONVOLUTION), default=LINEAR,
                   help="a linear layer on flattened patches (NeMo 1), or a convolution without bias (NeMo 2)"),
    layouts.Choice("position_embedding_type", (ABSOLUTE, PARAMETERS), default=ABSOLUTE,
                   help="the positions are an embedding, or a bare parameter"),
    layouts.Choice("megatron_legacy", (False, True), default=False,
                   help="q, k and v of each rank lie as [3, heads, head_dim] instead of [heads, 3, head_dim]"),
    layouts.Choice("separate_gate", (False, True), default=False,
                   help="a gated MLP has two linear layers (swiglu) instead of one twice as wide (fast-swiglu)"),
]

QKV = layouts.fragment("qkv", [
    ("(g (q[r] + k + v) d)",         {"megatron_legacy": False}),
    ("((q[g r] + k[g] + v[g]) d)",   {"megatron_legacy": True}),
])

MODEL = Table(rows=[
    row("backbone.cls_token",                           "1 cls h",    "embedding.class_tokens.weight"),
    # The linear layer sees a patch pixel by pixel: all channels of the first, then of its right neighbour.
    row("backbone.linear_encoder.weight",               "h (y z ch)", "embedding.patches.weight", under={"patch_layer": LINEAR}),
    row("backbone.linear_encoder.bias",                 "h",          "embedding.patches.bias",   under={"patch_layer": LINEAR}),
    row("backbone.conv1.weight",                        "h ch y z",   "embedding.patches.weight", under={"patch_layer": CONVOLUTION}),
    row("backbone.position_embeddings.weight",          "p h",        "positions.weight",         under={"position_embedding_type": ABSOLUTE}),
    row("backbone.position_embeddings",                 "p h",        "positions.weight",         under={"position_embedding_type": PARAMETERS}),
    row("backbone.preprocess_layernorm.weight",         "h",          "input_norm.weight"),
    row("backbone.preprocess_layernorm.bias",           "h",          "input_norm.bias"),
    row("backbone.transformer.final_layernorm.weight",  "h",          "final_norm.weight"),
    row("backbone.transformer.final_layernorm.bias",    "h",          "final_norm.bias"),
    row("head.weight",                                  "k h",        "classifier.weight",        when="!classifier.hidden"),
    row("head.bias",                                    "k",          "classifier.bias",          when="!classifier.hidden"),
    row("head.dense_in.weight",                         "i h",        "classifier.dense.weight"),
    row("head.dense_in.bias",                           "i",          "classifier.dense.bias"),
    row("head.dense_out.weight",                        "k h",        "classifier.weight",        when="classifier.hidden"),
    row("head.dense_out.bias",                          "k",          "classifier.bias",          when="classifier.hidden"),
])

LAYER = Table(f"{LAYERS}.{{l}}", to="layers.{l}", rows=[
    row("input_layernorm.weight",                 "h",                 "attention.norm.weight"),
    row("input_layernorm.bias",                   "h",                 "attention.norm.bias"),
    row("self_attention.query_key_value.weight",  "<qkv> h",           "attention.{part}.weight", tp="g"),
    row("self_attention.query_key_value.bias",    "<qkv>",             "attention.{part}.bias",   tp="g"),
    row("self_attention.dense.weight",            "h (g r d)",         "attention.out.weight",    tp="g"),
    row("self_attention.dense.bias",              "h",                 "attention.out.bias"),
    row("post_attention_layerscale.gamma",        "h",                 "attention.layer_scale.weight"),
    row("post_attention_layernorm.weight",        "h",                 "mlp.norm.weight"),
    row("post_attention_layernorm.bias",          "h",                 "mlp.norm.bias"),
    row("mlp.dense_h_to_4h.weight",               "f h",               "mlp.up.weight",     tp="f", when="!mlp.gated"),
    row("mlp.dense_h_to_4h.bias",                 "f",                 "mlp.up.bias",       tp="f", when="!mlp.gated"),
    row("mlp.dense_h_to_4h.weight",               "((gate + up) f) h", "mlp.{part}.weight", tp="f", when="mlp.gated", under={"separate_gate": False}),
    row("mlp.dense_h_to_4h.bias",                 "((gate + up) f)",   "mlp.{part}.bias",   tp="f", when="mlp.gated", under={"separate_gate": False}),
    row("mlp.dense_h_to_4h.weight",               "f h",               "mlp.gate.weight",   tp="f",                   under={"separate_gate": True}),
    row("mlp.dense_h_to_4h.bias",                 "f",                 "mlp.gate.bias",     tp="f",                   under={"separate_gate": True}),
    row("mlp.dense_h_to_4h_2.weight",             "f h",               "mlp.up.weight",     tp="f", when="mlp.gated", under={"separate_gate": True}),
    row("mlp.dense_h_to_4h_2.bias",               "f",                 "mlp.up.bias",       tp="f", when="mlp.gated", under={"separate_gate": True}),
    row("mlp.dense_4h_to_h.weight",               "h f",               "mlp.down.weight",         tp="f"),
    row("mlp.dense_4h_to_h.bias",                 "h",                 "mlp.down.bias"),
    row("post_mlp_layerscale.gamma",              "h",                 "mlp.layer_scale.weight"),
])
# fmt: on

TABLES = layouts.Tables([MODEL, LAYER], CHOICES, [QKV])
