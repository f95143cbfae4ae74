"""DistilBERT: BERT without types of tokens and without a pooler, under names of its own."""

from __future__ import annotations

from dataclasses import replace

from ckpt_core.sdk import Table, derived, drop, fact_is, ignore, key, layouts, row
from ckpt_hf.common import ACTIVATION, Family
from ckpt_hf.families.bert import BERT, BERT_NORMS
from ckpt_hf.heads import ANSWERED, BARE, ENCODER_TAGGED, encodes

# fmt: off
DISTILBERT = BERT.replace("DistilBertForMaskedLM",
    key("dim", "hidden"),
    key("n_layers", "layers"),
    key("n_heads", "attention.heads", "attention.groups"),
    derived(None, "attention.head_dim", "dim / n_heads"),
    key("hidden_dim", "mlp.ffn"),
    key("activation", "mlp.activation", default="gelu", via=ACTIVATION),
    *(fact_is(f"{norm}.eps", 1e-12) for norm in BERT_NORMS),
    ignore("sinusoidal_pos_embds", why="how the table of positions is initialised"),
    ignore("dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout", why="training only"),
    without=["type_vocab_size"],
)

TABLES = layouts.Tables([
    Table("distilbert.embeddings", rows=[
        row("word_embeddings.weight",     "v h", "embedding.tokens.weight"),
        row("position_embeddings.weight", "p h", "positions.weight"),
        row("LayerNorm.weight",           "h",   "input_norm.weight"),
        row("LayerNorm.bias",             "h",   "input_norm.bias"),
        drop("position_ids",              why="the numbers from 0 on"),
    ]),
    Table("distilbert.transformer.layer.{l}", to="layers.{l}", rows=[
        row("attention.q_lin.weight",   "(g r d) h", "attention.q.weight"),
        row("attention.q_lin.bias",     "(g r d)",   "attention.q.bias"),
        row("attention.k_lin.weight",   "(g d) h",   "attention.k.weight"),
        row("attention.k_lin.bias",     "(g d)",     "attention.k.bias"),
        row("attention.v_lin.weight",   "(g d) h",   "attention.v.weight"),
        row("attention.v_lin.bias",     "(g d)",     "attention.v.bias"),
        row("attention.out_lin.weight", "h (g r d)", "attention.out.weight"),
        row("attention.out_lin.bias",   "h",         "attention.out.bias"),
        row("sa_layer_norm.weight",     "h",         "attention.out_norm.weight"),
        row("sa_layer_norm.bias",       "h",         "attention.out_norm.bias"),
        row("ffn.lin1.weight",          "f h",       "mlp.up.weight"),
        row("ffn.lin1.bias",            "f",         "mlp.up.bias"),
        row("ffn.lin2.weight",          "h f",       "mlp.down.weight"),
        row("ffn.lin2.bias",            "h",         "mlp.down.bias"),
        row("output_layer_norm.weight", "h",         "mlp.out_norm.weight"),
        row("output_layer_norm.bias",   "h",         "mlp.out_norm.bias"),
    ]),
    Table(rows=[
        row("vocab_transform.weight",  "i h", "head.dense.weight"),
        row("vocab_transform.bias",    "i",   "head.dense.bias"),
        row("vocab_layer_norm.weight", "i",   "head.norm.weight"),
        row("vocab_layer_norm.bias",   "i",   "head.norm.bias"),
        row("vocab_projector.weight",  "v h", "head.weight"),
        row("vocab_projector.weight",  "v h", "embedding.tokens.weight", when="head.tied", copy=True),
        row("vocab_projector.bias",    "v",   "head.bias"),
    ]),
])
# fmt: on

_BARE = replace(BARE, holds=lambda model: encodes(model) and model.classifier is None)

FAMILIES = [Family("distilbert", DISTILBERT, TABLES, heads=(_BARE, ENCODER_TAGGED, ANSWERED))]
