"""Reading a step of torchtitan."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ckpt_core.sdk import (
    Architecture,
    CkptError,
    Description,
    RankTensors,
    ReadRequest,
    company,
    disk,
    dtypes,
    layouts,
    lazy,
    ledgers,
    reading,
)
from ckpt_fsdp.steps import step_at
from ckpt_fsdp.stored import Stored, read_chunks, states
from ckpt_fsdp.titan.models import choices_of, model_of
from ckpt_fsdp.titan.weights import BIAS, TABLES
from ckpt_hf.sdk import CONFIG, model_of_config


def read(path: str, request: ReadRequest) -> Description:
    """What lies in the folder of a step, or in the last one of a folder of steps."""
    folder = step_at(path)
    stored = read_chunks(folder)
    _refuse_adapters(stored, folder)
    beside = _config_beside(path, folder)
    notes: Mapping[str, Any] = {}
    if beside is not None:
        described = model_of_config(beside, ())
        architecture, notes = described.architecture, described.notes
    else:
        architecture = reading.given(
            request, path, problem="nothing says what the model is: torchtitan saves names and tensors, and no config"
        )
    model = model_of(architecture, request.options.get("model"), folder)
    choices = choices_of(stored.names, model)
    tensors, losses = _without_bias(stored.copies[0], architecture, choices, request, folder)
    masters = all(dtype.name == "fp32" for dtype in stored.dtypes)
    if request.weights == "master" and not masters:
        raise CkptError(
            "there are no fp32 masters: the step is of the model alone, in a narrower dtype",
            file=folder,
            fix="use --weights model, or a step that is not the last",
        )
    return Description(
        architecture=architecture,
        tables=TABLES,
        choices=choices,
        ranks=[RankTensors({}, tensors, folder)],
        where=folder,
        root=path,
        files=states([*stored.files, *filter(None, [beside or request.config])]),
        config=beside,
        notes=notes,
        sidecars=company.companions_of(beside) if beside else {},
        ledger=stored.ledger,
        hints={"model": model, "release": "0.2" if choices["head"] == "output" else "0.3"},
        evidence=[
            f"torchtitan's {model}: queries and keys in {choices['rotary']}",
            f"names: {', '.join(f'{name} {choices[name]}' for name in ('head', 'qkv', 'experts'))}",
        ],
        losses=[*losses, *_dropped(stored)],
        masters=masters,
    )


def _config_beside(path: str, folder: str) -> str | None:
    """A config of transformers in the folder of the step, or in the one that was given; around them may lie any other's."""
    for place in (folder, path):
        file = os.path.join(place, CONFIG)
        if os.path.isfile(file):
            return file
    return None


def _refuse_adapters(stored: Stored, folder: str) -> None:
    found = sorted(name for name in stored.names if {"lora_a", "lora_b"} & set(name.split(".")))
    if found:
        raise CkptError(
            "the model was trained with LoRA: torchtitan does not store by how much its adapter counts",
            file=folder,
            found=f"{len(found)} tensors, {found[0]!r} among them",
            fix="merge it where it was trained, and save that",
        )


def _without_bias(
    tensors: Mapping[str, Sequence[lazy.Shard]],
    architecture: Architecture,
    choices: Mapping[str, layouts.Value],
    request: ReadRequest,
    folder: str,
) -> tuple[dict[str, Sequence[lazy.Shard]], list[ledgers.Loss]]:
    """The tensors without the bias on the scores of experts, where the model has no place for it.

    torchtitan routes by score and bias with load_balance_coeff, which is on by default; its own export drops it, and
    computes another model. Zeros change nothing.
    """
    stack = architecture.decoder
    held = any(layer.mlp.moe and layer.mlp.moe.router.correction_bias for layer in stack.layers) if stack else False
    name = BIAS[str(choices["experts"])]
    extra = [] if held else sorted(key for key in tensors if key.endswith(f".{name}"))
    moved = [key for key in extra if any(np.any(values) for values in _values(tensors[key]))]
    if moved and not request.options.get("drop_expert_bias"):
        raise CkptError(
            "the router adds a bias to the scores of experts, and the model of the config has no place for it",
            file=folder,
            found=f"{len(moved)} tensors that are not zero, {moved[0]!r} among them",
            expected="zeros, or a model whose router has one (DeepSeek V3)",
            fix="leave it out with -o drop_expert_bias=true: the outputs are then those of another routing",
        )
    losses = (
        [ledgers.Loss("dropped", ", ".join(moved), "as -o drop_expert_bias=true asks: the routing changes")]
        if moved
        else []
    )
    return {key: shards for key, shards in tensors.items() if key not in extra}, losses


def _values(shards: Sequence[lazy.Shard]) -> Iterator[np.ndarray]:
    """The values of a small tensor, a part after the other."""
    for shard in shards:
        stored = shard.stored
        data = disk.read_range(stored.file, stored.offset, stored.elements * stored.dtype.size)
        yield dtypes.decode(np.frombuffer(data, stored.dtype.numpy), stored.dtype)


def _dropped(stored: Stored) -> Iterator[ledgers.Loss]:
    for dropped in (drop for table in TABLES for drop in table.drops):
        if any(layouts.matches(dropped.native, name) for name in stored.names):
            yield ledgers.Loss("dropped", dropped.native, dropped.why)
