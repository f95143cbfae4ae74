"""Lazy tensors: canonical parameters as they lie in files, read one box at a time."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_core.storage.scratch import scratch
    from ckpt_core.storage.tensor import Operand, Quantised, Quantiser, Scheme, contiguous_strides
    from ckpt_core.tensors.assembly import (
        LazyParameter,
        LowRank,
        Merged,
        ParameterBuilder,
        Shard,
        StoredPart,
        flat_tile,
        of_shards,
        placed,
        ranges_as_shards,
        whole,
        whole_shape,
        with_rows,
        within_box,
    )
    from ckpt_core.tensors.box import boxes, tile_view
    from ckpt_core.tensors.equal import are_equal
    from ckpt_core.tensors.merged import update_tile
    from ckpt_core.tensors.source import SourceFiles
    from ckpt_core.tensors.stored import storage_dtype, stored_values
else:
    from ckpt_core.lazily import found_in

    __getattr__, __dir__ = found_in(
        __name__,
        {
            "ckpt_core.storage.scratch": "scratch",
            "ckpt_core.storage.tensor": "Operand Quantised Quantiser Scheme contiguous_strides",
            ".assembly": "LazyParameter LowRank Merged ParameterBuilder Shard StoredPart flat_tile of_shards placed ranges_as_shards whole whole_shape with_rows within_box",
            ".box": "boxes tile_view",
            ".equal": "are_equal",
            ".merged": "update_tile",
            ".source": "SourceFiles",
            ".stored": "storage_dtype stored_values",
        },
    )

__all__ = [
    "LazyParameter",
    "LowRank",
    "Merged",
    "Operand",
    "ParameterBuilder",
    "Quantised",
    "Quantiser",
    "Scheme",
    "Shard",
    "SourceFiles",
    "StoredPart",
    "are_equal",
    "boxes",
    "contiguous_strides",
    "flat_tile",
    "of_shards",
    "placed",
    "ranges_as_shards",
    "scratch",
    "storage_dtype",
    "stored_values",
    "tile_view",
    "update_tile",
    "whole",
    "whole_shape",
    "with_rows",
    "within_box",
]
