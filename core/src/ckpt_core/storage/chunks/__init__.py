"""Tensors in chunks: torch distributed checkpoints and zarr."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_core.storage.chunks.dcp import read_distributed
    from ckpt_core.storage.chunks.dcp_safetensors import are_shards, read_shards
    from ckpt_core.storage.chunks.dcp_write import ChunkSpec, plan_distributed
    from ckpt_core.storage.chunks.tensor import METADATA, Blob, ChunkedTensor, DistributedCheckpoint
    from ckpt_core.storage.chunks.zarr import read_zarr
else:
    from ckpt_core.lazily import found_in

    __getattr__, __dir__ = found_in(
        __name__,
        {
            ".dcp": "read_distributed",
            ".dcp_safetensors": "are_shards read_shards",
            ".dcp_write": "ChunkSpec plan_distributed",
            ".tensor": "METADATA Blob ChunkedTensor DistributedCheckpoint",
            ".zarr": "read_zarr",
        },
    )

__all__ = [
    "METADATA",
    "Blob",
    "ChunkSpec",
    "ChunkedTensor",
    "DistributedCheckpoint",
    "are_shards",
    "plan_distributed",
    "read_distributed",
    "read_shards",
    "read_zarr",
]
