"""Norms that are stored less one, and the epsilon of those on latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from ckpt_core.architecture import Layer, Norm
from ckpt_core.layout import plus_one
from ckpt_core.rewrite.model import Rewritable, map_layers


def uncentred_norms(model: Rewritable) -> Rewritable:
    """Norms whose weight is the factor itself: one is added, in float32, where it was stored less one (layernorm1p).

    Only where that is so for all norms; exact up to one rounding per element.
    """
    norms = [norm for norm in _norms(model.architecture) if norm.weight]
    if not norms or not all(norm.zero_centred for norm in norms):
        return model
    tensors = {
        name: replace(assembly, maps=(*assembly.maps, plus_one)) if name.endswith("norm.weight") else assembly
        for name, assembly in model.tensors.items()
    }
    architecture = _with_norms(model.architecture, lambda norm: replace(norm, zero_centred=False))
    return model.rewritten(architecture, tensors, "one added to the weights of norms, which were stored less one")


def latent_norms(model: Rewritable, eps: float) -> Rewritable:
    """The norms on the latents of queries and keys with the epsilon `eps`: another function, done only where it is asked for."""

    def changed(layer: Layer) -> Layer:
        latent = layer.latent_attention
        if latent is None:
            return layer
        q_norm = latent.q_norm and replace(latent.q_norm, eps=eps)
        return replace(layer, latent_attention=replace(latent, q_norm=q_norm, kv_norm=replace(latent.kv_norm, eps=eps)))

    architecture = map_layers(model.architecture, changed)
    if architecture == model.architecture:
        return model
    return model.rewritten(architecture, dict(model.tensors), f"norms on latents take the epsilon {eps:g}")


def _norms(value: object) -> Iterator[Norm]:
    if isinstance(value, Norm):
        yield value
    elif isinstance(value, tuple):
        for one in dict.fromkeys(value):
            yield from _norms(one)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _norms(getattr(value, field.name))


def _with_norms(value: Any, change: Callable[[Norm], Norm]) -> Any:
    """A part of an architecture with `change` applied to every norm in it."""
    if isinstance(value, Norm):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_with_norms(one, change) for one in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{field.name: _with_norms(getattr(value, field.name), change) for field in fields(value)})
