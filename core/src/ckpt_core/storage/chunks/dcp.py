"""PyTorch distributed checkpoints (DCP), read without torch: which bytes hold which part of which tensor.

    .metadata        a pickle of torch.distributed.checkpoint.metadata.Metadata
    __0_0.distcp     torch files one after the other, each one chunk of a tensor, or one object; or safetensors, see `dcp_safetensors`

`.metadata` names every tensor with its dtype, its shape and the chunks that tile it, and for each chunk the file,
the first byte and the number of bytes. All of that is checked here; nothing of it is believed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from ckpt_core.errors import FormatError, Problems
from ckpt_core.storage.archive.inflate import open_stored
from ckpt_core.storage.archive.tree import Tree, open_tree
from ckpt_core.storage.bytes.byterange import ByteRange
from ckpt_core.storage.chunks.tensor import (
    METADATA,
    Blob,
    Chunk,
    ChunkedTensor,
    DistributedCheckpoint,
    check_tiling,
    lies_plain,
)
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.pickle.opaque import Opaque, brief
from ckpt_core.storage.pickle.reader import read_pickle
from ckpt_core.text import plural

__all__ = ["METADATA", "Blob", "Chunk", "ChunkedTensor", "DistributedCheckpoint", "read_distributed"]

_MODULE = "torch.distributed.checkpoint."
# Megatron-Core 0.15 pickles a subclass of Metadata; its fields are the same.
_INDEX = (f"{_MODULE}metadata.MetadataIndex",)
_PLACE = (f"{_MODULE}filesystem._StorageInfo",)
_TENSOR = (f"{_MODULE}metadata.TensorStorageMetadata",)
_CHUNK = (f"{_MODULE}metadata.ChunkStorageMetadata",)
_OBJECT = f"{_MODULE}metadata.BytesStorageMetadata"
_METADATA_CLASSES = (f"{_MODULE}metadata.Metadata", "megatron.core.dist_checkpointing.strategies.torch.MCoreMetadata")
_MAX_SIZE = 1 << 62
_DAMAGED = "copy the checkpoint again, .metadata too: it is damaged, or mixed of two"
# An honest one takes 13 times its size in memory, so that a larger one would be refused by the limits of pickles too,
# but only after most of a minute.
_MOST_METADATA = 32 << 20
_MOST_ENTRIES = 500_000  # tensors and objects; 30,000 in that of DeepSeek-V3

Origin = tuple[int, ...] | None
"""The first index of a chunk; None for an object, which has no parts."""


def read_distributed(source: str | os.PathLike[str] | Tree) -> DistributedCheckpoint:
    """What the `.metadata` of a folder describes, every path, offset and length checked; raises all problems at once."""
    tree = source if isinstance(source, Tree) else open_tree(source)
    path = tree.place(METADATA)
    fields = _fields(_unpickled(tree), _METADATA_CLASSES, path)
    described, located = fields.get("state_dict_metadata"), fields.get("storage_data")
    if not isinstance(described, dict) or not isinstance(located, dict):
        raise FormatError(
            "the metadata lists no tensors",
            file=path,
            found=", ".join(fields),
            expected="state_dict_metadata, storage_data",
        )
    if len(described) > _MOST_ENTRIES or len(located) > _MOST_ENTRIES:
        raise FormatError(
            "the metadata describes too much",
            file=path,
            found=f"{plural(len(described), 'tensor')} and objects in {len(located)} places",
            expected=f"at most {_MOST_ENTRIES:,}",
        )
    files: dict[str, Blob] = {}
    blobs = _blobs(located, tree, files)
    problems = Problems(f"reading {path}")
    tensors: dict[str, ChunkedTensor] = {}
    objects: dict[str, Blob] = {}
    for name, entry in described.items():
        try:
            if not isinstance(name, str) or not isinstance(entry, Opaque):
                raise FormatError(
                    "an entry of the metadata is neither a tensor nor an object", file=path, found=brief(entry)
                )
            if entry.qualname == _OBJECT:
                objects[name] = _only(blobs.pop(name, {}), name, path)
            else:
                tensors[name] = _tensor(name, entry, blobs.pop(name, {}), path)
        except FormatError as problem:
            problems.add(problem)
    for name in blobs:
        problems.add(FormatError(f"the metadata locates {name!r}, but does not describe it", file=path))
    problems.raise_any()
    tensors = _settled(tensors, objects, files, path)
    return DistributedCheckpoint(tree.path, tensors, objects, [tree[METADATA].file])


def _settled(
    tensors: Mapping[str, ChunkedTensor], objects: Mapping[str, Blob], files: Mapping[str, Blob], path: str
) -> dict[str, ChunkedTensor]:
    """The tensors with their true places, those in safetensors among them. `FormatError` where two things overlap."""
    plain = [tensor for tensor in tensors.values() if any(lies_plain(tensor, chunk) for chunk in tensor.chunks)]
    moved: Mapping[str, ChunkedTensor] = {}
    containers: Mapping[tuple[str, int], Blob] = {}
    if plain:
        from ckpt_core.storage.chunks.dcp_safetensors import in_containers

        ends = {whole.name: whole.offset + whole.length for whole in files.values()}
        moved, containers = in_containers(plain, ends, path)
    said = [*objects.values(), *(chunk.data for tensor in tensors.values() for chunk in tensor.chunks)]
    others = (blob for blob in said if isinstance(blob, Blob) and (blob.file, blob.offset) not in containers)
    _check_overlap([*others, *containers.values()], path)
    return {**tensors, **moved}


def _unpickled(tree: Tree) -> Any:
    extent, name = tree[METADATA], tree.place(METADATA)
    if extent.size > _MOST_METADATA:
        raise FormatError(
            "the metadata is too large",
            file=name,
            found=f"{extent.size} bytes",
            expected=f"at most {_MOST_METADATA}: enough for 100,000 tensors",
        )
    with open_stored(extent.file) as stream:
        data = ByteRange(stream, name, extent.offset, extent.offset + extent.size)
        value = read_pickle(data, name)
    if data.left:
        raise FormatError("the metadata holds more than one pickle", file=name, found=f"{data.left} bytes behind it")
    return value


def _fields(value: object, classes: Sequence[str], path: str) -> dict[str, Any]:
    if not isinstance(value, Opaque) or value.qualname not in classes:
        raise FormatError(
            "the metadata is of another kind", file=path, found=brief(value), expected=" or ".join(classes)
        )
    return value.fields()


def _blobs(located: Mapping[object, object], tree: Tree, files: dict[str, Blob]) -> dict[str, dict[Origin, Blob]]:
    """Where everything lies, by name and (for tensors) by the chunk's first index; the whole files that were looked up enter `files`."""
    path = tree.place(METADATA)
    found: dict[str, dict[Origin, Blob]] = {}
    problems = Problems(f"reading {path}")
    for index, info in located.items():
        try:
            key = _fields(index, _INDEX, path)
            name, origin = key.get("fqn"), key.get("offset")
            if not isinstance(name, str) or not (origin is None or _is_shape(origin)):
                raise FormatError(
                    "an index of the metadata is impossible", file=path, found=f"{brief(name)} at {brief(origin)}"
                )
            blob = _blob(_fields(info, _PLACE, path), name, tree, files)
            if found.setdefault(name, {}).setdefault(None if origin is None else tuple(origin), blob) is not blob:
                raise FormatError(f"{name!r} has two chunks at {origin}", file=path)
        except FormatError as problem:
            problems.add(problem)
    problems.raise_any()
    return found


def _blob(info: Mapping[str, Any], name: str, tree: Tree, files: dict[str, Blob]) -> Blob:
    """The bytes that an entry speaks of. `files` remembers the whole files that were looked up."""
    path = tree.place(METADATA)
    relative, offset, length = info.get("relative_path"), info.get("offset"), info.get("length")
    if info.get("transform_descriptors"):
        raise FormatError(f"{name!r} is stored compressed or encrypted", file=path, expected="plain torch files")
    if not isinstance(relative, str) or not _is_size(offset) or not _is_size(length):
        raise FormatError(
            f"the place of {name!r} is impossible",
            file=path,
            found=f"{brief(relative)}, bytes {brief(offset)}, {brief(length)}",
        )
    if relative not in files:
        if os.path.isabs(relative) or {"", ".", ".."} & set(relative.split("/")) or set("\0\\") & set(relative):
            raise FormatError("the metadata names a file outside the folder", file=path, found=brief(relative))
        extent = tree[relative]
        files[relative] = Blob(extent.file, extent.offset, extent.size, tree.place(relative))
    whole = files[relative]
    if offset + length > whole.length:
        raise FormatError(
            f"{name!r} lies outside the file that holds it",
            file=whole.name,
            found=f"bytes {offset} to {offset + length} of {whole.length}",
            fix="copy the file again; it is cut off or belongs to another checkpoint",
        )
    return Blob(whole.file, whole.offset + offset, length, whole.name)


def _check_overlap(blobs: Iterable[Blob], path: str) -> None:
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


def _only(blobs: Mapping[Origin, Blob], name: str, path: str) -> Blob:
    if len(blobs) != 1:
        raise FormatError(f"the object {name!r} lies in {len(blobs)} places", file=path, expected="one")
    (blob,) = blobs.values()
    return blob


def _tensor(name: str, entry: Opaque, blobs: Mapping[Origin, Blob], path: str) -> ChunkedTensor:
    fields = _fields(entry, _TENSOR, path)
    dtype, shape, chunks = _dtype(fields.get("properties")), fields.get("size"), fields.get("chunks")
    if dtype is None or not _is_shape(shape) or not isinstance(chunks, list):
        raise FormatError(
            f"the description of {name!r} is impossible",
            file=path,
            found=f"{brief(dtype)} {brief(shape)} {brief(chunks)}",
        )
    found = []
    empty: set[tuple[int, ...]] = set()
    for chunk in chunks:
        box = _fields(chunk, _CHUNK, path)
        origin, size = box.get("offsets"), box.get("sizes")
        if not _is_shape(origin) or not _is_shape(size) or not len(origin) == len(size) == len(shape):
            raise FormatError(
                f"a chunk of {name!r} is impossible",
                file=path,
                found=f"{_numbers(size)} at {_numbers(origin)}",
                expected=f"a size and a place of {len(shape)} numbers each, from 0 on",
                fix=_DAMAGED,
            )
        # Ranks for which no rows are left write empty chunks (FSDP), several of them at one place.
        if 0 in size and 0 not in shape:
            empty.add(tuple(origin))
            continue
        if tuple(origin) not in blobs:
            raise FormatError(
                f"the chunk of {name!r} at {tuple(origin)} lies nowhere",
                file=path,
                found=f"files have its chunks at {', '.join(map(str, list(blobs)[:4]))}"
                if blobs
                else "no file has one",
                expected="a file for every chunk that the metadata lists",
                fix=_DAMAGED,
            )
        found.append(Chunk(tuple(origin), tuple(size), blobs[tuple(origin)]))
    if len(found) != len(blobs.keys() - (empty - {chunk.origin for chunk in found})):
        raise FormatError(
            f"{name!r} has {len(found)} chunks that lie in {len(blobs)} places",
            file=path,
            expected="one place for each",
            fix=_DAMAGED,
        )
    check_tiling(name, tuple(shape), found, path)
    return ChunkedTensor(name, dtype, tuple(shape), tuple(found))


def _numbers(value: object) -> str:
    """What should be a few whole numbers, for an error message."""
    if isinstance(value, tuple | list) and len(value) <= 8 and all(type(one) is int for one in value):
        return f"({', '.join(brief(one) for one in value)})"
    return brief(value)


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _MAX_SIZE


def _is_shape(value: object) -> TypeGuard[tuple[int, ...] | list[int]]:
    return isinstance(value, tuple | list) and len(value) <= 64 and all(_is_size(size) for size in value)


def _dtype(properties: object) -> DType | None:
    """The dtype in a TensorProperties, whose state is a tuple that begins with it (or, in old torch, a dict)."""
    if not isinstance(properties, Opaque):
        return None
    state = properties.state
    dtype = state[0] if isinstance(state, tuple) and state else state.get("dtype") if isinstance(state, dict) else None
    return dtype if isinstance(dtype, DType) else None
