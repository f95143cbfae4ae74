"""PyTorch distributed checkpoints (DCP), read without torch: which bytes hold which part of which tensor.

    .metadata        a pickle of torch.distributed.checkpoint.metadata.Metadata
    __0_0.distcp     torch files one after the other, each one chunk of a tensor, or one object

`.metadata` names every tensor with its dtype, its shape and the chunks that tile it, and for each chunk the file,
the first byte and the number of bytes. All of that is checked here; nothing of it is believed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt_core.errors import FormatError, Problems
from ckpt_core.storage.byterange import ByteRange
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.opaque import Opaque, brief
from ckpt_core.storage.pickles import read_pickle
from ckpt_core.storage.tensor import StoredTensor
from ckpt_core.storage.torchzip import read_torch_file

METADATA = ".metadata"
_MODULE = "torch.distributed.checkpoint."
# Megatron-Core 0.15 pickles a subclass of Metadata; its fields are the same.
_METADATA_CLASSES = (f"{_MODULE}metadata.Metadata", "megatron.core.dist_checkpointing.strategies.torch.MCoreMetadata")
_MAX_SIZE = 1 << 62

Span = tuple[tuple[int, ...], tuple[int, ...]]
"""A box inside a tensor: its first index and its size, per dimension."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A torch file inside a file: `length` bytes from `offset`."""

    file: str
    offset: int
    length: int

    def read(self) -> Any:
        """The object it holds, with a `StoredTensor` for each tensor."""
        return read_torch_file(self.file, self.offset, self.length)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a tensor, from index `origin` on, and the blob that holds it."""

    origin: tuple[int, ...]
    shape: tuple[int, ...]
    blob: Blob


@dataclass(frozen=True, slots=True)
class ChunkedTensor:
    """A tensor of a distributed checkpoint. `chunks` tile it."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    def stored(self) -> Iterator[tuple[tuple[int, ...], StoredTensor]]:
        """The origin of each chunk and its bytes; reads the header of each blob."""
        for chunk in self.chunks:
            value = chunk.blob.read()
            if not isinstance(value, StoredTensor) or (value.dtype, value.shape) != (self.dtype, chunk.shape):
                raise FormatError(
                    f"a chunk of {self.name!r} is not what {METADATA} says",
                    file=chunk.blob.file,
                    found=f"{value.dtype} {value.shape}" if isinstance(value, StoredTensor) else brief(value),
                    expected=f"{self.dtype} {chunk.shape} at byte {chunk.blob.offset}",
                )
            yield chunk.origin, value


@dataclass(frozen=True)
class DistributedCheckpoint:
    """What lies in a folder: tensors and objects by name, and the files that hold them."""

    folder: str
    tensors: Mapping[str, ChunkedTensor]
    objects: Mapping[str, Blob] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Every file, `.metadata` first."""
        blobs = [*self.objects.values(), *(chunk.blob for tensor in self.tensors.values() for chunk in tensor.chunks)]
        return [os.path.join(self.folder, METADATA), *sorted({blob.file for blob in blobs})]


def read_distributed(folder: str | os.PathLike[str]) -> DistributedCheckpoint:
    """What a folder's `.metadata` describes, every path, offset and length checked; raises all problems at once."""
    folder = os.fspath(folder)
    path = os.path.join(folder, METADATA)
    fields = _fields(_unpickled(path), _METADATA_CLASSES, path)
    described, located = fields.get("state_dict_metadata"), fields.get("storage_data")
    if not isinstance(described, dict) or not isinstance(located, dict):
        raise FormatError("the metadata lists no tensors", file=path, found=", ".join(fields), expected="state_dict_metadata, storage_data")
    blobs = _blobs(located, folder, path)
    problems = Problems(f"reading {path}")
    tensors: dict[str, ChunkedTensor] = {}
    objects: dict[str, Blob] = {}
    for name, entry in described.items():
        try:
            if not isinstance(name, str) or not isinstance(entry, Opaque):
                raise FormatError("an entry of the metadata is no tensor and no object", file=path, found=brief(entry))
            if entry.qualname == f"{_MODULE}metadata.BytesStorageMetadata":
                objects[name] = _only(blobs.pop(name, {}), name, path)
            else:
                tensors[name] = _tensor(name, entry, blobs.pop(name, {}), path)
        except FormatError as problem:
            problems.add(problem)
    for name in blobs:
        problems.add(FormatError(f"the metadata locates {name!r}, but does not describe it", file=path))
    problems.raise_any()
    return DistributedCheckpoint(folder, tensors, objects)


def _unpickled(path: str) -> Any:
    try:
        with Path(path).open("rb") as stream:
            return read_pickle(ByteRange(stream, path), path)
    except OSError as error:
        raise FormatError("the file can't be read", file=path, found=error.strerror) from error


def _fields(value: object, classes: Sequence[str], path: str) -> dict[str, Any]:
    if not isinstance(value, Opaque) or value.qualname not in classes:
        raise FormatError("the metadata is of another kind", file=path, found=brief(value), expected=" or ".join(classes))
    return value.fields()


def _blobs(located: Mapping[object, object], folder: str, path: str) -> dict[str, dict[tuple[int, ...] | None, Blob]]:
    """Where everything lies, by name and (for tensors) by the chunk's first index."""
    found: dict[str, dict[tuple[int, ...] | None, Blob]] = {}
    sizes: dict[str, int] = {}
    problems = Problems(f"reading {path}")
    for index, info in located.items():
        try:
            key = _fields(index, [f"{_MODULE}metadata.MetadataIndex"], path)
            name, origin = key.get("fqn"), key.get("offset")
            if not isinstance(name, str) or not (origin is None or _is_shape(origin)):
                raise FormatError("an index of the metadata is impossible", file=path, found=f"{brief(name)} at {brief(origin)}")
            blob = _blob(_fields(info, [f"{_MODULE}filesystem._StorageInfo"], path), name, folder, path, sizes)
            if found.setdefault(name, {}).setdefault(None if origin is None else tuple(origin), blob) is not blob:
                raise FormatError(f"{name!r} has two chunks at {origin}", file=path)
        except FormatError as problem:
            problems.add(problem)
    problems.raise_any()
    _check_overlap((blob for blobs in found.values() for blob in blobs.values()), path)
    return found


def _blob(info: Mapping[str, Any], name: str, folder: str, path: str, sizes: dict[str, int]) -> Blob:
    relative, offset, length = info.get("relative_path"), info.get("offset"), info.get("length")
    if info.get("transform_descriptors"):
        raise FormatError(f"{name!r} is stored compressed or encrypted", file=path, expected="plain torch files")
    if not isinstance(relative, str) or not all(type(number) is int and 0 <= number < _MAX_SIZE for number in (offset, length)):
        raise FormatError(f"the place of {name!r} is impossible", file=path, found=f"{brief(relative)}, bytes {brief(offset)}, {brief(length)}")
    if relative not in sizes:
        sizes[relative] = _size_inside(relative, folder, path)
    if offset + length > sizes[relative]:
        raise FormatError(
            f"{name!r} lies outside the file that holds it",
            file=os.path.join(folder, relative),
            found=f"bytes {offset} to {offset + length} of {sizes[relative]}",
            fix="copy the file again; it is cut off or belongs to another checkpoint",
        )
    return Blob(os.path.join(folder, relative), offset, length)


def _size_inside(relative: str, folder: str, path: str) -> int:
    """The size of a file that the metadata names; links and paths that leave the folder are refused."""
    parts = relative.split("/")
    if os.path.isabs(relative) or not all(parts) or {".", ".."} & set(parts) or "\0" in relative or "\\" in relative:
        raise FormatError("the metadata names a file outside the folder", file=path, found=brief(relative))
    full = os.path.join(folder, relative)
    if not os.path.isfile(full):
        raise FormatError("a file of the checkpoint is missing", file=full, expected=f"it is named in {METADATA}")
    real, root = os.path.realpath(full), os.path.realpath(folder)
    if not real.startswith(root + os.sep):
        raise FormatError("a file of the checkpoint is a link that leaves its folder", file=full, found=real)
    return os.path.getsize(full)


def _check_overlap(blobs: Iterator[Blob], path: str) -> None:
    last: Blob | None = None
    for blob in sorted(blobs, key=lambda blob: (blob.file, blob.offset)):
        if last is not None and last.file == blob.file and blob.offset < last.offset + last.length:
            raise FormatError(
                "two entries of the metadata share bytes",
                file=path,
                found=f"byte {blob.offset} of {os.path.basename(blob.file)}",
                expected=f"nothing before byte {last.offset + last.length}",
            )
        last = blob


def _only(blobs: Mapping[tuple[int, ...] | None, Blob], name: str, path: str) -> Blob:
    if len(blobs) != 1:
        raise FormatError(f"the object {name!r} lies in {len(blobs)} places", file=path, expected="one")
    (blob,) = blobs.values()
    return blob


def _tensor(name: str, entry: Opaque, blobs: Mapping[tuple[int, ...] | None, Blob], path: str) -> ChunkedTensor:
    fields = _fields(entry, [f"{_MODULE}metadata.TensorStorageMetadata"], path)
    dtype, shape, chunks = _dtype(fields.get("properties")), fields.get("size"), fields.get("chunks")
    if dtype is None or not _is_shape(shape) or not isinstance(chunks, list):
        raise FormatError(f"the description of {name!r} is impossible", file=path, found=f"{brief(dtype)} {brief(shape)} {brief(chunks)}")
    found = []
    for chunk in chunks:
        box = _fields(chunk, [f"{_MODULE}metadata.ChunkStorageMetadata"], path)
        origin, size = box.get("offsets"), box.get("sizes")
        if not _is_shape(origin) or not _is_shape(size) or not len(origin) == len(size) == len(shape):
            raise FormatError(f"a chunk of {name!r} is impossible", file=path, found=f"{brief(size)} at {brief(origin)}")
        if tuple(origin) not in blobs:
            raise FormatError(f"the chunk of {name!r} at {origin} lies nowhere", file=path)
        found.append(Chunk(tuple(origin), tuple(size), blobs[tuple(origin)]))
    if len(found) != len(blobs) or not tiles(tuple(shape), [(chunk.origin, chunk.shape) for chunk in found]):
        raise FormatError(
            f"the chunks of {name!r} do not tile it",
            file=path,
            found="; ".join(f"{chunk.shape} at {chunk.origin}" for chunk in found[:4]) + (" ..." if len(found) > 4 else ""),
            expected=f"every element of {tuple(shape)} once",
        )
    return ChunkedTensor(name, dtype, tuple(shape), tuple(found))


def _is_shape(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) <= 64 and all(type(size) is int and 0 <= size < _MAX_SIZE for size in value)


def _dtype(properties: object) -> DType | None:
    """The dtype in a TensorProperties, whose state is a tuple that begins with it (or, in old torch, a dict)."""
    if not isinstance(properties, Opaque):
        return None
    state = properties.state
    dtype = state[0] if isinstance(state, tuple) and state else state.get("dtype") if isinstance(state, dict) else None
    return dtype if isinstance(dtype, DType) else None


def tiles(shape: Sequence[int], boxes: Sequence[Span]) -> bool:
    """Whether boxes cover a shape without gap or overlap.

    >>> tiles((4, 2), [((0, 0), (1, 2)), ((1, 0), (3, 1)), ((1, 1), (3, 1))])
    True
    """
    if math.prod(shape) == 0:
        return not any(math.prod(size) for _, size in boxes)
    if sum(math.prod(size) for _, size in boxes) != math.prod(shape):
        return False
    if any(start + size > whole for origin, sizes in boxes for start, size, whole in zip(origin, sizes, shape, strict=True)):
        return False
    return _apart([box for box in boxes if math.prod(box[1])], 0)


def _apart(boxes: Sequence[Span], dim: int) -> bool:
    """Whether no two boxes share an element; they are known to share none in the dimensions before `dim` ... or all."""
    if len(boxes) < 2:
        return True
    if dim == len(boxes[0][0]):
        return False
    slabs: dict[tuple[int, int], list[Span]] = {}
    for box in boxes:
        slabs.setdefault((box[0][dim], box[1][dim]), []).append(box)
    ordered = sorted(slabs)
    if all(start + size <= following for (start, size), (following, _) in zip(ordered, ordered[1:], strict=False)):
        return all(_apart(slab, dim + 1) for slab in slabs.values())
    return not any(_meet(one, two, dim) for number, one in enumerate(boxes) for two in boxes[number + 1 :])


def _meet(one: Span, two: Span, dim: int) -> bool:
    return all(
        a < b + other and b < a + size
        for a, size, b, other in zip(one[0][dim:], one[1][dim:], two[0][dim:], two[1][dim:], strict=True)
    )
