"""What PyTorch Lightning saves of a run besides its weights, in the checkpoints of NeMo and of NxD Training.

    global_step                    the optimizer's steps of this run, those that a loss scale skipped among them
    lr_schedulers                  [{"last_epoch": 7, "_last_lr": [2e-4, 2e-4], "base_lrs": ..., ...}]
    MixedPrecisionPlugin           {"scale": 65536.0, ...} in fp16, under the name of whichever plugin it was
    MegatronDataModule             {"consumed_samples": 56, ...}

NeMo 1 has the consumed samples in the name alone: `megatron_gpt--val_loss=5.43-step=7-consumed_samples=56.0-last.ckpt`. It reads them from there when it
resumes (megatron_base_model.py, `_extract_consumed_samples_from_ckpt`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from typing import Any

from ckpt_core.sdk import FormatError, disk, lazy, ledgers, reading, schema

__all__ = ["SAID", "STEP", "Progress", "continued", "counters", "iterations", "progress_in"]

STEP = "global_step"
"""The key of the optimizer's steps of a run."""
SCHEDULERS = "lr_schedulers"
SAID = ("iterations", "consumed_samples", "schedule.step")
"""What `counters`, and the consumed samples beside them, say of a training."""
_CONSUMED = re.compile(r"consumed_samples=(\d+)(?:\.\d+)?")
_STEP_IN_NAME = re.compile(r"(?:^|[-_])step=(\d+)")
_SCALERS = ("Plugin", "MixedPrecision")
_SAMPLES = "consumed_samples"


@schema.dataclass
class Progress:
    """What a checkpoint of Lightning says of how far its run is. `keys` are those it says it with, by what they are."""

    schedule: reading.Schedule = reading.Schedule()
    rates: list[float] | None = None
    iterations: int | None = None
    consumed_samples: int | None = None
    loss_scale: float | None = None
    keys: list[tuple[str, str]] = field(default_factory=list)
    losses: list[ledgers.Loss] = field(default_factory=list)


def progress_in(content: Mapping[Any, Any], name: str, file: str, files: list[disk.FileState]) -> Progress:
    """What the `content` of `file` says; `name` is that of the checkpoint. `FormatError` for what is no number."""
    found = Progress()
    step = content.get(STEP)
    if type(step) is int and step >= 0:
        found.iterations = step
        found.keys.append((ledgers.PROGRESS.what, STEP))
    _read_schedule(content.get(SCHEDULERS), found)
    _read_samples(content, name, found)
    for key, value in _dicts(content):
        if key.endswith(_SCALERS) and "scale" in value:
            found.loss_scale = _number(value["scale"], file, files)
            found.keys.append((ledgers.SCALER.what, key))
    return found


def continued(
    saved: reading.SavedTraining, found: Progress, files: Sequence[str], *, counts_anew: bool, own_rates: bool = False
) -> reading.SavedTraining:
    """`saved` with what the first of the `files`, those of all ranks, says of the progress of its run.

    Raises `FormatError` where the schedule is of another step than the optimizer, and where the optimizer has made more steps than the run. Only where
    `counts_anew`, a run that began with the optimizer of another one counts its own steps; where `own_rates`, the learning rates of the optimizer are those of
    its next step whatever the schedule says.
    """
    state, losses, file = saved.state, list(found.losses), files[0]
    rates = [group.lr for group in state.groups]
    if found.rates is not None and set(found.rates) != set(rates) and own_rates:
        why = f"the schedule beside it says {', '.join(f'{rate:g}' for rate in dict.fromkeys(found.rates))}, and the optimizer is what steps"
        losses.append(ledgers.Loss("assumed", f"learning rate {rates[0]:g} of the next step", why))
    elif found.rates is not None and set(found.rates) != set(rates):
        raise FormatError(
            "the schedule and the optimizer are of different steps",
            file=file,
            found=f"learning rates {found.rates!r:.80}",
            expected=f"{rates!r:.80}, as in the groups of the optimizer",
            fix="copy the files of one step again",
        )
    iterations = found.iterations
    if iterations is not None and state.step > iterations:
        if not counts_anew:
            raise FormatError(
                "the moments are of another step than the model",
                file=file,
                found=f"step {state.step}",
                expected=f"at most {iterations}, the {STEP}",
                fix="copy the files of one step again",
            )
        losses.append(
            ledgers.Loss(
                "assumed",
                f"iteration: {state.step}, the steps of the optimizer",
                f"{STEP} is {iterations}: a run that begins with the optimizer of another one counts anew",
            )
        )
        iterations = None
    for what, key in found.keys:
        for one in files:
            saved.ledger.carried(what, one, key)
    state = replace(
        state,
        schedule=replace(found.schedule, next_lr=rates[0] if len(set(rates)) == 1 else None),
        iterations=iterations,
        consumed_samples=found.consumed_samples,
        skipped_steps=None if iterations is None else iterations - state.step,
        loss_scale=state.loss_scale if found.loss_scale is None else found.loss_scale,
    )
    losses += reading.adam.missed_steps(state.step, iterations, state.loss_scale, STEP)
    return replace(saved, state=state, losses=[*saved.losses, *losses])


def _read_schedule(value: object, found: Progress) -> None:
    """The only schedule: of several it is not known which is that of the learning rate."""
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], dict):
        return
    said, rates = value[0], value[0].get("_last_lr")
    position = said.get("last_epoch")
    native = {str(key): one for key, one in said.items() if _is_plain(one)}
    found.schedule = reading.Schedule(position if type(position) is int else None, "step", None, {"lightning": native})
    if isinstance(rates, list) and rates and all(type(rate) in (int, float) for rate in rates):
        found.rates = [float(rate) for rate in rates]
    found.keys.append((ledgers.SCHEDULE.what, SCHEDULERS))


def _read_samples(content: Mapping[Any, Any], name: str, found: Progress) -> None:
    in_name = _CONSUMED.search(name)
    held = {key: value[_SAMPLES] for key, value in _dicts(content) if type(value.get(_SAMPLES)) is int}
    if held:
        key, samples = next(iter(held.items()))
        found.consumed_samples = samples
        found.keys.append((ledgers.PROGRESS.what, f"{key}.{_SAMPLES}"))
        if in_name and int(in_name[1]) != samples:
            found.losses.append(
                ledgers.Loss("assumed", f"{samples} consumed samples", f"{key} says so, and the name {in_name[1]}")
            )
    elif in_name:
        found.consumed_samples = int(in_name[1])
        step = _STEP_IN_NAME.search(name)
        if step and found.iterations is not None and int(step[1]) != found.iterations:
            found.losses.append(
                ledgers.Loss(
                    "assumed",
                    f"{found.consumed_samples} consumed samples",
                    f"the name says so, and is of step {step[1]} where {STEP} is {found.iterations}",
                )
            )


def _dicts(content: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, dict):
            yield key, value


def _number(value: object, file: str, files: list[disk.FileState]) -> float:
    """A number, or the one in a tensor."""
    source = lazy.SourceFiles(files)
    try:
        return reading.adam.number(reading.adam.scalar(value, source), "the loss scale", file)
    finally:
        source.close()


def _is_plain(value: object) -> bool:
    """Whether JSON has a value."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    return value is None or isinstance(value, bool | int | float | str)


# --- writing ---------------------------------------------------------------------------------------------------------


def counters(training: reading.Training) -> dict[str, Any]:
    """Lightning's own account of a run. It counts steps in its loops, and takes them from there (2.0, loops/fit_loop.py)."""
    done = iterations(training)
    position = training.schedule.position if training.schedule.unit == "step" else None
    rates = [group.lr for group in training.groups]
    bases = [group.initial_lr for group in training.groups]
    known = training.schedule.native.get("lightning")
    schedule = {
        **(known if isinstance(known, dict) else {}),
        "last_epoch": done if position is None else position,
        "_step_count": (done if position is None else position) + 1,
        "_last_lr": rates,
        **({"base_lrs": bases} if None not in bases else {}),
    }
    return {"global_step": done, "loops": _loops(done), "lr_schedulers": [schedule]}


def iterations(training: reading.Training) -> int:
    """The iterations of a run, or, where they are not counted, the steps of its optimizer."""
    return training.iterations or training.step


def _loops(done: int) -> dict[str, Any]:
    def progress(count: int, *more: str) -> dict[str, dict[str, int]]:
        return {of: dict.fromkeys(("ready", "completed", *more), count) for of in ("total", "current")}

    batches = {**progress(done, "started", "processed"), "is_last_batch": False}
    none = {**progress(0, "started", "processed"), "is_last_batch": False}
    steps = {"step": progress(done), "zero_grad": progress(done, "started")}
    epoch = {
        "total": {"ready": 1, "completed": 0, "started": 1, "processed": 0},
        "current": {"ready": 1, "completed": 0, "started": 1, "processed": 0},
    }
    evaluation = {"state_dict": {}, "batch_progress": none}
    return {
        "fit_loop": {
            "state_dict": {},
            "epoch_loop.state_dict": {"_batches_that_stepped": max(0, done - 1)},
            "epoch_loop.batch_progress": batches,
            "epoch_loop.scheduler_progress": progress(done),
            "epoch_loop.automatic_optimization.state_dict": {},
            "epoch_loop.automatic_optimization.optim_progress": {"optimizer": steps},
            "epoch_loop.manual_optimization.state_dict": {},
            "epoch_loop.manual_optimization.optim_step_progress": progress(0),
            "epoch_loop.val_loop.state_dict": {},
            "epoch_loop.val_loop.batch_progress": none,
            "epoch_progress": epoch,
        },
        "validate_loop": evaluation,
        "test_loop": evaluation,
        "predict_loop": {"state_dict": {}, "batch_progress": progress(0, "started", "processed")},
    }
