"""The two kinds of file that hold named tensors and nothing else, safetensors and the state dict of a torch file; and the index of several."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping

from ckpt_core.errors import FormatError
from ckpt_core.lean import dataclass
from ckpt_core.storage import safetensors
from ckpt_core.storage.bytes.output import OutputFile
from ckpt_core.storage.documents import read_json_object
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.safetensors import Header, read_header
from ckpt_core.storage.tensor import StateDict

__all__ = ["SAFETENSORS", "TORCH", "WEIGHT_SUFFIXES", "Container", "Header", "index_text", "read_header", "read_index"]

# fmt: off
WEIGHT_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".distcp", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".npz", ".index.json",
)
# fmt: on
"""How the names of weights end, of whatever framework: such a file is never carried along as a companion."""

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


def _read_torch(path: str) -> StateDict:
    from ckpt_core.storage.torch.state_dict import read_state_dict

    return read_state_dict(path)


def _plan_torch(path: str, specs: Specs, metadata: Mapping[str, str] | None) -> tuple[OutputFile, dict[str, int]]:
    from ckpt_core.storage.torch.state_dict import plan_state_dict

    return plan_state_dict(path, specs)


SAFETENSORS = Container("safetensors", _read_safetensors, _plan_safetensors)
"""Files of safetensors."""
TORCH = Container("torch", _read_torch, _plan_torch)
"""Files of `torch.save` that hold a state dict."""


def read_index(path: str) -> dict[str, str]:
    """Which file of its folder holds each tensor, as an index of transformers says. `FormatError` for one that says something else."""
    places = read_json_object(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise FormatError("the index has no weight_map from tensor to file", file=path)
    for name in dict.fromkeys(places.values()):
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise FormatError("the index names a file outside the folder", file=path, found=name)
    return places


_TOGETHER = 1 << 10
"""Names that are written at a time: the text of a large model's takes 9 MB."""


def index_text(places: Mapping[str, str], size: int) -> bytes:
    """The index of shards: which file holds each tensor, and their `size` in bytes."""
    head = json.dumps({"metadata": {"total_size": size}, "weight_map": {}}, indent=2).removesuffix("}\n}")
    # The text is that of `indent=2`, for which Python has no C code: 90,000 names would take a quarter of a second.
    names = sorted(places)
    parts = [{name: places[name] for name in names[at : at + _TOGETHER]} for at in range(0, len(names), _TOGETHER)]
    lines = [json.dumps(part, separators=(",\n    ", ": "))[1:-1].encode() for part in parts]
    inside = (b"\n    ", b",\n    ".join(lines), b"\n  ") if places else ()
    return b"".join((head.encode(), *inside, b"}\n}\n"))
