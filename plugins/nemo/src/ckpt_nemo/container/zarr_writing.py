"""Planning zarr v2 arrays as Megatron-Core writes them: a folder per tensor, a raw file per chunk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from ckpt_core.checkpoint import Placement
from ckpt_core.layout import Native
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.opaque import Opaque
from ckpt_core.storage.output import OutputFile
from ckpt_core.storage.torchnest import torch_bytes
from ckpt_megatron.write_dist import backend_document
from ckpt_nemo.container.distributed import COMMON, METADATA
from ckpt_nemo.container.writing import Members

_DTYPES = {"fp32": "<f4", "fp16": "<f2", "fp64": "<f8", "bf16": "bfloat16"}


@dataclass(frozen=True)
class ZarrChunk:
    """A chunk of the array `key` (of `whole` shape): at `index` of the grid of chunks of `shape`."""

    key: str
    native: Native
    dtype: DType
    whole: tuple[int, ...]
    index: tuple[int, ...]
    shape: tuple[int, ...]


def add_zarr(
    members: Members, folder: str, chunks: Iterable[ZarrChunk], objects: Iterable[str], common: dict[str, object]
) -> None:
    """Enter the arrays, and an empty extra state for each name in `objects`."""
    for chunk in chunks:
        name = f"{folder}/{chunk.key}/{'.'.join(map(str, chunk.index))}"
        members.files.setdefault(f"{folder}/{chunk.key}/.zarray", _array(chunk))
        members.files[name] = OutputFile(name, math.prod(chunk.shape) * chunk.dtype.size)
        members.placements.append(Placement(chunk.native, chunk.dtype, name, 0))
    # What a TransformerEngine module without fp8 stores: a torch file of a stream that holds a torch file of None.
    nothing = torch_bytes(Opaque("_io", "BytesIO", args=(torch_bytes(None, "archive"),)), "shard")
    for name in objects:
        members.files[f"{folder}/{name}.pt"] = nothing
    members.files[f"{folder}/{COMMON}"] = torch_bytes(common, COMMON)
    members.files[f"{folder}/{METADATA}"] = backend_document("zarr")


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
