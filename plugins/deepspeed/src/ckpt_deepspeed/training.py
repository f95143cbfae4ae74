"""The state of a training in DeepSpeed's files: moments lie as the fp32 masters do, and are found by the same walk.

    ZeRO-1 and 2    optimizer_state_dict.base_optimizer_state.state[group].{step, exp_avg, exp_avg_sq}
    ZeRO-3          optimizer_state_dict.optimizer_state_dict.state[subgroup].{...}
    universal       zero/NAME/{exp_avg, exp_avg_sq, step}.pt; from ZeRO-3 the step is in zero/optimizer_state.pt alone

The weights that are read are the masters (0.19.8), so there are none beside them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import FormatError, RankTensors, StoredTensor, disk, errors, layouts, ledgers, reading, torch_files
from ckpt_deepspeed import zero
from ckpt_deepspeed.files import UNIVERSAL, Folder, read_states, section
from ckpt_deepspeed.flat import Kept, shards_of
from ckpt_deepspeed.universal import OPTIMIZER_STATE, STEP, read_universal
from ckpt_deepspeed.zero import Partition
from ckpt_hf.sdk import TransformersModel

_BASE, _INNER = "base_optimizer_state", "optimizer_state_dict"
_COUNTERS = ("global_steps", "global_samples", "skipped_steps", "lr_scheduler")
_DROP = "convert the weights alone, with --training-state drop"
_ADAMS = (None, "adam", "adamw")

States = Mapping[int, Mapping[str, Any]]


def training_in(
    folder: Folder,
    states: tuple[str, Mapping[str, Any]],
    parts: Sequence[Partition],
    by: str,
    aliases: Mapping[str, str],
    model: TransformersModel,
) -> reading.SavedTraining | None:
    """The state of the training in a folder; None where no optimizer was saved. `states` are the model states that count, and `parts` and `by`
    how their masters were found."""
    file, first = states
    files: list[disk.FileState] = []
    ledger = ledgers.Ledger()
    if folder.universal:
        path, bodies, moments, step = _universal(folder, states, aliases, files)
        settings: Mapping[str, Any] = {}
    elif parts:
        path, bodies, moments, step = _partitioned(states, parts, by)
        settings = section(read_states(path), "optimizer_state_dict", path)
    else:
        return None
    for part in parts:
        for key in (_BASE, _INNER, "loss_scaler", "dynamic_loss_scale", "overflow", "clip_grad"):
            if key in part.state:
                ledger.carried(ledgers.OPTIMIZER.what, part.path, f"optimizer_state_dict.{key}")
    for state in files:
        ledger.carried(ledgers.OPTIMIZER.what, state.path)
    ledger.carried(ledgers.PROGRESS.what, file, *(key for key in _COUNTERS if first.get(key) is not None))
    names = _members(bodies, states)
    groups = [reading.adam.group_of(body, of, path) for body, of in zip(bodies, names, strict=True)]
    natives = layouts.BoundTables(model.tables, model.architecture).natives()
    tensors = {kind: _named(kept, natives, aliases) for kind, kept in moments.items()}
    return reading.SavedTraining(
        state=_state(step, groups, reading.adam.kind_of(bodies, path), first, settings, states),
        ranks={kind: [RankTensors({}, held, path)] for kind, held in tensors.items()},
        where=path,
        files=files,
        ledger=ledger,
        evidence=["moments by the walk of the masters" if parts else "moments by the folders of the parameters"],
        losses=_missed(step, first),
        rest_is_frozen=True,
    )


def _named(
    kept: Mapping[str, Kept], natives: Mapping[str, layouts.Native], aliases: Mapping[str, str]
) -> dict[str, Any]:
    """Moments by the names of the tables: a tied parameter may be called by either of its names."""
    owners = {owner: alias for alias, owner in aliases.items()}
    found = {}
    for name, one in kept.items():
        copied = name in natives and natives[name].row.copy
        called = owners.get(name, name) if copied else name
        found[called] = shards_of(one, natives[called].shape if called in natives else None)
    return found


def _partitioned(
    states: tuple[str, Mapping[str, Any]], parts: Sequence[Partition], by: str
) -> tuple[str, list[Mapping[str, Any]], dict[reading.Kind, Mapping[str, Kept]], int]:
    """The file that errors name, the groups, the moments by name, and the step."""
    file, first = states
    found = [_optimizer(part) for part in parts]
    held = [_numbered(optimizer.get("state"), part.path) for optimizer, part in zip(found, parts, strict=True)]
    bodies = {
        part.path: _groups(optimizer.get("param_groups"), part.path)
        for optimizer, part in zip(found, parts, strict=True)
    }
    reading.adam.check_groups(bodies)
    steps: dict[str, object] = {}
    for part, numbered in zip(parts, held, strict=True):
        flat = {f"flat tensor {number}": state for number, state in numbered.items()}
        for name, state in flat.items():
            reading.adam.check_state(f"{name} of {os.path.basename(part.path)}", state, StoredTensor, part.path)
        of_rank = reading.adam.steps_of(flat, bodies[part.path], part.path)
        steps |= {f"{name} of {os.path.basename(part.path)}": step for name, step in of_rank.items()}
    step = reading.adam.one_step(steps, parts[0].path, [disk.FileState.of(part.path) for part in parts])
    moments: dict[reading.Kind, Mapping[str, Kept]] = {}
    for kind in reading.MOMENTS:
        moved = [
            part.holding([numbered[number][kind] for number in sorted(numbered)])
            for part, numbered in zip(parts, held, strict=True)
        ]
        moments[kind] = next(one for one in zero.readings(first, file, moved) if one.by == by).masters
    return parts[0].path, bodies[parts[0].path], moments, step


def check_steps(parts: Sequence[Partition]) -> None:
    """The files of ZeRO's ranks are of one step, which masters do not tell that lie beside the moments: of ZeRO-3 there are no other weights.

    `FormatError`, naming two files, where a flat tensor was stepped more often on one rank than on another.
    """
    found: dict[object, dict[str, object]] = {}
    for part in parts:
        kept = _wrapped(part)
        states = kept.get("state") if isinstance(kept, dict) else None
        for number, state in states.items() if isinstance(states, dict) else ():
            if isinstance(state, dict) and isinstance(state.get("step"), int | float | StoredTensor):
                found.setdefault(number, {})[os.path.basename(part.path)] = state["step"]
    files = [disk.FileState.of(part.path) for part in parts]
    for steps in found.values():
        reading.adam.one_step(steps, parts[0].path, files)


def _wrapped(part: Partition) -> object:
    """What lies where the state dict of the optimizer that DeepSpeed wraps should be."""
    return part.state.get(_BASE, part.state.get(_INNER))


def _optimizer(part: Partition) -> Mapping[str, Any]:
    """The state dict of the optimizer that DeepSpeed wraps."""
    found = _wrapped(part)
    if not isinstance(found, dict):
        raise errors.NotCarried(
            "the state of the optimizer is not as torch saves it: an elastic checkpoint lists bare states",
            file=part.path,
            found=torch_files.brief(found),
            fix=_DROP,
        )
    return found


def _numbered(states: object, path: str) -> States:
    if not isinstance(states, dict) or not all(
        type(key) is int and isinstance(one, dict) for key, one in states.items()
    ):
        raise FormatError(
            "the states of the optimizer are not those of groups", file=path, found=torch_files.brief(states)
        )
    return states


def _groups(groups: object, path: str) -> list[Mapping[str, Any]]:
    if not isinstance(groups, list) or not all(
        isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups
    ):
        raise errors.NotCarried("the optimizer has no groups", file=path, found=torch_files.brief(groups), fix=_DROP)
    return groups


def _members(bodies: Sequence[Mapping[str, Any]], states: tuple[str, Mapping[str, Any]]) -> list[list[str]]:
    """The parameters of each group: `param_shapes` lists them for each flat tensor, and a group names its flat tensors by number."""
    file, first = states
    if first.get("param_shapes") is None:
        raise errors.NotCarried("nothing says which parameters a group of the optimizer has", file=file, fix=_DROP)
    shapes = zero.param_shapes(first, file)
    numbers = [number for body in bodies for number in body["params"]]
    if sorted(numbers) != list(range(len(shapes))):
        raise FormatError(
            "the groups of the optimizer are not those of param_shapes",
            file=file,
            found=f"flat tensors {numbers!r:.80}",
            expected=f"0 to {len(shapes) - 1}",
        )
    return [[name for number in body["params"] for name in shapes[number]] for body in bodies]


def _universal(
    folder: Folder, states: tuple[str, Mapping[str, Any]], aliases: Mapping[str, str], files: list[disk.FileState]
) -> tuple[str, list[Mapping[str, Any]], dict[reading.Kind, Mapping[str, Kept]], int]:
    file, first = states
    place = os.path.join(folder.path, UNIVERSAL)
    path = os.path.join(place, OPTIMIZER_STATE)
    if not os.path.isfile(path):
        raise errors.NotCarried("a universal checkpoint without the groups of its optimizer", file=path, fix=_DROP)
    said = read_states(path)
    inner = section(said, _INNER, path)
    known = zero.param_shapes(first, file) if first.get("param_shapes") is not None else []
    shapes = {name: shape for group in known for name, shape in group.items()}
    files.append(disk.FileState.of(path))
    moments: dict[reading.Kind, Mapping[str, Kept]] = {}
    for kind in reading.MOMENTS:
        beside = {name: os.path.join(os.path.dirname(one), f"{kind}.pt") for name, one in folder.universal.items()}
        missing = [name for name, one in beside.items() if name not in aliases and not os.path.isfile(one)]
        if missing:
            raise FormatError(f"{kind} of {missing[0]!r} is missing", file=beside[missing[0]])
        moments[kind] = read_universal(replace(folder, universal=beside), aliases, shapes)
        files += [disk.FileState.of(one) for name, one in beside.items() if name not in aliases]
    steps: dict[str, object] = {}
    for name, one in folder.universal.items():
        own = os.path.join(os.path.dirname(one), STEP)
        if name not in aliases and os.path.isfile(own):
            files.append(disk.FileState.of(own))
            steps[name] = torch_files.read_torch_file(own)
    if steps and (without := sorted(folder.universal.keys() - aliases.keys() - steps.keys())):
        path_of_one = os.path.join(os.path.dirname(folder.universal[without[0]]), STEP)
        raise FormatError(f"the step of {without[0]!r} is missing", file=path_of_one, fix="copy the folder again")
    if not steps:
        numbered = _numbered(inner.get("state"), path)
        steps = {f"group {number}": state["step"] for number, state in numbered.items() if "step" in state}
    step = reading.adam.one_step(steps, path, files)
    if step == 0:  # as our writer says of weights alone
        raise errors.NotCarried("the optimizer has taken no step: its moments are zeros", file=path, fix=_DROP)
    groups = said.get("param_groups")
    groups = _groups(inner.get("param_groups") if groups is None else groups, path)
    return path, [group for group in groups if group["params"]], moments, step


def _state(
    step: int,
    groups: Sequence[reading.Group],
    kind: str,
    first: Mapping[str, Any],
    settings: Mapping[str, Any],
    states: tuple[str, Mapping[str, Any]],
) -> reading.Training:
    path, config = states[0], section(first, "ds_config", states[0])
    steps, skipped = _count(first, "global_steps"), _count(first, "skipped_steps") or 0
    if steps is not None and step > steps - skipped:
        raise FormatError(
            "the moments are of another step than the model",
            file=path,
            found=f"step {step}",
            expected=f"at most {steps - skipped}: {steps} global_steps, {skipped} of them skipped",
            fix="copy the files of one step again",
        )
    optimizer = section(config, "optimizer", path)
    called = optimizer.get("type")
    if not (called is None or str(called).lower() in _ADAMS):
        raise errors.NotCarried("the optimizer is not Adam", file=path, found=f"{called!r:.40}", fix=_DROP)
    # DeepSpeed's own Adam says in the config alone how it decays, and an optimizer of the program's in its groups.
    added = section(optimizer, "params", path).get("adam_w_mode", True) is False and str(called).lower() == "adam"
    scaler = settings.get("loss_scaler")
    scale = scaler.fields().get("cur_scale") if isinstance(scaler, torch_files.Opaque) else None
    clip = settings.get("clip_grad", config.get("gradient_clipping"))  # 0: gradients are not clipped
    scheduler = section(first, "lr_scheduler", path)
    position = scheduler.get("last_epoch")
    if type(scheduler.get("last_batch_iteration")) is int:  # DeepSpeed's own count from 0: it is 5 after six steps
        position = scheduler["last_batch_iteration"] + 1
    rates = {group.lr for group in groups}
    return reading.Training(
        step,
        tuple(groups),
        reading.ADAM if added else kind,
        reading.Schedule(position if type(position) is int else None, "step", rates.pop() if len(rates) == 1 else None),
        iterations=steps,
        consumed_samples=_count(first, "global_samples"),
        skipped_steps=skipped if steps is None else steps - step,
        loss_scale=float(scale) if isinstance(scale, int | float) and scale != 1.0 else None,
        clip_grad=float(clip) if isinstance(clip, int | float) else None,
    )


def _missed(step: int, first: Mapping[str, Any]) -> list[ledgers.Loss]:
    """That an optimizer made fewer steps than the model, more of which were not skipped: `load_optimizer_states=False` begins one anew."""
    steps, skipped = _count(first, "global_steps"), _count(first, "skipped_steps") or 0
    if steps is None or step >= steps - skipped:
        return []
    subject = f"an optimizer that made {errors.plural(step, 'step')}, {steps - skipped - step:,} less than the model"
    why = f"global_steps counts {steps}, and skipped_steps {skipped}: is the optimizer of an older checkpoint, or was it begun anew?"
    return [ledgers.Loss("assumed", subject, why)]


def _count(states: Mapping[str, Any], key: str) -> int | None:
    value = states.get(key)
    return value if type(value) is int and value >= 0 else None
