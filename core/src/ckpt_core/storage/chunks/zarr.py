"""Megatron-Core's older distributed checkpoints: a zarr v2 array per tensor, read without zarr.

    KEY/.zarray            {"shape": [3, 100, 48], "chunks": [1, 50, 48], "dtype": "<f4", "compressor": null, ...}
    KEY/0.1.0              one chunk: the raw elements of a whole chunk, also where the array ends inside it
    KEY/shard_0_3.pt       an object: the torch file of part 0 of 3

Zarr gives a missing chunk the fill value; a checkpoint has all its chunks, so a missing one is an error here.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_core.errors import FormatError, Problems
from ckpt_core.storage.archive.tree import Tree, open_tree
from ckpt_core.storage.chunks.tensor import Blob, Chunk, ChunkedTensor, DistributedCheckpoint
from ckpt_core.storage.documents import parse_json
from ckpt_core.storage.dtypes import BY_NAME, DType
from ckpt_core.storage.pickle.opaque import brief
from ckpt_core.storage.tensor import StoredTensor, contiguous_strides

ARRAY = ".zarray"
_ATTRIBUTES = ".zattrs"
_OBJECT = re.compile(r"(shard_[\d.]+_[\d.]+)\.pt")
_MAX_SIZE = 1 << 60
_MAX_DIMENSIONS = 32

_DTYPES = {
    "<f8": BY_NAME["fp64"],
    "<f4": BY_NAME["fp32"],
    "<f2": BY_NAME["fp16"],
    "bfloat16": BY_NAME["bf16"],  # not of zarr: Megatron-Core writes through tensorstore, which calls it so
    "<i8": BY_NAME["int64"],
    "<i4": BY_NAME["int32"],
    "<i2": BY_NAME["int16"],
    "|i1": BY_NAME["int8"],
    "|u1": BY_NAME["uint8"],
    "|b1": BY_NAME["bool"],
}
# What may stand in .zarray, and which values can be read; None: any.
_KEYS: Mapping[str, tuple[object, ...] | None] = {
    "zarr_format": (2,),
    "shape": None,
    "chunks": None,
    "dtype": None,
    "compressor": (None,),
    "filters": (None, []),
    "order": ("C",),
    "fill_value": None,
    "dimension_separator": (".", "/"),
}
_OPTIONAL = {"filters", "fill_value", "dimension_separator"}


def read_zarr(source: str | os.PathLike[str] | Tree) -> DistributedCheckpoint:
    """The arrays and objects in the folders of a folder; raises all problems at once. Reads the `.zarray` files alone."""
    tree = source if isinstance(source, Tree) else open_tree(source)
    problems = Problems(f"reading {tree.path}")
    tensors: dict[str, ChunkedTensor] = {}
    objects: dict[str, Blob] = {}
    described_in = []
    for name in tree.folders:
        folder = tree.below(name)
        try:
            if ARRAY in folder:
                tensors[name] = read_array(folder, name)
                described_in.append(folder[ARRAY].file)
            else:
                objects |= _objects(folder, name)
        except FormatError as problem:
            problems.add(problem)
    problems.raise_any()
    return DistributedCheckpoint(tree.path, tensors, objects, described_in)


def read_array(folder: Tree, name: str) -> ChunkedTensor:
    """The array called `name` in a folder, every chunk checked to be there with its whole size.

    `FormatError` for a chunk that is missing or too short, and for an array that is compressed or of an unknown dtype.
    """
    file = folder.place(ARRAY)
    fields = _fields(parse_json(folder.read(ARRAY, 1 << 20), file), file)
    dtype = _DTYPES.get(fields["dtype"]) if isinstance(fields["dtype"], str) else None
    if dtype is None:
        raise FormatError(
            f"{name!r} is of a dtype that is not read",
            file=file,
            found=brief(fields["dtype"]),
            expected=", ".join(_DTYPES),
        )
    shape, sizes = _shape(fields["shape"], 0, "shape", file), _shape(fields["chunks"], 1, "chunks", file)
    if len(shape) != len(sizes):
        raise FormatError(
            f"{name!r} has not as many chunk sizes as dimensions", file=file, found=f"{sizes} for {shape}"
        )
    chunks = tuple(_chunks(folder, dtype, shape, sizes, fields.get("dimension_separator", ".")))
    return ChunkedTensor(name, dtype, shape, chunks)


def _fields(value: object, file: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError("the description of an array is not an object", file=file, found=brief(value))
    problems = Problems(f"reading {file}")
    for key in _KEYS.keys() - value.keys() - _OPTIONAL:
        problems.add(FormatError(f"the description of an array has no {key}", file=file))
    for key, found in value.items():
        if key not in _KEYS:
            problems.add(FormatError(f"the description of an array has an unknown key {brief(key)}", file=file))
        elif (readable := _KEYS[key]) is not None and not any(_same(found, one) for one in readable):
            problems.add(
                FormatError(
                    f"an array whose {key} is not read",
                    file=file,
                    found=brief(found),
                    expected=" or ".join(map(repr, readable)),
                    fix="save it again without compression" if key in ("compressor", "filters") else None,
                )
            )
    problems.raise_any()
    return value


def _same(one: object, two: object) -> bool:
    return type(one) is type(two) and one == two


def _shape(value: object, least: int, what: str, file: str) -> tuple[int, ...]:
    good = isinstance(value, list) and len(value) <= _MAX_DIMENSIONS
    if not good or not all(type(size) is int and least <= size < _MAX_SIZE for size in value):  # type: ignore[attr-defined]
        raise FormatError(f"the {what} of an array is impossible", file=file, found=brief(value))
    return tuple(value)  # type: ignore[arg-type]


def _chunks(
    folder: Tree, dtype: DType, shape: tuple[int, ...], sizes: tuple[int, ...], separator: str
) -> Iterator[Chunk]:
    """Every chunk of the grid; `FormatError` for one that is missing, of another size, or beyond the grid."""
    unseen = set(folder.files) - {ARRAY, _ATTRIBUTES}
    whole = math.prod(sizes) * dtype.size
    for position in _positions(tuple(-(-length // size) for length, size in zip(shape, sizes, strict=True))):
        key = separator.join(map(str, position)) or "0"
        extent = folder[key]
        if extent.size != whole:
            raise FormatError(
                "a chunk is not of its size",
                file=folder.place(key),
                found=f"{extent.size} bytes",
                expected=f"{whole} bytes",
            )
        unseen.discard(key)
        origin = tuple(index * size for index, size in zip(position, sizes, strict=True))
        inside = tuple(min(size, length - start) for size, length, start in zip(sizes, shape, origin, strict=True))
        yield Chunk(origin, inside, StoredTensor(extent.file, dtype, inside, extent.offset, contiguous_strides(sizes)))
    if unseen:
        raise FormatError(
            "a file beside the chunks of an array is none of them",
            file=folder.place(min(unseen)),
            expected=f"chunks of {sizes} of an array of {shape}",
            fix="it may be left over from another checkpoint: remove it if so",
        )


def _positions(grid: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The indices of a grid in row-major order, one at a time: a grid may be claimed to be of any size."""
    for number in range(math.prod(grid)):
        position = []
        for size in reversed(grid):
            number, index = divmod(number, size)
            position.append(index)
        yield tuple(reversed(position))


def _objects(folder: Tree, name: str) -> dict[str, Blob]:
    found: dict[str, Blob] = {}
    for file in folder.files:
        match = _OBJECT.fullmatch(file)
        if match is None:
            raise FormatError(
                "a folder holds neither an array nor an object",
                file=folder.place(file),
                expected=f"{ARRAY}, or shard_I_N.pt",
            )
        extent = folder[file]
        found[f"{name}/{match[1]}"] = Blob(extent.file, extent.offset, extent.size, folder.place(file))
    return found
