"""Gemma 1 and 2: zero-centred norms, a scaled embedding; Gemma 2 adds norms on outputs, soft caps and windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Activation, CkptError, Facts, Refusal, custom, ignore, key, layouts, row, uniform
from ckpt_hf import weights
from ckpt_hf.common import (
    NORMS,
    Family,
    activation,
    alias,
    alternating_windows,
    divides,
    groups,
    head_dim,
    norms,
    scaled_embedding,
    unbiased,
)
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.weights import LAYER, MODEL

_OUT_NORMS = ("attention.out_norm", "mlp.out_norm")
_NAMES = activation("gelu_pytorch_tanh", "gelu_python")
_TANH = {"gelu": "gelu_pytorch_tanh"}


def _read_activation(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """The first Gemma files say "gelu" and mean the tanh form; some versions of 4 prefer `hidden_activation` where it is given."""
    keys = [key for key in ("hidden_act", "hidden_activation") if config.get(key) is not None]
    said = {key: _activation(config[key], key) for key in keys}
    if len(set(said.values())) > 1:
        raise CkptError(
            "keys 'hidden_act' and 'hidden_activation' disagree", found=str({key: config[key] for key in keys})
        )
    facts["mlp.activation"] = next(iter(said.values()), Activation.GELU_TANH)


def _activation(name: object, key: str) -> object:
    try:
        return _NAMES.read(_TANH.get(name, name) if isinstance(name, str) else name)
    except CkptError as problem:
        raise CkptError(f"key {key!r}: {problem.problem}", found=problem.found, expected=problem.expected) from None


def _write_activation(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    config["hidden_act"] = config["hidden_activation"] = _NAMES.write(uniform(facts, "mlp.activation"))


def _bidirectional(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    if config.get("use_bidirectional_attention"):
        raise CkptError(
            "key 'use_bidirectional_attention' has a value that is not supported",
            found="True",
            expected="false or null",
        )


def _scalar_of(scale: object) -> int:
    """The whole number whose square root divides the scores, if there is one."""
    scalar = round(float(scale) ** -2)  # type: ignore[arg-type]
    if scalar < 1 or abs(scalar**-0.5 / float(scale) - 1) > 1e-12:  # type: ignore[arg-type]
        raise Refusal("it has only whole numbers for this", found=f"attention.scale = {scale}")
    return scalar


def _read_scalar(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    scalar = config.get("query_pre_attn_scalar", 256)
    if isinstance(scalar, bool) or not isinstance(scalar, int | float) or scalar <= 0:
        raise CkptError("key 'query_pre_attn_scalar' is not a positive number", found=repr(scalar)[:60])
    if scalar != facts.get("attention.head_dim"):
        facts["attention.scale"] = scalar**-0.5


def _write_scalar(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    scale = uniform(facts, "attention.scale")
    config["query_pre_attn_scalar"] = uniform(facts, "attention.head_dim") if scale is None else _scalar_of(scale)


# fmt: off
GEMMA = LLAMA.replace("GemmaForCausalLM",
    groups(16),
    head_dim(default=256),
    custom(["hidden_act", "hidden_activation"], ["mlp.activation"], read=_read_activation, write=_write_activation),
    norms("rms", *NORMS, zero_centred=True),
    scaled_embedding(),
    key("tie_word_embeddings", "head.tied", default=True),
    custom(["use_bidirectional_attention"], [], read=_bidirectional, write=lambda facts, notes, config: None),
    unbiased("mlp_bias"),
)

GEMMA2 = GEMMA.replace("Gemma2ForCausalLM",
    groups(4),
    # unlike in Gemma 1, this key alone decides, and "gelu" is the erf form
    key("hidden_activation", "mlp.activation", default="gelu_pytorch_tanh", via=activation()),
    ignore("hidden_act", why="the class reads hidden_activation"),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in (*NORMS, *_OUT_NORMS)), default=1e-6),
    norms("rms", *_OUT_NORMS, zero_centred=True),
    custom(["query_pre_attn_scalar"], ["attention.scale"], read=_read_scalar, write=_write_scalar),
    key("attn_logit_softcapping", "attention.softcap", default=50.0, null=None),
    key("final_logit_softcapping", "head.softcap", default=30.0, null=None),
    alternating_windows(4096),
    alias("sliding_window_size", "sliding_window"),
)

GEMMA2_LAYER = LAYER.without("post_attention_layernorm.weight").extend(
    row("post_attention_layernorm.weight",   "h", "attention.out_norm.weight"),
    row("pre_feedforward_layernorm.weight",  "h", "mlp.norm.weight"),
    row("post_feedforward_layernorm.weight", "h", "mlp.out_norm.weight"),
)
# fmt: on

FAMILIES = [
    Family("gemma", GEMMA, weights.LLAMA),
    Family("gemma2", GEMMA2, layouts.Tables([MODEL, GEMMA2_LAYER]), divides),
]
