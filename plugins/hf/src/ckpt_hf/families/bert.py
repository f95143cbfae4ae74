"""BERT and the RoBERTa kin: encoders whose norms follow the sums (of two, go before the blocks), with a head for masked tokens, a pooler, or classes.

The classes of one `model_type` are the encoder of `...ForMaskedLM` with other heads, as those of decoders are (`ckpt_hf.heads`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import (
    Activation,
    Architecture,
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
    row,
    schema,
    values,
)
from ckpt_hf.common import ACTIVATION, ATTENTION_BIASES, GENERIC, MLP_BIASES, NORMS, Family, norms
from ckpt_hf.heads import ANSWERED, ENCODER_TAGGED, Head, encodes
from ckpt_hf.labels import LABELS

BERT_NORMS = ("input_norm", "attention.out_norm", "mlp.out_norm")
_POOLER = "add_pooling_layer"


def _read_first_position(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    facts["positions.offset"] = facts["positions.padding"] + 1


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
    key("layer_norm_eps", *(f"{norm}.eps" for norm in BERT_NORMS), default=1e-12),
    norms("layer", *BERT_NORMS, bias=True),
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
    key("pad_token_id", "positions.padding", default=1, null=configs.REQUIRED, noted="pad", type=values.count),
    decided([], ["positions.offset"], read=_read_first_position, values={}, uses=["positions.padding"], why="the row after that of padding"),
    # RobertaLMHead calls gelu, whatever hidden_act says
    fact_is("head.transform.activation", Activation.GELU_ERF),
)

ERNIE = BERT.replace("ErnieForMaskedLM",
    # a table of tasks beside that of types (modeling_ernie.py, ErnieEmbeddings)
    key_is("use_task_id", False, or_absent=True, written=False),
    ignore("task_type_vocab_size", why="the size of that table, which is not there"),
)


def _pre_normed(config: Config, name: str, *before: str) -> Config:
    """The same with norms before the blocks, and one at the end; `before` are the norms before all layers."""
    kept = (*before, *NORMS)
    return config.replace(name,
        fact_is("norm_after_sum", False),
        key("layer_norm_eps", *(f"{norm}.eps" for norm in kept), default=1e-12),
        norms("layer", *kept, bias=True),
        configs.fact_as("head.transform.norm.eps", "final_norm.eps"),
        without=[f"{norm}.{fact}" for norm in BERT_NORMS for fact in ("kind", "bias")],
    )


# Megatron-LM's own BERT, as NVIDIA's script brings it to transformers.
MEGATRON_BERT = _pre_normed(BERT, "MegatronBertForMaskedLM")
ROBERTA_PRE_NORM = _pre_normed(ROBERTA, "RobertaPreLayerNormForMaskedLM", "input_norm")


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


_POOLER_ROWS = (
    row("bert.pooler.dense.weight", "i h", "classifier.dense.weight"),
    row("bert.pooler.dense.bias",   "i",   "classifier.dense.bias"),
)

BERT_CLASSES = Head("ForSequenceClassification", _classes, holds=_scores, tables=(Table(rows=[
    *_POOLER_ROWS,
    row("classifier.weight", "k h", "classifier.weight"),
    row("classifier.bias",   "k",   "classifier.bias"),
]),))

# As Google trained BERT: for masked tokens, and for whether the second sentence follows the first (the second class: it does not).
PRETRAINED = Head("ForPreTraining", lambda padding: [
    fact_is("classifier.hidden", True),
    fact_is("classifier.classes", 2),
    fact_is("classifier.bias", True),
    fact_is("classifier.pooling", schema.Pooling.FIRST),
], beside=True, holds=lambda model: encodes(model, head=True) and model.classifier is not None, tables=(Table(rows=[
    *_POOLER_ROWS,
    row("cls.seq_relationship.weight", "k h", "classifier.weight"),
    row("cls.seq_relationship.bias",   "k",   "classifier.bias"),
]),))

ROBERTA_CLASSES = Head("ForSequenceClassification", _classes, holds=_scores, tables=(Table(rows=[
    row("classifier.dense.weight",    "i h", "classifier.dense.weight"),
    row("classifier.dense.bias",      "i",   "classifier.dense.bias"),
    row("classifier.out_proj.weight", "k h", "classifier.weight"),
    row("classifier.out_proj.bias",   "k",   "classifier.bias"),
]),))

# Files of 2018 and 2019 have the names of TensorFlow in norms; transformers renames them while it loads.
NORM_NAMES = layouts.Choice("norm_names", ("weight", "gamma"), default="weight", help="how weight and bias of a norm are called: gamma and beta in files of 2018")
_NEW, _OLD = {"norm_names": "weight"}, {"norm_names": "gamma"}

_EMBEDDINGS: list[layouts.Row | layouts.Drop] = [
    row("embeddings.word_embeddings.weight",       "v h", "embedding.tokens.weight"),
    row("embeddings.position_embeddings.weight",   "p h", "positions.weight"),
    row("embeddings.token_type_embeddings.weight", "s h", "embedding.types.weight"),
    drop("embeddings.position_ids",                why="the numbers from 0 on"),
]
_NORMED: list[layouts.Row | layouts.Drop] = [
    *_EMBEDDINGS,
    row("embeddings.LayerNorm.weight",             "h",   "input_norm.weight", under=_NEW),
    row("embeddings.LayerNorm.bias",               "h",   "input_norm.bias",   under=_NEW),
    row("embeddings.LayerNorm.gamma",              "h",   "input_norm.weight", under=_OLD),
    row("embeddings.LayerNorm.beta",               "h",   "input_norm.bias",   under=_OLD),
]

_PLAIN_LAYER = [
    row("attention.self.query.weight",       "(g r d) h", "attention.q.weight"),
    row("attention.self.query.bias",         "(g r d)",   "attention.q.bias"),
    row("attention.self.key.weight",         "(g d) h",   "attention.k.weight"),
    row("attention.self.key.bias",           "(g d)",     "attention.k.bias"),
    row("attention.self.value.weight",       "(g d) h",   "attention.v.weight"),
    row("attention.self.value.bias",         "(g d)",     "attention.v.bias"),
    row("attention.output.dense.weight",     "h (g r d)", "attention.out.weight"),
    row("attention.output.dense.bias",       "h",         "attention.out.bias"),
    row("intermediate.dense.weight",         "f h",       "mlp.up.weight"),
    row("intermediate.dense.bias",           "f",         "mlp.up.bias"),
    row("output.dense.weight",               "h f",       "mlp.down.weight"),
    row("output.dense.bias",                 "h",         "mlp.down.bias"),
]
_LAYER = [
    *_PLAIN_LAYER,
    row("attention.output.LayerNorm.weight", "h",         "attention.out_norm.weight", under=_NEW),
    row("attention.output.LayerNorm.bias",   "h",         "attention.out_norm.bias",   under=_NEW),
    row("attention.output.LayerNorm.gamma",  "h",         "attention.out_norm.weight", under=_OLD),
    row("attention.output.LayerNorm.beta",   "h",         "attention.out_norm.bias",   under=_OLD),
    row("output.LayerNorm.weight",           "h",         "mlp.out_norm.weight", under=_NEW),
    row("output.LayerNorm.bias",             "h",         "mlp.out_norm.bias",   under=_NEW),
    row("output.LayerNorm.gamma",            "h",         "mlp.out_norm.weight", under=_OLD),
    row("output.LayerNorm.beta",             "h",         "mlp.out_norm.bias",   under=_OLD),
]

_BERT_HEAD = Table("cls.predictions", rows=[
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
])

_ROBERTA_HEAD = Table("lm_head", rows=[
    row("dense.weight",      "i h", "head.dense.weight"),
    row("dense.bias",        "i",   "head.dense.bias"),
    row("layer_norm.weight", "i",   "head.norm.weight"),
    row("layer_norm.bias",   "i",   "head.norm.bias"),
    row("bias",              "v",   "head.bias"),
    row("decoder.bias",      "v",   "head.bias", copy=True),
    row("decoder.weight",    "v h", "head.weight"),
    row("decoder.weight",    "v h", "embedding.tokens.weight", when="head.tied", copy=True),
])


BERT_TABLES = layouts.Tables([
    Table("bert", rows=_NORMED),
    Table("bert.encoder.layer.{l}", to="layers.{l}", rows=_LAYER),
    _BERT_HEAD,
], [NORM_NAMES])

ROBERTA_TABLES = layouts.Tables([
    Table("roberta", rows=_NORMED),
    Table("roberta.encoder.layer.{l}", to="layers.{l}", rows=_LAYER),
    _ROBERTA_HEAD,
], [NORM_NAMES])

MEGATRON_BERT_TABLES = layouts.Tables([
    Table("bert", rows=[
        *_EMBEDDINGS,
        row("encoder.ln.weight",   "h", "final_norm.weight"),
        row("encoder.ln.bias",     "h", "final_norm.bias"),
    ]),
    Table("bert.encoder.layer.{l}", to="layers.{l}", rows=[
        *_PLAIN_LAYER,
        row("attention.ln.weight", "h", "attention.norm.weight"),
        row("attention.ln.bias",   "h", "attention.norm.bias"),
        row("ln.weight",           "h", "mlp.norm.weight"),
        row("ln.bias",             "h", "mlp.norm.bias"),
    ]),
    _BERT_HEAD,
], [NORM_NAMES])

ROBERTA_PRE_NORM_TABLES = layouts.Tables([
    Table("roberta", rows=[
        *_NORMED,
        row("LayerNorm.weight",              "h", "final_norm.weight"),
        row("LayerNorm.bias",                "h", "final_norm.bias"),
    ]),
    Table("roberta.encoder.layer.{l}", to="layers.{l}", rows=[
        *_PLAIN_LAYER,
        row("attention.LayerNorm.weight",    "h", "attention.norm.weight"),
        row("attention.LayerNorm.bias",      "h", "attention.norm.bias"),
        row("intermediate.LayerNorm.weight", "h", "mlp.norm.weight"),
        row("intermediate.LayerNorm.bias",   "h", "mlp.norm.bias"),
    ]),
    _ROBERTA_HEAD,
], [NORM_NAMES])

# What files have besides the model for masked tokens.
BERT_LEFTOVERS = Table(rows=[
    drop("bert.pooler.*",          why="a pooler, which this class does not have"),
    drop("cls.seq_relationship.*", why="whether one sentence follows another: -o read_as=BertForPreTraining (or the like of another model_type) reads it"),
])
ROBERTA_LEFTOVERS = Table(rows=[
    drop("roberta.pooler.*",       why="a pooler, which this class does not have"),
])
# fmt: on


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


def _bert(model_type: str, config: Config, tables: layouts.Tables = BERT_TABLES) -> Family:
    heads = (POOLED, BERT_CLASSES, ENCODER_TAGGED, ANSWERED, PRETRAINED)
    return Family(
        model_type, config, tables, leftovers=BERT_LEFTOVERS, heads=heads, loads_copies=_untied, losses=_losses
    )


def _roberta(model_type: str, config: Config, tables: layouts.Tables = ROBERTA_TABLES) -> Family:
    heads = (POOLED, ROBERTA_CLASSES, ENCODER_TAGGED, ANSWERED)
    return Family(
        model_type, config, tables, leftovers=ROBERTA_LEFTOVERS, heads=heads, loads_copies=_untied, losses=_losses
    )


def _under(prefix: str, family: Family) -> Family:
    """The same class with an encoder called `prefix`."""
    usual = next(table.native for table in family.tables if table.native)

    def name(native: str) -> str:
        return prefix + native.removeprefix(usual) if native.startswith(f"{usual}.") else native

    heads = (replace(head, tables=tuple(table.renamed(name) for table in head.tables)) for head in family.heads)
    return replace(
        family, tables=family.tables.renamed(name), leftovers=family.leftovers.renamed(name), heads=tuple(heads)
    )


FAMILIES = [
    _bert("bert", BERT),
    _bert("megatron-bert", MEGATRON_BERT, MEGATRON_BERT_TABLES),
    _under("ernie", _bert("ernie", ERNIE)),
    _roberta("roberta", ROBERTA),
    _roberta("xlm-roberta", ROBERTA.replace("XLMRobertaForMaskedLM")),
    _roberta("camembert", ROBERTA.replace("CamembertForMaskedLM")),
    _under("data2vec_text", _roberta("data2vec-text", ROBERTA.replace("Data2VecTextForMaskedLM"))),
    _under("roberta_prelayernorm", _roberta("roberta-prelayernorm", ROBERTA_PRE_NORM, ROBERTA_PRE_NORM_TABLES)),
]
