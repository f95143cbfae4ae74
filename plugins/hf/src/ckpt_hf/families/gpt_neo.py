"""GPT-Neo: learned positions, scores that are not scaled, and a window in every second layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Config,
    Facts,
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
from ckpt_hf.common import CAUSAL, GENERIC, MLP_BIASES, NORMS, SUMMARY, Family, activation, norms
from ckpt_hf.families.gpt2 import MODEL
from ckpt_hf.families.gpt_bigcode import LAYER

_WINDOW = ("attention_types", "window_size")


def _read_windows(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    given = config.get("attention_types") or [[["global", "local"], 12]]
    # counted before anything is repeated: a config may say any number of times
    count = sum(len(pattern) * max(times, 0) for pattern, times in given)
    kinds = [kind for pattern, times in given for kind in pattern * times] if count == facts["layers"] else []
    if len(kinds) != facts["layers"] or any(kind not in ("global", "local") for kind in kinds):
        raise CkptError("key 'attention_types' is not one known kind per layer", found=str(given)[:80])
    if config.get("attention_layers", kinds) != kinds:
        raise CkptError(
            "keys 'attention_types' and 'attention_layers' disagree",
            found=f"{given} and {config['attention_layers']}"[:80],
        )
    local = schema.PerLayer(kind == "local" for kind in kinds)
    if any(local):
        facts["attention.window"] = values.checked("window_size", config.get("window_size", 256), values.whole)
        if not all(local):
            facts["attention.window?"] = local


def _types(windowed: tuple[bool, ...]) -> list[Any]:
    return [[["local" if here else "global" for here in windowed], 1]]


_TYPES = configs.layers_of("attention.window", _types)

# fmt: off
GPT_NEO = Config("", GENERIC).replace("GPTNeoForCausalLM",
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    CAUSAL,
    key("hidden_size", "hidden"),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    key("num_layers", "layers"),
    key("num_heads", "attention.heads", "attention.groups"),
    derived(None, "attention.head_dim", "hidden_size / num_heads"),
    fact_is("attention.scale", 1.0),
    decided([*_WINDOW, "attention_layers"], ["attention.window", "attention.window?"], read=_read_windows, uses=["layers"],
            values={_WINDOW: [(_TYPES, configs.value_of("attention.window")), (_TYPES, 256)]},
            why="attention_types says, in patterns that repeat, which layers have the window of window_size; attention_layers may repeat it in full"),
    key("max_position_embeddings", "positions.count", default=2048, null=configs.REQUIRED, type=values.whole, noted="max_positions"),
    derived("intermediate_size", "mlp.ffn", "4 * hidden_size"),
    key("activation_function", "mlp.activation", default="gelu_new", via=activation("gelu_new")),
    fact_is("mlp.gated", False),
    key("layer_norm_epsilon", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    norms("layer", *NORMS, bias=True),
    *(fact_is(bias, True) for bias in ("attention.out_bias", *MLP_BIASES)),
    key("tie_word_embeddings", "head.tied", default=True),
    ignore("resid_dropout", "embed_dropout", "classifier_dropout", why="training only"),
    SUMMARY,
    without=["max_position_embeddings"],
)

GPT_NEO_LAYER = LAYER.with_rows([one for one in LAYER.rows if not one.native.startswith("attn.")]).extend(
    row("attn.attention.q_proj.weight",   "(g r d) h", "attention.q.weight"),
    row("attn.attention.k_proj.weight",   "(g d) h",   "attention.k.weight"),
    row("attn.attention.v_proj.weight",   "(g d) h",   "attention.v.weight"),
    row("attn.attention.out_proj.weight", "h (g r d)", "attention.out.weight"),
    row("attn.attention.out_proj.bias",   "h",         "attention.out.bias"),
    drop("attn.attention.bias",           why="the causal mask"),
    drop("attn.attention.masked_bias",    why="the value of masked scores"),
)
# fmt: on

FAMILIES = [
    Family(
        "gpt_neo",
        GPT_NEO,
        layouts.Tables([MODEL, GPT_NEO_LAYER]),
        heads=heads.BY_CLASSIFIER,
    )
]
