"""Which file holds which part of a canonical tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ckpt_core.architecture import Parameter
from ckpt_core.layout import Tile
from ckpt_core.tensors.assembly import LazyParameter, StoredPart
from ckpt_core.tensors.box import Box


@dataclass(frozen=True, slots=True)
class FileShare:
    """What one file holds of a canonical tensor: `box` is the smallest that has all of it, `elements` counts it.

    `role` is `weights`, or, for what is compared with them while they are read, `copy` (the same values again) or
    `rounded` (the same in a narrower dtype), or `averaged` (another rank's values, of which the mean is taken).
    """

    path: str
    box: Box
    elements: int
    role: str

    @property
    def dense(self) -> bool:
        """Whether everything in the box is in the file."""
        return self.elements == math.prod(stop - start for start, stop in self.box)


def shares_of(assembly: LazyParameter) -> list[FileShare]:
    """The shares of all files in a tensor, those of the weights first, in the order of their place in the tensor.

    A tensor that is computed (a sum of others, a constant) has none of its own.
    """
    found = _shares(assembly.value_blocks, "weights") + _shares(assembly.copies, "copy")
    found += _shares(assembly.rounded, "rounded")
    return found + [share for rank in assembly.averaged for share in _shares(rank, "averaged")]


def _shares(blocks: Iterable[StoredPart], role: str) -> list[FileShare]:
    held: dict[str, tuple[Box, int]] = {}
    for block in blocks:
        box, elements = bounds(block.tile), block.tile.elements
        if block.path in held:
            before, count = held[block.path]
            box = tuple((min(a, c), max(b, d)) for (a, b), (c, d) in zip(before, box, strict=True))
            elements += count
        held[block.path] = box, elements
    shares = [FileShare(path, box, elements, role) for path, (box, elements) in held.items()]
    return sorted(shares, key=lambda share: share.box)


def bounds(tile: Tile) -> Box:
    """The smallest box of the canonical tensor that has all of a tile."""
    stops = [base + 1 for base in tile.canonical_base]
    for link in tile.links:
        stops[link.axis] += (link.size - 1) * link.step
    return tuple(zip(tile.canonical_base, stops, strict=True))


def cut_text(parameter: Parameter, shares: Iterable[FileShare]) -> str:
    """How the weights of a tensor are cut, in words: `g in 4 parts`, `x in 2, f in 4 parts`, `whole`."""
    own = [share for share in shares if share.role == "weights"]
    if not own:
        return "computed"
    cuts, partial = [], []
    for number, axis in enumerate(parameter.axes):
        ranges = {share.box[number] for share in own}
        if len(ranges) > 1:
            cuts.append(f"{axis.name} in {len(ranges)}")
        elif ranges != {(0, axis.size)}:
            ((start, stop),) = ranges
            partial.append(f"{axis.name} {start} to {stop} of {axis.size}")
    text = ", ".join(cuts) + " parts" * bool(cuts) or ("" if partial else "whole")
    words = [text, *partial, "" if all(share.dense for share in own) else "in strides"]
    return ", ".join(word for word in words if word)


def box_text(parameter: Parameter, box: Box) -> str:
    """A box by the axes along which it is not all of the tensor: `g 2 to 4`; `all` if it is."""
    parts = [
        f"{axis.name} {start} to {stop}"
        for axis, (start, stop) in zip(parameter.axes, box, strict=True)
        if (start, stop) != (0, axis.size)
    ]
    return ", ".join(parts) or "all"
