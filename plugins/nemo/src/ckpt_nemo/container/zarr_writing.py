"""Planning zarr v2 arrays as Megatron-Core writes them: a folder per tensor, a raw file per chunk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import PurePosixPath

from ckpt_core.sdk import disk, dtypes, layouts, schema, torch_files
from ckpt_megatron.sdk import backend_document
from ckpt_nemo.container.places import COMMON, METADATA
from ckpt_nemo.container.writing import NemoBuilder

_DTYPES = {"fp32": "<f4", "fp16": "<f2", "fp64": "<f8", "bf16": "bfloat16"}


@schema.dataclass(frozen=True)
class ZarrChunk:
    """A chunk of the array `key` (of `whole` shape): at `index` of the grid of chunks of `shape`."""

    key: str
    native: layouts.Native
    dtype: dtypes.DType
    whole: tuple[int, ...]
    index: tuple[int, ...]
    shape: tuple[int, ...]


def add_zarr(
    builder: NemoBuilder,
    folder: str,
    chunks: Iterable[ZarrChunk],
    objects: Iterable[str],
    common: dict[str, object],
    *,
    short: bool,
) -> None:
    """Enter the arrays, and an empty extra state for each name in `objects`; `short`: see `_object_file`."""
    for chunk in chunks:
        name = f"{folder}/{chunk.key}/{'.'.join(map(str, chunk.index))}"
        builder.members.setdefault(f"{folder}/{chunk.key}/.zarray", _array(chunk))
        builder.members[name] = disk.OutputFile(name, math.prod(chunk.shape) * chunk.dtype.size)
        builder.place(chunk.native, name, 0, chunk.dtype)
    # What a TransformerEngine module without fp8 stores: a torch file of a stream that holds a torch file of None.
    nothing = torch_files.torch_bytes(
        torch_files.Opaque("_io", "BytesIO", args=(torch_files.torch_bytes(None, "archive"),)), "shard"
    )
    for name in objects:
        builder.members[f"{folder}/{_object_file(name, short)}"] = nothing
    builder.members[f"{folder}/{COMMON}"] = torch_files.torch_bytes(common, COMMON)
    builder.members[f"{folder}/{METADATA}"] = backend_document("zarr")


def _object_file(name: str, short: bool) -> str:
    """The file of an object. Core before 0.8 adds the suffix by `with_suffix`, which replaces the size of the last axis.

    >>> _object_file("linear_fc1._extra_state/shard_0.3_2.4", True), _object_file("linear_fc1._extra_state/shard_0_2", True)
    ('linear_fc1._extra_state/shard_0.3_2.pt', 'linear_fc1._extra_state/shard_0_2.pt')
    """
    return str(PurePosixPath(name).with_suffix(".pt")) if short else f"{name}.pt"


def _array(chunk: ZarrChunk) -> bytes:
    fields = {
        "chunks": list(chunk.shape),
        "compressor": None,
        "dtype": _DTYPES[chunk.dtype.name],
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": list(chunk.whole),
        "zarr_format": 2,
    }
    return json.dumps(fields, indent=4).encode()
