"""xser, torch_xla's way of saving: a nest of data, with every tensor in a file of its own.

    X                       the nest, a torch file; in the place of each tensor a reference to its number (tid)
    X.tensors/tensor_0.pt   one tensor, a torch file; numbers count in the order of the nest
    X.info.pt               {tid: {"dtype", "shape", "expert_model_parallel"}}

The format is `torch_xla.utils.serialization`'s. NeuronX Distributed adds the info file, and since SDK 2.20 its
loader fails without one. It refers from every expert rank's file to all tensors, and keeps those that are not an expert's
with expert rank 0 alone: a reference whose file is absent is therefore a value, an `AbsentTensor`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable, Mapping
from types import MappingProxyType
from typing import Any

from ckpt_core.sdk import FormatError, StoredTensor, disk, dtypes, schema, torch_files

_CLASS = ("torch_xla.utils.serialization", "TensorReference")
_REFERENCES = frozenset(
    {
        ".".join(_CLASS),
        # What NxD leaves behind inside lists: it replaces the references of dicts alone.
        "neuronx_distributed.trainer.checkpoint._InternalTensorReference",
        # neuronx-nemo-megatron
        "nemo.collections.nlp.parts.serialization.TensorReference",
    }
)
_MOST_TENSORS = 1 << 40
Path = tuple[Hashable, ...]
_DEEPEST = 64


@schema.dataclass(frozen=True, slots=True)
class AbsentTensor:
    """A tensor that a nest refers to, whose own `file` is not there; dtype and shape if the info file has them."""

    file: str
    dtype: dtypes.DType | None
    shape: tuple[int, ...] | None
    expert: bool


def read_xser(path: str | os.PathLike[str]) -> Any:
    """The nest at `path`, with a `StoredTensor` for each tensor, or an `AbsentTensor`.

    Tensors may also lie in the file itself, as in any torch file. Only headers are read. Raises `FormatError`.
    """
    return _Nest(os.fspath(path)).read()


class _Nest:
    """One nest, and what its info file says of the tensors."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._info: Mapping[object, object] | None = None
        self._done: dict[int, Any] = {}

    def read(self) -> Any:
        return self._resolved(torch_files.read_torch_file(self.path, limits=torch_files.Limits(depth=_DEEPEST)))

    def _resolved(self, value: Any) -> Any:
        """`value` with tensors for references. What is shared or cyclic stays so."""
        if id(value) in self._done:
            return self._done[id(value)]
        if isinstance(value, torch_files.Opaque) and value.qualname in _REFERENCES:
            return self._tensor(value)
        if isinstance(value, dict):
            entries = self._done[id(value)] = type(value)() if type(value) is not dict else {}
            entries.update({key: self._resolved(item) for key, item in value.items()})
            return entries
        if isinstance(value, list):
            items = self._done[id(value)] = []
            items.extend(self._resolved(item) for item in value)
            return items
        if isinstance(value, tuple):
            return tuple(self._resolved(item) for item in value)
        return value

    def _tensor(self, reference: torch_files.Opaque) -> StoredTensor | AbsentTensor:
        tid = reference.fields().get("tid")
        if type(tid) is not int or not 0 <= tid < _MOST_TENSORS:
            raise FormatError("a reference to a tensor has no number", file=self.path, found=torch_files.brief(tid))
        dtype, shape, expert = self._info_of(tid)
        file = os.path.join(f"{self.path}.tensors", f"tensor_{tid}.pt")
        if not os.path.isfile(file):
            return AbsentTensor(file, dtype, shape, expert)
        tensor = torch_files.read_torch_file(file)
        if not isinstance(tensor, StoredTensor):
            raise FormatError("the file of a tensor holds no tensor", file=file, found=torch_files.brief(tensor))
        if dtype is not None and (tensor.dtype, tensor.shape) != (dtype, shape):
            raise FormatError(
                "a tensor is not what the info file says",
                file=file,
                found=f"{tensor.dtype} {tensor.shape}",
                expected=f"{dtype} {shape}",
            )
        return tensor

    def _info_of(self, tid: int) -> tuple[dtypes.DType | None, tuple[int, ...] | None, bool]:
        path = f"{self.path}.info.pt"
        if self._info is None:
            info = torch_files.read_torch_file(path) if os.path.isfile(path) else {}
            if not isinstance(info, dict):
                raise FormatError("the info file holds no dict", file=path, found=torch_files.brief(info))
            self._info = info
        if not self._info:
            return None, None, False
        entry = self._info.get(tid)
        described = entry if isinstance(entry, dict) else {}
        dtype, shape = described.get("dtype"), described.get("shape")
        is_shape = isinstance(shape, tuple | list) and all(type(size) is int and size >= 0 for size in shape)
        if not isinstance(dtype, dtypes.DType) or shape is None or not is_shape:
            raise FormatError(
                f"the info file does not describe tensor {tid}", file=path, found=torch_files.brief(entry)
            )
        return dtype, tuple(shape), described.get("expert_model_parallel") is True


@schema.dataclass(frozen=True, slots=True)
class XserPlan:
    """A nest to be written: the files of tensors, the files known now, and where the data of each tensor begins, by its path in the nest."""

    files: list[disk.OutputFile]
    documents: dict[str, bytes]
    places: dict[Path, tuple[str, int]]


def plan_xser(
    path: str,
    tensors: Mapping[str, tuple[dtypes.DType, tuple[int, ...]]],
    *,
    experts: Collection[str] = (),
    absent: Collection[str] = (),
) -> XserPlan:
    """A dict of `tensors` at `path`, with its info file. `experts`: those that expert ranks divide; `absent`: those that
    are referred to alone, because another expert rank keeps them under the same number."""
    made = _Written(path, experts, absent)
    nest = {name: made.reference((name,), torch_files.TensorSpec(*spec)) for name, spec in tensors.items()}
    return made.plan(nest)


def plan_nested_xser(path: str, value: Any, known: Mapping[Path, bytes]) -> XserPlan:
    """A nest of dicts at `path`, with its info file. `known` has the bytes of tensors that are known already, by their paths in it."""
    made = _Written(path, (), (), known)
    return made.plan(made.nest(value, ()))


class _Written:
    """The files of a nest that is written at `path`."""

    def __init__(
        self,
        path: str,
        experts: Collection[str],
        absent: Collection[str],
        known: Mapping[Path, bytes] = MappingProxyType({}),
    ) -> None:
        self.path, self.experts, self.absent, self.known = path, experts, absent, known
        self.files: list[disk.OutputFile] = []
        self.documents: dict[str, bytes] = {}
        self.places: dict[Path, tuple[str, int]] = {}
        self.info: dict[int, dict[str, Any]] = {}

    def nest(self, value: Any, inside: Path) -> Any:
        """`value` with references for its tensors, numbered as they are met."""
        if isinstance(value, torch_files.TensorSpec):
            return self.reference(inside, value)
        if isinstance(value, dict):
            return {key: self.nest(item, (*inside, key)) for key, item in value.items()}
        return value

    def reference(self, inside: Path, spec: torch_files.TensorSpec) -> torch_files.Opaque:
        """A reference to a tensor, whose file is planned unless another rank keeps it."""
        tid, name = len(self.info), inside[0]
        size = torch_files.Opaque("torch", "Size", args=(spec.shape,))
        self.info[tid] = {"dtype": spec.dtype, "shape": size, "expert_model_parallel": name in self.experts}
        if name not in self.absent:
            file = f"{self.path}.tensors/tensor_{tid}.pt"
            if inside in self.known:
                self.documents[file] = torch_files.torch_bytes(spec, os.path.basename(file), {(): self.known[inside]})
            else:
                planned, offsets = torch_files.plan_nest(file, spec)
                self.files.append(planned)
                self.places[inside] = (file, offsets[()])
        return torch_files.Opaque(*_CLASS, args=(), state={"tid": tid})

    def plan(self, nest: Any) -> XserPlan:
        """The files, the nest with its references among them."""
        documents = {
            self.path: torch_files.torch_bytes(nest, os.path.basename(self.path)),
            f"{self.path}.info.pt": torch_files.torch_bytes(self.info, os.path.basename(f"{self.path}.info.pt")),
        }
        return XserPlan(self.files, self.documents | documents, self.places)
