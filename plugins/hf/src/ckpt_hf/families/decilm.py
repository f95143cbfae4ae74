"""Llama-Nemotron (DeciLM, `nemotron-nas`): Llama whose layers differ in width and groups, or lack a block. transformers runs the code beside its files.

The functions are those of `modeling_decilm.py` of Llama-3.3-Nemotron-Super, which vLLM (nemotron_nas.py) and Megatron-Core
(heterogeneous_config.py, 0.19) have, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, Refusal, custom, key_is, schema, values
from ckpt_hf import weights
from ckpt_hf.common import Family, divides
from ckpt_hf.families.llama import LLAMA

_BLOCKS = "block_configs"
_MULTIPLE = 256  # of which every width is one
# What else a block may say, at the value that changes nothing.
_INERT: Mapping[str, tuple[object, ...]] = {
    "replace_with_linear": (False, None),
    "sparsify": (None,),
    "num_sink_tokens": (None,),
    "use_prefill_window_in_sink_attention": (False, None),
    "unshifted_sink": (False, None),
    "window_length": (None,),
}


def ffn_of(multiplier: float, hidden: int) -> int:
    """The width of an MLP by `ffn_mult`: two thirds of so many times the hidden size, up to a multiple of 256.

    >>> ffn_of(5.25, 8192)
    28672
    """
    return -(-int(2 * multiplier * hidden / 3) // _MULTIPLE) * _MULTIPLE


def _block(said: object, size: str, number: int) -> Any:
    """The size of one block, or None of a layer without it."""
    if not isinstance(said, dict):
        raise CkptError(f"key {_BLOCKS!r} has no object for a block of layer {number}", found=repr(said)[:60])
    said = {key: value for key, value in said.items() if key not in _INERT or value not in _INERT[key]}
    extra = said.keys() - {"no_op", size}
    if extra:
        raise CkptError(
            f"key {_BLOCKS!r} asks for something of layer {number} that is not supported",
            found=", ".join(f"{key} = {said[key]!r}" for key in sorted(extra))[:120],
        )
    if values.checked("no_op", said.get("no_op", False), values.flag):
        return None
    return values.checked(size, said.get(size), values.positive)


def _read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    layers, heads, hidden = facts["layers"], facts["attention.heads"], facts["hidden"]
    blocks = config.get(_BLOCKS)
    if not isinstance(blocks, list) or len(blocks) != layers or not all(isinstance(one, dict) for one in blocks):
        raise CkptError(
            f"key {_BLOCKS!r} is not an object for each layer", found=str(blocks)[:60], expected=f"a list of {layers}"
        )
    sharing = [_block(one.get("attention"), "n_heads_in_group", number) for number, one in enumerate(blocks)]
    widths = [_block(one.get("ffn"), "ffn_mult", number) for number, one in enumerate(blocks)]
    for number, count in enumerate(sharing):
        if count is not None and (count != int(count) or heads % count):
            raise CkptError(
                f"layer {number} divides its heads unevenly", found=f"{heads} heads, n_heads_in_group = {count}"
            )
    enter(facts, [count and heads // int(count) for count in sharing], [one and ffn_of(one, hidden) for one in widths])


def enter(facts: Facts, groups: list[int | None], widths: list[int | None]) -> None:
    """Enter the groups of the layers and the widths of their MLPs, None of those without the block."""
    for path, block, sizes in (("attention.groups", "attention", groups), ("mlp.ffn", "mlp", widths)):
        held = {size for size in sizes if size is not None}
        if not held:
            raise CkptError(f"no layer has {block}", found=str(sizes)[:60])
        facts[path] = held.pop() if len(held) == 1 else schema.PerLayer(sizes)
        if None in sizes:
            facts[f"{block}?"] = schema.PerLayer(size is not None for size in sizes)


def sizes_of(facts: Facts, path: str, block: str) -> list[int | None]:
    """A size of each layer, None of those without the block."""
    layers, size, present = facts["layers"], facts.get(path), facts.present(block)
    here = list(present) if isinstance(present, schema.PerLayer) else [bool(present)] * layers
    each = list(size) if isinstance(size, schema.PerLayer) else [size] * layers
    return [one if there else None for one, there in zip(each, here, strict=True)]


def _write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    heads, hidden = facts["attention.heads"], facts["hidden"]
    blocks: list[dict[str, dict[str, object]]] = []
    for groups, width in zip(
        sizes_of(facts, "attention.groups", "attention"), sizes_of(facts, "mlp.ffn", "mlp"), strict=True
    ):
        multiplier = None if width is None else 3 * width / (2 * hidden)
        if multiplier is not None and ffn_of(multiplier, hidden) != width:
            raise Refusal(
                f"the width of an MLP is a multiple of {_MULTIPLE}", found=f"mlp.ffn = {width}", fact="mlp.ffn"
            )
        attention = {
            "n_heads_in_group": groups and heads // groups,
            "no_op": groups is None,
            "replace_with_linear": False,
        }
        ffn = {"ffn_mult": multiplier, "no_op": width is None, "replace_with_linear": False}
        blocks.append({"attention": attention, "ffn": ffn})
    config[_BLOCKS] = blocks


# fmt: off
DECILM = LLAMA.replace("DeciLMForCausalLM",
    custom([_BLOCKS], ["attention.groups", "attention?", "mlp.ffn", "mlp?"], read=_read, write=_write, uses=["layers", "hidden", "attention.heads"],
           why="an object for each layer: how many heads share a key, how wide the MLP is, and whether there is the one and the other"),
    key_is("num_key_value_heads", None, or_absent=True),
    key_is("intermediate_size", None, or_absent=True),
)
# fmt: on

FAMILIES = [Family("nemotron-nas", DECILM, weights.LLAMA, divides, heads=())]
