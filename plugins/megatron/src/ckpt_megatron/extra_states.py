"""`_extra_state` entries: fp8 scales of TransformerEngine modules, and nothing (None) without fp8.

A torch_dist loader of default strictness asks for one object per module and layer, local modules included, and
fails without it. More than it asks for does not disturb it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ckpt_core.sdk import schema

_LINEAR = re.compile(
    r"^(.*\.linear_(?:qkv|proj|q_proj|q_down_proj|q_up_proj|kv_down_proj|kv_up_proj|fc1|fc2|wq_b|wk|weights_proj)|mtp\..*\.eh_proj|multi_modal_projector\.proj"
    r"|.*\.(?:self_attention|mixer|mamba_mixer)\.(?:in_proj|out_proj))\.weight(?:\d*|\.[a-z]+)$"
)
_NORM = re.compile(
    r"^(.*(?:layernorm|indexer\.k_norm|patch_norm|soft_embed_norm|decoder\.final_norm|layers\.\d+\.norm|self_attention\.out_norm)|mtp\..*\.[eh]norm)\.weight$"
)
_EXPERT = re.compile(r"\.mlp\.experts\.")
_CORE_ATTENTION = "self_attention.core_attention"


def _modules(names: Iterable[str], te: bool) -> list[str]:
    """The modules with an extra state among those that hold `names`, in their order."""
    found: dict[str, None] = {}
    for name in names:
        match = _LINEAR.match(name) or (_NORM.match(name) if te else None)
        if match:
            found[match[1]] = None
            if te and match[1].endswith("self_attention.linear_proj"):
                found[match[1].removesuffix("self_attention.linear_proj") + _CORE_ATTENTION] = None
    return list(found)


def extra_states(names: Sequence[str], style: str) -> list[str]:
    """The keys of a rank's torch file. GroupedMLP of the local spec has no linear modules, and so none."""
    found = [f"{module}._extra_state" for module in _modules(names, style == "te")]
    return [*found, *(["output_layer._extra_state"] if "output_layer.weight" in names else [])]


def linear_extra_states(names: Iterable[str]) -> list[str]:
    """The keys that TransformerEngine before 1.8 has in a state dict: of linear layers, the only modules with fp8 scales."""
    return [f"{module}._extra_state" for module in _modules(names, te=False)]


def stacked_extra_states(
    names: Sequence[str], layers: Sequence[schema.Layer], style: str, stacked: Mapping[str, int]
) -> list[str]:
    """The keys of a torch_dist checkpoint: `<module>._extra_state/shard_<index>_<size>`, one per layer and expert. `stacked` says how many
    modules whose names begin so lie together.
    """
    found = []
    for module in _modules(dict.fromkeys(names), style == "te"):
        axes = [count for prefix, count in stacked.items() if module.startswith(prefix)]
        if _EXPERT.search(module):
            axes.append(max(layer.moe.experts for layer in layers if layer.moe))
        found += [f"{module}._extra_state/shard_{place}" for place in _places(axes)]
    return found


def _places(axes: Sequence[int]) -> list[str]:
    """`0.1_2.4` for index (0, 1) of size (2, 4); `0_1` where there is one module."""
    if not axes:
        return ["0_1"]
    indices: list[tuple[int, ...]] = [()]
    for size in axes:
        indices = [(*index, number) for index in indices for number in range(size)]
    whole = ".".join(map(str, axes))
    return [f"{'.'.join(map(str, index))}_{whole}" for index in indices]
