"""Torch files that hold one flat state dict, as `pytorch_model.bin` does: read lazily, planned for writing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ckpt_core.errors import FormatError
from ckpt_core.storage.bytes.output import Checksum, OutputFile
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.pickle.opaque import brief
from ckpt_core.storage.tensor import StateDict, StoredTensor
from ckpt_core.storage.torch.reading import read_torch_file
from ckpt_core.storage.torch.writing import TensorSpec, plan_torch_file
from ckpt_core.text import plural

# What trainers call the state dict in a file that holds more than it: Lightning, plain loops, DeepSpeed.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """The tensors of a file that holds a dict from name to tensor, alone or under one of `WRAPPERS`.

    Anything else is a `FormatError`, as is a file with several such dicts.
    """
    value = read_torch_file(path)
    if not isinstance(value, dict):
        raise FormatError("the file does not hold a dict of tensors", file=path, found=type(value).__name__)
    wrappers = [name for name in WRAPPERS if isinstance(value.get(name), dict)]
    if len(wrappers) > 1:
        raise FormatError(
            "several dicts of the file may be the weights",
            file=path,
            found=", ".join(wrappers),
            fix="save the one that is the model alone: torch.save(model.state_dict(), file)",
        )
    if not wrappers:
        return StateDict(_named_tensors(value, path))
    tensors = _named_tensors(value[wrappers[0]], path)
    beside = tuple(_described(name, held) for name, held in value.items() if name != wrappers[0])
    return StateDict(tensors, wrappers[0], beside)


def _named_tensors(value: dict[Any, Any], path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, StoredTensor):
            raise FormatError(
                f"entry {brief(name)} is not a named tensor",
                file=path,
                found=type(tensor).__name__,
                expected=f"a dict of tensors, alone or under {', '.join(WRAPPERS)}",
            )
    return dict(value)


def _described(name: object, held: object) -> str:
    """An entry beside the weights, with the number and size of its tensors."""
    tensors, seen, left = 0, set[int](), [held]
    size = 0
    while left:
        one = left.pop()
        if isinstance(one, StoredTensor):
            tensors, size = tensors + 1, size + one.elements * one.dtype.size
        elif isinstance(one, dict | list | tuple) and id(one) not in seen:
            seen.add(id(one))
            left += one.values() if isinstance(one, dict) else one
    return f"{brief(name)} ({plural(tensors, 'tensor')}, {size:,} bytes)" if tensors else brief(name)


def plan_state_dict(
    path: str, tensors: Mapping[str, tuple[DType, tuple[int, ...]]]
) -> tuple[OutputFile, dict[str, int]]:
    """A file at `path` that `torch.load` reads as a dict of `tensors`, and where the data of each begins."""
    value = {name: TensorSpec(dtype, shape) for name, (dtype, shape) in tensors.items()}
    plan = plan_torch_file(value, os.path.basename(path))
    offsets = {slot.paths[0][0]: slot.offset for slot in plan.slots}
    checksums = tuple(Checksum(slot.offset, slot.size, slot.crc_at) for slot in plan.slots)
    return OutputFile(path, plan.size, tuple(plan.literals), checksums), offsets
