"""What a rewrite takes and gives, and the steps that rewrites share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ckpt_core import numpy as np
from ckpt_core.architecture import Architecture, Attention, Layer, Mlp, Stack, same_value
from ckpt_core.layout import scale
from ckpt_core.lean import dataclass
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.dtypes import decode
from ckpt_core.tensors.assembly import LazyParameter
from ckpt_core.tensors.box import boxes

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Rewritable:
    """An architecture with its tensors, and the rewrites that led to it.

    `files` are those the tensors are read from, for a rewrite that depends on values.
    """

    architecture: Architecture
    tensors: Mapping[str, LazyParameter]
    rewrites: tuple[str, ...] = ()
    files: Sequence[FileState] = ()

    def rewritten(self, architecture: Architecture, tensors: dict[str, LazyParameter], what: str) -> Rewritable:
        return Rewritable(architecture, tensors, (*self.rewrites, what), self.files)


def map_stacks(architecture: Architecture, change: Callable[[str, Stack], Stack]) -> Architecture:
    """The architecture with `change` applied to the canonical prefix of every stack and the stack."""
    prefixes = {id(stack): prefix for prefix, stack in architecture.stacks.items()}

    def changed(old: Stack | None) -> Stack | None:
        return None if old is None else change(prefixes[id(old)], old)

    return replace(architecture, encoder=changed(architecture.encoder), decoder=changed(architecture.decoder))


def map_layers(architecture: Architecture, change: Callable[[Layer], Layer]) -> Architecture:
    """The architecture with `change` applied to every layer of every stack; those that predict further tokens follow the last."""
    return map_stacks(architecture, lambda _, stack: replace(stack, layers=tuple(map(change, stack.layers))))


def map_attentions(layer: Layer, change: Callable[[Attention], Attention]) -> Layer:
    """The layer with `change` applied to its attention and its cross attention, those that exist."""
    attention, crossing = layer.attention, layer.cross_attention
    return replace(
        layer,
        attention=None if attention is None else change(attention),
        cross_attention=None if crossing is None else change(crossing),
    )


def map_mlp(layer: Layer, change: Callable[[Mlp], Mlp]) -> Layer:
    """The layer with `change` applied to its MLP, if it has one."""
    return layer if layer.mlp is None else replace(layer, mlp=change(layer.mlp))


def attentions(architecture: Architecture) -> Iterator[tuple[str, Attention]]:
    """Every attention and cross attention by the canonical prefix of its parameters."""
    for prefix, stack in architecture.stacks.items():
        for block, layer in stack.blocks.items():
            for name in ("attention", "cross_attention"):
                attention: Attention | None = getattr(layer, name)
                if attention is not None:
                    yield f"{prefix}{block}.{name}", attention


def scaled(assembly: LazyParameter, factor: float) -> LazyParameter:
    """The tensor times a number, in float32."""
    return assembly if same_value(factor, 1.0) else replace(assembly, maps=(*assembly.maps, scale(factor)))


def values_of(assembly: LazyParameter, files: Iterable[FileState]) -> np.ndarray:
    """All float32 values of a tensor, for one that is small and decides what a rewrite does."""
    from ckpt_core.tensors.source import SourceFiles

    source = SourceFiles(files)
    try:
        whole = tuple((0, size) for size in assembly.parameter.shape)
        return decode(source.read(assembly, whole), assembly.value_dtype)
    finally:
        source.close()


def holds_only(assembly: LazyParameter, files: Iterable[FileState], value: float) -> bool:
    """Whether every value of a tensor is `value`; read in pieces, and no further than the first that is not."""
    from ckpt_core.tensors.source import SourceFiles

    source = SourceFiles(files)
    try:
        pieces = (source.read(assembly, box) for box in boxes(assembly.parameter.shape, _CHUNK))
        return all(bool((decode(piece, assembly.value_dtype) == value).all()) for piece in pieces)
    finally:
        source.close()
