"""Canonical tensors whose elements take turns in a native tensor, as those of gate and up do in gpt-oss: they are written together.

Each alone has runs of a few bytes in the file, and a write of each run costs more than all else. So the transfer of the first of
them reads the same boxes of the others, too, and writes long runs; the transfers of the others leave those bytes to it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ckpt_core import numpy as np
from ckpt_core.layout import Link, Part, Tile, ValueMap
from ckpt_core.lean import dataclass
from ckpt_core.storage.dtypes import DType
from ckpt_core.tensors.assembly import LazyParameter
from ckpt_core.tensors.box import Box
from ckpt_core.tensors.stored import stored_values

if TYPE_CHECKING:
    from ckpt_core.tensors.source import SourceFiles

SHORT = 512
"""Runs of fewer bytes are woven: a write of one costs about as much as copying this much."""
_FEW = 64
"""Of so few runs each is written by itself: to read the others again would cost as much."""


@dataclass(frozen=True, slots=True)
class Strand:
    """A tensor that takes turns with others in a native tensor: `turn` elements of each at a time.

    The first of them has all `others`, in the order in which they follow it in the file, and its transfer writes them all. The others have none.
    """

    turn: int
    others: tuple[LazyParameter, ...]

    def written(self, tile: Tile) -> list[Tile]:
        """The elements that are written in place of those of a flat tile: of all that take turns, or none.

        The last link is no loop over the tensor: it has no step.
        """
        if not self.others:
            return []
        turns = Link(1 + len(self.others), 0, 0, 0, self.turn)
        return [Tile((*tile.links, turns), tile.canonical_base, tile.native_base)]


def strands(
    pieces: Sequence[tuple[Part, Tile]], tensors: Mapping[str, LazyParameter], itemsize: int
) -> dict[int, Strand]:
    """Which of the `pieces` of a native tensor take turns in runs that are short, by number; each comes with its tile over flat elements.

    They are alike: their tiles differ in nothing but where they begin, and together they leave no gap.
    """
    alike: dict[tuple[tuple[int, ...], tuple[Link, ...], tuple[int, ...]], list[tuple[int, int]]] = {}
    for number, (piece, tile) in enumerate(pieces) if len(pieces) > 1 else ():
        turn, turns = _turns(tile.links)
        if turns > 1 and turn * itemsize < SHORT and tile.elements > _FEW * turn and piece.parameter in tensors:
            key = tensors[piece.parameter].parameter.shape, tile.links, tile.canonical_base
            alike.setdefault(key, []).append((tile.native_base[0], number))
    found = {}
    for (_, links, _), places in alike.items():
        turn, turns = _turns(links)
        places.sort()
        while places:
            first = places[0][0]
            group = places[:turns]
            if [base for base, _ in group] != [first + turn * number for number in range(turns)]:
                places.pop(0)
                continue
            del places[:turns]
            (_, lead), *rest = group
            found[lead] = Strand(turn, tuple(tensors[pieces[number][0].parameter] for _, number in rest))
            found |= {number: Strand(turn, ()) for _, number in rest}
    return found


@functools.lru_cache(maxsize=1 << 10)
def _turns(links: tuple[Link, ...]) -> tuple[int, int]:
    """How many elements of a flat tile follow one another in the file, and how many such runs fit between one and the next."""
    turn = 1
    for link in sorted((link for link in links if link.size > 1), key=lambda link: link.stride):
        if link.stride != turn:
            return turn, link.stride // turn if link.stride % turn == 0 else 1
        turn *= link.size
    return turn, 1


class Beside:
    """What other tensors have in one box of a tensor at hand: each is read once, however many deliveries need it."""

    def __init__(self, source: SourceFiles, box: Box) -> None:
        self._source = source
        self._box = box
        self._read: dict[str, np.ndarray] = {}
        self._stored: dict[tuple[str, int], np.ndarray] = {}

    def stored(self, strand: Strand, dtype: DType, maps: tuple[ValueMap, ...], kind: int) -> list[np.ndarray]:
        """The values of a strand's others in the box, as they are stored in `dtype` after `maps`; `kind` is a number for these two."""
        return [self._one(other, dtype, maps, kind) for other in strand.others]

    def _one(self, other: LazyParameter, dtype: DType, maps: tuple[ValueMap, ...], kind: int) -> np.ndarray:
        name = other.parameter.name
        if (name, kind) not in self._stored:
            if name not in self._read:
                self._read[name] = self._source.read(other, self._box)
            self._stored[name, kind] = stored_values(self._read[name], other.value_dtype, dtype, maps, name)
        return self._stored[name, kind]


def others_of(strands: Iterable[Strand | None]) -> dict[str, LazyParameter]:
    """The tensors that are read besides the one at hand, by name."""
    return {other.parameter.name: other for strand in strands if strand is not None for other in strand.others}
