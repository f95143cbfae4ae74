"""Reading a step of torchtitan."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    CkptError,
    Description,
    RankTensors,
    ReadRequest,
    company,
    errors,
    layouts,
    ledgers,
    reading,
)
from ckpt_fsdp.steps import step_at
from ckpt_fsdp.stored import SavedTensors, read_chunks, states
from ckpt_fsdp.titan.models import choices_of, model_of
from ckpt_fsdp.titan.weights import BIAS, TABLES
from ckpt_hf.sdk import CONFIG, model_of_config


def read(path: str, request: ReadRequest) -> Description:
    """What lies in the folder of a step, or in the last one of a folder of steps."""
    folder = step_at(path)
    stored = read_chunks(folder)
    _refuse_adapters(stored, folder)
    stored.check_asked(request.weights, folder)
    beside = _config_beside(path, folder)
    notes: Mapping[str, Any] = {}
    origins: Mapping[str, Mapping[str, Any]] = {}
    losses: Sequence[ledgers.Loss] = ()
    if beside is not None:
        without = functools.partial(reading.without_ignored, request=request, ledger=stored.ledger, file=beside)
        described = model_of_config(beside, (), without=without)
        architecture, notes, losses = described.architecture, described.notes, described.losses
        origins = {"hf": described.hints}
    else:
        architecture = reading.given(
            request,
            path,
            problem="nothing says what the model is: torchtitan saves names and tensors, and no config",
            expected="config.json in the folder of the step, or a JSON file of torchtitan's own arguments with --config",
        )
    model = model_of(architecture, request.options.get("model") or _written_as(path), folder)
    choices = choices_of(stored.names, model)
    extra = _extra_biases(architecture, choices, stored.names)
    _leave_biases(stored, extra, request, folder)
    stored.leave_dropped(TABLES)
    return Description(
        architecture=architecture,
        tables=TABLES,
        choices=choices,
        ranks=[RankTensors({}, {name: held for name, held in stored.copies[0].items() if name not in extra}, folder)],
        where=folder,
        root=path,
        files=states([*stored.files, *filter(None, [beside or request.config])]),
        config=beside,
        notes=notes,
        sidecars=company.companions_of(beside) if beside else {},
        ledger=stored.ledger,
        origins=origins,
        hints={"model": model, "release": "0.2" if choices["head"] == "output" else "0.3"},
        evidence=[
            f"torchtitan's {model}: queries and keys in {choices['rotary']}",
            f"names: {', '.join(f'{name} {choices[name]}' for name in ('head', 'qkv', 'experts'))}",
        ],
        losses=losses,
        masters=stored.masters,
    )


def _written_as(path: str) -> object:
    """The model that a step of ours was written as, which nothing else in it tells."""
    receipt = reading.receipt_of(path, "torchtitan")
    return None if receipt is None else receipt.decisions.get("model")


def _config_beside(path: str, folder: str) -> str | None:
    """A config of transformers in the folder of the step, or in the one that was given; around them may lie any other's."""
    for place in (folder, path):
        file = os.path.join(place, CONFIG)
        if os.path.isfile(file):
            return file
    return None


def _refuse_adapters(stored: SavedTensors, folder: str) -> None:
    found = sorted(name for name in stored.names if {"lora_a", "lora_b"} & set(name.split(".")))
    if found:
        raise CkptError(
            "the model was trained with LoRA: torchtitan does not store by how much its adapter counts",
            file=folder,
            found=f"{errors.plural(len(found), 'tensor')}, {found[0]!r} among them",
            fix="merge it where it was trained, and save that",
        )


def _extra_biases(
    architecture: Architecture, choices: Mapping[str, layouts.Value], names: Collection[str]
) -> list[str]:
    """The biases on the scores of experts, where the model has no place for them."""
    stack = architecture.decoder
    held = any(layer.moe and layer.moe.router.correction_bias for layer in stack.layers) if stack else False
    return [] if held else sorted(name for name in names if name.endswith(f".{BIAS[str(choices['experts'])]}"))


def _leave_biases(stored: SavedTensors, extra: Collection[str], request: ReadRequest, folder: str) -> None:
    """Leave them behind. torchtitan routes by score and bias with load_balance_coeff, which is on by default; its own export drops it,
    and computes another model. Zeros change nothing.
    """
    moved = [name for name in extra if not stored.is_zero(name)]
    if moved and not request.options.get("drop_expert_bias"):
        raise CkptError(
            "the router adds a bias to the scores of experts, and the model of the config has no place for it",
            file=folder,
            found=f"{errors.plural(len(moved), 'tensor')} that are not zero, {moved[0]!r} among them",
            expected="zeros, or a model whose router has one (DeepSeek V3)",
            fix="leave it out with -o drop_expert_bias=true: the outputs are then those of another routing",
        )
    for name in extra:
        if name in moved:
            stored.leave("as -o drop_expert_bias=true asks: the routing changes", name)
        else:
            stored.enter_zeros(name)
