"""Llama, and the families that differ from it by a line or two: Mistral, SmolLM3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Config, Facts, PerLayer, custom, fact_is, ignore, key, same_as
from ckpt_hf import weights
from ckpt_hf.common import (
    ACTIVATION,
    ATTENTION_BIASES,
    CAUSAL,
    GENERIC,
    MLP_BIASES,
    NORMS,
    Family,
    alias,
    divides,
    groups,
    head_dim,
    layer_count,
    norms,
    unbiased,
    windows,
)
from ckpt_hf.rotary import rotary_keys


def _rope_layers(config: Mapping[str, Any]) -> list[bool]:
    given, interval = config.get("no_rope_layers"), config.get("no_rope_layer_interval", 4)
    count = layer_count(config)
    if given is None:
        return [(index + 1) % interval != 0 for index in range(count)]
    if not isinstance(given, list) or len(given) < count or any(flag not in (0, 1) for flag in given):
        raise CkptError(
            "key 'no_rope_layers' is not a 0 or 1 per layer", found=str(given)[:80], expected=f"a list of {count}"
        )
    return [bool(flag) for flag in given[:count]]


def _read_rope_layers(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    layers = _rope_layers(config)
    if not all(layers):
        facts["attention.rotary?"] = PerLayer(layers)


def _write_rope_layers(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    present = facts.present("attention.rotary")
    layers: list[Any] = list(present) if isinstance(present, PerLayer) else [present] * facts["layers"]
    without = [index for index, rotated in enumerate(layers) if not rotated]
    config["no_rope_layers"] = [int(rotated) for rotated in layers]
    config["no_rope_layer_interval"] = without[0] + 1 if without else len(layers) + 1


# fmt: off
LLAMA = Config("LlamaForCausalLM", [
    *GENERIC,
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    CAUSAL,
    key("hidden_size", "hidden"),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    key("num_hidden_layers", "layers"),
    key("num_attention_heads", "attention.heads"),
    key("num_key_value_heads", "attention.groups", default=same_as("num_attention_heads")),
    head_dim(),
    key("intermediate_size", "mlp.ffn"),
    key("hidden_act", "mlp.activation", default="silu", via=ACTIVATION),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-6),
    norms("rms", *NORMS),
    fact_is("mlp.gated", True),
    key("attention_bias", *ATTENTION_BIASES, default=False),
    key("mlp_bias", *MLP_BIASES, default=False),
    key("tie_word_embeddings", "head.tied", default=False),
    rotary_keys(),
    alias("max_sequence_length", "max_position_embeddings"),  # of the first Llama files
    alias("seq_length", "max_position_embeddings"),
    unbiased("bias"),
])

MISTRAL = LLAMA.replace("MistralForCausalLM",
    groups(8),
    key("sliding_window", "attention.window", default=4096, null=None),
    unbiased("attention_bias", "mlp_bias"),
)

SMOLLM3 = LLAMA.replace("SmolLM3ForCausalLM",
    groups(4),
    rotary_keys(default_theta=2000000.0, always=False),
    key("tie_word_embeddings", "head.tied", default=True),
    custom(["no_rope_layers", "no_rope_layer_interval"], ["attention.rotary?"], read=_read_rope_layers, write=_write_rope_layers),
    windows(lambda index, config: not _rope_layers(config)[index]),
    ignore("max_window_layers", why="saved from a Qwen's config; the layers without rotary positions are those that slide"),
)
# fmt: on

FAMILIES = [
    Family("llama", LLAMA, weights.LLAMA, divides, other_names=("LLaMAForCausalLM",)),
    Family("mistral", MISTRAL, weights.LLAMA),
    Family("smollm3", SMOLLM3, weights.LLAMA),
]
