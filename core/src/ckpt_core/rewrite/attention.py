"""Factors of attention: of the scores, of heads, of the relative bias."""

from __future__ import annotations

from dataclasses import replace

from ckpt_core import numpy as np
from ckpt_core.architecture import Attention, Layer, RelativeBias, Stack, parameters, same_value
from ckpt_core.rewrite.model import Rewritable, attentions, map_attentions, map_layers, map_stacks, scaled, values_of
from ckpt_core.tensors.assembly import Factor


def folded_attention_scale(model: Rewritable, wanted: float | None = None) -> Rewritable:
    """Every attention at the scale `wanted` (None: head_dim ** -0.5); what differs is multiplied into q, in float32.

    Where q is normed, into the weights of that norm, after which alone a factor lasts; a norm that has none, or stores
    them less one, keeps the scale of its attention. Exact up to one rounding per element, and without any rounding where
    the factor is a power of two.
    """
    factors = {
        f"{name}.q_norm" if attention.qk_norm else f"{name}.q": (attention.scale or attention.head_dim**-0.5)
        / (wanted or attention.head_dim**-0.5)
        for name, attention in attentions(model.architecture)
        if attention.scale != wanted and _lasts(attention)
    }
    if not factors:
        return model
    factors = {name: factor for name, factor in factors.items() if not same_value(factor, 1.0)}
    tensors = {
        name: scaled(assembly, factors.get(name.rpartition(".")[0], 1.0)) for name, assembly in model.tensors.items()
    }

    def folded(attention: Attention) -> Attention:
        return replace(attention, scale=wanted) if _lasts(attention) else attention

    architecture = map_layers(model.architecture, lambda layer: map_attentions(layer, folded))
    if not factors:
        return replace(model, architecture=architecture)  # the same number, computed in another order
    described = ", ".join(sorted({f"{factor:.9g}" for factor in factors.values()}))
    return model.rewritten(architecture, tensors, f"attention scale folded into q (factor {described})")


def _lasts(attention: Attention) -> bool:
    """Whether a factor of the queries can be said by a weight."""
    norm = attention.qk_norm
    return norm is None or (norm.weight and not norm.zero_centred)


def folded_head_scale(model: Rewritable) -> Rewritable:
    """Learned factors per head on the attention output, multiplied into the columns of the output projection."""
    scaled_heads = [name for name, attention in attentions(model.architecture) if attention.head_scale]
    if not scaled_heads:
        return model
    tensors = dict(model.tensors)
    for name in scaled_heads:
        factor = Factor(tensors.pop(f"{name}.head_scale.weight"), axes=(1, 2))  # out is h g r d
        out = tensors[f"{name}.out.weight"]
        tensors[f"{name}.out.weight"] = replace(out, factors=(*out.factors, factor))
    architecture = map_layers(
        model.architecture, lambda layer: map_attentions(layer, lambda attention: replace(attention, head_scale=False))
    )
    return model.rewritten(architecture, tensors, f"head scale folded into out ({len(scaled_heads)} layers)")


def own_relative_bias(model: Rewritable) -> Rewritable:
    """Every layer with a relative bias of its own: a copy of its stack's table, times the layer's factor."""

    def own(_: str, stack: Stack) -> Stack:
        if not _shares_bias(stack):
            return stack
        layers = [
            _with_bias(layer, relative_bias=stack.relative_bias, relative_bias_scale=1.0) for layer in stack.layers
        ]
        return replace(stack, relative_bias=None, layers=tuple(layers))

    architecture = map_stacks(model.architecture, own)
    if architecture == model.architecture:
        return model
    tensors, known = dict(model.tensors), parameters(architecture)
    for prefix, stack in model.architecture.stacks.items():
        if _shares_bias(stack):
            table = tensors.pop(f"{prefix}relative_bias.weight")
            for index, layer in enumerate(stack.layers):
                name = _own_table(prefix, index)
                factor = layer.attention.relative_bias_scale if layer.attention else 1.0
                tensors[name] = scaled(replace(table, parameter=known[name]), factor)
    return model.rewritten(architecture, tensors, "relative bias copied to every layer, times the layer's factor")


def shared_relative_bias(model: Rewritable) -> Rewritable:
    """One relative bias for every stack whose layers' own ones are all the same, or the layer's number (from 1) times the first.

    Reads the tables, which are small. What is neither is left as it is.
    """
    factors = {prefix: _factors(model, prefix, stack) for prefix, stack in model.architecture.stacks.items()}
    if not any(factors.values()):
        return model

    def shared(prefix: str, stack: Stack) -> Stack:
        first = stack.layers[0].attention
        if not factors[prefix] or first is None:
            return stack
        pairs = zip(stack.layers, factors[prefix], strict=True)
        layers = [_with_bias(layer, relative_bias=None, relative_bias_scale=factor) for layer, factor in pairs]
        return replace(stack, relative_bias=first.relative_bias, layers=tuple(layers))

    architecture = map_stacks(model.architecture, shared)
    tensors, known = dict(model.tensors), parameters(architecture)
    for prefix, found in factors.items():
        tables = [tensors.pop(_own_table(prefix, index)) for index in range(len(found))]
        if tables:
            name = f"{prefix}relative_bias.weight"
            tensors[name] = replace(tables[0], parameter=known[name])
    return model.rewritten(
        architecture, tensors, "one relative bias for all layers, as those of the layers are multiples of it"
    )


def _factors(model: Rewritable, prefix: str, stack: Stack) -> list[float]:
    """What the first layer's own relative bias is multiplied by to give that of each layer; empty if nothing is."""
    names = [_own_table(prefix, index) for index in range(len(stack.layers))]
    kinds = {layer.attention.relative_bias for layer in stack.layers if layer.attention}
    if len(kinds) != 1 or not all(name in model.tensors for name in names):
        return []
    tables = [values_of(model.tensors[name], model.files) for name in names]
    numbers = [float(number) for number in range(1, len(tables) + 1)]
    for factors in ([1.0] * len(tables), numbers):
        pairs = zip(tables, factors, strict=True)
        if all(np.array_equal(table, tables[0] * np.float32(factor)) for table, factor in pairs):
            return factors
    return []


def _own_table(prefix: str, index: int) -> str:
    return f"{prefix}layers.{index}.attention.relative_bias.weight"


def _shares_bias(stack: Stack) -> bool:
    return stack.relative_bias is not None and all(layer.attention is not None for layer in stack.layers)


def _with_bias(layer: Layer, relative_bias: RelativeBias | None, relative_bias_scale: float) -> Layer:
    if layer.attention is None:
        return layer
    attention = replace(layer.attention, relative_bias=relative_bias, relative_bias_scale=relative_bias_scale)
    return replace(layer, attention=attention)
