"""Lazy tensors: canonical parameters as they lie in files, read one box at a time."""

from ckpt_core.storage.tensor import contiguous_strides
from ckpt_core.tensors.assembly import (
    LazyParameter,
    ParameterBuilder,
    Shard,
    SourceFiles,
    StoredPart,
    boxes,
    flat_tile,
    tile_view,
)
from ckpt_core.tensors.stored import storage_dtype, stored_values

__all__ = [
    "LazyParameter",
    "ParameterBuilder",
    "Shard",
    "SourceFiles",
    "StoredPart",
    "boxes",
    "contiguous_strides",
    "flat_tile",
    "storage_dtype",
    "stored_values",
    "tile_view",
]
