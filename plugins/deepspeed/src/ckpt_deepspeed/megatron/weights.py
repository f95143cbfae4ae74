"""Which tensor of the pipeline module holds what, and how tensor parallel ranks divide it.

Layers have their global numbers here (`layers.0`); in files they are known by their place in the list of pipeline layers, see
`files`. What no rank divides, every rank holds; see `drift` for what happens where they differ. The columns of `dense` and
`dense_4h_to_h` are divided, and their biases are not.
"""

from __future__ import annotations

from ckpt_core.sdk import Table, drop, layouts, row
from ckpt_deepspeed.megatron.rotary import INVERSE_FREQUENCIES
from ckpt_megatron.sdk import weights as megatron

# fmt: off
# The orders of Megatron-LM's versions; every rank's tensor is arranged so by itself.
QKV = layouts.fragment("qkv", [
    ("((q[r] + k + v) g d)", {"checkpoint_version": 0.0}),
    ("(g d (q[r] + k + v))", {"checkpoint_version": 1.0}),
    ("(g (q[r] + k + v) d)", {"checkpoint_version": (2.0, 3.0)}),
])

MODEL = Table(rows=[
    row("embed.word_embeddings.weight",      "v h", "embedding.tokens.weight", tp="v"),
    row("embed.word_embeddings.norm.weight", "h",   "embedding.norm.weight"),
    row("embed.word_embeddings.norm.bias",   "h",   "embedding.norm.bias"),
    row("embed.position_embeddings.weight",  "p h", "positions.weight"),
    row("final_norm.weight",                 "h",   "final_norm.weight"),
    row("final_norm.bias",                   "h",   "final_norm.bias"),
])

LAYER = Table("layers.{l}", to="layers.{l}", rows=[
    row("input_layernorm.weight",                "h",                      "attention.norm.weight"),
    row("input_layernorm.bias",                  "h",                      "attention.norm.bias"),
    row("self_attention.query_key_value.weight", "<qkv> h",                "attention.{part}.weight", tp="g"),
    row("self_attention.query_key_value.bias",   "<qkv>",                  "attention.{part}.bias",   tp="g"),
    row("self_attention.dense.weight",           "h (g r d)",              "attention.out.weight",    tp="g r"),
    row("self_attention.dense.bias",             "h",                      "attention.out.bias"),
    row("post_attention_layernorm.weight",       "h",                      "mlp.norm.weight"),
    row("post_attention_layernorm.bias",         "h",                      "mlp.norm.bias"),
    row("mlp.dense_h_to_4h.weight",              "f h",                    "mlp.up.weight",           tp="f", when="!mlp.gated"),
    row("mlp.dense_h_to_4h.bias",                "f",                      "mlp.up.bias",             tp="f", when="!mlp.gated"),
    # --glu-activation: x1 * act(x2) on each rank, so the gate is the second half of every rank's rows (glu_activations.py).
    row("mlp.dense_h_to_4h.weight",              "((up + gate) f) h",      "mlp.{part}.weight",       tp="f", when="mlp.gated"),
    row("mlp.dense_h_to_4h.bias",                "((up + gate) f)",        "mlp.{part}.bias",         tp="f", when="mlp.gated"),
    row("mlp.dense_4h_to_h.weight",              "h f",                    "mlp.down.weight",         tp="f"),
    row("mlp.dense_4h_to_h.bias",                "h",                      "mlp.down.bias"),
    drop(INVERSE_FREQUENCIES,                    why="computed from the base, and compared with it"),
])

TABLES = layouts.Tables([MODEL, LAYER], [megatron.VERSION], [QKV])
# fmt: on


_DIVIDED = tuple(line.native for table in TABLES for line in table.rows if line.splits)


def is_divided(native: str) -> bool:
    """Whether tensor parallel ranks hold parts of a tensor, and not all of it.

    >>> is_divided("layers.7.self_attention.dense.weight"), is_divided("layers.7.self_attention.dense.bias")
    (True, False)
    """
    return native.endswith(_DIVIDED)


def is_gated(native: layouts.Native) -> bool:
    """Whether a tensor holds up and gate: those of all ranks, one after the other, are not one up and one gate."""
    return native.row.canonical.startswith("mlp.{part}.")
