"""Models without values, for questions that values do not answer: what a format writes where, and under which name."""

from __future__ import annotations

from ckpt_core.architecture import Architecture, parameters
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.tensor import contiguous_strides
from ckpt_core.tensors.assembly import LazyParameter, StoredPart, flat_tile, placed


def model_of_holes(architecture: Architecture, dtype: DType) -> Checkpoint:
    """A checkpoint whose tensors are whole, and nowhere."""
    tensors = {}
    for name, parameter in parameters(architecture).items():
        block = StoredPart("nowhere", dtype, 0, flat_tile(placed(parameter.shape), contiguous_strides(parameter.shape)))
        tensors[name] = LazyParameter(parameter, dtype, (block,))
    return Checkpoint("ir", "nowhere", architecture, tensors, [])
