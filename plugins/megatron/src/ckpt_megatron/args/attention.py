"""Heads, groups, windows, softmax: the args of self attention. Biases of all linear layers are here too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Custom, Facts, PerLayer, Refusal, custom, uniform
from ckpt_megatron.args.values import Args, chosen_layers, flag, has_linear_biases


def groups() -> Custom:
    """Query groups: num_query_groups is 1 by default, and read only with --group-query-attention."""

    def read(args: Args, facts: Facts, notes: dict[str, Any]) -> None:
        grouped = flag(args, "group_query_attention")
        facts["attention.groups"] = args["num_query_groups"] if grouped else args["num_attention_heads"]

    def write(facts: Facts, notes: Mapping[str, Any], args: dict[str, Any]) -> None:
        count, heads = uniform(facts, "attention.groups"), uniform(facts, "attention.heads")
        args |= {"group_query_attention": count != heads, "num_query_groups": count if count != heads else 1}

    return custom(["group_query_attention", "num_query_groups"], ["attention.groups"], read=read, write=write)


def head_dim() -> Custom:
    """kv_channels, which is hidden_size / num_attention_heads unless given."""

    def read(args: Args, facts: Facts, notes: dict[str, Any]) -> None:
        channels = args.get("kv_channels")
        facts["attention.head_dim"] = (
            args["hidden_size"] // args["num_attention_heads"] if channels is None else channels
        )

    def write(facts: Facts, notes: Mapping[str, Any], args: dict[str, Any]) -> None:
        args["kv_channels"] = uniform(facts, "attention.head_dim")

    return custom(["kv_channels"], ["attention.head_dim"], read=read, write=write)


def window() -> Custom:
    """Sliding windows: (w - 1, 0), as Megatron counts the positions before the query; all layers, or some."""

    def read(args: Args, facts: Facts, notes: dict[str, Any]) -> None:
        size = args.get("window_size")
        if not size or size[0] < 0:
            return
        if size[1] != 0:
            raise CkptError("key 'window_size' looks ahead", found=str(tuple(size)), expected="(w - 1, 0)")
        # is_layer_window_attention (transformer/utils.py): every layer, but each n-th, or those a list names
        windowed = chosen_layers(args, "window_attn_skip_freq", lambda index, n: (index + 1) % n != 0) or [True]
        facts["attention.window"] = size[0] + 1
        if not all(windowed):
            facts["attention.window?"] = PerLayer(windowed)

    def write(facts: Facts, notes: Mapping[str, Any], args: dict[str, Any]) -> None:
        present, size = facts.present("attention.window"), uniform(facts, "attention.window")
        args["window_size"] = None if size is None else (size - 1, 0)
        args["window_attn_skip_freq"] = [int(here) for here in present] if isinstance(present, PerLayer) else None

    keys = ["window_size", "window_attn_skip_freq"]
    return custom(keys, ["attention.window", "attention.window?"], read=read, write=write)


def softmax() -> Custom:
    """The softmax of the scores: with sinks or without. Its scale has no argument, only the config class has it."""

    def read(args: Args, facts: Facts, notes: dict[str, Any]) -> None:
        kind = args.get("softmax_type") or "vanilla"
        if kind not in ("vanilla", "learnable"):
            raise CkptError(
                "key 'softmax_type' has a value that is not supported",
                found=repr(kind),
                expected="vanilla or learnable",
            )
        facts["attention.sinks"] = kind == "learnable"
        if args.get("softmax_scale") is not None:
            facts["attention.scale"] = args["softmax_scale"]

    def write(facts: Facts, notes: Mapping[str, Any], args: dict[str, Any]) -> None:
        args["softmax_type"] = "learnable" if uniform(facts, "attention.sinks") else "vanilla"
        if facts.get("attention.scale") is not None:
            raise Refusal("no argument sets the attention scale", found=f"attention.scale = {facts['attention.scale']}")

    keys = ["softmax_type", "softmax_scale"]
    return custom(keys, ["attention.sinks", "attention.scale"], read=read, write=write)


def biases(latent: bool) -> Custom:
    """add_bias_linear is for all linear layers together, add_qkv_bias for q, k and v."""
    linear = ["mlp.up_bias", "mlp.down_bias", "latent_attention.bias" if latent else "attention.out_bias"]
    inputs = [] if latent else [f"attention.{part}_bias" for part in "qkv"]

    def read(args: Args, facts: Facts, notes: dict[str, Any]) -> None:
        add = has_linear_biases(args)
        facts.update(dict.fromkeys(linear, add))
        facts.update(dict.fromkeys(inputs, flag(args, "add_qkv_bias") or add))

    def write(facts: Facts, notes: Mapping[str, Any], args: dict[str, Any]) -> None:
        out, into = {uniform(facts, path) for path in linear}, {uniform(facts, path) for path in inputs}
        if len(out) > 1 or len(into) > 1 or (out == {True} and into == {False}):
            raise Refusal(
                "add_bias_linear is one flag for all linear layers, and add_qkv_bias one for q, k and v",
                found=", ".join(f"{path} = {facts[path]}" for path in [*linear, *inputs]),
            )
        add = out == {True}
        args |= {"add_bias_linear": add, "disable_bias_linear": not add, "add_qkv_bias": True in into and not add}

    keys = ["add_bias_linear", "disable_bias_linear", "add_qkv_bias"]
    return custom(keys, [*linear, *inputs], read=read, write=write)
