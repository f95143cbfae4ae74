"""Heads, groups, windows, softmax: the args of self attention. Biases of all linear layers are here too."""

from __future__ import annotations

from typing import Any

from ckpt_core.sdk import CkptError, Facts, by_layer, configs, decided, derived, key, one_of, rules
from ckpt_megatron.args.values import Args, flag, has_linear_biases


def groups() -> configs.Entry:
    """Query groups: num_query_groups is 1 by default, and read only with --group-query-attention."""
    return configs.tagged(
        None,
        tag="group_query_attention",
        kinds={
            False: [configs.fact_as("attention.groups", "attention.heads")],
            True: [key("num_query_groups", "attention.groups")],
        },
        default=False,
        rest={"num_query_groups": 1},
    )


def head_dim() -> configs.Entry:
    """kv_channels; Megatron rounds down what it computes without it (arguments.py, validate_args)."""
    formula = "hidden_size / num_attention_heads"
    return derived("kv_channels", "attention.head_dim", formula, rounding="floor", type=None)


def _read_window(value: Any) -> int | None:
    if not value or value[0] < 0:
        return None
    if value[1] != 0:
        raise CkptError("it looks ahead", found=str(tuple(value)), expected="(w - 1, 0)")
    return int(value[0]) + 1


# Megatron, as TransformerEngine, counts the positions before the query.
_WINDOW = configs.Codec(_read_window, lambda width: (int(width) - 1, 0), "(w - 1, 0) for a window of w")  # type: ignore[call-overload]


def window() -> list[configs.Entry]:
    """Sliding windows, in all layers or some: is_layer_window_attention (transformer/utils.py)."""
    return [
        key("window_size", "attention.window", default=None, via=_WINDOW),
        by_layer("window_attn_skip_freq", "attention.window", rules.each() | ~rules.every_nth(), plain=None),
    ]


def softmax() -> list[configs.Entry]:
    """The softmax of the scores: with sinks or without. Its scale has no argument, only the config class has it."""
    return [
        key("softmax_type", "attention.sinks", default="vanilla", via=one_of({"vanilla": False, "learnable": True})),
        decided(["softmax_scale"], ["attention.scale"], read=_read_scale, values={}, why="no argument sets the scale"),
    ]


def _read_scale(args: Args, facts: Facts, notes: dict[str, Any]) -> None:
    if args.get("softmax_scale") is not None:
        facts["attention.scale"] = args["softmax_scale"]


def biases(latent: bool) -> configs.Entry:
    """add_bias_linear is for all linear layers together, add_qkv_bias for q, k and v."""
    linear = ["mlp.up_bias", "mlp.down_bias", "latent_attention.bias" if latent else "attention.out_bias"]
    inputs = [] if latent else [f"attention.{part}_bias" for part in "qkv"]

    def read(args: Args, facts: Facts, notes: dict[str, Any]) -> None:
        add = has_linear_biases(args)
        facts.update(dict.fromkeys(linear, add))
        facts.update(dict.fromkeys(inputs, flag(args, "add_qkv_bias") or add))

    return decided(
        ["add_bias_linear", "disable_bias_linear", "add_qkv_bias"],
        [*linear, *inputs],
        read=read,
        values={
            ("add_bias_linear", "disable_bias_linear"): [(False, True), (True, False)],
            "add_qkv_bias": [False, True],
        },
        why="add_bias_linear is one flag for all linear layers, and add_qkv_bias one for q, k and v",
    )
