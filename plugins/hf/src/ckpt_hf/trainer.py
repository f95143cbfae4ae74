"""What the Trainer of transformers saves beside a model for a run to go on: read, and written.

    optimizer.pt         torch's AdamW: states by number, in the order in which the class registers its parameters; the decayed ones first
    scheduler.pt         where the schedule of the learning rate stands; its curve is in the user's arguments
    trainer_state.json   the iteration
    scaler.pt            the loss scale, in fp16

The weights in fp32 are what the optimizer steps: there are no masters beside them.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field, replace
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    CkptError,
    FormatError,
    RankTensors,
    TargetBuilder,
    company,
    disk,
    documents,
    dtypes,
    errors,
    layouts,
    ledgers,
    reading,
    schema,
    torch_files,
)
from ckpt_hf.common import Family, TableSet
from ckpt_hf.registered import is_decayed, registered
from ckpt_hf.training import OPTIMIZER

SCHEDULER, STATE, SCALER = "scheduler.pt", "trainer_state.json", "scaler.pt"
_DROP = "convert the weights alone, with --training-state drop"


def training_beside(
    folder: str, family: Family, arrangement: Mapping[str, layouts.Value], architecture: Architecture
) -> reading.SavedTraining:
    """The state of the training whose optimizer lies beside a model of this class."""
    path = os.path.join(folder, OPTIMIZER)
    states, bodies = _optimizer(path)
    told = any("param_names" in body for body in bodies)
    tables, names = _identified(states, bodies, told, family, arrangement, architecture, path)
    files = [disk.FileState.of(path)]
    # torch keeps nothing of a parameter that never had a gradient: one that is frozen, and was given to the optimizer nevertheless
    held = {name: states[number] for number, name in names.items() if states.get(number)}
    step, moments = reading.adam.states_of(held, bodies, path, files)
    if others := sorted(set(map(str, states)) - set(map(str, names))):
        raise FormatError("the optimizer has states of no parameter", file=path, found=", ".join(others[:4]))
    members = [[names[n] for n in body["params"] if states.get(n)] for body in bodies]
    groups = tuple(reading.adam.group_of(body, of, path) for body, of in zip(bodies, members, strict=True))
    beside = progress_beside(folder, step, groups, path)
    beside.ledger.carried(ledgers.OPTIMIZER.what, path)
    return reading.SavedTraining(
        state=beside.state_of(step, groups, reading.adam.kind_of(bodies, path)),
        ranks={kind: [RankTensors({}, found, path)] for kind, found in moments.items()},
        where=path,
        files=[*files, *beside.files],
        ledger=beside.ledger,
        losses=beside.losses(step),
        evidence=[
            "moments by the names that the optimizer's groups have"
            if told
            else f"moments by the order in which {family.class_name} registers its parameters"
        ],
        tables=tables,
        rest_is_frozen=told or len(held) < len(names),
    )


def _identified(
    states: Mapping[Any, Mapping[str, Any]],
    bodies: Sequence[Mapping[str, Any]],
    told: bool,
    family: Family,
    arrangement: Mapping[str, layouts.Value],
    architecture: Architecture,
    path: str,
) -> tuple[TableSet, dict[Any, str]]:
    """The tables that say which parameters the optimizer has, and the parameter of every number in it.

    The tables are those of transformers 5 as it holds the model in memory, or else those of transformers 4, which has a parameter for each expert, and
    the router of GraniteMoE elsewhere. Where none fits, it raises what the first of them lack.
    """
    found: list[tuple[TableSet, dict[Any, str]]] = []
    refused: CkptError | None = None
    for tables in reversed(family.spellings(arrangement)):
        natives = layouts.BoundTables(tables, architecture).natives()
        try:
            order = () if told else registered(family.model_type, family.class_name, natives)
            names = _told(bodies, natives, path) if told else _named(bodies, order, path)
        except errors.NotCarried as problem:
            refused = refused or problem
            continue
        if all(_may_be_of(states.get(number, {}), natives[name].shape) for number, name in names.items()):
            return tables, names
        found.append((tables, names))
    if found:
        return found[0]  # whoever reads the moments names those that have another shape
    assert refused is not None
    raise refused


def _may_be_of(state: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
    """Whether a state is of a parameter of this `shape`, as far as it says so."""
    return all(getattr(state.get(kind), "shape", shape) == shape for kind in reading.MOMENTS)


@schema.dataclass
class Progress:
    """What the files beside an optimizer say of a run: where its schedule stands, how far it is, and its loss scale."""

    schedule: reading.Schedule = reading.Schedule()
    iterations: int | None = None
    tokens: int | None = None
    scale: float | None = None
    files: list[disk.FileState] = field(default_factory=list)
    ledger: ledgers.Ledger = field(default_factory=ledgers.Ledger)

    def losses(self, step: int) -> list[ledgers.Loss]:
        """What may not be as it was: steps that the optimizer did not make, and that no loss scale explains."""
        losses = []
        if self.iterations is not None and self.schedule == reading.Schedule():
            why = "the optimizer's steps stand for it; the Trainer loads no optimizer without this file"
            losses.append(ledgers.Loss("unsaid", f"position of the schedule, of {SCHEDULER}", why))
        return losses + reading.adam.missed_steps(step, self.iterations, self.scale, STATE)

    def state_of(
        self, step: int, groups: Sequence[reading.Group], optimizer: str, frozen: Sequence[str] = ()
    ) -> reading.Training:
        """The state of a training after `step` updates."""
        return reading.Training(
            step,
            tuple(groups),
            optimizer,
            self.schedule,
            iterations=self.iterations,
            consumed_tokens=self.tokens,
            skipped_steps=None if self.iterations is None else self.iterations - step,
            loss_scale=self.scale,
            frozen=tuple(frozen),
        )


def progress_beside(folder: str, step: int, groups: Sequence[reading.Group], optimizer: str) -> Progress:
    """What lies in a folder of the Trainer or of accelerate beside the file `optimizer`. `FormatError` where it is of another step."""
    found = Progress()
    _read_schedule(folder, groups, optimizer, found)
    _read_trainer_state(folder, step, optimizer, found)
    _read_scale(folder, found)
    return found


def _optimizer(path: str) -> tuple[Mapping[Any, Mapping[str, Any]], list[dict[str, Any]]]:
    """The states by number, and the groups, each with `params`."""
    held = torch_files.read_torch_file(path)
    states, groups = (held.get("state"), held.get("param_groups")) if isinstance(held, dict) else (None, None)
    if (
        not isinstance(states, dict)
        or not isinstance(groups, list)
        or not all(isinstance(state, dict) for state in states.values())
        or not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups)
    ):
        raise errors.NotCarried(
            "this is not the state dict of an optimizer of torch", file=path, found=torch_files.brief(held), fix=_DROP
        )
    return states, groups


def _named(bodies: Sequence[Mapping[str, Any]], order: Sequence[str], path: str) -> dict[Any, str]:
    """The parameter of every number: the Trainer has the decayed ones first, a plain loop has one group."""
    split = [[name for name in order if is_decayed(name)], [name for name in order if not is_decayed(name)]]
    wanted = {1: [list(order)], 2: split}.get(len(bodies))
    sizes = [len(body["params"]) for body in bodies]
    if wanted is None or sizes != [len(names) for names in wanted]:
        raise errors.NotCarried(
            "the groups of the optimizer are not those of the Trainer: which parameter is which can't be told",
            file=path,
            found=f"groups of {', '.join(map(str, sizes))}",
            expected=f"{len(split[0])} decayed and {len(split[1])} others, or one group of {len(order)}",
            fix=_DROP,
        )
    return _by_number(bodies, wanted, path)


def _told(bodies: Sequence[Mapping[str, Any]], known: Collection[str], path: str) -> dict[Any, str]:
    """The parameter of every number by the names that an optimizer has which was made of named parameters (torch 2.6, optim/optimizer.py, `param_names`):
    those of the model, or of one that is wrapped."""
    names: list[list[str]] = []
    for number, body in enumerate(bodies):
        said = body.get("param_names")
        if not isinstance(said, list) or len(said) != len(body["params"]):
            raise FormatError(
                f"group {number} of the optimizer does not name its parameters",
                file=path,
                found=torch_files.brief(said),
                expected=f"{len(body['params'])} names, as other groups have",
            )
        names.append([_WRAPPERS.sub("", str(name)) for name in said])
    if strange := [name for of_group in names for name in of_group if name not in known]:
        raise errors.NotCarried(
            f"the optimizer names {strange[0]!r}, which is no parameter of the model", file=path, fix=_DROP
        )
    return _by_number(bodies, names, path)


_WRAPPERS = re.compile(r"(?:\b(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")


def _by_number(bodies: Sequence[Mapping[str, Any]], wanted: Sequence[Sequence[str]], path: str) -> dict[Any, str]:
    found: dict[Any, str] = {}
    for body, names in zip(bodies, wanted, strict=True):
        for number, name in zip(body["params"], names, strict=True):
            if type(number) is not int or number in found:
                raise FormatError(
                    "a number of a parameter is in two groups, or is none", file=path, found=f"{number!r:.40}"
                )
            found[number] = name
    return found


def _read_schedule(folder: str, groups: Sequence[reading.Group], optimizer: str, found: Progress) -> None:
    path = os.path.join(folder, SCHEDULER)
    if not os.path.isfile(path):
        return
    held = torch_files.read_torch_file(path)
    if not isinstance(held, dict):
        raise FormatError("the schedule is not a dict", file=path, found=torch_files.brief(held))
    rates, position = held.get("_last_lr"), held.get("last_epoch")
    # the rates of a schedule are tensors where those of its optimizer are
    known = isinstance(rates, list) and all(type(rate) in (int, float) for rate in rates)
    if known and rates != [group.lr for group in groups]:
        raise FormatError(
            "the schedule and the optimizer are of different steps",
            file=path,
            found=f"learning rates {rates!r:.80}",
            expected=f"{[group.lr for group in groups]!r:.80}, as in {os.path.basename(optimizer)}",
            fix="copy the files of one step again",
        )
    found.files.append(disk.FileState.of(path))
    found.ledger.carried("position of the schedule, and next learning rate", path)
    native = {key: value for key, value in held.items() if isinstance(key, str) and _is_plain(value)}
    found.schedule = reading.Schedule(position if type(position) is int else None, "step", groups[0].lr, {"hf": native})


def _is_plain(value: object) -> bool:
    """Whether JSON has a value."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


def _read_trainer_state(folder: str, step: int, optimizer: str, found: Progress) -> None:
    path = os.path.join(folder, STATE)
    if not os.path.isfile(path):
        return
    said = documents.read_json_object(path)
    count, tokens = said.get("global_step"), said.get("num_input_tokens_seen")
    if type(count) is not int:
        return
    if step > count:
        raise FormatError(
            "the moments are of another step than the model",
            file=optimizer,
            found=f"step {step}",
            expected=f"at most {count}, the global_step of {STATE}",
            fix="copy the files of one step again",
        )
    found.files.append(disk.FileState.of(path))
    found.ledger.carried(ledgers.PROGRESS.what, path)
    found.iterations, found.tokens = count, tokens if type(tokens) is int and tokens > 0 else None


def _read_scale(folder: str, found: Progress) -> None:
    path = os.path.join(folder, SCALER)
    if not os.path.isfile(path):
        return
    held = torch_files.read_torch_file(path)
    scale = held.get("scale") if isinstance(held, dict) else None
    if isinstance(scale, int | float) and math.isfinite(scale):
        found.files.append(disk.FileState.of(path))
        found.ledger.carried(ledgers.SCALER.what, path)
        found.scale = float(scale)


# --- writing ---------------------------------------------------------------------------------------------------------

SAID_BESIDE = ("iterations", "consumed_tokens", "schedule.step")
"""What the files say of a training besides its optimizer."""


def add_training(
    builder: TargetBuilder,
    family: Family,
    arrangement: Mapping[str, layouts.Value],
    beside: Mapping[str, company.Sidecar],
) -> list[ledgers.Loss]:
    """The files of the Trainer for the state of a training, if the builder has one; what of it is not as it was.

    `beside` are the files that travel along. The Trainer's own account of the run is among them where it saved the source.
    """
    training = builder.training
    if training is None:
        return []
    tables = family.spellings(arrangement)[-1]
    natives = layouts.BoundTables(tables, builder.architecture).natives()
    order = registered(family.model_type, family.class_name, natives)
    moments = {kind: builder.moments(kind, {name: natives[name] for name in order}) for kind in reading.MOMENTS}
    trained = [name for name in order if name in moments[reading.EXP_AVG]]
    split = [[name for name in trained if is_decayed(name)], [name for name in trained if not is_decayed(name)]]
    groups, losses = reading.regrouped(training, [_parameters(natives, names) for names in split])
    builder.training = training = replace(training, groups=tuple(groups))
    numbered = {name: number for number, name in enumerate([*split[0], *split[1]])}
    value = {
        "state": {
            number: {
                "step": torch_files.TensorSpec(dtypes.FP32, ()),
                **{kind: torch_files.TensorSpec(dtypes.FP32, natives[name].shape) for kind in reading.MOMENTS},
            }
            for name, number in numbered.items()
        },
        "param_groups": [
            reading.adam.said_by(group, [numbered[name] for name in names], training.optimizer)
            for group, names in zip(groups, split, strict=True)
        ],
    }
    step = struct.pack("<f", float(training.step))
    file, offsets = torch_files.plan_nest(
        OPTIMIZER, value, {("state", number, "step"): step for number in numbered.values()}
    )
    builder.files.append(file)
    for kind, held in moments.items():
        for name, native in held.items():
            builder.place(native, OPTIMIZER, offsets["state", numbered[name], kind])
    builder.documents |= progress_documents(training, groups, beside)
    return [*losses, *reading.assumed_of(training, groups), *replaced(builder.documents, beside)]


def progress_documents(
    training: reading.Training, groups: Sequence[reading.Group], beside: Mapping[str, company.Sidecar]
) -> dict[str, bytes]:
    """The files of the Trainer that say how far a run is, but for its own account where one is `beside` the model that says the same: one that is of
    another step was carried along from where the run began."""
    found = {SCHEDULER: torch_files.torch_bytes(_scheduler(training, groups), SCHEDULER)}
    if STATE not in beside or not _is_of(training, beside[STATE]):
        found[STATE] = (json.dumps(_state(training), indent=2) + "\n").encode()
    return found


def replaced(written: Collection[str], beside: Collection[str]) -> list[ledgers.Loss]:
    """That the Trainer's account `beside` the model is not the one that is `written`."""
    if STATE not in written or STATE not in beside:
        return []
    return [ledgers.Loss("dropped", f"{STATE} beside the model", "it is of another step; one of this step is written")]


def _is_of(training: reading.Training, account: company.Sidecar) -> bool:
    """Whether the Trainer's account of a run is that of this state."""
    try:
        said = json.loads(account.extent.read())
    except (CkptError, OSError, ValueError):
        return False
    tokens = said.get("num_input_tokens_seen") if isinstance(said, dict) else None
    return (
        isinstance(said, dict)
        and said.get("global_step") == (training.iterations or training.step)
        and (tokens or 0) == (training.consumed_tokens or 0)
    )


def _parameters(natives: Mapping[str, layouts.Native], names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(piece.parameter for name in names for piece in natives[name].pieces))


def _scheduler(training: reading.Training, groups: Sequence[reading.Group]) -> dict[str, Any]:
    """As torch's LambdaLR saves itself: the Trainer makes its curve of the user's arguments, and takes the position from here. What a schedule
    of another kind remembers, as that of a metric does, is from the Trainer's own file."""
    schedule = training.schedule
    position = schedule.position if schedule.unit == "step" and schedule.position is not None else None
    position = training.iterations or training.step if position is None else position
    native = schedule.native.get("hf", {})
    same = len(native.get("_last_lr", ())) == len(groups)
    return {
        **(native if same else {}),
        "base_lrs": [group.lr if group.initial_lr is None else group.initial_lr for group in groups],
        "last_epoch": position,
        "_step_count": position + 1,
        "_last_lr": [group.lr for group in groups],
        "lr_lambdas": [{} for _ in groups],
    }


def _state(training: reading.Training) -> dict[str, Any]:
    """A TrainerState: what is left out is as in one that is new. Transformers 5 compares `train_batch_size` with the user's, warns, and fails
    where there is none (trainer_utils.py, `compare_trainer_and_checkpoint_args`)."""
    iterations = training.iterations or training.step
    return {
        "global_step": iterations,
        "train_batch_size": max(1, (training.consumed_samples or 0) // max(1, iterations)),
        "num_input_tokens_seen": training.consumed_tokens or 0,
        # a run that goes on has these from here, and not from the user's arguments: they are those of a new TrainerState
        "logging_steps": 500,
        "eval_steps": 500,
        "save_steps": 500,
        "log_history": [],
        "is_local_process_zero": True,
        "is_world_process_zero": True,
    }
