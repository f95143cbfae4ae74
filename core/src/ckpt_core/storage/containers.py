"""The two kinds of file that hold named tensors and nothing else: safetensors, and the state dict of a torch file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ckpt_core.storage import safetensors
from ckpt_core.storage.bytes.output import OutputFile
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.safetensors import Header, read_header
from ckpt_core.storage.torch import StateDict, plan_state_dict, read_state_dict

__all__ = ["SAFETENSORS", "TORCH", "Container", "Header", "read_header"]

Specs = Mapping[str, tuple[DType, tuple[int, ...]]]
"""The dtype and the shape of each tensor of a file, by name."""


@dataclass(frozen=True, slots=True)
class Container:
    """A kind of file. `read` gives the lazy tensors of one, from its header; `plan` lays out a file at a path for tensors,
    and says at which byte the data of each begins. Safetensors takes strings about the file besides, `metadata`.
    """

    name: str
    read: Callable[[str], StateDict]
    plan: Callable[[str, Specs, Mapping[str, str] | None], tuple[OutputFile, dict[str, int]]]

    @staticmethod
    def of(file: str) -> Container:
        """The kind of a file by its name: what does not end in `.safetensors` is a torch file."""
        return SAFETENSORS if file.endswith(".safetensors") else TORCH


def _read_safetensors(path: str) -> StateDict:
    return StateDict(read_header(path).tensors)


def _plan_safetensors(path: str, specs: Specs, metadata: Mapping[str, str] | None) -> tuple[OutputFile, dict[str, int]]:
    plan = safetensors.plan_file(specs, metadata)
    return OutputFile(path, plan.size, ((0, plan.header),)), plan.offsets


def _plan_torch(path: str, specs: Specs, metadata: Mapping[str, str] | None) -> tuple[OutputFile, dict[str, int]]:
    return plan_state_dict(path, specs)


SAFETENSORS = Container("safetensors", _read_safetensors, _plan_safetensors)
"""Files of safetensors."""
TORCH = Container("torch", read_state_dict, _plan_torch)
"""Files of `torch.save` that hold a state dict."""
