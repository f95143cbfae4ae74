"""Exact rewrites: the same function, said with another architecture.

A target that cannot say a fact may still hold the model if the fact can be folded into the weights, exactly.
Each rewrite takes a `Model` and returns one; what it did is recorded, so that a reader of the receipt can
undo it. What no rewrite expresses is refused by the target's tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ckpt_core.architecture import Architecture, Attention, Layer, Stack, parameters
from ckpt_core.engine.assembly import Assembly, resized
from ckpt_core.layout import scale
from ckpt_core.storage.dtypes import DType


@dataclass(frozen=True)
class Model:
    """An architecture with its tensors, and the rewrites that led to it."""

    architecture: Architecture
    tensors: dict[str, Assembly]
    rewrites: tuple[str, ...] = ()

    def rewritten(self, architecture: Architecture, tensors: dict[str, Assembly], what: str) -> Model:
        return Model(architecture, tensors, (*self.rewrites, what))


def map_layers(architecture: Architecture, change: Callable[[Layer], Layer]) -> Architecture:
    """The architecture with `change` applied to every layer of every stack."""

    def stack(old: Stack | None) -> Stack | None:
        return None if old is None else replace(old, layers=tuple(map(change, old.layers)))

    return replace(architecture, encoder=stack(architecture.encoder), decoder=stack(architecture.decoder))


def vocabulary_rows(model: Model, rows: int) -> Model:
    """The token tables with `rows` rows: padding cut off, or zeros added. `rows` is at least the true vocabulary."""
    tokens = model.architecture.tokens
    if tokens is None or tokens.padded_vocabulary == rows:
        return model
    architecture = replace(model.architecture, tokens=replace(tokens, padded_vocabulary=rows))
    wanted = parameters(architecture)
    tensors = {
        name: resized(assembly, wanted[name])
        if wanted[name].shape != assembly.parameter.shape
        else replace(assembly, parameter=wanted[name])
        for name, assembly in model.tensors.items()
    }
    return model.rewritten(architecture, tensors, f"vocabulary table of {rows} rows (was {tokens.padded_vocabulary})")


def untied_head(model: Model) -> Model:
    """A tied head written out: the head's matrix is a second copy of the embedding's."""
    head = model.architecture.head
    if head is None or not head.tied:
        return model
    architecture = replace(model.architecture, head=replace(head, tied=False))
    copy = replace(model.tensors["embedding.tokens.weight"], parameter=parameters(architecture)["head.weight"])
    return model.rewritten(architecture, {**model.tensors, "head.weight": copy}, "head untied: a copy of the embedding")


def folded_attention_scale(model: Model) -> Model:
    """Every attention at the usual scale head_dim ** -0.5; what differs is multiplied into q, in float32.

    Exact up to one rounding per element, and without any rounding where the factor is a power of two.
    """
    factors: dict[str, float] = {}
    for prefix, stack in model.architecture.stacks.items():
        for index, layer in enumerate(stack.layers):
            for name in ("attention", "cross_attention"):
                attention: Attention | None = getattr(layer, name)
                if attention is not None and attention.scale is not None:
                    factors[f"{prefix}layers.{index}.{name}.q."] = attention.scale * attention.head_dim**0.5
    if not factors:
        return model

    def usual(layer: Layer) -> Layer:
        changed = {
            name: replace(getattr(layer, name), scale=None)
            for name in ("attention", "cross_attention")
            if getattr(layer, name) is not None
        }
        return replace(layer, **changed)

    tensors = {
        name: replace(assembly, maps=(*assembly.maps, scale(factor)))
        if (factor := next((value for start, value in factors.items() if name.startswith(start)), None)) is not None
        else assembly
        for name, assembly in model.tensors.items()
    }
    described = ", ".join(sorted({f"{factor:.9g}" for factor in factors.values()}))
    return model.rewritten(
        map_layers(model.architecture, usual), tensors, f"attention scale folded into q (factor {described})"
    )


def zero_biases(model: Model, architecture: Architecture, dtype: DType) -> Model:
    """The model under an `architecture` that differs by biases alone; biases the model lacks become zeros."""
    wanted = parameters(architecture)
    added = [name for name in wanted if name not in model.tensors]
    tensors = {
        name: model.tensors[name] if name in model.tensors else Assembly(wanted[name], dtype, (), fill=0.0)
        for name in wanted
    }
    return model.rewritten(architecture, tensors, f"zero biases added ({len(added)} tensors)")
