"""The optimizer in a distributed checkpoint: moments by the names of the parameters, groups that list these names.

    optimizer.state.NAME.exp_avg, .exp_avg_sq, .step       tensors, in chunks as the weights are
    optimizer.param_groups.0.lr, .betas, ..., .params      objects

accelerate and the Trainer have them in a folder `optimizer_0` beside that of the model; a script that saves one nest of dicts has them among the
weights, under `optimizer`, `optim` or another key.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_core.sdk import (
    FormatError,
    RankTensors,
    TargetBuilder,
    chunked,
    dtypes,
    errors,
    layouts,
    lazy,
    ledgers,
    reading,
    schema,
    torch_files,
)
from ckpt_fsdp.files import Place
from ckpt_fsdp.stored import SavedTensors, states, unwrapped
from ckpt_hf.sdk import progress_beside

OPTIMIZER = "optimizer_0"
_KEY = "optimizer"
_STATE = re.compile(r"((?:[^.]+\.)?optim[^.]*)\.state\.(.+)\.([^.]+)")
_GROUP = re.compile(r"((?:[^.]+\.)?optim[^.]*)\.param_groups\.(\d{1,6})\.([^.]+)")


@schema.dataclass(frozen=True, slots=True)
class OtherTensor:
    """A tensor that the files hold besides those of the model. Without `data` it is zeros."""

    key: str
    dtype: dtypes.DType
    shape: tuple[int, ...]
    data: bytes | None = None


# --- reading ---------------------------------------------------------------------------------------------------------


def training_beside(where: Place, model: SavedTensors) -> reading.SavedTraining | None:
    """The state of the training in a distributed checkpoint, or in the folder of its optimizer; None where there is none."""
    beside = os.path.join(where.home, OPTIMIZER)
    folder = beside if where.home != where.weights and os.path.isdir(beside) else where.weights
    held = chunked.read_distributed(folder)
    found: dict[str, dict[str, Any]] = {}
    keys: list[str] = []
    several: set[str] = set()
    for key, value in [*held.tensors.items(), *held.objects.items()]:  # a step may be a number, which is an object
        if match := _STATE.fullmatch(key):
            found.setdefault(match[2], {})[match[3]] = value
            keys.append(key)
            several.add(match[1])
    if not found:
        return None
    (described,) = held.described_in
    if len(several) > 1:
        raise errors.NotCarried(
            "the files hold several optimizers, and which of them a run goes on with is not known",
            file=described,
            found=", ".join(sorted(several)),
            fix="convert the weights alone, with --training-state drop",
        )
    files = states(held.files)
    found = {_name_of(name, model.names): state for name, state in unwrapped(found, described).items()}
    bodies = _groups(held, described)
    step, moments = _moments(found, bodies, described, files)
    names = [[_name_of(name, model.names) for name in body.pop("params")] for body in bodies]
    # torch keeps nothing of a parameter that never had a gradient: one that is frozen, and was given to the optimizer nevertheless
    members = [[name for name in of if name in found] for of in names]
    groups = [reading.adam.group_of(body, of, described) for body, of in zip(bodies, members, strict=True)]
    for name in sorted(found.keys() - {name for of in names for name in of}):
        raise FormatError(f"the moments of {name!r} are of no group of the optimizer", file=described)
    progress = progress_beside(where.home, step, groups, described)
    progress.ledger.carried(
        ledgers.OPTIMIZER.what, described, *keys, *filter(_GROUP.fullmatch, [*held.objects, *held.tensors])
    )
    if folder == beside:
        progress.ledger.carried(ledgers.OPTIMIZER.what, beside)
    return reading.SavedTraining(
        state=progress.state_of(step, groups, reading.adam.kind_of(bodies, described)),
        ranks={kind: [RankTensors({}, tensors, folder)] for kind, tensors in moments.items()},
        where=described,
        files=[*files, *progress.files],
        ledger=progress.ledger,
        losses=progress.losses(step),
        evidence=["moments by the names of the parameters"],
        rest_is_frozen=True,
    )


def _name_of(name: str, known: set[str]) -> str:
    """What the weights call a parameter of the optimizer: a nest of dicts has them below a key, and the names of its module below that."""
    if name in known:
        return name
    behind = [one for one in (f"model.{name}", f"module.{name}", f"app.model.{name}") if one in known]
    return behind[0] if behind else name


def _moments(
    found: Mapping[str, Mapping[str, Any]], bodies: Sequence[Mapping[str, Any]], file: str, files: Sequence[Any]
) -> tuple[int, dict[reading.Kind, dict[str, Sequence[lazy.Shard]]]]:
    moments: dict[reading.Kind, dict[str, Sequence[lazy.Shard]]] = {kind: {} for kind in reading.MOMENTS}
    for name, state in found.items():
        reading.adam.check_state(name, state, chunked.ChunkedTensor, file)
        for kind in reading.MOMENTS:
            moments[kind][name] = [lazy.Shard(origin, stored) for origin, stored in state[kind].stored()]
    steps = {name: _kept(step) for name, step in reading.adam.steps_of(found, bodies, file).items()}
    return reading.adam.one_step(steps, file, files, of_one_program=True), moments


def _kept(value: Any) -> object:
    """A number, or the tensor of one, as a distributed checkpoint keeps it."""
    if isinstance(value, chunked.ChunkedTensor):
        stored = list(value.stored())
        return stored[0][1] if len(stored) == 1 else value
    return value.read() if isinstance(value, chunked.Blob) else value


def _groups(held: chunked.DistributedCheckpoint, file: str) -> list[dict[str, Any]]:
    """The groups, each with the names of its parameters in `params`."""
    found: dict[int, dict[str, Any]] = {}
    for key, blob in held.objects.items():
        if match := _GROUP.fullmatch(key):
            found.setdefault(int(match[2]), {})[match[3]] = blob.read()
    for key, tensor in held.tensors.items():
        if match := _GROUP.fullmatch(key):
            found.setdefault(int(match[2]), {})[match[3]] = _kept(tensor)
    for number, body in sorted(found.items()):
        names = body.get("params")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise FormatError(
                f"group {number} of the optimizer lists no parameters", file=file, found=torch_files.brief(names)
            )
    if not found:
        raise errors.NotCarried("the optimizer has no groups that say its hyper-parameters", file=file)
    return [found[number] for number in sorted(found)]


# --- writing ---------------------------------------------------------------------------------------------------------


@schema.dataclass(frozen=True)
class WrittenOptimizer:
    """What a distributed checkpoint holds of an optimizer: tensors and objects by key, and where each stands in the nest of dicts."""

    moments: Mapping[str, layouts.Native]
    steps: Sequence[OtherTensor]
    objects: Mapping[str, bytes]
    paths: Mapping[str, tuple[str | int, ...]]


def optimizer_of(builder: TargetBuilder, training: reading.Training, layout: str) -> WrittenOptimizer:
    """The optimizer of what a builder writes. `NotCarried` for the flat layout, whose readers look for no optimizer in it."""
    if layout == "flat":
        raise errors.NotCarried(
            "a flat state dict has no place for an optimizer",
            fix="write it with -o layout=nested or -o layout=accelerate",
        )
    natives = {name: native for name, native in builder.natives().items() if not native.row.copy}
    moments: dict[str, layouts.Native] = {}
    paths: dict[str, tuple[str | int, ...]] = {}
    for kind in reading.MOMENTS:
        for name, native in builder.moments(kind, natives).items():
            place = (_KEY, "state", name, kind)
            moments[_key(place)], paths[_key(place)] = native, place
    trained = list(builder.moments(reading.EXP_AVG, natives))
    data = struct.pack("<f", float(training.step))
    places = [(_KEY, "state", name, "step") for name in trained]
    steps = [OtherTensor(_key(place), dtypes.FP32, (), data) for place in places]
    paths |= {_key(place): place for place in places}
    objects: dict[str, bytes] = {}
    for number, (group, names) in enumerate(reading.named_groups(training, {name: natives[name] for name in trained})):
        for key, value in reading.adam.said_by(group, names, training.optimizer).items():
            inside = (_KEY, "param_groups", number, key)
            objects[_key(inside)] = torch_files.torch_bytes(value, "archive")
            paths[_key(inside)] = inside
    return WrittenOptimizer(moments, steps, objects, paths)


def _key(place: tuple[str | int, ...]) -> str:
    return ".".join(map(str, place))
