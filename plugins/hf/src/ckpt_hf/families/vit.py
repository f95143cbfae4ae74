"""ViT: images in patches, one class token, a classifier on it (ViTForImageClassification) or a pooler (ViTModel).

The classes share a `model_type`; `architectures` tells them apart. ViTModel has a pooler unless it was built with
`add_pooling_layer=False`, which no config says: the tensors do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    CkptError,
    Config,
    Facts,
    Table,
    configs,
    decided,
    derived,
    drop,
    fact_is,
    ignore,
    key,
    key_is,
    layouts,
    ledgers,
    note,
    rewrites,
    row,
    schema,
    values,
)
from ckpt_hf.common import ACTIVATION, ALL_BIASES_OR_NONE, GENERIC, MLP_BIASES, NORMS, QKV_BIASES, Family, Same, norms
from ckpt_hf.labels import LABELS
from ckpt_hf.weights import NAMES

_POOLER = "add_pooling_layer"
_SIZES = ("patches.height", "patches.width", "patches.patch")


_IMAGES = ("image_size", "patch_size")


def _read_sizes(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    height, width = _pair(config, "image_size", 224)
    patch, other = _pair(config, "patch_size", 16)
    if patch != other:
        raise CkptError("patches that are not square are not supported", found=f"patch_size = {config['patch_size']}")
    if min(height, width) < patch:
        raise CkptError(
            "an image has no patch", found=f"image_size = {config.get('image_size', 224)}, patch_size = {patch}"
        )
    facts |= {"patches.height": height, "patches.width": width, "patches.patch": patch}
    facts["positions.count"] = (height // patch) * (width // patch) + 1


def _pair(config: Mapping[str, Any], key: str, default: int) -> tuple[int, int]:
    value = config.get(key, default)
    first, second = value if isinstance(value, list) and len(value) == 2 else (value, value)
    return values.checked(key, first, values.whole), values.checked(key, second, values.whole)


def with_pooler(config: Mapping[str, Any], names: Collection[str], same: Same) -> Mapping[str, Any]:
    """The config of a ViTModel, with whether the tensors beside it have a pooler."""
    return {**config, _POOLER: any(name.endswith("pooler.dense.weight") for name in names)}


# fmt: off
_COMMON = Config("", GENERIC).replace("",
    fact_is("kind", "encoder"),
    fact_is("causal", False),
    fact_is("patches.bias", True),
    fact_is("patches.class_tokens", 1),
    decided(_IMAGES, [*_SIZES, "positions.count"], read=_read_sizes,
            values={_IMAGES: [(configs.value_of("patches.height"), configs.value_of("patches.patch")),
                              (configs.value_of("patches.height", "patches.width"), configs.value_of("patches.patch"))]},
            why="a number of pixels, or a pair of them, height first; there is a learned position for each patch and the class token"),
    key("num_channels", "patches.channels", default=3, type=values.whole),
    key("hidden_size", "hidden"),
    key("num_hidden_layers", "layers"),
    key("num_attention_heads", "attention.heads", "attention.groups"),
    derived(None, "attention.head_dim", "hidden_size / num_attention_heads"),
    key("intermediate_size", "mlp.ffn"),
    key("hidden_act", "mlp.activation", default="gelu", via=ACTIVATION),
    fact_is("mlp.gated", False),
    key("layer_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-12),
    norms("layer", *NORMS, bias=True),
    key("qkv_bias", *QKV_BIASES, default=True),
    [fact_is(bias, True) for bias in ("attention.out_bias", *MLP_BIASES)],
    ignore("hidden_dropout_prob", "attention_probs_dropout_prob", why="training only"),
    ignore("encoder_stride", why="of the decoder of ViTForMaskedImageModeling"),
    key_is("tie_word_embeddings", True, or_absent=True, written=False),
    # a model of images has no tokens; such keys are those that old versions wrote for every model
    note("bos_token_id", "bos"),
    note("eos_token_id", "eos"),
    note("pad_token_id", "pad"),
    without=["max_position_embeddings"],
)

CLASSIFICATION = _COMMON.replace("ViTForImageClassification",
    LABELS,
    fact_is("classifier.hidden", False),
    fact_is("classifier.pooling", schema.Pooling.FIRST),
    ignore("pooler_output_size", "pooler_act", why="it has no pooler"),
)

MODEL = _COMMON.replace("ViTModel",
    # The pooler, dense and tanh, of hidden size. Files may lack it, and no config says so: the tensors do (`with_pooler`).
    configs.switched(_POOLER, [
        fact_is("classifier.hidden", True),
        fact_is("classifier.pooling", schema.Pooling.FIRST),
        configs.repeats("pooler_output_size", "hidden_size", written=False),
        key_is("pooler_act", "tanh", or_absent=True, written=False),
    ], default=True, written=False),
)


CLASSIFICATION_ROWS = Table(rows=[
    row("vit.embeddings.cls_token",                          "1 cls h",  "embedding.class_tokens.weight"),
    row("vit.embeddings.position_embeddings",                "1 p h",    "positions.weight"),
    row("vit.embeddings.patch_embeddings.projection.weight", "h ch y z", "embedding.patches.weight"),
    row("vit.embeddings.patch_embeddings.projection.bias",   "h",        "embedding.patches.bias"),
    row("vit.layernorm.weight",                              "h",        "final_norm.weight"),
    row("vit.layernorm.bias",                                "h",        "final_norm.bias"),
    row("vit.pooler.dense.weight",                           "i h",      "classifier.dense.weight"),
    row("vit.pooler.dense.bias",                             "i",        "classifier.dense.bias"),
    row("classifier.weight",                                  "k h",      "classifier.weight"),
    row("classifier.bias",                                    "k",        "classifier.bias"),
])

MODEL_ROWS = Table(rows=[
    row("embeddings.cls_token",                          "1 cls h",  "embedding.class_tokens.weight"),
    row("embeddings.position_embeddings",                "1 p h",    "positions.weight"),
    row("embeddings.patch_embeddings.projection.weight", "h ch y z", "embedding.patches.weight"),
    row("embeddings.patch_embeddings.projection.bias",   "h",        "embedding.patches.bias"),
    row("layernorm.weight",                              "h",        "final_norm.weight"),
    row("layernorm.bias",                                "h",        "final_norm.bias"),
    row("pooler.dense.weight",                           "i h",      "classifier.dense.weight"),
    row("pooler.dense.bias",                             "i",        "classifier.dense.bias"),
    row("classifier.weight",                                "k h",      "classifier.weight"),
    row("classifier.bias",                                  "k",        "classifier.bias"),
])

# The names in files, and those that transformers 5 has in memory.
_STORED = [
    row("layernorm_before.weight",           "h",         "attention.norm.weight"),
    row("layernorm_before.bias",             "h",         "attention.norm.bias"),
    row("attention.attention.query.weight",  "(g r d) h", "attention.q.weight"),
    row("attention.attention.query.bias",    "(g r d)",   "attention.q.bias"),
    row("attention.attention.key.weight",    "(g d) h",   "attention.k.weight"),
    row("attention.attention.key.bias",      "(g d)",     "attention.k.bias"),
    row("attention.attention.value.weight",  "(g d) h",   "attention.v.weight"),
    row("attention.attention.value.bias",    "(g d)",     "attention.v.bias"),
    row("attention.output.dense.weight",     "h (g r d)", "attention.out.weight"),
    row("attention.output.dense.bias",       "h",         "attention.out.bias"),
    row("layernorm_after.weight",            "h",         "mlp.norm.weight"),
    row("layernorm_after.bias",              "h",         "mlp.norm.bias"),
    row("intermediate.dense.weight",         "f h",       "mlp.up.weight"),
    row("intermediate.dense.bias",           "f",         "mlp.up.bias"),
    row("output.dense.weight",               "h f",       "mlp.down.weight"),
    row("output.dense.bias",                 "h",         "mlp.down.bias"),
]
_HELD = [
    row("layernorm_before.weight",           "h",         "attention.norm.weight"),
    row("layernorm_before.bias",             "h",         "attention.norm.bias"),
    row("attention.q_proj.weight",           "(g r d) h", "attention.q.weight"),
    row("attention.q_proj.bias",             "(g r d)",   "attention.q.bias"),
    row("attention.k_proj.weight",           "(g d) h",   "attention.k.weight"),
    row("attention.k_proj.bias",             "(g d)",     "attention.k.bias"),
    row("attention.v_proj.weight",           "(g d) h",   "attention.v.weight"),
    row("attention.v_proj.bias",             "(g d)",     "attention.v.bias"),
    row("attention.o_proj.weight",           "h (g r d)", "attention.out.weight"),
    row("attention.o_proj.bias",             "h",         "attention.out.bias"),
    row("layernorm_after.weight",            "h",         "mlp.norm.weight"),
    row("layernorm_after.bias",              "h",         "mlp.norm.bias"),
    row("mlp.fc1.weight",                    "f h",       "mlp.up.weight"),
    row("mlp.fc1.bias",                      "f",         "mlp.up.bias"),
    row("mlp.fc2.weight",                    "h f",       "mlp.down.weight"),
    row("mlp.fc2.bias",                      "h",         "mlp.down.bias"),
]

CLASSIFICATION_TABLES = layouts.Tables([
    CLASSIFICATION_ROWS,
    Table("vit.encoder.layer.{l}", to="layers.{l}", rows=_STORED, under={"names": "stored"}),
    Table("vit.layers.{l}",        to="layers.{l}", rows=_HELD,   under={"names": "held"}),
], [NAMES])

MODEL_TABLES = layouts.Tables([
    MODEL_ROWS,
    Table("encoder.layer.{l}",     to="layers.{l}", rows=_STORED, under={"names": "stored"}),
    Table("layers.{l}",            to="layers.{l}", rows=_HELD,   under={"names": "held"}),
], [NAMES])
# fmt: on


def _as_vit(model: rewrites.Rewritable) -> rewrites.Rewritable:
    """Patches with a bias, layers with biases everywhere; zeros where there are none."""
    patches = model.architecture.patches
    if patches is None or patches.class_tokens != 1 or model.architecture.encoder is None:
        return model
    model = rewrites.uncentred_norms(rewrites.folded_attention_scale(model))

    def biased(layer: schema.Layer) -> schema.Layer:
        if layer.attention is None:
            return layer
        some = layer.attention.q_bias or layer.attention.k_bias or layer.attention.v_bias
        attention = replace(layer.attention, q_bias=some, k_bias=some, v_bias=some, out_bias=True)
        layer = replace(layer, attention=attention)
        return rewrites.map_mlp(layer, lambda old: replace(old, up_bias=True, down_bias=True))

    architecture = rewrites.map_layers(replace(model.architecture, patches=replace(patches, bias=True)), biased)
    if architecture == model.architecture:
        return model
    return rewrites.zero_biases(model, architecture)


def _model_losses(architecture: Architecture) -> Iterator[ledgers.Loss]:
    if architecture.classifier is None:
        yield ledgers.Loss(
            "unsaid",
            "that there is no pooler",
            "ViTModel starts a random one, unless built with add_pooling_layer=False",
        )


FAMILIES = [
    Family(
        "vit",
        CLASSIFICATION,
        CLASSIFICATION_TABLES,
        leftovers=Table(
            rows=[
                drop("vit.embeddings.mask_token", why="stands for hidden patches in pretraining alone"),
                drop("vit.pooler.*", why="ViTForImageClassification has no pooler"),
            ]
        ),
        rewrites=(*ALL_BIASES_OR_NONE, _as_vit),
        heads=(),
    ),
    Family(
        "vit",
        MODEL,
        MODEL_TABLES,
        leftovers=Table(rows=[drop("embeddings.mask_token", why="stands for hidden patches in pretraining alone")]),
        rewrites=(*ALL_BIASES_OR_NONE, _as_vit),
        as_stored=with_pooler,
        losses=_model_losses,
        heads=(),
    ),
]
