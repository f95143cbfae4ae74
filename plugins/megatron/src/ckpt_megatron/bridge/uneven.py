"""Llama-Nemotron in Bridge: layers that differ in width and groups, or lack a block (`heterogeneous_config.py` of Megatron-Core 0.19).

A field holds the text of a JSON document, whose `block_configs` say each layer in the words of the model's own config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Config, Facts, configs, custom, documents, ignore, key, schema, values
from ckpt_megatron.args.router import ROUTER_KEYS

UNEVEN_CLASS = "megatron.bridge.models.llama_nemotron.llama_nemotron_provider.LlamaNemotronHeterogeneousProvider"
SPEC = "megatron.bridge.models.llama_nemotron.llama_nemotron_provider.heterogeneous_layer_spec"
"""The function that makes its layers."""
_TEXT, _PATH = "heterogeneous_layers_config_encoded_json", "heterogeneous_layers_config_path"
_MULTIPLE = 256
_BLOCKS = {
    "attention": ("attention", "num_query_groups", "n_heads_in_group"),
    "mlp": ("ffn", "ffn_hidden_size", "ffn_mult"),
}


def _size(said: object, block: str, heads: int, hidden: int) -> int | None:
    """The groups or the width of one block, None of a layer without it: `build_config_from_dict`, which is given either or a quotient."""
    _, own, quotient = _BLOCKS[block]
    if not isinstance(said, dict):
        raise CkptError(f"key {_TEXT!r} has no object for a block", found=repr(said)[:60])
    if values.checked("no_op", said.get("no_op", False), values.flag):
        return None
    if said.get("replace_with_linear"):
        raise CkptError(f"key {_TEXT!r} has a matrix in place of a block, which is not supported", found=str(said)[:80])
    if own in said:
        return values.checked(own, said[own], values.whole)
    given = values.checked(quotient, said.get(quotient), values.positive)
    if block == "mlp":
        return -(-int(2 * given * hidden / 3) // _MULTIPLE) * _MULTIPLE
    if given != int(given) or heads % given:
        raise CkptError("the heads are divided unevenly", found=f"{heads} heads, {quotient} = {given}")
    return heads // int(given)


def _read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    heads, hidden, layers = facts["attention.heads"], facts["hidden"], facts["layers"]
    said: Any = documents.parse_json(str(config.get(_TEXT) or "").encode(), _TEXT)
    blocks = said.get("block_configs") if isinstance(said, dict) else None
    if not isinstance(blocks, list) or len(blocks) != layers or not all(isinstance(one, dict) for one in blocks):
        raise CkptError(f"key {_TEXT!r} has no block_configs for each of {layers} layers", found=str(blocks)[:60])
    for block, path in (("attention", "attention.groups"), ("mlp", "mlp.ffn")):
        name = _BLOCKS[block][0]
        sizes = [_size(one.get(name) or one.get(block), block, heads, hidden) for one in blocks]
        held = {size for size in sizes if size is not None}
        if not held:
            raise CkptError(f"no layer has {block}", found=_TEXT)
        facts[path] = held.pop() if len(held) == 1 else schema.PerLayer(sizes)
        if None in sizes:
            facts[f"{block}?"] = schema.PerLayer(size is not None for size in sizes)


def sizes(facts: Facts, path: str, block: str) -> list[Any]:
    """A size of each layer, None of those without the block."""
    count, size, present = facts["layers"], facts.get(path), facts.present(block)
    here = list(present) if isinstance(present, schema.PerLayer) else [bool(present)] * count
    each = list(size) if isinstance(size, schema.PerLayer) else [size] * count
    return [one if there else None for one, there in zip(each, here, strict=True)]


def _write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    heads = facts["attention.heads"]
    groups, widths = sizes(facts, "attention.groups", "attention"), sizes(facts, "mlp.ffn", "mlp")
    blocks = [
        {
            "attention": {
                "n_heads_in_group": count and heads // count,
                "no_op": count is None,
                "replace_with_linear": False,
            },
            "ffn": {"ffn_hidden_size": width, "no_op": width is None, "replace_with_linear": False},
        }
        for count, width in zip(groups, widths, strict=True)
    ]
    config |= {
        "num_query_groups": next(count for count in groups if count is not None),
        "ffn_hidden_size": max(width for width in widths if width is not None),
        _PATH: None,
        _TEXT: json.dumps({"block_configs": blocks}),
    }


def is_uneven(facts: Facts) -> bool:
    """Whether the layers of a decoder of attention and MLPs differ in width or groups, or lack one of the two."""
    others = any(
        facts.present(path) is not False for path in ("delta", "mamba", "latent_attention", "mlp.moe", "vision")
    )
    by_layer = any(isinstance(facts.get(path), schema.PerLayer) for path in ("attention.groups", "mlp.ffn"))
    lacks = any(isinstance(facts.present(path), schema.PerLayer) for path in ("attention", "mlp"))
    return not others and (by_layer or lacks)


# fmt: off
def uneven(usual: Config, *made_by: configs.Entry) -> Config:
    """The table of the class, from that of usual models; `made_by` says who makes its layers."""
    return usual.replace("Megatron-Bridge's LlamaNemotronHeterogeneousProvider",
        key("num_layers", "layers"),
        custom(["ffn_hidden_size", "num_query_groups", _TEXT, _PATH], ["attention.groups", "attention?", "mlp.ffn", "mlp?"], read=_read, write=_write,
               uses=["layers", "hidden", "attention.heads"],
               why="the text of a JSON document says each layer: its groups, the width of its MLP, and whether it has the one and the other"),
        ignore("num_moe_experts", why="of experts, which this model does not have", written=lambda facts: None),
        ignore("moe_layer_freq", why="of experts, which this model does not have", written=lambda facts: 1),
        ignore(*ROUTER_KEYS, "moe_ffn_hidden_size", "moe_shared_expert_intermediate_size", "moe_shared_expert_gate",
               why="of experts, which this model does not have"),
        ignore("per_block_parameters", "heterogeneous_block_specs", why="made of the document by the class itself"),
        *made_by,
    )
# fmt: on
