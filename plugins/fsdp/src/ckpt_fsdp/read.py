"""Reading what FSDP saved of a transformers model."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection

from ckpt_core.sdk import CkptError, Description, ReadRequest, company, containers, errors, layouts, reading
from ckpt_fsdp.contents import enter_beside, is_of_training
from ckpt_fsdp.files import HUGGINGFACE, SETTINGS, TRACKER, Place, place
from ckpt_fsdp.optimizer import training_beside
from ckpt_fsdp.stored import SavedTensors, read_chunks, read_ranks, states
from ckpt_hf.sdk import CONFIG, model_of_config

HF = "hf"

_OF_ADAPTERS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "base_layer")


def read(path: str, request: ReadRequest) -> Description:
    """The checkpoint at `path`: a folder of rank files, of a distributed checkpoint, or one that holds a single one of them."""
    where = place(path)
    stored = stored_at(where)
    if prefix := request.options.get("prefix"):
        stored.narrow(prefix, where.weights)
    _refuse_adapters(stored.names, where)
    return described(stored, where, path, request)


def stored_at(where: Place) -> SavedTensors:
    """The tensors at a place, by the names that they have there."""
    return read_ranks(where.weights) if where.by_rank else read_chunks(where.weights, where.listed)


def described(stored: SavedTensors, where: Place, path: str, request: ReadRequest) -> Description:
    """The model whose tensors were found at a place in `path`. Raises an error where nothing says what it is."""
    stored.check_asked(request.weights, where.weights)
    beside = config_beside(where, path)
    config = beside or request.config
    if config is None:
        raise CkptError(
            "nothing says what the model is: FSDP saves names and tensors, and no config",
            file=path,
            fix=f"give the {CONFIG} of the model that was trained with --config; its tokenizer beside it is taken along",
        )
    without = functools.partial(reading.without_ignored, request=request, ledger=stored.ledger, file=config)
    model = model_of_config(config, stored.names, stored.are_same, without)
    _check_whole(stored, layouts.BoundTables(model.tables, model.architecture))
    stored.leave_dropped(model.tables)
    _enter(stored, where, path)
    return Description(
        architecture=model.architecture,
        tables=model.tables,
        ranks=stored.ranks(where.weights),
        where=where.weights,
        root=path,
        files=states([*stored.files, config]),
        config=beside,
        notes=model.notes,
        sidecars=_sidecars(beside, where),
        parallel={"dp": stored.world} if stored.world else {},
        ledger=stored.ledger,
        hints={"layout": "accelerate"} if where.home != where.weights else {},
        origins={HF: model.hints},
        evidence=[f"{model.class_name} of format {HF} by {config}"],
        losses=list(model.losses),
        masters=stored.masters,
        training=None if where.by_rank or not where.listed else lambda: training_beside(where, stored),
    )


def _check_whole(stored: SavedTensors, tables: layouts.BoundTables) -> None:
    """Raise the error about missing files where the model has tensors that are not there. A tied head counts, too: in the missing file it may differ."""
    if stored.lacking and not tables.natives().keys() <= stored.names:
        raise stored.lacking


def _refuse_adapters(names: Collection[str], where: Place) -> None:
    found = sorted(name for name in names if set(name.split(".")) & set(_OF_ADAPTERS))
    if found:
        raise CkptError(
            "the model was trained with LoRA: its weights are those of a base and of an adapter, which are not merged",
            file=where.weights,
            found=f"{errors.plural(len(found), 'tensor')}, {found[0]!r} among them",
            fix="read it with --from fsdp-lora (ckpt-peft), which needs lora_train_meta.json beside it, or -o lora_alpha=NUMBER",
        )


def config_beside(where: Place, path: str) -> str | None:
    """The config that lies in the checkpoint (verl), or None. What lies around it may be of any other model."""
    for folder in (os.path.join(where.home, HUGGINGFACE), where.home, where.weights, path):
        file = os.path.join(folder, CONFIG)
        if os.path.isfile(file):
            return file
    return None


def _sidecars(beside: str | None, where: Place) -> dict[str, company.Sidecar]:
    """The files of the model: all beside its config where that lies in the checkpoint, else those that are known to be of one."""
    homes = (where.home, os.path.join(where.home, HUGGINGFACE))
    if beside is not None and os.path.dirname(beside) in homes:
        return company.files_in(os.path.dirname(beside), _is_companion)
    found = {} if beside is None else company.companions_of(beside)
    for folder in homes:
        found |= company.files_in(folder, company.is_companion)
    return found


def _is_companion(name: str) -> bool:
    own = (
        name in (CONFIG, TRACKER, SETTINGS)
        or name.startswith((".", "ckpt-receipt"))
        or name.endswith(containers.WEIGHT_SUFFIXES)
    )
    return not own and not is_of_training(name)


def _enter(stored: SavedTensors, where: Place, path: str) -> None:
    """The state of a training beside the weights, in the folder that was given and in that of the model."""
    for folder in dict.fromkeys(map(os.path.abspath, (path, where.home, os.path.join(where.home, HUGGINGFACE)))):
        if os.path.isdir(folder):
            enter_beside(stored.ledger, folder)
        if os.path.isfile(tracker := os.path.join(folder, TRACKER)):
            stored.ledger.used("the step to read", tracker)
