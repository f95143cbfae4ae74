"""Tensors kept in chunks, and what a distributed checkpoint holds: shared by DCP (`dcp`) and zarr (`zarr`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckpt_core.errors import FormatError
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.opaque import brief
from ckpt_core.storage.tensor import StoredTensor
from ckpt_core.storage.torchzip import read_torch_file

_MOST_ENTANGLED = 1000  # boxes that no straight cut separates; frameworks write none

Span = tuple[tuple[int, ...], tuple[int, ...]]
"""A box inside a tensor: its first index and its size, per dimension."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A torch file inside a file: `length` bytes from `offset`. `name` is what errors call the file."""

    file: str
    offset: int
    length: int
    name: str

    def read(self) -> Any:
        """The object it holds, with a `StoredTensor` for each tensor."""
        try:
            return read_torch_file(self.file, self.offset, self.length)
        except FormatError as problem:
            problem.file = self.name
            raise


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a tensor, from index `origin` on: in a torch file, or plain elements at a known place."""

    origin: tuple[int, ...]
    shape: tuple[int, ...]
    data: Blob | StoredTensor


@dataclass(frozen=True, slots=True)
class ChunkedTensor:
    """A tensor of a distributed checkpoint. `chunks` tile it."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    def stored(self) -> Iterator[tuple[tuple[int, ...], StoredTensor]]:
        """The origin of each chunk and its bytes; reads the header of each torch file."""
        for chunk in self.chunks:
            data = chunk.data
            if isinstance(data, StoredTensor):
                yield chunk.origin, data
                continue
            value = data.read()
            if not isinstance(value, StoredTensor) or (value.dtype, value.shape) != (self.dtype, chunk.shape):
                raise FormatError(
                    f"a chunk of {self.name!r} is not what the checkpoint's metadata says",
                    file=data.name,
                    found=f"{value.dtype} {value.shape}" if isinstance(value, StoredTensor) else brief(value),
                    expected=f"{self.dtype} {chunk.shape} at byte {data.offset}",
                )
            yield chunk.origin, value


@dataclass(frozen=True)
class DistributedCheckpoint:
    """What lies in a folder (or an archive): tensors and objects by name. `described_in` are the files that say so."""

    folder: str
    tensors: Mapping[str, ChunkedTensor]
    objects: Mapping[str, Blob] = field(default_factory=dict)
    described_in: Sequence[str] = ()

    @property
    def files(self) -> list[str]:
        """Every file on disk, those of the description first."""
        held = {blob.file for blob in self.objects.values()}
        held |= {chunk.data.file for tensor in self.tensors.values() for chunk in tensor.chunks}
        return list(dict.fromkeys([*self.described_in, *sorted(held)]))


def check_tiling(name: str, shape: tuple[int, ...], chunks: Sequence[Chunk], file: str) -> None:
    """Raise `FormatError` naming `file` unless the chunks of a tensor cover it without gap or overlap."""
    if not tiles(shape, [(chunk.origin, chunk.shape) for chunk in chunks]):
        raise FormatError(
            f"the chunks of {name!r} do not tile it",
            file=file,
            found="; ".join(f"{chunk.shape} at {chunk.origin}" for chunk in chunks[:4])
            + (" ..." if len(chunks) > 4 else ""),
            expected=f"every element of {shape} once",
        )


def tiles(shape: Sequence[int], boxes: Sequence[Span]) -> bool:
    """Whether boxes cover a shape without gap or overlap.

    >>> tiles((4, 2), [((0, 0), (1, 2)), ((1, 0), (3, 1)), ((1, 1), (3, 1))])
    True
    """
    if math.prod(shape) == 0:
        return not any(math.prod(size) for _, size in boxes)
    if sum(math.prod(size) for _, size in boxes) != math.prod(shape):
        return False
    if any(
        start + size > whole for origin, sizes in boxes for start, size, whole in zip(origin, sizes, shape, strict=True)
    ):
        return False
    return _apart([box for box in boxes if math.prod(box[1])])


def _apart(boxes: Sequence[Span]) -> bool:
    """Whether no two boxes share an element: cut apart along any dimension where nothing crosses the cut."""
    pending = [boxes]
    while pending:
        together = pending.pop()
        if len(together) < 2:
            continue
        groups = next((found for dim in range(len(together[0][0])) if len(found := _groups(together, dim)) > 1), None)
        if groups is not None:
            pending += groups
        elif len(together) > _MOST_ENTANGLED or any(
            _meet(one, two) for one, two in itertools.combinations(together, 2)
        ):
            return False
    return True


def _groups(boxes: Sequence[Span], dim: int) -> list[list[Span]]:
    """Boxes whose extents along a dimension overlap, directly or by way of others."""
    groups: list[list[Span]] = []
    end = -1
    for box in sorted(boxes, key=lambda box: box[0][dim]):
        if box[0][dim] >= end:
            groups.append([])
        groups[-1].append(box)
        end = max(end, box[0][dim] + box[1][dim])
    return groups


def _meet(one: Span, two: Span) -> bool:
    return all(a < b + other and b < a + size for a, size, b, other in zip(one[0], one[1], two[0], two[1], strict=True))
