"""Which tensor of the pipeline module holds what, and how tensor parallel ranks divide it.

Layers have their global numbers here (`layers.0`); in files they are known by their place in the list of pipeline layers, see
`files`. What no rank divides, every rank holds; see `drift` for what happens where they differ. The columns of `dense` and
`dense_4h_to_h` are divided, and their biases are not.
"""

from __future__ import annotations

from ckpt_core.sdk import Architecture, Table, drop, row
from ckpt_deepspeed.megatron.config import decoder_of
from ckpt_deepspeed.megatron.rotary import INVERSE_FREQUENCIES

# fmt: off
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
    row("self_attention.query_key_value.weight", "(g (q[r] + k + v) d) h", "attention.{part}.weight", tp="g"),
    row("self_attention.query_key_value.bias",   "(g (q[r] + k + v) d)",   "attention.{part}.bias",   tp="g"),
    row("self_attention.dense.weight",           "h (g r d)",              "attention.out.weight",    tp="g r"),
    row("self_attention.dense.bias",             "h",                      "attention.out.bias"),
    row("post_attention_layernorm.weight",       "h",                      "mlp.norm.weight"),
    row("post_attention_layernorm.bias",         "h",                      "mlp.norm.bias"),
    row("mlp.dense_h_to_4h.weight",              "f h",                    "mlp.up.weight",           tp="f"),
    row("mlp.dense_h_to_4h.bias",                "f",                      "mlp.up.bias",             tp="f"),
    row("mlp.dense_4h_to_h.weight",              "h f",                    "mlp.down.weight",         tp="f"),
    row("mlp.dense_4h_to_h.bias",                "h",                      "mlp.down.bias"),
    drop(INVERSE_FREQUENCIES,                    why="computed from the base, and compared with it"),
])

# --glu-activation: x1 * act(x2) on each rank, so the gate is the second half of every rank's rows (glu_activations.py).
GATED = LAYER.replace(
    row("mlp.dense_h_to_4h.weight",              "((up + gate) f) h",      "mlp.{part}.weight",       tp="f"),
    row("mlp.dense_h_to_4h.bias",                "((up + gate) f)",        "mlp.{part}.bias",         tp="f"),
)

# The order of q, k and v before checkpoint_version 2.0; every rank's tensor is arranged so by itself.
QKV_ORDERS = {"0": "((q[r] + k + v) g d)", "1.0": "(g d (q[r] + k + v))", "2.0": "(g (q[r] + k + v) d)"}
# fmt: on


_DIVIDED = tuple(line.native for table in (MODEL, LAYER) for line in table.rows if line.splits)


def is_divided(native: str) -> bool:
    """Whether tensor parallel ranks hold parts of a tensor, and not all of it.

    >>> is_divided("layers.7.self_attention.dense.weight"), is_divided("layers.7.self_attention.dense.bias")
    (True, False)
    """
    return native.endswith(_DIVIDED)


def tables(architecture: Architecture, version: float = 3.0) -> tuple[Table, Table]:
    """The tables of one model, in the order of q, k and v of a checkpoint_version."""
    layer = GATED if decoder_of(architecture).layers[0].mlp.gated else LAYER
    order = QKV_ORDERS["2.0" if version >= 2 else "1.0" if version >= 1 else "0"]
    if version < 2:
        layer = layer.replace(
            row("self_attention.query_key_value.weight", f"{order} h", "attention.{part}.weight", tp="g"),
            row("self_attention.query_key_value.bias", order, "attention.{part}.bias", tp="g"),
        )
    return MODEL, layer
