"""OPT: learned positions of which the first two rows serve none, LayerNorm, an ungated MLP, biases everywhere."""

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
    activation,
    norms,
)
from ckpt_hf.weights import FAIRSEQ_ATTENTION, FAIRSEQ_MLP, LM_HEAD

_OFFSET = 2


def positions(default: int) -> configs.Entry:
    """The table of learned positions; `default` is the class's own length."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        count = values.checked("max_position_embeddings", config.get("max_position_embeddings", default), values.whole)
        facts["positions.count"], notes["max_positions"] = count + _OFFSET, count

    return decided(
        ["max_position_embeddings"],
        ["positions.count"],
        read=read,
        values={"max_position_embeddings": [configs.value_of("positions.count", by=_usable)]},
        why="two rows less than the table of positions has",
    )


def _usable(count: int) -> int:
    return count - _OFFSET


# fmt: off
OPT = Config("", GENERIC).replace("OPTForCausalLM",
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    CAUSAL,
    key("hidden_size", "hidden"),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    key("num_hidden_layers", "layers"),
    key("num_attention_heads", "attention.heads", "attention.groups"),
    derived(None, "attention.head_dim", "hidden_size / num_attention_heads"),
    positions(2048),
    fact_is("positions.offset", _OFFSET),
    key("ffn_dim", "mlp.ffn", default=3072),
    key("activation_function", "mlp.activation", default="relu", via=activation("relu")),
    fact_is("mlp.gated", False),
    norms("layer", *NORMS, eps=1e-5),
    key("layer_norm_elementwise_affine", *(f"{norm}.{part}" for norm in NORMS for part in ("weight", "bias")), default=True),
    key("enable_bias", *ATTENTION_BIASES, *MLP_BIASES, default=True),
    key("tie_word_embeddings", "head.tied", default=True),
    key_is("do_layer_norm_before", True, or_absent=True, why="norms then follow the sum with the residual stream"),
    key_is("_remove_final_layer_norm", False, or_absent=True, why="there is then no last norm"),
    configs.repeats("word_embed_proj_dim", "hidden_size"),
    ignore("dropout", "layerdrop", why="training only"),
    note("init_std", "initializer_range"),
    without=["max_position_embeddings", "initializer_range"],
)

MODEL = Table(rows=[
    row("model.decoder.embed_tokens.weight",     "v h", "embedding.tokens.weight"),
    row("model.decoder.embed_positions.weight",  "p h", "positions.weight"),
    row("model.decoder.final_layer_norm.weight", "h",   "final_norm.weight"),
    row("model.decoder.final_layer_norm.bias",   "h",   "final_norm.bias"),
    *LM_HEAD,
])

LAYER = Table("model.decoder.layers.{l}", to="layers.{l}", rows=[*FAIRSEQ_ATTENTION, *FAIRSEQ_MLP])
# fmt: on

FAMILIES = [
    Family(
        "opt",
        OPT,
        layouts.Tables([MODEL, LAYER]),
        rewrites=ALL_BIASES_OR_NONE,
        heads=(heads.BARE, heads.SCORED),
        padding=1,
    )
]
