"""Distributed checkpoints of torch whose tensors lie in safetensors instead of in torch files (torch 2.8, `SerializationFormat.SAFETENSORS`).

    .metadata, __0_0.distcp                        FileSystemWriter: a file has its objects, then one safetensors container with its tensors. `.metadata` has
                                                   the beginning of the container for the place of every tensor in it, and their plain sizes
    shard-00001-model-00001-of-00002.safetensors   HuggingFaceStorageWriter(save_distributed=True): the first number is of a rank, and nothing lists the tensors

Each container says in its own metadata where the part of a tensor begins that it holds (distributed/checkpoint/_hf_utils.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ckpt_core.errors import FormatError, Problems
from ckpt_core.storage.chunks.tensor import Blob, Chunk, ChunkedTensor, DistributedCheckpoint, check_tiling, lies_plain
from ckpt_core.storage.documents import parse_json
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.safetensors import read_header
from ckpt_core.storage.tensor import StoredTensor

_ORIGINS = "DCP_SHARDING_INFO"
_SHARD = re.compile(r"shard-(\d{5,})-model-(\d{5,})-of-(\d{5,})\.safetensors")
_ALL = "copy the files of all ranks: every node of a run saves its own"

Place = tuple[str, int]
"""A file, and the byte of it where a container begins."""


class Container:
    """The tensors of one container, with the first index of each; `stop` is the byte behind it."""

    def __init__(self, file: str, name: str, start: int, stop: int | None = None) -> None:
        try:
            header = read_header(file, start, stop)
        except FormatError as problem:
            problem.file = name
            raise
        said = parse_json(header.metadata.get(_ORIGINS, "{}").encode(), name)
        self.name, self.tensors = name, header.tensors
        self._said: Mapping[str, Any] = said if isinstance(said, dict) else {}

    def origin(self, key: str) -> tuple[int, ...]:
        """The first index of the part of a tensor that lies here."""
        place = self._said.get(key)
        found = place.get("saved_offsets") if isinstance(place, dict) else None
        axes = len(self.tensors[key].shape)
        if not isinstance(found, list) or len(found) != axes or not all(type(n) is int and n >= 0 for n in found):
            raise FormatError(
                f"the file does not say which part of {key!r} it holds",
                file=self.name,
                found=f"{_ORIGINS} {str(place)[:60]}",
                expected=f"saved_offsets of {axes} numbers",
            )
        return tuple(found)

    def chunk(self, key: str, origin: tuple[int, ...], shape: tuple[int, ...], dtype: DType) -> StoredTensor:
        """The part of a tensor that `.metadata` says to lie here. `FormatError` where it does not: a container has one entry for a name, so that a
        second part of the same tensor is lost when torch writes it."""
        stored = self.tensors.get(key)
        if stored is None or (self.origin(key), stored.shape, stored.dtype) != (origin, shape, dtype):
            raise FormatError(
                f"a chunk of {key!r} is not what the checkpoint's metadata says",
                file=self.name,
                found="no such tensor" if stored is None else f"{stored.dtype} {stored.shape} at {self.origin(key)}",
                expected=f"{dtype} {shape} at {origin}",
            )
        return stored


def in_containers(
    tensors: Iterable[ChunkedTensor], ends: Mapping[str, int], path: str
) -> tuple[dict[str, ChunkedTensor], dict[Place, Blob]]:
    """Tensors of the `.metadata` at `path` with their true places, and the containers that hold them.

    `ends` has the byte behind each file by its name: a container is the last thing in its file.
    """
    known: dict[Place, Container] = {}
    found: dict[str, ChunkedTensor] = {}
    problems = Problems(f"reading {path}")
    for tensor in tensors:
        try:
            chunks = tuple(_chunk(tensor, chunk, known, ends) for chunk in tensor.chunks)
            found[tensor.name] = ChunkedTensor(tensor.name, tensor.dtype, tensor.shape, chunks)
        except FormatError as problem:
            problems.add(problem)
    problems.raise_any()
    wholes = {place: Blob(*place, ends[one.name] - place[1], one.name) for place, one in known.items()}
    return found, wholes


def _chunk(tensor: ChunkedTensor, chunk: Chunk, known: dict[Place, Container], ends: Mapping[str, int]) -> Chunk:
    blob = chunk.data
    if not isinstance(blob, Blob) or not lies_plain(tensor, chunk):
        return chunk
    place = blob.file, blob.offset
    if place not in known:
        known[place] = Container(blob.file, blob.name, blob.offset, ends[blob.name])
    return Chunk(chunk.origin, chunk.shape, known[place].chunk(tensor.name, chunk.origin, chunk.shape, tensor.dtype))


def are_shards(names: Sequence[str]) -> bool:
    """Whether the files of a folder are those of HuggingFaceStorageWriter with save_distributed."""
    return any(map(_SHARD.fullmatch, names))


def read_shards(folder: str) -> DistributedCheckpoint:
    """The tensors in the files of all ranks; raises all problems at once. A tensor is as long as its last part reaches: a model says whether it is whole."""
    problems = Problems(f"reading {folder}")
    files, lacking = _files(folder)
    found: dict[str, list[Chunk]] = {}
    dtypes: dict[str, DType] = {}
    for path in files:
        try:
            container = Container(path, path, 0)
            for name, stored in container.tensors.items():
                if dtypes.setdefault(name, stored.dtype) != stored.dtype:
                    raise FormatError(
                        f"ranks have {name!r} in different dtypes", file=path, found=stored.dtype, expected=dtypes[name]
                    )
                found.setdefault(name, []).append(Chunk(container.origin(name), stored.shape, stored))
        except FormatError as problem:
            problems.add(problem)
    problems.raise_any()
    tensors = {}
    for name, chunks in found.items():
        try:
            tensors[name] = _joined(name, chunks, dtypes[name], folder)
        except FormatError as problem:
            if lacking:
                raise lacking from problem
            problems.add(problem)
    problems.raise_any()
    return DistributedCheckpoint(folder, tensors, lacking=lacking)


def _joined(name: str, chunks: Sequence[Chunk], dtype: DType, folder: str) -> ChunkedTensor:
    """The tensor of which all ranks have these parts. A rank for which no row is left has an empty part, at an index of its own."""
    kept = tuple(chunk for chunk in chunks if 0 not in chunk.shape) or tuple(chunks[:1])
    if len(axes := {len(chunk.shape) for chunk in kept}) > 1:
        raise FormatError(
            f"the parts of {name!r} have different numbers of axes",
            file=folder,
            found=" and ".join(map(str, sorted(axes))),
            fix="copy the files of one step again",
        )
    ends = [[start + size for start, size in zip(chunk.origin, chunk.shape, strict=True)] for chunk in kept]
    shape = tuple(map(max, zip(*ends, strict=True)))
    try:
        check_tiling(name, shape, kept, folder)
    except FormatError as problem:
        problem.fix = _ALL
        raise
    return ChunkedTensor(name, dtype, shape, kept)


def _files(folder: str) -> tuple[list[str], FormatError | None]:
    """The files of all ranks, and the error about numbers that others speak of and that are not there.

    It is not raised at once: a rank whose tensors are all replicated, and saved by others, writes no file (planner_helpers.py, `dedup_save_plans`).
    """
    matches = [match for name in sorted(os.listdir(folder)) if (match := _SHARD.fullmatch(name))]
    lacking = None
    for what, have, want in (
        ("rank", {int(match[1]) for match in matches}, max(int(match[1]) for match in matches)),
        ("file", {int(match[2]) for match in matches}, max(int(match[3]) for match in matches)),
    ):
        if missing := [number for number in range(1, min(want, len(matches) + 100) + 1) if number not in have]:
            lacking = lacking or FormatError(
                f"the files of {what} {missing[0]} are missing",
                file=folder,
                found=f"{len(matches)} files of {what} {', '.join(map(str, sorted(have)[:8]))}",
                expected=f"{what} 1 to {want}",
                fix=_ALL,
            )
    return [os.path.join(folder, match[0]) for match in matches], lacking
