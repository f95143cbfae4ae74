"""The order in which Megatron's modules register their parameters, by which an optimizer in rank files and in flat buffers knows them.

torch lists the parameters of a module itself before those of its submodules, each in the order in which they were made. The lines below are in
that order, of core 0.16 (the `__init__` of transformer_layer.py, attention.py, multi_latent_attention.py, moe_layer.py, shared_experts.py, gpt_model.py), by the
names of the tables. TransformerEngine's fused modules register the norm before the matrix.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from ckpt_core.sdk import errors
from ckpt_megatron.names import expert_of, layer_of
from ckpt_megatron.optimizer.groups import DROP

# fmt: off
_OUTSIDE = [
    "embedding.word_embeddings.",
    "embedding.position_embeddings.",
    "decoder.layers.",
    "decoder.final_layernorm.",
    "output_layer.",
]
_LOCAL = [
    "input_layernorm.",
    "self_attention.core_attention.",
    "self_attention.linear_proj.",
    "self_attention.linear_qkv.",
    "self_attention.linear_q_proj.",
    "self_attention.linear_q_down_proj.",
    "self_attention.linear_q_up_proj.",
    "self_attention.linear_kv_down_proj.",
    "self_attention.linear_kv_up_proj.",
    "self_attention.q_layernorm.",
    "self_attention.k_layernorm.",
    "self_attention.kv_layernorm.",
    "pre_mlp_layernorm.",
    "mlp.router.",
    "mlp.fc1_latent_proj.",
    "mlp.fc2_latent_proj.",
    "mlp.experts.",
    "mlp.shared_experts.gate_weight",
    "mlp.shared_experts.linear_fc1.",
    "mlp.shared_experts.linear_fc2.",
    "mlp.linear_fc1.",
    "mlp.linear_fc2.",
]
# Norms that TransformerEngine has inside of the linear layer after them; with latent attention the input norm stays by itself.
_FUSED = {
    "self_attention.linear_qkv.":       "input_layernorm.",
    "self_attention.linear_q_up_proj.": "self_attention.q_layernorm.",
    "self_attention.linear_kv_up_proj.": "self_attention.kv_layernorm.",
    "mlp.linear_fc1.":                  "pre_mlp_layernorm.",
}
# fmt: on
_OF_LAYER = re.compile(r"decoder\.layers\.\d+\.")
_OF_EXPERT = re.compile(r"mlp\.experts\.(?:local_experts\.\d+\.)?(?P<inside>.*)")
_WEIGHT_THEN_BIAS = ("weight", "bias", "weight1", "weight2", "gate_weight", "softmax_offset")


def registered(names: Iterable[str], fused: bool, grouped: bool) -> list[str]:
    """Parameters of one (virtual) stage, by the names of the tables, in the order of its modules.

    `fused`: norms lie in TransformerEngine's linear layers. `grouped`: experts share modules that number their tensors. `NotCarried` for a module whose
    place is not known.
    """
    found = list(names)
    inside: dict[int | None, set[str]] = {}
    for name in found:
        inside.setdefault(layer_of(name), set()).add(_OF_LAYER.sub("", name, count=1))
    orders = {layer: _order_of(of_layer if fused else ()) for layer, of_layer in inside.items()}
    return sorted(found, key=lambda name: _place(name, orders[layer_of(name)], grouped))


def _order_of(fused: Collection[str]) -> dict[str, tuple[int, int]]:
    """The places of the modules in a layer, which has the parameters `fused` where its norms may lie in the linear layers after them."""
    order = {begin: (place, 1) for place, begin in enumerate(_LOCAL)}
    for linear, norm in _FUSED.items():
        if any(name.startswith(linear) for name in fused):
            order[norm] = order[linear][0], 0
    return order


def _place(name: str, order: Mapping[str, tuple[int, int]], grouped: bool) -> tuple[int, ...]:
    outside = next((place for place, begin in enumerate(_OUTSIDE) if name.startswith(begin)), None)
    last = name.rpartition(".")[2]
    layer = layer_of(name)
    if outside is None or last not in _WEIGHT_THEN_BIAS:
        raise _unknown(name)
    kind = _WEIGHT_THEN_BIAS.index(last)
    if layer is None:
        return outside, 0, 0, 0, 0, 0, kind
    rest = _OF_LAYER.sub("", name, count=1)
    part = next((place for begin, place in order.items() if rest.startswith(begin)), None)
    if part is None:
        raise _unknown(name)
    expert, inside = expert_of(name), _OF_EXPERT.fullmatch(rest)
    if expert is None or inside is None:
        return outside, layer, *part, 0, 0, kind
    matrix = int(inside["inside"].startswith("linear_fc2."))
    return (outside, layer, *part, matrix, kind, expert) if grouped else (outside, layer, *part, expert, matrix, kind)


def _unknown(name: str) -> errors.NotCarried:
    return errors.NotCarried(f"the place of {name!r} among the parameters of its module is not known", fix=DROP)
