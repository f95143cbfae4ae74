"""The optimizer that Lightning stores in a `.ckpt` of NeMo 1: states by number, in the order of the modules.

    optimizer_states[0]                            {"state": {number: {"exp_avg", "exp_avg_sq"}}, "param_groups": [{..., "step", "params": [number]}]}
    optimizer_states[0], megatron_amp_O2           {"optimizer": as above, "fp32_from_fp16_params": [[master of every parameter of the group], ...]}
    optimizer.state.exp_avg.KEY, ...               distributed: in chunks, by the keys of the weights; common.pt has the groups, without their parameters

Apex' FusedAdam keeps a step for each group, torch's AdamW for each parameter. NeMo divides parameters by their modules (1.23,
modules/common/megatron/utils.py, `get_params_for_weight_decay_optimization`): Apex' norms, and what is called `bias`, are not decayed. The norms of
Megatron-Core are not Apex'. With `do_layer_norm_weight_decay`, everything is decayed, in one group.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import Any

from ckpt_core.sdk import (
    FormatError,
    RankTensors,
    StoredTensor,
    chunked,
    disk,
    errors,
    ledgers,
    reading,
    schema,
    torch_files,
)
from ckpt_megatron.sdk import lightning, masters
from ckpt_nemo.container.saved import Rank, SavedCheckpoint

STATES = "optimizer_states"
_DROP = "convert the weights alone, with --training-state drop"

_RESET = "reset_lr"
_KEYS = ("is_expert", _RESET)
"""What NeMo says of a group besides the hyper-parameters of Adam (2.0, modules/common/megatron/utils.py, `get_params_for_weight_decay_optimization`, and
megatron_gpt_model.py)."""

Chunks = Sequence[Mapping[str, StoredTensor]]
"""The parameters of a rank by name, in the order of its modules: a mapping for each virtual pipeline stage."""
Undecayed = Callable[[str, int], bool]
"""Whether a parameter of a name and of so many axes is in the group without weight decay."""


def is_norm_or_bias(name: str, axes: int) -> bool:
    """What is not decayed of modules whose norms are Apex'."""
    return axes == 1 or name.endswith(".bias")


def is_bias(name: str, axes: int) -> bool:
    """What is not decayed of the modules of Megatron-Core."""
    return name.endswith(".bias")


_RULES: tuple[Undecayed, ...] = (is_norm_or_bias, is_bias)


@schema.dataclass
class FoundOptimizer:
    """The optimizer of all ranks: what lies by number has the name of its weight. `undecayed` says which of two groups has a parameter."""

    bodies: list[Mapping[str, Any]]
    undecayed: Undecayed
    steps: dict[str, object]
    where: str
    ranks: dict[reading.Kind, list[Rank]] = field(default_factory=dict)
    files: list[disk.FileState] = field(default_factory=list)
    losses: list[ledgers.Loss] = field(default_factory=list)


def saved_training(
    saved: SavedCheckpoint,
    found: FoundOptimizer,
    ranks: Mapping[reading.Kind, Sequence[RankTensors]],
    evidence: str,
) -> reading.SavedTraining:
    """The state of the training of which the tensors lie in `ranks`, by the names of the tables."""
    step = reading.adam.one_step(found.steps, found.where, found.files)
    members: list[dict[str, None]] = [{} for _ in found.bodies]
    for rank in ranks[reading.EXP_AVG]:
        for name, held in rank.tensors.items():
            axes = len(held.shape) if isinstance(held, StoredTensor) else len(held[0].origin)  # type: ignore[index]
            members[len(members) == 2 and found.undecayed(name, axes)][name] = None
    groups = [
        reading.adam.group_of(body, names, found.where, _KEYS)
        for body, names in zip(found.bodies, members, strict=True)
        if names
    ]
    state = reading.Training(step, tuple(groups), reading.adam.kind_of(found.bodies, found.where))
    ledger = ledgers.Ledger()
    files = [rank.file for rank in saved.ranks] or [found.where]
    for file, keys in [*((file, [STATES]) for file in files), *saved.optimizer_keys.items()]:
        ledger.carried(ledgers.OPTIMIZER.what, file, *keys)
    made = reading.SavedTraining(
        state=state,
        ranks=ranks,
        where=found.where,
        files=found.files,
        ledger=ledger,
        evidence=[evidence],
        losses=found.losses,
        rest_is_frozen=True,
    )
    name = os.path.basename(os.path.normpath(saved.place))
    progress = lightning.progress_in(saved.content, name, found.where, found.files)
    _begin_anew(progress, found)
    return lightning.continued(made, progress, files, counts_anew=False)


def _begin_anew(progress: lightning.Progress, found: FoundOptimizer) -> None:
    """Take the steps before a schedule began anew from its position.

    With `reset_lr` the curve of CosineAnnealing starts where a run goes on, and the first group remembers after how many steps that was (2.0,
    core/optim/lr_scheduler.py, `WarmupAnnealHoldPolicy.get_lr`). Other schedules, which keep no `decay_steps`, go on.
    """
    said, schedule = found.bodies[0].get(_RESET), progress.schedule
    if said is None or schedule.position is None or "decay_steps" not in schedule.native.get("lightning", {}):
        return
    before = said.get("num_steps") if isinstance(said, dict) else None
    if type(before) is not int or not 0 <= before <= schedule.position:
        raise FormatError(
            "the step at which the learning rate began anew is none",
            file=found.where,
            found=f"{_RESET}: {torch_files.brief(before if isinstance(said, dict) else said)}",
            expected=f"num_steps, at most {schedule.position}, where the schedule stands",
            fix=_DROP,
        )
    progress.schedule = replace(schedule, position=schedule.position - before)


# --- rank files ------------------------------------------------------------------------------------------------------


def rank_optimizers(saved: SavedCheckpoint, parameters: Callable[[Rank], Chunks]) -> FoundOptimizer | None:
    """The optimizer in the files of all ranks; None where none was saved. `parameters` are those of a rank that the optimizer steps.

    `NotCarried` where the order of the parameters can't be established, `FormatError` for states that are not whole or of another step.
    """
    held = {rank.file: rank.optimizer for rank in saved.ranks if rank.optimizer}
    if not held:
        return None
    if lacking := [rank.file for rank in saved.ranks if rank.file not in held]:
        raise FormatError("a rank has no optimizer", file=lacking[0], expected=f"as {next(iter(held))} has")
    reading.adam.check_progress({rank.file: {lightning.STEP: rank.step} for rank in saved.ranks})
    inner = {file: _inner(optimizer, file) for file, optimizer in held.items()}
    own = {rank.file: parameters(rank) for rank in saved.ranks}
    bodies = [inner[file]["param_groups"] for file in inner]
    reading.adam.check_groups({file: one["param_groups"] for file, one in inner.items()})
    undecayed = _rule(own, inner)
    first = saved.ranks[0].file
    found = FoundOptimizer(bodies[0], undecayed, {}, first, files=[disk.FileState.of(file) for file in held])
    for rank in saved.ranks:
        tensors = _of_rank(rank, own[rank.file], inner[rank.file], held[rank.file].get(masters.KEY), found)
        for kind, chunks in tensors.items():
            found.ranks.setdefault(kind, []).append(replace(rank, chunks=chunks, optimizer=None))
    if any(len(of_kind) != len(saved.ranks) for of_kind in found.ranks.values()):
        raise FormatError("some ranks have fp32 masters, and others have none", file=saved.place)
    return found


def _inner(optimizer: object, file: str) -> Mapping[str, Any]:
    """The state dict of the optimizer inside the one that keeps masters."""
    inner = optimizer.get("optimizer", optimizer) if isinstance(optimizer, dict) else None
    states, bodies = (inner.get("state"), inner.get("param_groups")) if isinstance(inner, dict) else (None, None)
    if (
        not isinstance(inner, dict)
        or not isinstance(states, dict)
        or not isinstance(bodies, list)
        or not bodies
        or not all(isinstance(state, dict) for state in states.values())
        or not all(isinstance(body, dict) and isinstance(body.get("params"), list) for body in bodies)
    ):
        raise errors.NotCarried(
            "the optimizer is none that keeps states by number, as fused_adam and adamw do",
            file=file,
            found=torch_files.brief(inner),
            fix=_DROP,
        )
    return inner


def _divided(chunks: Chunks, undecayed: Undecayed, groups: int) -> list[list[tuple[int, str]]]:
    """The parameters of each group, all virtual stages of one after the other."""
    found: list[list[tuple[int, str]]] = [[] for _ in range(groups)]
    for chunk, tensors in enumerate(chunks):
        for name, tensor in tensors.items():
            found[groups == 2 and undecayed(name, len(tensor.shape))].append((chunk, name))
    return found


def _rule(own: Mapping[str, Chunks], inner: Mapping[str, Mapping[str, Any]]) -> Undecayed:
    """How parameters are divided into groups: the one rule that fits the numbers and shapes of all ranks."""
    fitting: dict[tuple[object, ...], Undecayed] = {}
    by_count: dict[tuple[object, ...], Undecayed] = {}
    for rule in _RULES:
        orders = {file: _divided(chunks, rule, len(inner[file]["param_groups"])) for file, chunks in own.items()}
        if all(_counts(orders[file]) == _sizes(inner[file]) for file in own):
            order = tuple(tuple(map(tuple, of)) for of in orders.values())
            by_count.setdefault(order, rule)
            if all(_has_shapes(orders[file], chunks, inner[file]) for file, chunks in own.items()):
                fitting.setdefault(order, rule)
    # Of a single order, a shape that is another is a fault of one tensor, which is named when it is put together.
    known = fitting or (by_count if len(by_count) == 1 else {})
    if len(known) != 1:
        file, chunks = next(iter(own.items()))
        raise errors.NotCarried(
            "the order of the parameters in the optimizer can't be established",
            file=file,
            found=f"groups of {', '.join(map(str, _sizes(inner[file])))}, which fit {len(known)} orders",
            expected=f"one order of {sum(map(len, chunks))} parameters: those with weight decay, then norms and biases",
            fix=_DROP,
        )
    return next(iter(known.values()))


def _counts(members: Sequence[Sequence[object]]) -> list[int]:
    return list(map(len, members))


def _sizes(inner: Mapping[str, Any]) -> list[int]:
    return [len(body["params"]) for body in inner["param_groups"]]


def _has_shapes(members: Sequence[Sequence[tuple[int, str]]], chunks: Chunks, inner: Mapping[str, Any]) -> bool:
    return all(
        not isinstance(moment := inner["state"].get(number, {}).get(kind), StoredTensor)
        or moment.shape == chunks[chunk][name].shape
        for body, names in zip(inner["param_groups"], members, strict=True)
        for number, (chunk, name) in zip(body["params"], names, strict=True)
        for kind in reading.MOMENTS
    )


def _of_rank(
    rank: Rank, chunks: Chunks, inner: Mapping[str, Any], kept: object, found: FoundOptimizer
) -> dict[reading.Kind, list[dict[str, StoredTensor]]]:
    """The tensors of a rank by kind, under the names of its weights; its steps are entered into `found`."""
    states, bodies = inner["state"], inner["param_groups"]
    members = _divided(chunks, found.undecayed, len(bodies))
    kinds: list[reading.Kind] = [*reading.MOMENTS, *([reading.MASTER] if kept is not None else [])]
    tensors: dict[reading.Kind, list[dict[str, StoredTensor]]] = {kind: [{} for _ in chunks] for kind in kinds}
    numbers: set[object] = set()
    stepped: dict[str, Mapping[str, Any]] = {}
    counted: dict[str, Mapping[str, Any]] = {}
    for group, (body, names) in enumerate(zip(bodies, members, strict=True)):
        if names:
            counted[f"group {group}"] = body
        for number, (chunk, name) in zip(body["params"], names, strict=True):
            if type(number) is not int or number in numbers:
                raise FormatError(
                    "a number of a parameter is in two groups, or is none", file=rank.file, found=f"{number!r:.40}"
                )
            numbers.add(number)
            state = states.get(number, {})
            reading.adam.check_state(name, state, StoredTensor, rank.file)
            for kind in reading.MOMENTS:
                tensors[kind][chunk][name] = state[kind]
            stepped[name if chunk == 0 else f"{name} of virtual stage {chunk}"] = state
        if kept is not None:
            for (chunk, name), master in _masters(rank, chunks, names, kept, group):
                tensors[reading.MASTER][chunk][name] = master
    if others := sorted(map(str, states.keys() - numbers)):
        raise FormatError("the optimizer has states of no parameter", file=rank.file, found=", ".join(others[:4]))
    for of in (stepped, counted):
        steps = reading.adam.steps_of(of, (), rank.file)
        found.steps |= {f"{name} of {rank.file}": step for name, step in steps.items()}
    return tensors


def _masters(
    rank: Rank, chunks: Chunks, names: Sequence[tuple[int, str]], kept: object, group: int
) -> Iterable[tuple[tuple[int, str], StoredTensor]]:
    """The master of every parameter of a group. One that is fp32 in a model of half precision is its own."""
    rounded = [(chunk, name) for chunk, name in names if chunks[chunk][name].dtype.name in ("bf16", "fp16")]
    held = kept[group] if isinstance(kept, list) and group < len(kept) else None
    if (
        not isinstance(held, list)
        or len(held) != len(rounded)
        or not all(isinstance(master, StoredTensor) for master in held)
    ):
        raise FormatError(
            f"{masters.KEY}[{group}] has not a master for each parameter",
            file=rank.file,
            found=torch_files.brief(held),
            expected=errors.plural(len(rounded), "tensor"),
        )
    yield from zip(rounded, held, strict=True)
    for place in names:
        if place not in rounded:
            yield place, chunks[place[0]][place[1]]


# --- distributed checkpoints -----------------------------------------------------------------------------------------


def distributed_optimizer(saved: SavedCheckpoint) -> FoundOptimizer | None:
    """The optimizer whose tensors lie in `saved.moments`; None where none was saved. `NotCarried` for groups that say too little."""
    states = saved.content.get(STATES)
    inner = states[0] if isinstance(states, list) and len(states) == 1 else None
    if not saved.moments:
        return None
    body = inner.get("optimizer", inner) if isinstance(inner, dict) else None
    bodies = body.get("param_groups") if isinstance(body, dict) else None
    if not isinstance(bodies, list) or not all(isinstance(one, dict) for one in bodies) or not 0 < len(bodies) < 3:
        raise errors.NotCarried(
            f"the groups of the optimizer are not known: {STATES} has not one or two of them",
            file=saved.content_file,
            found=torch_files.brief(states),
            fix=_DROP,
        )
    if any(one.get("is_expert") for one in bodies):
        raise errors.NotCarried(
            "experts have a group of the optimizer to themselves, which no checkpoint was seen with",
            file=saved.content_file,
            fix=_DROP,
        )
    steps: dict[str, object] = {f"group {n}": one["step"] for n, one in enumerate(bodies) if "step" in one}
    counted = body.get("state") if isinstance(body, dict) else None
    if isinstance(counted, dict) and "step" in counted:  # distributed_fused_adam (1.23, core/optim/distributed_adam.py)
        steps["all parameters"] = counted["step"]
    found = FoundOptimizer(
        bodies, is_bias, steps, saved.content_file, files=[disk.FileState.of(saved.content_file), *saved.states]
    )
    if len(bodies) == 2 and _hyper_parameters(bodies[0]) != _hyper_parameters(bodies[1]):
        why = (
            "the groups do not list their parameters; NeMo 1.23 decays all of Megatron-Core's modules but their biases"
        )
        found.losses.append(ledgers.Loss("assumed", f"weight decay {bodies[0].get('weight_decay')!r} of norms", why))
    return found


def _hyper_parameters(body: Mapping[str, Any]) -> tuple[object, ...]:
    return tuple(body.get(key) for key in ("lr", "initial_lr", "betas", "eps", "weight_decay"))


def moments_by_key(
    saved: SavedCheckpoint,
) -> dict[reading.Kind, dict[str, chunked.ChunkedTensor]]:
    """The tensors of an optimizer by kind, and by the key of the weight. `FormatError`, by name, for one of no weight."""
    held = {**saved.moments, **({reading.MASTER: saved.masters} if saved.masters else {})}
    for kind, tensors in held.items():
        for key in tensors:
            if key not in saved.tensors:
                raise FormatError(f"{kind} of {key!r} is of no weight of the model", file=saved.place)
    return held
