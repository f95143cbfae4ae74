"""GPT-2: learned positions, one fused projection for q, k and v, and weights stored `[in, out]` (Conv1D)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
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
    layouts,
    row,
    schema,
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
    SUMMARY,
    Family,
    activation,
    alias,
    norms,
)
from ckpt_hf.weights import LM_HEAD

_SCALINGS = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx")


def _scales(width: int, layers: int, by_width: bool, by_layer: bool) -> list[float]:
    return [(width**-0.5 if by_width else 1.0) / (index + 1 if by_layer else 1) for index in range(layers)]


def _read_scale(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    by_width, by_layer = config.get(_SCALINGS[0], True), config.get(_SCALINGS[1], False)
    if by_width and not by_layer:
        return
    scales = _scales(facts["attention.head_dim"], facts["layers"], by_width, by_layer)
    facts["attention.scale"] = schema.PerLayer(scales) if by_layer else scales[0]


# fmt: off
GPT2 = Config("", GENERIC).replace("GPT2LMHeadModel",
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    key("n_embd", "hidden"),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    key("n_layer", "layers"),
    key("n_head", "attention.heads", "attention.groups"),
    derived(None, "attention.head_dim", "n_embd / n_head"),
    # transformers takes them for one key, and a source may have noted another length under the second
    key("n_positions", "positions.count", also=["max_position_embeddings"], default=1024, null=configs.REQUIRED, type=values.whole, noted="max_positions"),
    derived("n_inner", "mlp.ffn", "4 * n_embd"),
    key("activation_function", "mlp.activation", default="gelu_new", via=activation("gelu_new")),
    fact_is("mlp.gated", False),
    key("layer_norm_epsilon", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    norms("layer", *NORMS, bias=True),
    *(fact_is(bias, True) for bias in (*ATTENTION_BIASES, *MLP_BIASES)),
    decided(_SCALINGS, ["attention.scale", "attention.scale?"], read=_read_scale, uses=["attention.head_dim", "layers"],
            values={_SCALINGS: [(True, False), (False, False), (True, True), (False, True)]},
            why="scores are scaled by head_dim ** -0.5 and by 1 / the number of the layer, each or not"),
    key("tie_word_embeddings", "head.tied", default=True),
    CAUSAL,
    alias("n_ctx", "n_positions"),
    ignore("n_special", "predict_special_tokens", why="of the GPT of 2018, whose config was once the same; read by no version of the class"),
    ignore("reorder_and_upcast_attn", why="an order of operations, not another function"),
    SUMMARY,
    without=["max_position_embeddings"],
)


# The first files of the hub are of the bare model, without the prefix (ckpt_hf.names).
MODEL = Table(rows=[
    row("transformer.wte.weight",  "v h", "embedding.tokens.weight"),
    row("transformer.wpe.weight",  "p h", "positions.weight"),
    row("transformer.ln_f.weight", "h",   "final_norm.weight"),
    row("transformer.ln_f.bias",   "h",   "final_norm.bias"),
    *LM_HEAD,
])

LAYER = Table("transformer.h.{l}", to="layers.{l}", rows=[
    row("ln_1.weight",        "h",                     "attention.norm.weight"),
    row("ln_1.bias",          "h",                     "attention.norm.bias"),
    row("attn.c_attn.weight", "h ((q[g r] + k[g] + v[g]) d)", "attention.{part}.weight"),
    row("attn.c_attn.bias",   "((q[g r] + k[g] + v[g]) d)",   "attention.{part}.bias"),
    row("attn.c_proj.weight", "(g r d) h",             "attention.out.weight"),
    row("attn.c_proj.bias",   "h",                     "attention.out.bias"),
    row("ln_2.weight",        "h",                     "mlp.norm.weight"),
    row("ln_2.bias",          "h",                     "mlp.norm.bias"),
    row("mlp.c_fc.weight",    "h f",                   "mlp.up.weight"),
    row("mlp.c_fc.bias",      "f",                     "mlp.up.bias"),
    row("mlp.c_proj.weight",  "f h",                   "mlp.down.weight"),
    row("mlp.c_proj.bias",    "h",                     "mlp.down.bias"),
    drop("attn.bias",         why="the causal mask"),
    drop("attn.masked_bias",  why="the value of masked scores"),
])
# fmt: on


FAMILIES = [
    Family(
        "gpt2",
        GPT2,
        layouts.Tables([MODEL, LAYER]),
        rewrites=ALL_BIASES_OR_NONE,
        heads=heads.BY_CLASSIFIER,
    )
]
