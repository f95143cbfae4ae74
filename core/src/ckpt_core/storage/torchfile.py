"""Torch files that hold one flat state dict, as `pytorch_model.bin` does: read lazily, planned for writing."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ckpt_core.errors import FormatError
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.output import Checksum, OutputFile
from ckpt_core.storage.tensor import StoredTensor
from ckpt_core.storage.torchzip import read_torch_file
from ckpt_core.storage.torchzip_write import TensorSpec, plan_torch_file


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """The tensors of a file that holds a dict from name to tensor; anything else is a `FormatError`."""
    value = read_torch_file(path)
    if not isinstance(value, dict):
        raise FormatError("the file does not hold a dict of tensors", file=path, found=type(value).__name__)
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, StoredTensor):
            raise FormatError(f"entry {name!r} is not a named tensor", file=path, found=type(tensor).__name__)
    return dict(value)


def plan_state_dict(
    path: str, tensors: Mapping[str, tuple[DType, tuple[int, ...]]]
) -> tuple[OutputFile, dict[str, int]]:
    """A file at `path` that `torch.load` reads as a dict of `tensors`, and where the data of each begins."""
    value = {name: TensorSpec(dtype, shape) for name, (dtype, shape) in tensors.items()}
    plan = plan_torch_file(value, os.path.basename(path))
    offsets = {slot.paths[0][0]: slot.offset for slot in plan.slots}
    checksums = tuple(Checksum(slot.offset, slot.size, slot.crc_at) for slot in plan.slots)
    return OutputFile(path, plan.size, tuple(plan.literals), checksums), offsets
