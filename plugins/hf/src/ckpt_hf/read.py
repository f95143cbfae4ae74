"""Reading an HF folder into a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from ckpt_core.architecture import Architecture, architecture_of
from ckpt_core.checkpoint import Checkpoint, Loss
from ckpt_core.engine.assembly import Assembler, Shard
from ckpt_core.errors import CkptError, FormatError
from ckpt_core.layout import Layout, account
from ckpt_core.layout.table import matches
from ckpt_core.plugins import ReadRequest
from ckpt_core.receipt import check_agreement, original_of
from ckpt_core.storage.files import FileState
from ckpt_core.storage.jsonfile import read_json_object
from ckpt_core.storage.tensor import StoredTensor
from ckpt_hf.classes import code_beside, family_of
from ckpt_hf.common import Tables
from ckpt_hf.files import CONFIG, container_of, read_tensors, read_weights, sidecars


def architecture_in(path: str) -> Architecture | None:
    """The architecture in an HF config file, for `--config`; None if the file is not one."""
    if not path.endswith(".json"):
        return None
    config = read_json_object(path)
    if "model_type" not in config:
        return None
    facts, _ = family_of(config, path).config.read(config, path)
    return architecture_of(facts, path)


def read(path: str, request: ReadRequest) -> Checkpoint:
    """The checkpoint in an HF folder, or in one weight file with its config beside it or given by `--config`."""
    if request.weights == "master":
        raise CkptError("an HF folder has no fp32 masters", file=path, fix="use --weights model")
    folder = path if os.path.isdir(path) else os.path.dirname(path) or "."
    config_file = os.path.join(folder, CONFIG)
    if not os.path.isfile(config_file):
        raise CkptError("there is no config.json", file=path, fix="give the folder of the model, with its config.json")
    config = read_json_object(config_file)
    for key in filter(None, str(request.options.get("ignore_keys") or "").split(",")):
        config.pop(key.strip(), None)
    family = family_of(config, config_file, str(request.options.get("read_as") or ""))
    tensors, states = _tensors(path, folder)
    facts, notes = family.config.read(family.as_stored(config, tensors.keys()), config_file)
    architecture = architecture_of(facts, config_file)
    if request.architecture is not None:
        check_agreement(request.architecture, architecture, config_file)
    arrangement = family.arranged_by(config)
    tables = matching(family.tables_for(arrangement), tensors, architecture)
    leftovers = family.leftovers(architecture)
    layout = Layout(tables, architecture)
    natives = layout.natives()
    assembler = Assembler(layout.parameters, folder)
    for problem in account(natives, [*tables, leftovers], tensors, folder):
        assembler.problems.add(problem)
    for name, native in natives.items():
        if name in tensors:
            assembler.add(native, [Shard((0,) * len(tensors[name].shape), tensors[name])])
    checkpoint = Checkpoint(
        "hf",
        path,
        architecture,
        assembler.finish(),
        [*states, FileState.of(config_file)],
        notes=notes,
        sidecars=sidecars(folder),
        parallel={},
        hints={"model_type": family.model_type, "arrangement": arrangement},
        evidence=[f"{family.class_name} by model_type={family.model_type!r}"],
        losses=[
            *code_beside(config, family),
            *(
                Loss("dropped", dropped.native, dropped.why)
                for dropped in leftovers.drops
                if any(matches(dropped.native, name) for name in tensors.keys() - natives.keys())
            ),
        ],
    )
    return original_of(checkpoint, folder)


def _tensors(path: str, folder: str) -> tuple[dict[str, StoredTensor], list[FileState]]:
    if os.path.isfile(path):
        return read_weights(path), [FileState.of(path)]
    container = container_of(folder)
    if container is None:
        raise FormatError(
            "there are no weights here", file=folder, expected="model.safetensors or pytorch_model.bin, or their index"
        )
    return read_tensors(folder, container)


def matching(spellings: Sequence[Tables], names: Collection[str], architecture: Architecture) -> Tables:
    """The tables that fit the names found: experts are saved one by one, or fused by a bare state dict."""
    if len(spellings) == 1:
        return spellings[0]
    return max(spellings, key=lambda tables: len(Layout(tables, architecture).natives().keys() & set(names)))
