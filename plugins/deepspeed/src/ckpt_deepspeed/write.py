"""Writing a universal checkpoint of a transformers model, which DeepSpeed loads into any ZeRO stage and number of ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import (
    Checkpoint,
    Target,
    TargetBuilder,
    WriteRequest,
    dtypes,
    errors,
    layouts,
    ledgers,
    reading,
    rewrites,
    torch_files,
)
from ckpt_deepspeed.files import LATEST_UNIVERSAL
from ckpt_deepspeed.universal import (
    DS_VERSION,
    NEW_MOMENTS,
    add_nest,
    add_optimizer_state,
    add_parameter,
    torch_size,
)
from ckpt_hf.sdk import CONFIG, model_of_checkpoint


def write(checkpoint: Checkpoint, request: WriteRequest) -> Target:
    """A universal folder with the model's `config.json`, and the state of its training if it has one. Raises `Refusal` naming what transformers cannot hold.

    What lies there of a parameter is what the optimizer steps: see `TargetBuilder.stepped`.
    """
    dtype = request.dtype or _dtype_of_run(checkpoint)
    checkpoint = TargetBuilder.stepped(checkpoint, request)
    hints, options = checkpoint.hints_for("deepspeed"), request.options
    model = model_of_checkpoint(checkpoint)
    flat = bool(hints.get("flat") if options.get("flat") is None else options["flat"])
    held = rewrites.Rewritable(model.architecture, model.tensors, tuple(model.rewrites))
    # the tensors of the parameters are fp32 whatever dtype is asked for, which is that of the module beside them
    trained = checkpoint.training is not None
    builder = TargetBuilder(held, model.tables, None if trained else request.dtype, trained=checkpoint)
    moments = trained or bool(options.get("moments", True))
    tag = f"global_step{0 if builder.training is None else _steps(builder.training)}_universal"
    natives = list(builder.natives().values())
    owned = [native for native in natives if not native.row.copy]
    states = _states(builder, owned)
    for native in owned:
        beside = {} if flat else {"cat_dim": 0}
        step = 0 if builder.training is None else builder.training.step
        state = states.get(native.name, {})
        add_parameter(
            builder,
            tag,
            native.name,
            [native],
            flat=flat,
            beside=beside,
            rows={},
            moments=moments,
            state=state,
            step=step,
        )
    losses = _grouped(builder, owned)
    add_optimizer_state(builder, tag)
    dtype = dtype or _module_dtype(builder, owned, hints.get("module"))
    _add_states(builder, tag, natives, flat, dtype)
    builder.documents |= {LATEST_UNIVERSAL: tag.encode(), **model.documents}
    return builder.target(
        "deepspeed",
        sidecars={path: sidecar for path, sidecar in checkpoint.sidecars.items() if path not in builder.documents},
        decisions={
            "container": "universal",
            "hf_class": model.class_name,
            "flat": flat,
            **({"tokens": model.tokens} if model.tokens else {}),
        },
        losses=[*model.losses, *losses, *([NEW_MOMENTS] if moments and not trained else [])],
        said=model.said,
        config={"dtype": dtype.name, "model": json.loads(model.documents[CONFIG])},
        held=checkpoint.sidecars.keys() & builder.documents.keys() & {"preprocessor_config.json"},
        says=("iterations", "consumed_samples", "clip_grad", "schedule.step"),
    )


def _dtype_of_run(checkpoint: Checkpoint) -> dtypes.DType | None:
    """The dtype of the weights beside masters, which is the one that the run computes in; None where there are none."""
    state = checkpoint.training
    if state is None or not state.own_masters:
        return None
    return dtypes.commonest([checkpoint.tensors[name].dtype for name in state.master])


def _steps(training: reading.Training) -> int:
    """DeepSpeed's global_steps, which counts the steps that a loss scale skipped, too."""
    return training.step + (training.skipped_steps or 0)


def _states(
    builder: TargetBuilder, owned: Sequence[layouts.Native]
) -> Mapping[str, Mapping[reading.Kind, layouts.Native]]:
    """The moments of each tensor by its name; none without a state. `NotCarried` where a parameter is frozen: it would have no folder."""
    if builder.training is None:
        return {}
    natives = {native.name: native for native in owned}
    found: dict[str, dict[reading.Kind, layouts.Native]] = {name: {} for name in natives}
    for kind in reading.MOMENTS:
        for name, moment in builder.moments(kind, natives).items():
            found[name][kind] = moment
    frozen = [name for name, state in found.items() if not state]
    if frozen:
        raise errors.NotCarried(
            f"{frozen[0]} is not trained, and the writer of universal checkpoints knows no frozen parameters",
            found=f"{len(frozen)} such parameters",
            fix="leave the state of the training behind with --training-state drop",
        )
    return found


def _grouped(builder: TargetBuilder, owned: Sequence[layouts.Native]) -> list[ledgers.Loss]:
    """The state's groups with those that decay first, as programs divide the parameters; what a loader does otherwise."""
    training = builder.training
    if training is None:
        return []
    named = reading.named_groups(training, {native.name: native for native in owned})
    groups = sorted((group for group, names in named if names), key=lambda group: group.weight_decay == 0.0)
    builder.training = replace(training, groups=tuple(groups))
    losses = reading.assumed_of(training, groups)
    if len({(group.lr, group.betas, group.eps, group.weight_decay) for group in groups}) > 1:
        said = "; ".join(
            f"group {n}: weight decay {group.weight_decay:g}, lr {group.lr:.9g}" for n, group in enumerate(groups)
        )
        why = "ZeRO-1 and 2 give them to the program's own groups by number; ZeRO-3 gives those of the first to all"
        losses.append(ledgers.Loss("assumed", f"the groups of the optimizer: {said}", why))
    if training.consumed_samples is None:
        losses.append(
            ledgers.Loss(
                "unsaid", "global_samples", "the source does not say how many samples it consumed; 0 is written"
            )
        )
    return losses


def _scheduler(training: reading.Training) -> dict[str, Any]:
    """Where the schedule stands, for DeepSpeed's own (which count from 0), and for those of torch and transformers: each takes its keys."""
    schedule = training.schedule
    position = schedule.position if schedule.unit == "step" and schedule.position is not None else training.step
    return {
        "last_batch_iteration": position - 1,
        "last_epoch": position,
        "_step_count": position + 1,
        "_last_lr": [group.lr for group in training.groups],
        "base_lrs": [group.lr if group.initial_lr is None else group.initial_lr for group in training.groups],
        "lr_lambdas": [None for _ in training.groups],
    }


def _ds_config(training: reading.Training | None) -> dict[str, Any]:
    """What of the settings says how the optimizer steps."""
    found: dict[str, Any] = {}
    if training is not None and training.clip_grad is not None:
        found["gradient_clipping"] = training.clip_grad
    if training is not None and training.optimizer == reading.ADAM:
        found["optimizer"] = {"type": "Adam", "params": {"adam_w_mode": False}}
    return found


def _module_dtype(builder: TargetBuilder, natives: Sequence[layouts.Native], known: object) -> dtypes.DType:
    """The training dtype: what was asked for, that of the source's module, or the commonest."""
    if builder.dtype is not None:
        return builder.dtype
    return dtypes.dtype_named(known) if isinstance(known, str) else dtypes.commonest(map(builder.dtype_of, natives))


def _add_states(
    builder: TargetBuilder, tag: str, natives: Sequence[layouts.Native], flat: bool, dtype: dtypes.DType
) -> None:
    """The model states: names, shapes, and the weights in the training dtype, which ZeRO-3 leaves empty."""
    training = builder.training
    shapes: list[dict[str, Any]] = [
        {native.name: torch_size(native.shape) for native in natives if not native.row.copy}
    ]
    if training is not None:
        members = reading.named_groups(training, {native.name: native for native in natives if not native.row.copy})
        known = {name: shape for of in shapes for name, shape in of.items()}
        shapes = [{name: known[name] for name in names} for _, names in members]
    owners = {piece.parameter: native.name for native in natives if not native.row.copy for piece in native.pieces}
    aliases = {native.name: owners[native.pieces[0].parameter] for native in natives if native.row.copy}
    module = {
        native.name: torch_files.TensorSpec(
            dtype, (0,) if flat else native.shape, storage=aliases.get(native.name, native.name)
        )
        for native in natives
    }
    body = {
        "module": module,
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": shapes,
        "frozen_param_shapes": None,
        "shared_params": aliases,
        "frozen_param_fragments": None,
        "lr_scheduler": None if training is None else _scheduler(training),
        "data_sampler": None,
        "random_ltd": None,
        "skipped_steps": 0 if training is None else training.skipped_steps or 0,
        "global_steps": 0 if training is None else _steps(training),
        "global_samples": 0 if training is None else training.consumed_samples or 0,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1},
        "ds_config": _ds_config(training),
        "ds_version": DS_VERSION,
    }
    path = f"{tag}/" + ("zero_pp_rank_0_mp_rank_00_model_states.pt" if flat else "mp_rank_00_model_states.pt")
    offsets = add_nest(builder, path, body)
    for native in () if flat else natives:
        if not native.row.copy:
            builder.place(native, path, offsets["module", native.name], dtype)
