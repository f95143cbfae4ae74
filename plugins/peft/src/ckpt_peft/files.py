"""The files of an adapter's folder, and the names of the tensors in them.

adapter_config.json
adapter_model.safetensors        or  adapter_model.bin
tokenizer.json, chat_template.jinja, ...                 travel with the merged model
optimizer.pt, trainer_state.json, ...                    of transformers' Trainer, left behind
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

from ckpt_core.sdk import (
    FormatError,
    ReadRequest,
    StoredTensor,
    company,
    containers,
    disk,
    documents,
    ledgers,
    reading,
    schema,
    torch_files,
)
from ckpt_hf.sdk import CONFIG as MODEL_CONFIG
from ckpt_hf.sdk import state_of_training
from ckpt_peft.keys import NamedTensor
from ckpt_peft.places import CONFIG, WEIGHTS, folder_of

_SAME_WEIGHTS = ledgers.Reason("weights that are not read", "the same weights are read from elsewhere")
_CARD = ledgers.Reason("the adapter's card", "it describes the adapter, and not the merged model")
_CONFIG_OF_BASE = ledgers.Reason("config of the base", "the base that is given says what the model is")
_WEIGHTS_OF_OTHERS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")
_NOT_COMPANIONS = ("adapter_", "ckpt-receipt", ".")


@schema.dataclass(frozen=True)
class Files:
    """An adapter as its files have it: `config`, and the tensors of `weights` by their names."""

    folder: str
    config: Mapping[str, Any]
    weights: str
    tensors: Mapping[str, StoredTensor]
    ledger: ledgers.Ledger = field(default_factory=ledgers.Ledger)

    @property
    def config_file(self) -> str:
        """The path of adapter_config.json."""
        return os.path.join(self.folder, CONFIG)

    @property
    def named(self) -> Iterator[NamedTensor]:
        """The tensors, each with its name."""
        return (NamedTensor.whole(key, stored) for key, stored in self.tensors.items())

    @property
    def states(self) -> list[disk.FileState]:
        """The files that are read."""
        return [disk.FileState.of(self.config_file), disk.FileState.of(self.weights)]


def open_files(path: str, request: ReadRequest) -> Files:
    """The adapter at a path; `FormatError` if a file is missing or damaged."""
    folder = folder_of(path) or path
    config_file, ledger = os.path.join(folder, CONFIG), ledgers.Ledger()
    config = reading.without_ignored(documents.read_json_object(config_file), request, ledger, config_file)
    there = [os.path.join(folder, name) for name in WEIGHTS if os.path.isfile(os.path.join(folder, name))]
    if not there:
        raise FormatError("the adapter has no weights", file=folder, expected=" or ".join(WEIGHTS))
    weights, *others = there
    for other in others:
        ledger.left(_SAME_WEIGHTS, other, size=os.path.getsize(other))
    return Files(folder, config, weights, _tensors(weights, ledger), ledger)


def _tensors(file: str, ledger: ledgers.Ledger) -> Mapping[str, StoredTensor]:
    if file.endswith(".safetensors"):
        return containers.SAFETENSORS.read(file).tensors
    held = torch_files.read_state_dict(file)
    if held.beside:
        ledger.left(ledgers.UNKNOWN_KEY, file, *held.beside)
    return held.tensors


def companions(folder: str, ledger: ledgers.Ledger) -> dict[str, company.Sidecar]:
    """The files of the adapter's folder that belong to the merged model; what else lies there is entered as left."""
    for name in sorted(os.listdir(folder)):
        file = os.path.join(folder, name)
        if (reason := _left_behind(name)) is not None and os.path.isfile(file):
            ledger.left(reason, file, size=os.path.getsize(file))
    return company.files_in(folder, _is_companion)


def _left_behind(name: str) -> ledgers.Reason | None:
    if name == MODEL_CONFIG:
        return _CONFIG_OF_BASE
    return _CARD if name.startswith("README") else state_of_training(name)


def _is_companion(name: str) -> bool:
    own = name.startswith(_NOT_COMPANIONS) or name.endswith(_WEIGHTS_OF_OTHERS)
    return not own and _left_behind(name) is None
