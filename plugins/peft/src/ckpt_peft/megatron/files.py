"""The files of an adapter of Megatron-Bridge: a distributed checkpoint of adapter tensors alone, and the config of its run.

    latest_checkpointed_iteration.txt
    iter_0000100/.metadata, *.distcp          decoder.layers.self_attention.linear_qkv.adapter.linear_in.weight  [layers, rank, in]
    iter_0000100/run_config.yaml              peft: {_target_: ...LoRA, dim, alpha, ...}, checkpoint.pretrained_checkpoint

Tensors of all layers lie in one, as those of the base do; where layers differ each has its own (`decoder.layers.3.`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ckpt_core.sdk import CkptError, FormatError, chunked, disk, documents, lazy, ledgers
from ckpt_peft.keys import DOWN, MAGNITUDE, UP, Adapted, Named

RUN_CONFIG, TRACKER, METADATA = "run_config.yaml", "latest_checkpointed_iteration.txt", ".metadata"
_CONTAINER, _PROGRESS = "metadata.json", "train_state.pt"
_ROLES = {"linear_in": DOWN, "linear_out": UP}
_KEY = re.compile(r"(?:module\.)?(decoder\.layers)(?:\.(\d+))?\.(.+)\.adapter\.(linear_in|linear_out)\.weight")
_MAGNITUDE = re.compile(r"(?:module\.)?(decoder\.layers)(?:\.(\d+))?\.(.+)\.adapter\.(weight_magnitude)")


@dataclass(frozen=True)
class Files:
    """An adapter as its files have it: the sections of the run's config, and the adapted modules."""

    folder: str
    sections: Mapping[str, Any]
    adapted: tuple[Adapted, ...]
    states: tuple[disk.FileState, ...]
    ledger: ledgers.Ledger = field(default_factory=ledgers.Ledger)

    @property
    def config_file(self) -> str:
        """The path of run_config.yaml."""
        return os.path.join(self.folder, RUN_CONFIG)

    @property
    def peft(self) -> Mapping[str, Any]:
        """The section of the config that says how the adapter is scaled."""
        return self.sections["peft"]

    @property
    def base(self) -> str | None:
        """Where the base lay when the adapter was trained."""
        section = self.sections.get("checkpoint")
        named = section.get("pretrained_checkpoint") if isinstance(section, Mapping) else None
        return named if isinstance(named, str) and named else None


def looks_like(path: str) -> str | None:
    """The fact by which a path is an adapter: `peft` in the config of a run beside a distributed checkpoint of adapter tensors."""
    folder = _folder_of(path)
    if folder is None or not os.path.isfile(os.path.join(folder, METADATA)):
        return None
    try:
        config = documents.parse_yaml(disk.read_small(os.path.join(folder, RUN_CONFIG)), RUN_CONFIG)
        if not isinstance(config, dict) or not isinstance(config.get("peft"), dict):
            return None
        names = chunked.read_distributed(folder).tensors
    except (CkptError, OSError):
        return None
    return (
        f"peft in {RUN_CONFIG}, and tensors of adapters alone"
        if names and all(".adapter." in n for n in names)
        else None
    )


def _folder_of(path: str) -> str | None:
    """The folder of an iteration: the path, or the one that the tracker in it names."""
    if os.path.isfile(os.path.join(path, RUN_CONFIG)):
        return path
    tracker = os.path.join(path, TRACKER)
    if not os.path.isfile(tracker):
        return None
    try:
        said = disk.read_small(tracker).strip()
    except CkptError:
        return None
    folder = os.path.join(path, f"iter_{int(said):07d}") if said.isdigit() and len(said) < 10 else path
    return folder if os.path.isfile(os.path.join(folder, RUN_CONFIG)) else None


def open_files(path: str) -> Files:
    """The adapter at a path; `FormatError` for a damaged file, or for a tensor that is nothing known."""
    folder = _folder_of(path)
    if folder is None:
        raise FormatError("there is no adapter here", file=path, expected=RUN_CONFIG)
    file, ledger = os.path.join(folder, RUN_CONFIG), ledgers.Ledger()
    sections = documents.parse_yaml(disk.read_small(file), file)
    if not isinstance(sections, dict) or not isinstance(sections.get("peft"), dict):
        raise FormatError("the config has no section peft", file=file)
    held = chunked.read_distributed(folder)
    adapted: dict[str, Adapted] = {}
    for name, tensor in held.tensors.items():
        match = _KEY.fullmatch(name) or _MAGNITUDE.fullmatch(name)
        if match is None:
            raise FormatError(
                f"tensor {name!r} is not read as one of an adapter",
                file=folder,
                expected="decoder.layers....adapter.linear_in.weight or linear_out.weight",
            )
        role = _ROLES.get(match[4], MAGNITUDE)
        for layer, part in _by_layer(name, tensor, match[2]):
            one = adapted.setdefault(module := f"{match[1]}.{layer}.{match[3]}", Adapted(module))
            one.tensors[role] = part
    for one in adapted.values():
        for role in (DOWN, UP):
            if role not in one.tensors:
                raise FormatError(f"the matrix {role} of {one.path} is missing", file=folder)
    ledger.used("the merge", file, "peft")
    ledger.left(ledgers.SETTINGS, file, *(key for key in sections if key != "peft"))
    if os.path.isfile(container := os.path.join(folder, _CONTAINER)):
        ledger.used("where the tensors lie", container)
    if folder != path:
        ledger.used("the iteration to read", os.path.join(path, TRACKER))
    if os.path.isfile(state := os.path.join(folder, _PROGRESS)):
        ledger.left(ledgers.PROGRESS, state, size=os.path.getsize(state))
    for name in held.objects:
        ledger.left(ledgers.SETTINGS, os.path.join(folder, METADATA), name)
    states = tuple(disk.FileState.of(one) for one in [*held.files, file])
    return Files(folder, sections, tuple(adapted.values()), states, ledger)


def _by_layer(name: str, tensor: chunked.ChunkedTensor, layer: str | None) -> Iterator[tuple[int, Named]]:
    """A tensor of each layer: the tensor itself, or the rows of one that holds all layers."""
    shards = [lazy.Shard(origin, stored) for origin, stored in tensor.stored()]
    if layer is not None:
        yield int(layer), Named(name, tensor.shape, tuple(shards))
        return
    for number in range(tensor.shape[0]):
        parts = []
        for shard in shards:
            place = number - shard.origin[0]
            stored = shard.stored
            if 0 <= place < stored.shape[0]:
                offset = stored.offset + place * stored.strides[0] * stored.dtype.size
                inner = replace(stored, shape=stored.shape[1:], strides=stored.strides[1:], offset=offset)
                parts.append(lazy.Shard(shard.origin[1:], inner))
        yield number, Named(f"{name} of layer {number}", tensor.shape[1:], tuple(parts))
