"""How far a run is: its counters and its schedule, as Megatron-LM keeps them.

    iteration, args.consumed_train_samples      counters
    opt_param_scheduler                         the schedule; everything called steps in it counts samples (training/training.py)

The curve of the schedule is a setting of the run. A state that comes from elsewhere has its position alone: Megatron-LM is then started with
--override-opt_param-scheduler, and takes the rest from the command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from ckpt_core.sdk import FormatError, errors, lazy, ledgers, reading
from ckpt_megatron.optimizer.found import FoundOptimizer
from ckpt_megatron.optimizer.groups import DROP, KEYS

CONTINUED = (
    "use_distributed_optimizer",
    "override_opt_param_scheduler",
    "use_checkpoint_opt_param_scheduler",
    "no_save_rng",
)
"""Args that say how a run goes on from its own state."""
CONSUMED = "consumed_train_samples"
"""The counter by which a run finds its place in the data."""
CURVE = ("max_lr", "min_lr", "lr_warmup_steps", "lr_decay_steps", "lr_decay_style")
"""What a schedule says besides its position. Without it, a loader that is not told to override it stops."""


def saved_training(
    found: FoundOptimizer,
    content: Mapping[Any, Any],
    args: Mapping[str, Any],
    ranks: Mapping[reading.Kind, Sequence[Any]],
) -> reading.SavedTraining:
    """The state of a training, with the counters and the schedule in the `content` of a rank's file, or of the common state."""
    called = args.get("optimizer")
    if called is not None and "adam" not in str(called).lower():
        raise errors.NotCarried(
            "the optimizer is not Adam", file=found.where, found=f"args.optimizer {called!r:.40}", fix=DROP
        )
    schedule, saved = content.get("opt_param_scheduler"), content.get("optimizer")
    native = (
        {str(key): value for key, value in schedule.items() if isinstance(value, int | float | str)}
        if isinstance(schedule, dict)
        else {}
    )
    groups = [
        reading.adam.group_of({"initial_lr": _peak(body, native), **body}, of, found.where, KEYS)
        for body, of in zip(found.bodies, found.members, strict=True)
        if of
    ]
    position = native.get("num_steps")  # it counts samples (training/training.py, get_optimizer_param_scheduler)
    rates = {group.lr for group in groups}
    iteration = content.get("iteration")
    scale = _loss_scale(saved, found)
    ledger = ledgers.Ledger()
    for file, keys in found.carried:
        ledger.carried(ledgers.OPTIMIZER.what, file, *keys)
        if "iteration" in keys and CONSUMED in args:
            ledger.carried(ledgers.PROGRESS.what, file, f"args.{CONSUMED}")
    if type(iteration) is int and found.step > iteration:
        raise FormatError(
            "the moments are of another step than the model",
            file=found.where,
            found=f"step {found.step}",
            expected=f"at most iteration {iteration}",
            fix="copy the files of one step again",
        )
    state = reading.Training(
        found.step,
        tuple(groups),
        # FusedAdam's groups do not say it (core 0.16, optimizer/__init__.py, `adam_w_mode`)
        reading.ADAM
        if args.get("decoupled_weight_decay") is False
        else reading.adam.kind_of(found.bodies, found.where),
        reading.Schedule(
            position if type(position) is int else None,
            "sample",
            rates.pop() if len(rates) == 1 else None,
            {"megatron": native} if native else {},
        ),
        iterations=iteration if type(iteration) is int else None,
        consumed_samples=_count(args, CONSUMED),
        skipped_steps=iteration - found.step if type(iteration) is int else None,
        loss_scale=scale,
        clip_grad=float(args["clip_grad"]) if isinstance(args.get("clip_grad"), int | float) else None,
    )
    return reading.SavedTraining(
        state=state,
        ranks=ranks,
        where=found.where,
        files=found.files,
        ledger=ledger,
        losses=reading.adam.missed_steps(state.step, state.iterations, state.loss_scale, "iteration"),
        rest_is_frozen=True,
    )


def _loss_scale(saved: object, found: FoundOptimizer) -> float | None:
    """The loss scale of an optimizer, or of the first that has one in a chain of several, which count overflows together; None without one."""
    chain = saved if isinstance(saved, list) else list(saved.values()) if _is_numbered(saved) else [saved]
    scalers = [one.get("grad_scaler") for one in chain if isinstance(one, dict)]
    scales = [scaler["scale"] for scaler in scalers if isinstance(scaler, dict) and scaler.get("scale") is not None]
    if not scales:
        return None
    source = lazy.SourceFiles(found.files)
    try:
        return reading.adam.number(reading.adam.scalar(scales[0], source), "the loss scale", found.where)
    finally:
        source.close()


def _is_numbered(saved: object) -> TypeGuard[dict[int, Any]]:
    return isinstance(saved, dict) and bool(saved) and all(type(key) is int for key in saved)


def _peak(body: Mapping[str, Any], schedule: Mapping[str, Any]) -> Any:
    """The learning rate that the schedule scales for a group: its `max_lr`, which older versions say of the schedule alone. None where it is not said."""
    as_all = body.get("lr_mult", 1.0) == 1.0 and not body.get("is_decoupled_lr")
    return schedule.get("max_lr") if body.get("max_lr") is None and as_all else body.get("max_lr")


def _count(args: Mapping[str, Any], key: str) -> int | None:
    value = args.get(key)
    return value if type(value) is int and value >= 0 else None


# --- writing ---------------------------------------------------------------------------------------------------------


def consumed_samples(training: reading.Training, batch: int | None) -> int:
    """How many samples a run has consumed, by `batch` of them each iteration where the source does not count them.

    `NotCarried` where nothing says it: Megatron-LM would begin its schedule and its data anew.
    """
    if training.consumed_samples is not None:
        return training.consumed_samples
    if batch is None:
        raise errors.NotCarried(
            "the source does not say how many samples it consumed, by which Megatron-LM knows where its schedule and its data stand",
            fix=f"give -o global_batch_size=N, the samples of one step; or {DROP}",
        )
    return batch * (training.iterations or training.step)


def written_schedule(training: reading.Training, samples: int) -> dict[str, Any]:
    """`opt_param_scheduler` of a state: what Megatron-LM once said of it, or its position alone."""
    schedule = training.schedule
    native = dict(schedule.native.get("megatron", {}))
    position = schedule.position if schedule.unit == "sample" else None
    if position is None:
        position = samples * training.step // max(1, training.iterations or training.step)
    if native.keys() >= set(CURVE):
        return native | {"num_steps": position}
    rates = {group.initial_lr for group in training.groups}
    base = rates.pop() if len(rates) == 1 else None
    return {**dict.fromkeys(CURVE), "max_lr": base, "num_steps": position}


def rates_of(schedule: Mapping[str, Any]) -> dict[str, float]:
    """The learning rates that a schedule runs between, which groups say too where they are known."""
    found = {key: schedule.get(key) for key in ("max_lr", "min_lr")}
    return (
        {key: float(value) for key, value in found.items() if isinstance(value, int | float)}
        if all(value is not None for value in found.values())
        else {}
    )
