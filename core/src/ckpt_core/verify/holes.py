"""Models without values, for questions that values do not answer: what a format writes where, and under which name."""

from __future__ import annotations

from ckpt_core.architecture import Architecture, Parameter, parameters
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.tensor import contiguous_strides
from ckpt_core.tensors.assembly import LazyParameter, StoredPart, flat_tile, placed


def model_of_holes(architecture: Architecture, dtype: DType) -> Checkpoint:
    """A checkpoint whose tensors are whole, and nowhere."""
    tensors = {
        name: of_one_file(parameter, dtype, "nowhere", 0) for name, parameter in parameters(architecture).items()
    }
    return Checkpoint("ir", "nowhere", architecture, tensors, [])


def of_one_file(parameter: Parameter, dtype: DType, path: str, offset: int) -> LazyParameter:
    """A tensor that lies in a file as it is, from byte `offset` on."""
    flat = flat_tile(placed(parameter.shape), contiguous_strides(parameter.shape))
    return LazyParameter(parameter, dtype, (StoredPart(path, dtype, offset, flat),))
