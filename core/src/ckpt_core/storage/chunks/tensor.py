"""Tensors kept in chunks, and what a distributed checkpoint holds: shared by DCP (`dcp`) and zarr (`zarr`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any

from ckpt_core.errors import FormatError
from ckpt_core.lean import dataclass
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.pickle.opaque import brief
from ckpt_core.storage.tensor import StoredTensor

METADATA = ".metadata"
"""The file of a torch distributed checkpoint that says what lies where."""
# Of all boxes of a tensor, along the axes that are cut: 200 MB of memory. A million chunks along one axis have so many.
_MOST_CORNERS = 1 << 21

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
        from ckpt_core.storage.torch.reading import read_torch_file

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


def lies_plain(tensor: ChunkedTensor, chunk: Chunk) -> bool:
    """Whether the place of a chunk has the length of its bare elements, as of a safetensors container. A torch file around them is longer."""
    return isinstance(chunk.data, Blob) and chunk.data.length == math.prod(chunk.shape) * tensor.dtype.size


@dataclass(frozen=True)
class DistributedCheckpoint:
    """What lies in a folder (or an archive): tensors and objects by name. `described_in` are the files that say so.

    Where there are none, `lacking` is the error about files that the names of others speak of. It is to be raised unless all that is wanted is there.
    """

    folder: str
    tensors: Mapping[str, ChunkedTensor]
    objects: Mapping[str, Blob] = field(default_factory=dict)
    described_in: Sequence[str] = ()
    lacking: FormatError | None = None

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
    return _exactly(shape, [box for box in boxes if math.prod(box[1])])


def _exactly(shape: Sequence[int], boxes: Sequence[Span]) -> bool:
    """Whether every element of a shape is in one box, and nothing else is in any.

    The number of boxes around each element, taken as a function, is known by its differences along all axes, and those
    of a box are nothing but at its corners, where they are 1 and -1 in turn. So the corners of the boxes must cancel
    out, but for those of the whole: work that grows as the boxes do, however they lie.
    """
    cut = [dim for dim, whole in enumerate(shape) if any(sizes[dim] != whole for _, sizes in boxes)]
    if len(boxes) << len(cut) > _MOST_CORNERS:
        return False
    left: dict[int, int] = {}

    def enter(origin: Sequence[int], sizes: Sequence[int], sign: int) -> None:
        corners = [(0, sign)]
        for dim in cut:
            start, stop, count = origin[dim], origin[dim] + sizes[dim], shape[dim] + 1
            corners = [end for at, one in corners for end in ((at * count + start, one), (at * count + stop, -one))]
        for at, one in corners:
            if total := left.get(at, 0) + one:
                left[at] = total
            else:
                del left[at]

    enter((0,) * len(shape), shape, -1)
    for origin, sizes in boxes:
        enter(origin, sizes, 1)
    return not left
