"""A small checkpoint in place of a deep one, for questions whose answers depend on the kinds of its layers alone.

    the layers      A A A A A A B B B B      A B A B A B A B A        A (B C C) (B C C) (B C C)
    the stand-in    A A B B                  A B A B A                A (B C C) (B C C)

Whether a format holds a model, and what it loses, does not depend on how often a layer follows one of its own kind, but
may depend on whether one does, and in which order the kinds come.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

from ckpt_core.architecture import Architecture, Layer, Stack, parameters
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.lean import dataclass
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.dtypes import DType, commonest
from ckpt_core.tensors.assembly import LazyParameter

_KEPT = 2  # of what repeats
_LONGEST = 16  # layers of a pattern that repeats; Gemma 3 has six


class ValuesAsked(CkptError):
    """The answer depends on values, and a stand-in has those of few layers."""


class _Unread(list[FileState]):
    """The files of a stand-in: what looks into them asks for the values of the tensors."""

    def __iter__(self) -> NoReturn:
        raise ValuesAsked("a stand-in has no values")


@dataclass(frozen=True)
class StandIn:
    """`checkpoint` has layers of every kind; each stands for as many of the whole as `copies` says, by canonical prefix."""

    checkpoint: Checkpoint
    copies: Mapping[str, int]

    def stands_for(self, parameter: str) -> int:
        """How many parameters of the whole checkpoint a parameter stands for."""
        before, found, rest = parameter.partition("layers.")
        return self.copies[f"{before}{found}{rest.partition('.')[0]}."] if found else 1


def stand_in(checkpoint: Checkpoint) -> StandIn | None:
    """A stand-in with fewer layers than the checkpoint, None if there is none."""
    whole = checkpoint.architecture
    held = _by_layer(checkpoint.tensors)
    stacks = whole.stacks
    kinds = {
        prefix: [_kind(layer, held.get(f"{prefix}layers.{index}.", {})) for index, layer in enumerate(stack.layers)]
        for prefix, stack in stacks.items()
    }
    longest = max((len(stack.layers) for stack in stacks.values()), default=0)
    lengths = {len(stack.layers) for stack in stacks.values()}
    # a format may have stacks of one depth alone: those of two depths are cut to two
    kept = {
        prefix: _cut(kinds[prefix], _KEPT + (len(lengths) > 1 and len(stack.layers) == longest))
        for prefix, stack in stacks.items()
    }
    if all(len(kept[prefix]) == len(stack.layers) for prefix, stack in stacks.items()):
        return None
    if len({len(layers) for layers in kept.values()}) != len(lengths):
        return None
    architecture = _with_layers(whole, kept)
    names = {name: name for name in checkpoint.tensors if "layers." not in name}
    for prefix, layers in kept.items():
        for index, (original, _) in enumerate(layers):
            old, new = f"{prefix}layers.{original}.", f"{prefix}layers.{index}."
            names |= {f"{new}{rest}": f"{old}{rest}" for rest in held.get(old, {})}
    known = parameters(architecture)
    if names.keys() != known.keys():
        return None
    tensors = {name: replace(checkpoint.tensors[names[name]], parameter=known[name]) for name in known}
    if _most(tensors) != _most(checkpoint.tensors):
        return None  # some formats store all tensors as most are stored
    copies = {
        f"{prefix}layers.{index}.": count for prefix, layers in kept.items() for index, (_, count) in enumerate(layers)
    }
    small = replace(checkpoint, architecture=architecture, tensors=tensors, files=_Unread())
    return StandIn(small, copies)


def _by_layer(tensors: Mapping[str, LazyParameter]) -> dict[str, dict[str, LazyParameter]]:
    """The tensors of each layer, by the layer's canonical prefix and what follows it."""
    found: dict[str, dict[str, LazyParameter]] = {}
    for name, assembly in tensors.items():
        before, mark, rest = name.partition("layers.")
        if mark:
            index, _, rest = rest.partition(".")
            found.setdefault(f"{before}{mark}{index}.", {})[rest] = assembly
    return found


def _kind(layer: Layer, tensors: Mapping[str, LazyParameter]) -> object:
    """What a layer computes, and all of its tensors but for the place and the values of the data."""
    return layer, tuple(
        (
            name,
            held.dtype,
            held.maps,
            held.fill,
            tuple((factor.assembly.parameter.shape, factor.assembly.bits, factor.axes) for factor in held.factors),
            tuple((term.rows, term.weights) for term in held.added),
            held.merged is not None,
        )
        for name, held in sorted(tensors.items())
    )


def _cut(kinds: Sequence[object], most: int) -> list[tuple[int, int]]:
    """The layers to keep, and how many each stands for: of a kind, or a pattern of kinds, that repeats the first `most`.

    >>> _cut("AAAAAAB", 2)
    [(0, 1), (1, 5), (6, 1)]
    >>> _cut("ABABABA", 2)
    [(0, 1), (1, 1), (2, 2), (3, 2), (6, 1)]
    """
    numbers: dict[object, int] = {}
    row = [numbers.setdefault(kind, len(numbers)) for kind in kinds]
    return list(_kept(row, most))


def _kept(row: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    at = 0
    while at < len(row):
        length, times = max(
            ((length, _times(row, at, length)) for length in range(1, _LONGEST + 1)),
            key=lambda found: (found[0] * (found[1] - min(found[1], most)), -found[0]),
        )
        shown = min(times, most)
        for index in range(length * shown):
            last = index >= length * (shown - 1)
            yield at + index, 1 + (times - shown if last else 0)
        at += length * times


def _times(row: Sequence[int], at: int, length: int) -> int:
    """How often the `length` numbers from `at` on follow one another there."""
    pattern, times = row[at : at + length], 1
    while row[at + times * length : at + (times + 1) * length] == pattern:
        times += 1
    return times


def _with_layers(whole: Architecture, kept: Mapping[str, Sequence[tuple[int, int]]]) -> Architecture:
    prefixes = {id(stack): prefix for prefix, stack in whole.stacks.items()}

    def cut(stack: Stack | None) -> Stack | None:
        if stack is None:
            return None
        return replace(stack, layers=tuple(stack.layers[index] for index, _ in kept[prefixes[id(stack)]]))

    return replace(whole, encoder=cut(whole.encoder), decoder=cut(whole.decoder))


def _most(tensors: Mapping[str, LazyParameter]) -> DType | None:
    return commonest(assembly.dtype for assembly in tensors.values()) if tensors else None
