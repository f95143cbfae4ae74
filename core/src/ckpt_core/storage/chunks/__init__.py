"""Tensors in chunks: torch distributed checkpoints and zarr."""

from ckpt_core.storage.chunks.dcp import METADATA, read_distributed
from ckpt_core.storage.chunks.dcp_write import ChunkSpec, plan_distributed
from ckpt_core.storage.chunks.tensor import ChunkedTensor, DistributedCheckpoint
from ckpt_core.storage.chunks.zarr import read_zarr

__all__ = [
    "METADATA",
    "ChunkSpec",
    "ChunkedTensor",
    "DistributedCheckpoint",
    "plan_distributed",
    "read_distributed",
    "read_zarr",
]
