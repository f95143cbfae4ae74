"""GPT-NeoX and Pythia: fused q, k, v per head, parallel blocks with two norms, partly rotated heads, biases."""

from __future__ import annotations

from ckpt_core.sdk import Config, Table, derived, drop, fact_is, ignore, key, layouts, row
from ckpt_hf import heads
from ckpt_hf.common import (
    ALL_BIASES_OR_NONE,
    ATTENTION_BIASES,
    CAUSAL,
    GENERIC,
    MLP_BIASES,
    NORMS,
    Family,
    activation,
    norms,
)
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import NAMES

# fmt: off
GPT_NEOX = Config("GPTNeoXForCausalLM", [
    *GENERIC,
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    key("hidden_size", "hidden"),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    key("num_hidden_layers", "layers"),
    key("num_attention_heads", "attention.heads", "attention.groups"),
    derived(None, "attention.head_dim", "hidden_size / num_attention_heads"),
    key("intermediate_size", "mlp.ffn"),
    key("hidden_act", "mlp.activation", default="gelu", via=activation("gelu")),
    fact_is("mlp.gated", False),
    key("layer_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    norms("layer", *NORMS, bias=True),
    key("attention_bias", *ATTENTION_BIASES, default=True),
    *(fact_is(bias, True) for bias in MLP_BIASES),
    key("use_parallel_residual", "parallel", default=True),
    rotary_keys(partial=0.25, theta_key="rotary_emb_base", fraction_key="rotary_pct"),
    key("tie_word_embeddings", "head.tied", default=False),
    CAUSAL,
    ignore("classifier_dropout", why="a head of other classes"),
    ignore("attention_probs_dropout_prob", "hidden_dropout_prob", why="training only"),
])


MODEL = Table(rows=[
    row("gpt_neox.embed_in.weight",         "v h", "embedding.tokens.weight"),
    row("gpt_neox.final_layer_norm.weight", "h",   "final_norm.weight"),
    row("gpt_neox.final_layer_norm.bias",   "h",   "final_norm.bias"),
    # Both versions of transformers save embed_out; version 5 calls it lm_head in memory.
    row("embed_out.weight",                 "v h", "head.weight",                                          under={"names": "stored"}),
    row("embed_out.weight",                 "v h", "embedding.tokens.weight", when="head.tied", copy=True, under={"names": "stored"}),
    row("lm_head.weight",                   "v h", "head.weight",                                          under={"names": "held"}),
    row("lm_head.weight",                   "v h", "embedding.tokens.weight", when="head.tied", copy=True, under={"names": "held"}),
])

LAYER = Table("gpt_neox.layers.{l}", to="layers.{l}", rows=[
    row("input_layernorm.weight",           "h",                         "attention.norm.weight"),
    row("input_layernorm.bias",             "h",                         "attention.norm.bias"),
    row("attention.query_key_value.weight", "(g (q[r] + k + v) d) h",    "attention.{part}.weight"),
    row("attention.query_key_value.bias",   "(g (q[r] + k + v) d)",      "attention.{part}.bias"),
    row("attention.dense.weight",           "h (g r d)",                 "attention.out.weight"),
    row("attention.dense.bias",             "h",                         "attention.out.bias"),
    row("post_attention_layernorm.weight",  "h",                         "mlp.norm.weight"),
    row("post_attention_layernorm.bias",    "h",                         "mlp.norm.bias"),
    row("mlp.dense_h_to_4h.weight",         "f h",                       "mlp.up.weight"),
    row("mlp.dense_h_to_4h.bias",           "f",                         "mlp.up.bias"),
    row("mlp.dense_4h_to_h.weight",         "h f",                       "mlp.down.weight"),
    row("mlp.dense_4h_to_h.bias",           "h",                         "mlp.down.bias"),
    drop("attention.bias",                  why="the causal mask"),
    drop("attention.masked_bias",           why="the value of masked scores"),
    drop("attention.rotary_emb.inv_freq",   why="computed from theta"),
])
# fmt: on


FAMILIES = [
    Family(
        "gpt_neox",
        GPT_NEOX,
        layouts.Tables([MODEL, LAYER], [NAMES]),
        rewrites=ALL_BIASES_OR_NONE,
        heads=heads.BY_CLASSIFIER,
    )
]
