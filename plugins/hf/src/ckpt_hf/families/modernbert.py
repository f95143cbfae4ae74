"""ModernBERT: an encoder with rotary positions, gated MLPs, and windows in all layers but every third."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Config,
    Facts,
    Table,
    configs,
    decided,
    derived,
    fact_is,
    ignore,
    key,
    key_is,
    layouts,
    note,
    one_of,
    row,
    rules,
    schema,
    values,
)
from ckpt_hf.common import (
    ACTIVATION,
    ATTENTION_BIASES,
    GENERIC,
    MLP_BIASES,
    NORMS,
    WINDOWED,
    Family,
    enter_windows,
    given_windows,
    norms,
)
from ckpt_hf.heads import BARE, Head, encodes
from ckpt_hf.labels import LABELS
from ckpt_hf.rotary import rotary_by_window

_WINDOWS = ("local_attention", "layer_types", "global_attn_every_n_layers")
_EVERY = ~rules.every_nth(first=True)
_NORMS = ("input_norm", *NORMS)


def _read_windows(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    layers = facts["layers"]
    every = config.get("global_attn_every_n_layers")
    by_count = _EVERY.read(3 if every is None else every, layers)
    if by_count is None:
        raise CkptError("key 'global_attn_every_n_layers' is not a number of layers", found=repr(every)[:80])
    listed = given_windows(config, layers)
    if listed is not None and every is not None and tuple(listed) != by_count:
        # transformers 5 reads the list, and transformers 4 the number
        raise CkptError("keys 'layer_types' and 'global_attn_every_n_layers' disagree", found=f"{every}, {listed}"[:80])
    # the class sees as far as half of it to either side (configuration_modernbert.py, sliding_window)
    width = values.checked("local_attention", config.get("local_attention", 128), values.whole)
    enter_windows(facts, width // 2 + 1, listed or schema.PerLayer(by_count))


def _read_first_norm(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    facts["attention.norm?"] = schema.PerLayer(index > 0 for index in range(facts["layers"]))


def _transform(at: str) -> list[Any]:
    """Dense, activation and norm: what stands before the matrix of every head."""
    return [
        key("classifier_activation", f"{at}.transform.activation", default="gelu", via=ACTIVATION),
        key("classifier_bias", f"{at}.transform.bias", default=False),
        *norms("layer", f"{at}.transform.norm"),
        configs.fact_as(f"{at}.transform.norm.eps", "input_norm.eps"),
        configs.fact_as(f"{at}.transform.norm.bias", "input_norm.bias"),
    ]


# fmt: off
_NO_CLASSES = ignore("classifier_pooling", "classifier_dropout", why="of classes")

MODERNBERT = Config("", GENERIC).replace("ModernBertForMaskedLM",
    fact_is("kind", "encoder"),
    fact_is("causal", False),
    key("hidden_size", "hidden"),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    key("num_hidden_layers", "layers"),
    key("num_attention_heads", "attention.heads", "attention.groups"),
    derived(None, "attention.head_dim", "hidden_size / num_attention_heads"),
    key("intermediate_size", "mlp.ffn"),
    key("hidden_activation", "mlp.activation", default="gelu", via=ACTIVATION),
    fact_is("mlp.gated", True),
    key("norm_eps", *(f"{norm}.eps" for norm in _NORMS), default=1e-5),
    key("norm_bias", *(f"{norm}.bias" for norm in _NORMS), default=False),
    norms("layer", *_NORMS),
    # the embedding has been normed right before it (modeling_modernbert.py, ModernBertEncoderLayer)
    decided([], ["attention.norm?"], read=_read_first_norm, values={}, uses=["layers"], why="the first layer has none"),
    key("attention_bias", *ATTENTION_BIASES, default=False),
    key("mlp_bias", *MLP_BIASES, default=False),
    decided(_WINDOWS, ["attention.window", "attention.window?"], read=_read_windows, uses=["layers"], values={_WINDOWS: [
        (configs.value_of("attention.window", by=lambda window: 2 * (window - 1)), WINDOWED, configs.layers_of("attention.window", _EVERY)),
        (configs.value_of("attention.window", by=lambda window: 2 * (window - 1)), WINDOWED, configs.LEFT_OUT),
        (128, WINDOWED, configs.LEFT_OUT),
    ]}, why="layer_types says which layers have a window, or global_attn_every_n_layers (3) which have none; half of local_attention lies to either side"),
    rotary_by_window(default_theta=160000.0, sliding_theta=10000.0, full_key="global_rope_theta", sliding_key="local_rope_theta", scaled=False),
    key("tie_word_embeddings", "head.tied", default=True),
    key("decoder_bias", "head.bias", default=True),
    _transform("head"),
    _NO_CLASSES,
    note("max_position_embeddings", "max_positions", gives_way=True),
    # keys of BERT that the published files have, and that no version of the class reads
    key_is("position_embedding_type", "absolute", or_absent=True, written=False),
    ignore("layer_norm_eps", why="read by no version of the class"),
    ignore("embedding_dropout", "mlp_dropout", "initializer_cutoff_factor", "sparse_prediction", "sparse_pred_ignore_index", why="training only"),
    ignore("deterministic_flash_attn", "reference_compile", "repad_logits_with_grad", why="how to run it, not what it computes"),
)


def _has_classes(*poolings: schema.Pooling) -> Any:
    return lambda model: encodes(model) and model.classifier is not None and bool(model.classifier.transform) and model.classifier.pooling in poolings


_CLASSES = (Table(rows=[
    row("head.dense.weight", "i h", "classifier.dense.weight"),
    row("head.dense.bias",   "i",   "classifier.dense.bias"),
    row("head.norm.weight",  "i",   "classifier.norm.weight"),
    row("head.norm.bias",    "i",   "classifier.norm.bias"),
    row("classifier.weight", "k h", "classifier.weight"),
    row("classifier.bias",   "k",   "classifier.bias"),
]),)

_ALL = [fact_is("classifier.hidden", False), fact_is("classifier.bias", True), *ignore("classifier_dropout", why="training only"), *_transform("classifier")]

SCORED = Head("ForSequenceClassification", lambda padding: [
    LABELS,
    note("problem_type", "problem_type"),
    key("classifier_pooling", "classifier.pooling", default="cls", via=one_of({"cls": schema.Pooling.FIRST, "mean": schema.Pooling.MEAN})),
    *_ALL,
], holds=_has_classes(schema.Pooling.FIRST, schema.Pooling.MEAN), tables=_CLASSES)

TAGGED = Head("ForTokenClassification", lambda padding: [
    LABELS,
    note("problem_type", "problem_type"),
    fact_is("classifier.pooling", schema.Pooling.EACH),
    *_ALL,
], holds=_has_classes(schema.Pooling.EACH), tables=_CLASSES)

ANSWERED = Head("ForQuestionAnswering", lambda padding: [
    fact_is("classifier.classes", 2),
    fact_is("classifier.pooling", schema.Pooling.SPAN),
    *_ALL,
], holds=_has_classes(schema.Pooling.SPAN), tables=_CLASSES)

TABLES = layouts.Tables([
    Table("model", rows=[
        row("embeddings.tok_embeddings.weight", "v h", "embedding.tokens.weight"),
        row("embeddings.norm.weight",           "h",   "input_norm.weight"),
        row("embeddings.norm.bias",             "h",   "input_norm.bias"),
        row("final_norm.weight",                "h",   "final_norm.weight"),
        row("final_norm.bias",                  "h",   "final_norm.bias"),
    ]),
    Table("model.layers.{l}", to="layers.{l}", rows=[
        row("attn_norm.weight", "h",                        "attention.norm.weight"),
        row("attn_norm.bias",   "h",                        "attention.norm.bias"),
        row("attn.Wqkv.weight", "((q[g r] + k[g] + v[g]) d) h", "attention.{part}.weight"),
        row("attn.Wqkv.bias",   "((q[g r] + k[g] + v[g]) d)",   "attention.{part}.bias"),
        row("attn.Wo.weight",   "h (g r d)",                "attention.out.weight"),
        row("attn.Wo.bias",     "h",                        "attention.out.bias"),
        row("mlp_norm.weight",  "h",                        "mlp.norm.weight"),
        row("mlp_norm.bias",    "h",                        "mlp.norm.bias"),
        row("mlp.Wi.weight",    "((gate + up) f) h",        "mlp.{part}.weight"),
        row("mlp.Wi.bias",      "((gate + up) f)",          "mlp.{part}.bias"),
        row("mlp.Wo.weight",    "h f",                      "mlp.down.weight"),
        row("mlp.Wo.bias",      "h",                        "mlp.down.bias"),
    ]),
    Table(rows=[
        row("head.dense.weight", "i h", "head.dense.weight"),
        row("head.dense.bias",   "i",   "head.dense.bias"),
        row("head.norm.weight",  "i",   "head.norm.weight"),
        row("head.norm.bias",    "i",   "head.norm.bias"),
        row("decoder.weight",    "v h", "head.weight"),
        row("decoder.weight",    "v h", "embedding.tokens.weight", when="head.tied", copy=True),
        row("decoder.bias",      "v",   "head.bias"),
    ]),
])
# fmt: on

_BARE = replace(BARE, holds=lambda model: encodes(model) and model.classifier is None)

FAMILIES = [Family("modernbert", MODERNBERT, TABLES, heads=(_BARE, SCORED, TAGGED, ANSWERED))]
