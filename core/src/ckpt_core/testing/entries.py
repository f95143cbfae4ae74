"""Damaging a checkpoint on purpose: the entries of its weight files, removed, added, reshaped and retyped."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from ckpt_core.lean import dataclass
from ckpt_core.storage import safetensors
from ckpt_core.storage.bytes.stored import read_range
from ckpt_core.storage.dtypes import BY_NAME, DType
from ckpt_core.storage.tensor import StoredTensor
from ckpt_core.storage.torch import TensorSpec, read_torch_file, torch_bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a file. `name` is what a good error message calls it, `offset` the byte of the file at which it begins, where
    that is known."""

    file: str
    key: str
    name: str
    offset: int | None = None


class Entries(Protocol):
    """The tensors in a folder, and ways to damage them. A format with a container of its own provides one."""

    def find(self, folder: str) -> list[Entry]:
        """Every stored tensor of a checkpoint."""

    def remove(self, entry: Entry) -> None:
        """Leave the tensor out."""

    def add(self, entry: Entry) -> str:
        """Put a tensor that no model has beside `entry`; returns the name an error should give it."""

    def reshape(self, entry: Entry) -> None:
        """Give the tensor one more row."""

    def retype(self, entry: Entry) -> None:
        """Say that its bytes are integers."""


class SafetensorsEntries:
    """The tensors of safetensors files. Formats that keep one tensor per file override `name_of`, `remove` and `add`."""

    def __init__(self, suffix: str = ".safetensors") -> None:
        self._suffix = suffix

    def name_of(self, file: str, key: str, folder: str) -> str:
        """What an error calls the tensor `key` of `file`."""
        return key

    def find(self, folder: str) -> list[Entry]:
        found = []
        for root, _, names in sorted(os.walk(folder)):
            for name in sorted(names):
                file = os.path.join(root, name)
                if name.endswith(self._suffix):
                    found += [
                        Entry(file, key, self.name_of(file, key, folder), stored.offset)
                        for key, stored in safetensors.read_header(file).tensors.items()
                    ]
        return found

    def remove(self, entry: Entry) -> None:
        tensors, metadata = _load(entry.file)
        del tensors[entry.key]
        _store(entry.file, tensors, metadata)

    def add(self, entry: Entry) -> str:
        tensors, metadata = _load(entry.file)
        tensors["surprise.weight"] = (BY_NAME["fp32"], (3,), bytes(12))
        _store(entry.file, tensors, metadata)
        return "surprise.weight"

    def reshape(self, entry: Entry) -> None:
        tensors, metadata = _load(entry.file)
        dtype, (rows, *rest), data = tensors[entry.key]
        tensors[entry.key] = (dtype, (rows + 1, *rest), data + bytes(len(data) // rows))
        _store(entry.file, tensors, metadata)

    def retype(self, entry: Entry) -> None:
        tensors, metadata = _load(entry.file)
        dtype, shape, data = tensors[entry.key]
        tensors[entry.key] = (BY_NAME[f"int{8 * dtype.size}"], shape, data)
        _store(entry.file, tensors, metadata)


_Tensors = dict[str, tuple[DType, tuple[int, ...], bytes]]


def _load(file: str) -> tuple[_Tensors, dict[str, str]]:
    header = safetensors.read_header(file)
    tensors = {
        name: (stored.dtype, stored.shape, read_range(file, stored.offset, stored.elements * stored.dtype.size))
        for name, stored in header.tensors.items()
    }
    return tensors, header.metadata


def _store(file: str, tensors: _Tensors, metadata: dict[str, str]) -> None:
    plan = safetensors.plan_file({name: (dtype, shape) for name, (dtype, shape, _) in tensors.items()}, metadata)
    body = bytearray(plan.header) + bytearray(plan.size - len(plan.header))
    for name, (_, _, data) in tensors.items():
        body[plan.offsets[name] : plan.offsets[name] + len(data)] = data
    with open(file, "wb") as out:
        out.write(body)


class TorchEntries:
    """The tensors of files of `torch.save`, each a dict by name, or one below the key `section`. Needs no torch."""

    def __init__(self, *suffixes: str, section: str | None = None) -> None:
        self._suffixes, self._section = suffixes or (".pt", ".pth", ".bin", ".ckpt"), section

    def name_of(self, file: str, key: str, folder: str) -> str:
        """What an error calls the tensor `key` of `file`."""
        return key

    def find(self, folder: str) -> list[Entry]:
        found = []
        for root, _, names in sorted(os.walk(folder)):
            for name in sorted(names):
                if name.endswith(self._suffixes):
                    file = os.path.join(root, name)
                    found += [
                        Entry(file, key, self.name_of(file, key, folder), value.offset)
                        for key, value in self._tensors(read_torch_file(file)).items()
                        if isinstance(value, StoredTensor)
                    ]
        return found

    def remove(self, entry: Entry) -> None:
        self._change(entry.file, lambda held: held.pop(entry.key))

    def add(self, entry: Entry) -> str:
        spec = TensorSpec(BY_NAME["fp32"], (3,))
        self._change(entry.file, lambda held: held.__setitem__("surprise.weight", (spec, bytes(12))))
        return "surprise.weight"

    def reshape(self, entry: Entry) -> None:
        def longer(held: dict[str, Any]) -> None:
            spec, data = held[entry.key]
            rows, *rest = spec.shape
            held[entry.key] = TensorSpec(spec.dtype, (rows + 1, *rest)), data + bytes(len(data) // rows)

        self._change(entry.file, longer)

    def retype(self, entry: Entry) -> None:
        def integers(held: dict[str, Any]) -> None:
            spec, data = held[entry.key]
            held[entry.key] = TensorSpec(BY_NAME[f"int{8 * spec.dtype.size}"], spec.shape), data

        self._change(entry.file, integers)

    def _tensors(self, content: Any) -> dict[str, Any]:
        return content if self._section is None else content[self._section]

    def _change(self, file: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Write a file again, with its tensors (each a `TensorSpec` with its bytes) changed."""
        content = read_torch_file(file)
        held = {name: _with_bytes(value) for name, value in self._tensors(content).items()}
        change(held)
        specs = {name: value[0] if isinstance(value, tuple) else value for name, value in held.items()}
        inside = () if self._section is None else (self._section,)
        data = {(*inside, name): value[1] for name, value in held.items() if isinstance(value, tuple)}
        whole = specs if self._section is None else {**content, self._section: specs}
        with open(file, "wb") as out:
            out.write(torch_bytes(whole, os.path.basename(file), data))


def _with_bytes(value: object) -> object:
    """A stored tensor as what writes it again; any other value as it is."""
    if not isinstance(value, StoredTensor):
        return value
    raw = read_range(value.file, value.offset, value.elements * value.dtype.size)
    return TensorSpec(value.dtype, value.shape), raw


def one_of_each(entries: Iterable[Entry]) -> list[Entry]:
    """One entry of each kind: names that differ by numbers alone are one kind."""
    kinds: dict[str, Entry] = {}
    for entry in entries:
        kinds.setdefault(re.sub(r"\d+", "#", entry.name), entry)
    return list(kinds.values())
