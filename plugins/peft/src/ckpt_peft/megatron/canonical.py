"""CanonicalLoRA of Megatron-Bridge: an adapter for each of q, k, v, gate and up, which lie in two fused layers.

    decoder.layers.self_attention.linear_qkv.adapter.adapter_q.linear_in.weight     [layers, rank, in]
    decoder.layers.mlp.linear_fc1.adapter.adapter_gate.linear_out.weight            [layers, out, rank]

Bridge calls the parts `linear_q` and `linear_fc1_gate` where it says which modules are adapted, and so does this plugin. The rows of a part lie as
those of a layer of its own (`_interleave_qkv`, 0.6.0). 0.2 adds the three one after the other to a layer that has them by groups: what it
trains is another model, which has no q, k and v of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Refusal, Table, layouts, row
from ckpt_megatron.sdk import weights

LORA = "megatron.bridge.peft.canonical_lora.CanonicalLoRA"
SHARED = "share_expert_adapters"
"""A field of both classes since 0.6, which writes every field: whether all experts of a layer have one pair."""

_FUSED = ("self_attention.linear_qkv.weight", "mlp.linear_fc1.weight", "mlp.shared_experts.linear_fc1.weight")
# Layers that have no such parts: without a gate, or with one more projection among q, k and v.
_OTHERS = frozenset({"!mlp.gated", "attention.out_gate"})
# fmt: off
_PARTS = [
    row("self_attention.linear_q.weight",            "(g r d) h", "attention.q.weight",     when="!attention.out_gate"),
    row("self_attention.linear_k.weight",            "(g d) h",   "attention.k.weight",     when="!attention.out_gate"),
    row("self_attention.linear_v.weight",            "(g d) h",   "attention.v.weight",     when="!attention.out_gate"),
    row("mlp.linear_fc1_gate.weight",                "f h",       "mlp.gate.weight"),
    row("mlp.linear_fc1_up.weight",                  "f h",       "mlp.up.weight",          when="mlp.gated"),
    row("mlp.shared_experts.linear_fc1_gate.weight", "f h",       "mlp.shared.gate.weight"),
    row("mlp.shared_experts.linear_fc1_up.weight",   "f h",       "mlp.shared.up.weight",   when="mlp.gated"),
]
# fmt: on


def _with_parts(table: Table) -> Table:
    """The table of a layer with the parts of fused tensors in place of these."""
    kept = [one for one in table.rows if one.native not in _FUSED or _OTHERS & set((one.when or "").split())]
    return table.with_rows([*kept, *_PARTS, *table.drops]) if len(kept) < len(table.rows) else table


TABLES = layouts.Tables(
    [_with_parts(table) if table.native == weights.LAYER else table for table in weights.TABLES], weights.TABLES.choices
)
"""Those of Megatron, where q, k, v, gate and up are tensors of their own."""

_PART = re.compile(r"(.*\.linear_)(q|k|v|fc1_gate|fc1_up)")
_LAYERS = {"q": "qkv", "k": "qkv", "v": "qkv", "fc1_gate": "fc1", "fc1_up": "fc1"}


def module_of(layer: str, part: str | None) -> str:
    """The name of a part of a fused layer.

    >>> module_of("decoder.layers.0.mlp.linear_fc1", "gate"), module_of("decoder.layers.0.self_attention.linear_qkv", "q")
    ('decoder.layers.0.mlp.linear_fc1_gate', 'decoder.layers.0.self_attention.linear_q')
    """
    if part is None:
        return layer
    return f"{layer}_{part}" if part in ("gate", "up") else f"{layer.removesuffix('qkv')}{part}"


def stored_as(module: str) -> str:
    """The path of a module's adapter in the files.

    >>> stored_as("decoder.layers.0.mlp.linear_fc1_gate"), stored_as("decoder.layers.0.mlp.linear_fc2")
    ('decoder.layers.0.mlp.linear_fc1.adapter.adapter_gate', 'decoder.layers.0.mlp.linear_fc2.adapter')
    """
    if (match := _PART.fullmatch(module)) is None:
        return f"{module}.adapter"
    return f"{match[1]}{_LAYERS[match[2]]}.adapter.adapter_{match[2].removeprefix('fc1_')}"


def check_release(section: Mapping[str, Any], modules: list[str], groups: int, file: str) -> None:
    """Raise a `Refusal` for an adapter on q, k or v that may be of a release that adds it to other rows."""
    of_attention = [module for module in modules if module.endswith((".linear_q", ".linear_k", ".linear_v"))]
    if of_attention and groups > 1 and SHARED not in section:
        raise Refusal(
            "Megatron-Bridge before 0.6 adds a canonical adapter of q, k and v to other rows than theirs",
            file=file,
            found=f"{of_attention[0]}, {groups} groups of heads, and no key 'peft.{SHARED}', which 0.6 writes",
            expected="an adapter of 0.6 or later, or one group",
        )
