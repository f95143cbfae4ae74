"""Llama, and the families that differ from it by a line or two: Mistral, Ministral and Ministral 3, SmolLM3, CWM, IQuest Coder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Config,
    Facts,
    configs,
    decided,
    fact_is,
    ignore,
    key,
    key_is,
    rules,
    same_as,
    schema,
)
from ckpt_hf import heads, weights
from ckpt_hf.common import (
    ACTIVATION,
    ALL_BIASES_OR_NONE,
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
    norms,
    typed_windows,
    unbiased,
    windows,
)
from ckpt_hf.rotary import rotary_keys


def _rope_layers(config: Mapping[str, Any], count: int) -> list[bool]:
    """The layers that rotate: those of the list, else all but every fourth (or another) one."""
    given, interval = config.get("no_rope_layers"), config.get("no_rope_layer_interval", 4)
    if given is None:
        return [(index + 1) % interval != 0 for index in range(count)]
    if not isinstance(given, list) or len(given) < count or any(flag not in (0, 1) for flag in given):
        raise CkptError(
            "key 'no_rope_layers' is not a 0 or 1 per layer", found=str(given)[:80], expected=f"a list of {count}"
        )
    return [bool(flag) for flag in given[:count]]


def _read_rope_layers(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    layers = _rope_layers(config, facts["layers"])
    if not all(layers):
        facts["attention.rotary?"] = schema.PerLayer(layers)


def _interval(rotated: tuple[bool, ...]) -> int:
    return rotated.index(False) + 1 if False in rotated else len(rotated) + 1


def _slides(index: int, config: Mapping[str, Any]) -> bool:
    return not _rope_layers(config, config["num_hidden_layers"])[index]


# The class has these where nothing is said (configuration_ministral3.py, 5.24).
_MINISTRAL3_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def _all(index: int, layers: int, config: Mapping[str, Any]) -> bool:
    return True


def _all_but_every_fourth(index: int, layers: int, config: Mapping[str, Any]) -> bool:
    return index % 4 != 0


# The class has these where nothing is said (configuration_cwm.py).
_CWM_SCALING = {
    "rope_type": "llama3",
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_ROPE_LAYERS = ("no_rope_layers", "no_rope_layer_interval")

# fmt: off
# Which layers rotate, by the keys of SmolLM3 and Llama 4.
ROPE_LAYERS = decided(_ROPE_LAYERS, ["attention.rotary?"], read=_read_rope_layers, uses=["layers", "attention.rotary.*"],
    values={_ROPE_LAYERS: [(configs.layers_of("attention.rotary", rules.each()), configs.layers_of("attention.rotary", _interval))]},
    why="no_rope_layers has a 1 for each layer that rotates; without it the layers of no_rope_layer_interval do not, 4 by default")

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

MINISTRAL3 = LLAMA.replace("Ministral3ForCausalLM",
    groups(8),
    head_dim(default=128),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    key("sliding_window", "attention.window", default=None),
    # the length again, among the parameters of the class
    rotary_keys(usual=_MINISTRAL3_YARN, by_position=True, inert={"max_position_embeddings"}),
    unbiased("attention_bias", "mlp_bias"),
)

MINISTRAL = MISTRAL.replace("MinistralForCausalLM",
    typed_windows(4096, _all, "all do"),
)

CWM = LLAMA.replace("CwmForCausalLM",
    groups(8),
    head_dim(default=128),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    typed_windows(8192, _all_but_every_fourth, "all but every fourth, which begins with the first"),
    rotary_keys(default_theta=1000000.0, usual=_CWM_SCALING),
    unbiased("attention_bias"),
)

IQUEST_CODER = LLAMA.replace("LlamaForCausalLM",  # the class of transformers; the code beside the first files has one of its own
    groups(8),
    head_dim(default=128),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    key_is("clip_qkv", None, or_absent=True, written=False),  # of the code beside the files, which no file uses
    key_is("use_sliding_window", False, or_absent=True, written=False),
    ignore("sliding_window", "max_window_layers", why="no layer has a window"),
)

SMOLLM3 = LLAMA.replace("SmolLM3ForCausalLM",
    groups(4),
    rotary_keys(default_theta=2000000.0, always=False),
    key("tie_word_embeddings", "head.tied", default=True),
    ROPE_LAYERS,
    windows(_slides, uses=[*_ROPE_LAYERS, "num_hidden_layers"]),
    ignore("max_window_layers", why="saved from a Qwen's config; the layers without rotary positions are those that slide"),
)
# fmt: on

FAMILIES = [
    Family("llama", LLAMA, weights.LLAMA, divides, rewrites=ALL_BIASES_OR_NONE, other_names=("LLaMAForCausalLM",)),
    Family("mistral", MISTRAL, weights.LLAMA),
    Family("ministral3", MINISTRAL3, weights.LLAMA, padding=11),
    Family("ministral", MINISTRAL, weights.LLAMA),
    Family("cwm", CWM, weights.LLAMA, divides, rewrites=ALL_BIASES_OR_NONE, heads=(heads.BARE,)),
    Family(
        "iquestcoder",
        IQUEST_CODER,
        weights.LLAMA,
        divides,
        rewrites=ALL_BIASES_OR_NONE,
        other_names=("IQuestCoderForCausalLM",),
        heads=(),
    ),
    Family("smollm3", SMOLLM3, weights.LLAMA, rewrites=ALL_BIASES_OR_NONE, padding=128004),
]
