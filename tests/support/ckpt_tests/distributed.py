"""torch_dist folders read and damaged by torch alone, to judge what ckpt reads and writes."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from ckpt_core.testing import Entry
from ckpt_tests.inert import empty, pickle_module

_SAFE = {"torch", "collections", "numpy"}


def _stand_in(module: str, name: str) -> type:
    """Megatron-Core pickles a subclass of torch's Metadata, and classes that are not installed here."""
    return Metadata if name == "MCoreMetadata" else empty(module, name)


_inert = pickle_module(_SAFE, _stand_in)


def metadata_of(folder: Path) -> Any:
    with (folder / ".metadata").open("rb") as file:
        return _inert.load(file)


def tensors(folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors whose keys begin with `prefix`, without it; without a prefix, all but those of the optimizer."""
    metadata, found = metadata_of(folder), {}
    places = {
        (index.fqn, tuple(index.offset)): info
        for index, info in metadata.storage_data.items()
        if index.offset is not None
    }
    for name, entry in metadata.state_dict_metadata.items():
        wanted = name.startswith(prefix) if prefix else not name.startswith("optimizer.")
        if not wanted or not hasattr(entry, "chunks"):
            continue
        whole = torch.empty(entry.size, dtype=entry.properties.dtype)
        for chunk in entry.chunks:
            info = places[name, tuple(chunk.offsets)]
            data = (folder / info.relative_path).read_bytes()[info.offset : info.offset + info.length]
            box = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
            whole[box] = torch.load(io.BytesIO(data), weights_only=True)
        found[name.removeprefix(prefix)] = whole
    return found


def changed(folder: Path, change: Callable[[Any], None]) -> None:
    """The metadata of a folder that ckpt wrote, with a change."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def renamed(metadata: Any, old: str, new: str) -> None:
    metadata.state_dict_metadata[new] = metadata.state_dict_metadata.pop(old)
    for index in [index for index in metadata.storage_data if index.fqn == old]:
        info = metadata.storage_data.pop(index)
        object.__setattr__(index, "fqn", new)
        metadata.storage_data[index] = info


def dropped(metadata: Any, name: str) -> None:
    del metadata.state_dict_metadata[name]
    for index in [index for index in metadata.storage_data if index.fqn == name]:
        del metadata.storage_data[index]


_FUSED = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}


def _name_of(key: str) -> str:
    """What an error calls a tensor: the first that a key of all layers holds, under the name of a local module."""
    name = re.sub(r"^decoder\.layers\.(?!\d)", "decoder.layers.0.", key.removeprefix("module."))
    for fused, separate in _FUSED.items():
        name = name.replace(fused, separate)
    return name.replace(".experts.experts.", ".experts.local_experts.0.")


class DistributedEntries:
    """The tensors of a folder, for the conformance kit. What is changed is appended to a data file."""

    name_of = staticmethod(_name_of)

    def find(self, folder: str) -> list[Entry]:
        (path,) = Path(folder).rglob(".metadata")
        metadata, found = metadata_of(path.parent), []
        for key, entry in metadata.state_dict_metadata.items():
            if isinstance(entry, TensorStorageMetadata):
                file = next(info.relative_path for index, info in metadata.storage_data.items() if index.fqn == key)
                found.append(Entry(str(path.parent / file), key, self.name_of(key)))
        return found

    def _change(self, entry: Entry, key: str, tensor: torch.Tensor | None) -> None:
        def change(metadata: Any) -> None:
            somewhere = next(iter(metadata.storage_data.values()))
            if key in metadata.state_dict_metadata:
                dropped(metadata, key)
            if tensor is None:
                return
            data = io.BytesIO()
            torch.save(tensor, data)
            info = dataclasses.replace(
                somewhere,
                relative_path=os.path.basename(entry.file),
                offset=os.path.getsize(entry.file),
                length=len(data.getvalue()),
            )
            with open(entry.file, "ab") as file:
                file.write(data.getvalue())
            origin = torch.Size([0] * tensor.dim())
            chunk = ChunkStorageMetadata(origin, tensor.shape)
            described = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), tensor.shape, [chunk])
            metadata.state_dict_metadata[key] = described
            metadata.storage_data[MetadataIndex(key, origin)] = info

        changed(Path(entry.file).parent, change)

    def _tensor(self, entry: Entry) -> torch.Tensor:
        return tensors(Path(entry.file).parent, entry.key)[""]

    def remove(self, entry: Entry) -> None:
        self._change(entry, entry.key, None)

    def add(self, entry: Entry) -> str:
        self._change(entry, "surprise.weight", torch.zeros(3))
        return "surprise.weight"

    def reshape(self, entry: Entry) -> None:
        old = self._tensor(entry)
        self._change(entry, entry.key, torch.cat([old, old[..., :1]], -1))

    def retype(self, entry: Entry) -> None:
        self._change(entry, entry.key, self._tensor(entry).view(torch.int32))
