"""BLOOM: ALiBi, a norm on the embedding, and q, k, v fused head by head, just as Megatron-DeepSpeed stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    Activation,
    CkptError,
    Config,
    Facts,
    Table,
    decided,
    derived,
    fact_is,
    ignore,
    key,
    key_is,
    layouts,
    note,
    row,
    values,
)
from ckpt_hf import heads
from ckpt_hf.common import (
    ALL_BIASES_OR_NONE,
    ATTENTION_BIASES,
    CAUSAL,
    GENERIC,
    MLP_BIASES,
    NORMS,
    Family,
    norms,
)
from ckpt_hf.weights import LM_HEAD

_EPS = ("tokens.norm", *NORMS)


def _read_slow(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    # modeling_bloom.py (4.30 to 5.23): F.linear per slice, and the biases of dense and dense_4h_to_h are never added.
    if config.get("slow_but_exact") and config.get("pretraining_tp", 1) != 1:
        raise CkptError(
            "key 'slow_but_exact' is true, with which transformers leaves out two biases of every layer",
            found=f"slow_but_exact = true, pretraining_tp = {config.get('pretraining_tp')}",
            expected="false: the weights are exact as they are, and a sum of partial products is no more so",
            fix="set it to false in config.json, or read the model without it: -o ignore_keys=slow_but_exact",
        )


# fmt: off
BLOOM = Config("", GENERIC).replace("BloomForCausalLM",
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    CAUSAL,
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    key("n_layer", "layers"),
    # the first files of the hub have the second names
    key("hidden_size", "hidden", also=["n_embed"], type=values.whole),
    key("n_head", "attention.heads", "attention.groups", also=["num_attention_heads"], type=values.whole),
    derived(None, "attention.head_dim", "hidden / attention.heads", of_facts=True),
    derived(None, "mlp.ffn", "4 * hidden", of_facts=True),
    fact_is("attention.alibi", True),
    fact_is("mlp.activation", Activation.GELU_TANH),
    fact_is("mlp.gated", False),
    # One epsilon for all, that of the embedding's norm among them.
    key("layer_norm_epsilon", *(f"{norm}.eps" for norm in _EPS), default=1e-5),
    norms("layer", *_EPS, bias=True),
    *(fact_is(bias, True) for bias in (*ATTENTION_BIASES, *MLP_BIASES)),
    key("apply_residual_connection_post_layernorm", "residual_from_norm", default=False),
    key("tie_word_embeddings", "head.tied", default=True),
    note("pretraining_tp", "pretraining_tp"),
    decided(["slow_but_exact"], [], read=_read_slow, values={"slow_but_exact": (False,)}, uses=["pretraining_tp"],
            why="if true, products are summed in slices, which changes the function where pretraining_tp is not 1"),
    note("seq_length", "max_positions"),
    key_is("n_inner", None, or_absent=True, written=False),
    ignore("offset_alibi", "skip_bias_add", "skip_bias_add_qkv", "bias_dropout_fusion", "masked_softmax_fusion", "attention_softmax_in_fp32",
           why="settings of the training code that no version of transformers reads"),
)


# The first files of the hub are of the bare model, without the prefix (ckpt_hf.names).
MODEL = Table(rows=[
    row("transformer.word_embeddings.weight",           "v h", "embedding.tokens.weight"),
    row("transformer.word_embeddings_layernorm.weight", "h",   "embedding.norm.weight"),
    row("transformer.word_embeddings_layernorm.bias",   "h",   "embedding.norm.bias"),
    row("transformer.ln_f.weight",                      "h",   "final_norm.weight"),
    row("transformer.ln_f.bias",                        "h",   "final_norm.bias"),
    *LM_HEAD,
])

LAYER = Table("transformer.h.{l}", to="layers.{l}", rows=[
    row("input_layernorm.weight",                "h",                   "attention.norm.weight"),
    row("input_layernorm.bias",                  "h",                   "attention.norm.bias"),
    row("self_attention.query_key_value.weight", "(g (q[r] + k + v) d) h", "attention.{part}.weight"),
    row("self_attention.query_key_value.bias",   "(g (q[r] + k + v) d)",   "attention.{part}.bias"),
    row("self_attention.dense.weight",           "h (g r d)",             "attention.out.weight"),
    row("self_attention.dense.bias",             "h",                   "attention.out.bias"),
    row("post_attention_layernorm.weight",       "h",                   "mlp.norm.weight"),
    row("post_attention_layernorm.bias",         "h",                   "mlp.norm.bias"),
    row("mlp.dense_h_to_4h.weight",              "f h",                 "mlp.up.weight"),
    row("mlp.dense_h_to_4h.bias",                "f",                   "mlp.up.bias"),
    row("mlp.dense_4h_to_h.weight",              "h f",                 "mlp.down.weight"),
    row("mlp.dense_4h_to_h.bias",                "h",                   "mlp.down.bias"),
])
# fmt: on


FAMILIES = [
    Family(
        "bloom",
        BLOOM,
        layouts.Tables([MODEL, LAYER]),
        rewrites=ALL_BIASES_OR_NONE,
        heads=heads.BY_CLASSIFIER,
    )
]
