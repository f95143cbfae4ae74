"""GPT-BigCode (StarCoder): GPT-2 whose heads share one key and value, and whose matrices are stored `[out, in]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Facts, decided, ignore, key, layouts, row, values
from ckpt_hf import heads
from ckpt_hf.common import ALL_BIASES_OR_NONE, Family, activation
from ckpt_hf.families import gpt2


def _read_groups(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    alone = values.checked("multi_query", config.get("multi_query", True), values.flag)
    facts["attention.groups"] = 1 if alone else facts["attention.heads"]


def _read_scale(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    if not values.checked("scale_attn_weights", config.get("scale_attn_weights", True), values.flag):
        facts["attention.scale"] = 1.0


# fmt: off
GPT_BIGCODE = gpt2.GPT2.replace("GPTBigCodeForCausalLM",
    key("n_head", "attention.heads"),
    decided(["multi_query"], ["attention.groups"], read=_read_groups, values={"multi_query": [True, False]}, uses=["attention.heads"],
            why="all heads share one key and value, or each has its own"),
    ignore("num_key_value_heads", why="saved by transformers 5 beside multi_query, which the class reads"),
    decided(["scale_attn_weights"], ["attention.scale"], read=_read_scale, values={"scale_attn_weights": [True, False]}, uses=[],
            why="scores are scaled by head_dim ** -0.5, or not"),
    key("activation_function", "mlp.activation", default="gelu_pytorch_tanh", via=activation("gelu_pytorch_tanh")),
    ignore("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", why="a precision, not another function"),
    ignore("inference_runner", "max_batch_size", "max_sequence_length", "pad_key_length", "pre_allocate_kv_cache", "runner_max_sequence_length",
           "validate_runner_input", why="of the code that ran the first files"),
    without=["scale_attn_by_inverse_layer_idx"],
)

LAYER = gpt2.LAYER.replace(
    row("attn.c_attn.weight", "(g (q[r] + k + v) d) h", "attention.{part}.weight"),
    row("attn.c_attn.bias",   "(g (q[r] + k + v) d)",   "attention.{part}.bias"),
    row("attn.c_proj.weight", "h (g r d)",              "attention.out.weight"),
    row("mlp.c_fc.weight",    "f h",                    "mlp.up.weight"),
    row("mlp.c_proj.weight",  "h f",                    "mlp.down.weight"),
)
# fmt: on

FAMILIES = [
    Family(
        "gpt_bigcode",
        GPT_BIGCODE,
        layouts.Tables([gpt2.MODEL, LAYER]),
        rewrites=ALL_BIASES_OR_NONE,
        heads=heads.BY_CLASSIFIER,
    )
]
