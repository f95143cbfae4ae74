"""BERT and the RoBERTa kin: encoders whose norms follow the sums, with a head for masked tokens, a pooler, or classes.

The classes of one `model_type` are the encoder of `...ForMaskedLM` with other heads, as those of decoders are (`ckpt_hf.heads`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckpt_core.sdk import (
    Activation,
    Architecture,
    Config,
    Table,
    configs,
    derived,
    drop,
    fact_is,
    ignore,
    key,
    key_is,
    layouts,
    ledgers,
    note,
    row,
    schema,
    values,
)
from ckpt_hf.common import ACTIVATION, ATTENTION_BIASES, GENERIC, MLP_BIASES, Family, norms
from ckpt_hf.heads import ANSWERED, ENCODER_TAGGED, Head, encodes
from ckpt_hf.labels import LABELS

_NORMS = ("input_norm", "attention.out_norm", "mlp.out_norm")
_POOLER = "add_pooling_layer"

# fmt: off
BERT = Config("", GENERIC).replace("BertForMaskedLM",
    fact_is("kind", "encoder"),
    fact_is("causal", False),
    fact_is("norm_after_sum", True),
    key("hidden_size", "hidden"),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    key("type_vocab_size", "tokens.types", default=2, type=values.whole),
    key("max_position_embeddings", "positions.count", default=512, null=configs.REQUIRED, type=values.whole, noted="max_positions"),
    key("num_hidden_layers", "layers"),
    key("num_attention_heads", "attention.heads", "attention.groups"),
    derived(None, "attention.head_dim", "hidden_size / num_attention_heads"),
    key("intermediate_size", "mlp.ffn"),
    key("hidden_act", "mlp.activation", default="gelu", via=ACTIVATION),
    fact_is("mlp.gated", False),
    key("layer_norm_eps", *(f"{norm}.eps" for norm in _NORMS), default=1e-12),
    norms("layer", *_NORMS, bias=True),
    *(fact_is(bias, True) for bias in (*ATTENTION_BIASES, *MLP_BIASES)),
    key("tie_word_embeddings", "head.tied", default=True),
    fact_is("head.bias", True),
    configs.fact_as("head.transform.activation", "mlp.activation"),
    configs.fact_as("head.transform.norm.eps", "input_norm.eps"),
    norms("layer", "head.transform.norm", bias=True),
    # the others, which add distances to the scores, went with transformers 5
    key_is("position_embedding_type", "absolute", or_absent=True, written=False),
    ignore("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", why="training only"),
    ignore("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type",
           why="read by no version of the class"),
    without=["max_position_embeddings"],
)

ROBERTA = BERT.replace("RobertaForMaskedLM",
    # the rows up to that of padding are not positions, and padding is not counted (create_position_ids_from_input_ids)
    key("pad_token_id", "positions.padding", default=1, null=configs.REQUIRED, noted="pad"),
    derived(None, "positions.offset", "pad_token_id + 1"),
    # RobertaLMHead calls gelu, whatever hidden_act says
    fact_is("head.transform.activation", Activation.GELU_ERF),
)


def _pooler(padding: int | None) -> list[Any]:
    """Dense and tanh on the first token. Files may lack them, and no config says so: the tensors do."""
    return [
        configs.switched(_POOLER, [
            fact_is("classifier.hidden", True),
            fact_is("classifier.pooling", schema.Pooling.FIRST),
        ], default=True, written=False),
    ]


def _classes(padding: int | None) -> list[Any]:
    return [
        LABELS,
        note("problem_type", "problem_type"),
        fact_is("classifier.hidden", True),
        fact_is("classifier.bias", True),
        fact_is("classifier.pooling", schema.Pooling.FIRST),
    ]


POOLED = Head("Model", _pooler, bare=True, holds=lambda model: encodes(model) and (model.classifier is None or model.classifier.classes is None),
    as_stored=lambda config, names, same: {**config, _POOLER: any(name.endswith("pooler.dense.weight") for name in names)},
    tables=(Table(rows=[
        row("pooler.dense.weight", "i h", "classifier.dense.weight"),
        row("pooler.dense.bias",   "i",   "classifier.dense.bias"),
    ]),))

def _scores(model: Architecture) -> bool:
    return encodes(model) and bool(model.classifier and model.classifier.classes and model.classifier.hidden)


BERT_CLASSES = Head("ForSequenceClassification", _classes, holds=_scores, tables=(Table(rows=[
    row("bert.pooler.dense.weight", "i h", "classifier.dense.weight"),
    row("bert.pooler.dense.bias",   "i",   "classifier.dense.bias"),
    row("classifier.weight",        "k h", "classifier.weight"),
    row("classifier.bias",          "k",   "classifier.bias"),
]),))

ROBERTA_CLASSES = Head("ForSequenceClassification", _classes, holds=_scores, tables=(Table(rows=[
    row("classifier.dense.weight",    "i h", "classifier.dense.weight"),
    row("classifier.dense.bias",      "i",   "classifier.dense.bias"),
    row("classifier.out_proj.weight", "k h", "classifier.weight"),
    row("classifier.out_proj.bias",   "k",   "classifier.bias"),
]),))

# As Google trained BERT: for masked tokens, and for whether the second sentence follows the first (the second class: it does not).
PRETRAINED = Head("ForPreTraining", lambda padding: [
    fact_is("classifier.hidden", True),
    fact_is("classifier.classes", 2),
    fact_is("classifier.bias", True),
    fact_is("classifier.pooling", schema.Pooling.FIRST),
], beside=True, holds=lambda model: encodes(model, head=True) and model.classifier is not None, tables=(Table(rows=[
    row("bert.pooler.dense.weight",    "i h", "classifier.dense.weight"),
    row("bert.pooler.dense.bias",      "i",   "classifier.dense.bias"),
    row("cls.seq_relationship.weight", "k h", "classifier.weight"),
    row("cls.seq_relationship.bias",   "k",   "classifier.bias"),
]),))

# Files of 2018 and 2019 have the names of TensorFlow in norms; transformers renames them while it loads.
NORM_NAMES = layouts.Choice("norm_names", ("weight", "gamma"), default="weight", help="how weight and bias of a norm are called: gamma and beta in files of 2018")
_NEW, _OLD = {"norm_names": "weight"}, {"norm_names": "gamma"}

_EMBEDDINGS: list[layouts.Row | layouts.Drop] = [
    row("embeddings.word_embeddings.weight",       "v h", "embedding.tokens.weight"),
    row("embeddings.position_embeddings.weight",   "p h", "positions.weight"),
    row("embeddings.token_type_embeddings.weight", "s h", "embedding.types.weight"),
    row("embeddings.LayerNorm.weight",             "h",   "input_norm.weight", under=_NEW),
    row("embeddings.LayerNorm.bias",               "h",   "input_norm.bias",   under=_NEW),
    row("embeddings.LayerNorm.gamma",              "h",   "input_norm.weight", under=_OLD),
    row("embeddings.LayerNorm.beta",               "h",   "input_norm.bias",   under=_OLD),
    drop("embeddings.position_ids",                why="the numbers from 0 on"),
]

_LAYER = [
    row("attention.self.query.weight",       "(g r d) h", "attention.q.weight"),
    row("attention.self.query.bias",         "(g r d)",   "attention.q.bias"),
    row("attention.self.key.weight",         "(g d) h",   "attention.k.weight"),
    row("attention.self.key.bias",           "(g d)",     "attention.k.bias"),
    row("attention.self.value.weight",       "(g d) h",   "attention.v.weight"),
    row("attention.self.value.bias",         "(g d)",     "attention.v.bias"),
    row("attention.output.dense.weight",     "h (g r d)", "attention.out.weight"),
    row("attention.output.dense.bias",       "h",         "attention.out.bias"),
    row("attention.output.LayerNorm.weight", "h",         "attention.out_norm.weight", under=_NEW),
    row("attention.output.LayerNorm.bias",   "h",         "attention.out_norm.bias",   under=_NEW),
    row("attention.output.LayerNorm.gamma",  "h",         "attention.out_norm.weight", under=_OLD),
    row("attention.output.LayerNorm.beta",   "h",         "attention.out_norm.bias",   under=_OLD),
    row("intermediate.dense.weight",         "f h",       "mlp.up.weight"),
    row("intermediate.dense.bias",           "f",         "mlp.up.bias"),
    row("output.dense.weight",               "h f",       "mlp.down.weight"),
    row("output.dense.bias",                 "h",         "mlp.down.bias"),
    row("output.LayerNorm.weight",           "h",         "mlp.out_norm.weight", under=_NEW),
    row("output.LayerNorm.bias",             "h",         "mlp.out_norm.bias",   under=_NEW),
    row("output.LayerNorm.gamma",            "h",         "mlp.out_norm.weight", under=_OLD),
    row("output.LayerNorm.beta",             "h",         "mlp.out_norm.bias",   under=_OLD),
]

BERT_TABLES = layouts.Tables([
    Table("bert", rows=_EMBEDDINGS),
    Table("bert.encoder.layer.{l}", to="layers.{l}", rows=_LAYER),
    Table("cls.predictions", rows=[
        row("transform.dense.weight",     "i h", "head.dense.weight"),
        row("transform.dense.bias",       "i",   "head.dense.bias"),
        row("transform.LayerNorm.weight", "i",   "head.norm.weight", under=_NEW),
        row("transform.LayerNorm.bias",   "i",   "head.norm.bias",   under=_NEW),
        row("transform.LayerNorm.gamma",  "i",   "head.norm.weight", under=_OLD),
        row("transform.LayerNorm.beta",   "i",   "head.norm.bias",   under=_OLD),
        row("bias",                       "v",   "head.bias"),
        row("decoder.bias",               "v",   "head.bias", copy=True),
        row("decoder.weight",             "v h", "head.weight"),
        row("decoder.weight",             "v h", "embedding.tokens.weight", when="head.tied", copy=True),
    ]),
], [NORM_NAMES])

ROBERTA_TABLES = layouts.Tables([
    Table("roberta", rows=_EMBEDDINGS),
    Table("roberta.encoder.layer.{l}", to="layers.{l}", rows=_LAYER),
    Table("lm_head", rows=[
        row("dense.weight",      "i h", "head.dense.weight"),
        row("dense.bias",        "i",   "head.dense.bias"),
        row("layer_norm.weight", "i",   "head.norm.weight"),
        row("layer_norm.bias",   "i",   "head.norm.bias"),
        row("bias",              "v",   "head.bias"),
        row("decoder.bias",      "v",   "head.bias", copy=True),
        row("decoder.weight",    "v h", "head.weight"),
        row("decoder.weight",    "v h", "embedding.tokens.weight", when="head.tied", copy=True),
    ]),
], [NORM_NAMES])
# fmt: on

_NO_POOLER = "a pooler, which this class has not"
BERT_LEFTOVERS = Table(
    rows=[
        drop("bert.pooler.*", why=_NO_POOLER),
        drop(
            "cls.seq_relationship.*", why="whether one sentence follows another: -o read_as=BertForPreTraining reads it"
        ),
    ]
)
ROBERTA_LEFTOVERS = Table(rows=[drop("roberta.pooler.*", why=_NO_POOLER)])


def _untied(architecture: Architecture) -> bool:
    """transformers then adds the bias of the decoder, and not the one beside it: the files need both."""
    return architecture.head is not None and not architecture.head.tied


def _losses(architecture: Architecture) -> Iterator[ledgers.Loss]:
    if architecture.head is None and architecture.classifier is None:
        yield ledgers.Loss(
            "unsaid",
            "that there is no pooler",
            "transformers starts a random one, unless built with add_pooling_layer=False",
        )


def _roberta(model_type: str, config: Config) -> Family:
    heads = (POOLED, ROBERTA_CLASSES, ENCODER_TAGGED, ANSWERED)
    return Family(
        model_type,
        config,
        ROBERTA_TABLES,
        leftovers=ROBERTA_LEFTOVERS,
        heads=heads,
        loads_copies=_untied,
        losses=_losses,
    )


FAMILIES = [
    Family(
        "bert",
        BERT,
        BERT_TABLES,
        leftovers=BERT_LEFTOVERS,
        heads=(POOLED, BERT_CLASSES, ENCODER_TAGGED, ANSWERED, PRETRAINED),
        loads_copies=_untied,
        losses=_losses,
    ),
    _roberta("roberta", ROBERTA),
    _roberta("xlm-roberta", ROBERTA.replace("XLMRobertaForMaskedLM")),
    _roberta("camembert", ROBERTA.replace("CamembertForMaskedLM")),
]
