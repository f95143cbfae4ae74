"""Heads, scores and windows of attention, and the biases of linear layers."""

from __future__ import annotations

from typing import Any

from ckpt_core.sdk import CkptError, Facts, Refusal, uniform
from ckpt_nemo.gpt.values import Values, given


def read_head_dim(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
    facts["attention.head_dim"] = given(config, "kv_channels", config["hidden_size"] // config["num_attention_heads"])


def write_head_dim(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
    config["kv_channels"] = uniform(facts, "attention.head_dim")


def read_legacy_groups(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
    groups = config.get("num_query_groups")
    if groups not in (None, config["num_attention_heads"]):
        raise CkptError(
            "models before Megatron-Core have as many groups as heads", found=f"num_query_groups = {groups}"
        )
    facts["attention.groups"] = config["num_attention_heads"]


def write_legacy_groups(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
    groups, heads = uniform(facts, "attention.groups"), uniform(facts, "attention.heads")
    if groups != heads:
        raise Refusal(
            "models before Megatron-Core have no groups of heads",
            found=f"attention.groups = {groups}",
            fix="use -o names=mcore",
        )
    config["num_query_groups"] = None


def read_legacy_scale(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
    if not given(config, "normalize_attention_scores", True):
        facts["attention.scale"] = 1.0


def write_legacy_scale(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
    scale = uniform(facts, "attention.scale")
    if scale not in (None, 1.0):
        raise Refusal(
            "scores are divided by the root of the head dim, or not at all", found=f"attention.scale = {scale}"
        )
    config["normalize_attention_scores"] = scale is None


def read_window(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
    size = config.get("window_size")
    if size is None or size[0] < 0:
        return
    if len(size) != 2 or size[1] != 0:
        raise CkptError("key 'window_size' looks ahead", found=str(size), expected="[w - 1, 0]")
    facts["attention.window"] = size[0] + 1  # TransformerEngine counts the positions before the query


def write_window(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
    window = uniform(facts, "attention.window")
    if window is not None:
        config["window_size"] = [window - 1, 0]


def read_biases(config: Values, facts: Facts, inputs: bool) -> None:
    bias = bool(given(config, "bias", True))
    for name in ("attention.out_bias", "mlp.up_bias", "mlp.down_bias"):
        facts[name] = bias
    for part in "qkv":
        facts[f"attention.{part}_bias"] = bias or inputs


def write_biases(facts: Facts, config: dict[str, Any], inputs: bool) -> None:
    linear = {uniform(facts, name) for name in ("attention.out_bias", "mlp.up_bias", "mlp.down_bias")}
    fused = {uniform(facts, f"attention.{part}_bias") for part in "qkv"}
    if len(linear) > 1 or len(fused) > 1 or (linear == {True} and fused == {False}):
        raise Refusal("bias is one flag for all linear layers, and qkv_bias one for q, k and v")
    config["bias"] = linear == {True}
    if inputs and fused == {True} and linear == {False}:
        config["qkv_bias"] = True
    elif fused != linear:
        raise Refusal(
            "models before Megatron-Core have no qkv_bias", found="biases of q, k and v alone", fix="use -o names=mcore"
        )
