"""The optimizer in a step folder: moments by the names of the parameters, which every file of it has.

    optimizer/optimizer_pp-0-of-1_tp-0-of-2_exp-0-of-1.pt            ZeRO-0: of the shape of the rank's part of the weight
    optimizer/optimizer_pp-0-of-1_dp-1-of-2_tp-0-of-2_exp-0-of-1.pt  ZeRO-1: a range of that part, flattened; which one is in optimizer_config.json
    lr_scheduler/lr_scheduler.pt, checkpoint_metadata.json           where the schedule stands, and the counters

A part of a weight says itself where its slices belong in the whole (`files.parse_slices`), and the moments follow it.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpt_core.sdk import (
    FormatError,
    RankTensors,
    StoredTensor,
    disk,
    documents,
    errors,
    lazy,
    ledgers,
    reading,
    torch_files,
)
from ckpt_nanotron.files import METADATA, TRAINING_CONFIG, Files, StoredParameter, rank_optimizers

CONFIG = "optimizer_config.json"
MASTERS = "gradient_accumulator"
_DROP = "convert the weights alone, with --training-state drop"

Rank = tuple[int, int]
"""A tensor parallel and a pipeline parallel rank."""
Parts = dict[Rank, dict[str, list[lazy.Shard]]]
"""What each rank holds, as shards of its own part of the weight."""


def training_in(step: str, files: Files) -> reading.SavedTraining | None:
    """The state of the training in a step folder; None where no optimizer was saved."""
    optimizers = rank_optimizers(step)
    if not optimizers:
        return None
    config = os.path.join(step, "optimizer", CONFIG)
    said = documents.read_json_object(config) if os.path.isfile(config) else {}
    states = [disk.FileState.of(path) for of_rank in optimizers.values() for path in of_rank.values()]
    parts: dict[reading.Kind, Parts] = {kind: {} for kind in reading.KINDS}
    steps: dict[str, object] = {}
    bodies: list[Mapping[str, Any]] = []
    members: list[dict[str, None]] = []

    def enter(kind: reading.Kind, name: str, rank: Rank, shards: Sequence[lazy.Shard]) -> None:
        parts[kind].setdefault(rank, {}).setdefault(name, []).extend(shards)

    for rank, of_rank in optimizers.items():
        for dp, path in of_rank.items():
            held = torch_files.read_torch_file(path)
            named = _states(held, path)
            _enter_groups(held, path, bodies, members)
            of_file = reading.adam.steps_of(named, (), path)
            steps |= {f"{name} of {os.path.basename(path)}": step for name, step in of_file.items()}
            for name, state in named.items():
                reading.adam.check_state(name, state, StoredTensor, path)
                for kind in reading.MOMENTS:
                    enter(kind, name, rank, _own_part(name, state[kind], rank, dp, len(of_rank), said, config, files))
            for name, master in _masters(held, path):
                enter(reading.MASTER, name, rank, _own_part(name, master, rank, dp, len(of_rank), said, config, files))
    if not parts[reading.MASTER]:
        del parts[reading.MASTER]
    count = reading.adam.one_step(steps, states[0].path, states)
    groups = [
        reading.adam.group_of(body, names, states[0].path) for body, names in zip(bodies, members, strict=True) if names
    ]
    where = os.path.join(step, "optimizer")
    tensors = {kind: _placed(kind, held, files, where) for kind, held in parts.items()}
    ledger = ledgers.Ledger()
    for path in (where, *(file.path for file in states)):
        ledger.carried(ledgers.OPTIMIZER.what, path)
    training, more = _counted(step, count, groups, reading.adam.kind_of(bodies, states[0].path), ledger)
    return reading.SavedTraining(
        state=training,
        ranks={kind: [RankTensors({}, held, where)] for kind, held in tensors.items()},
        where=where,
        files=[*states, *more],
        ledger=ledger,
        evidence=["moments by the names that every file of the optimizer has"],
        losses=reading.adam.missed_steps(count, training.iterations, None, "last_train_step"),  # load_optimizer: false
        rest_is_frozen=True,
    )


def _states(held: object, path: str) -> dict[str, Mapping[str, Any]]:
    """The states by the names of their parameters."""
    states, names = (held.get("state"), held.get("names")) if isinstance(held, dict) else (None, None)
    if (
        not isinstance(states, dict)
        or not isinstance(names, dict)
        or not all(isinstance(n, str) for n in names.values())
    ):
        raise errors.NotCarried(
            "the optimizer does not name its parameters", file=path, found=torch_files.brief(held), fix=_DROP
        )
    for number in states.keys() - names.keys():
        raise FormatError(f"state {torch_files.brief(number)} of the optimizer has no name", file=path)
    for number in names.keys() - states.keys():
        raise FormatError(f"exp_avg of {names[number]!r} is missing", file=path, found="its name, without a state")
    return {names[number]: state for number, state in states.items()}


def _masters(held: Mapping[str, Any], path: str) -> Iterator[tuple[str, StoredTensor]]:
    """The fp32 masters by the names of their parameters: none where the optimizer steps the weights themselves."""
    found = held.get(MASTERS) or {}
    if not isinstance(found, dict):
        raise FormatError(f"{MASTERS} does not name its masters", file=path, found=torch_files.brief(found))
    for name, master in found.items():
        if not isinstance(master, StoredTensor):
            raise FormatError(f"the master of {name!r} is not a tensor", file=path, found=torch_files.brief(master))
        yield str(name), master


def _enter_groups(
    held: Mapping[str, Any], path: str, bodies: list[Mapping[str, Any]], members: list[dict[str, None]]
) -> None:
    """The groups of a rank, and the names of their parameters. Release 0.4 has one group, and main one for each parameter: those that are
    stepped alike are one."""
    found, names = held.get("param_groups"), held["names"]
    if not isinstance(found, list) or not all(isinstance(body, dict) for body in found):
        raise errors.NotCarried("the optimizer has no groups", file=path, fix=_DROP)
    for body in found:
        said = {key: value for key, value in body.items() if key != "params"}
        if said not in bodies:
            bodies.append(said)
            members.append({})
        of_group = members[bodies.index(said)]
        for number in _numbers(body):
            if number in names:  # a data parallel rank without a share of a parameter does not name it
                of_group[names[number]] = None
                if len([held for held in members if names[number] in held]) > 1:
                    raise FormatError(
                        f"ranks step {names[number]!r} otherwise than each other",
                        file=path,
                        found=", ".join(f"{key} {torch_files.brief(value)}" for key, value in list(said.items())[:4]),
                        expected="the groups of the other files of the optimizer",
                        fix="copy the files of one step again",
                    )
    listed = {number for body in found for number in _numbers(body)}
    for number, name in names.items():
        if number not in listed:
            raise FormatError(f"the moments of {name!r} are of no group of the optimizer", file=path)


def _numbers(body: Mapping[str, Any]) -> list[int]:
    numbers = body.get("params")
    return [number for number in numbers if type(number) is int] if isinstance(numbers, list) else []


def divided(elements: int, ranks: int) -> dict[int, tuple[int, int]]:
    """The range of a flattened parameter that each data parallel rank steps; nothing of a rank without one (optim/zero.py, `_partition_parameters`)."""
    most = -(-elements // ranks)
    shorter = most * ranks - elements  # the last ranks have one element less
    sizes = [most - (rank >= ranks - shorter) for rank in range(ranks)]
    ends = list(itertools.accumulate(sizes))
    return {rank: (end - size, end) for rank, (size, end) in enumerate(zip(sizes, ends, strict=True)) if size}


def _own_part(
    name: str, moment: StoredTensor, rank: Rank, dp: int, count: int, said: Mapping[str, Any], config: str, files: Files
) -> list[lazy.Shard]:
    """A moment as shards of the rank's part of its weight: that part itself, or a range of it."""
    offsets = _section(said, "configs", "param_name_to_dp_rank_offsets", name)
    if count == 1 and not offsets:
        return lazy.whole(moment)
    shape, share = _section(said, "configs", "orig_param_shapes").get(name), offsets.get(str(dp))
    if shape is None and name in files.parameters:
        # Global rank 0 writes the config, and says the parameters of its own stage alone; the rule is the same on all.
        shape = _part_of_rank(files.parameters[name], rank)
        share = divided(math.prod(shape), count).get(dp)
    try:
        whole = tuple(int(size) for size in shape)  # type: ignore[union-attr]
        start, stop = (int(end) for end in share)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise FormatError(
            f"nothing says which range of {name!r} data parallel rank {dp} has", file=config, found=f"{share!r:.60}"
        ) from None
    if moment.shape != (stop - start,):
        raise FormatError(
            f"a moment of {name!r} is not the range that {CONFIG} says",
            file=moment.file,
            found=f"shape {moment.shape}",
            expected=f"{stop - start} elements",
        )
    return lazy.ranges_as_shards(whole, [(start, moment)])


def _part_of_rank(stored: StoredParameter, rank: Rank) -> tuple[int, ...]:
    """The shape of a rank's part of a parameter; a tied head has that of the embedding, on another stage."""
    own = [shard.stored.shape for shard, of in zip(stored.shards, stored.ranks, strict=True) if of == rank]
    own = own or [shard.stored.shape for shard, of in zip(stored.shards, stored.ranks, strict=True) if of[0] == rank[0]]
    if not stored.sharded or not own:
        return stored.shape
    divided_on = next((dim for dim, size in enumerate(own[0]) if size != stored.shape[dim]), 0)
    return tuple(sum(shape[dim] for shape in own) if dim == divided_on else size for dim, size in enumerate(own[0]))


def _section(value: Any, *keys: str) -> Mapping[str, Any]:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _placed(kind: reading.Kind, parts: Parts, files: Files, where: str) -> dict[str, Sequence[lazy.Shard]]:
    """The shards of each parameter in the whole, by the slices of its weight."""
    found: dict[str, Sequence[lazy.Shard]] = {}
    for name, stored in files.parameters.items():
        holders = {rank: held[name] for rank, held in sorted(parts.items()) if name in held}
        if not holders:
            continue
        found[name] = (
            next(iter(holders.values())) if not stored.sharded else list(_by_slices(kind, name, stored, holders, where))
        )
    for name in {name for held in parts.values() for name in held} - files.parameters.keys():
        raise FormatError(f"{kind} of {name!r} is of no parameter of the model", file=where)
    return found


def _by_slices(
    kind: reading.Kind, name: str, stored: StoredParameter, holders: Mapping[Rank, Sequence[lazy.Shard]], where: str
) -> Iterator[lazy.Shard]:
    for slice_, rank in zip(stored.shards, stored.ranks, strict=True):
        if rank not in holders:
            raise FormatError(f"{kind} of {name!r} is missing for tp={rank[0]} pp={rank[1]}", file=where)
        weight, own = (
            slice_.stored,
            [one.stored for one, of in zip(stored.shards, stored.ranks, strict=True) if of == rank],
        )
        left = (weight.offset - min(one.offset for one in own)) // weight.dtype.size
        start = []
        for stride in weight.strides:  # of the rank's part, which lies in one piece
            start.append(left // stride)
            left %= stride
        for shard in holders[rank]:
            inside = lazy.within_box(shard, start, weight.shape)
            if inside is not None:
                origin = tuple(first + at for first, at in zip(slice_.origin, inside.origin, strict=True))
                yield lazy.Shard(origin, inside.stored)


def _counted(
    step: str, count: int, groups: Sequence[reading.Group], optimizer: str, ledger: ledgers.Ledger
) -> tuple[reading.Training, list[disk.FileState]]:
    """The state with the counters and the schedule, and the files that say them."""
    files: list[disk.FileState] = []
    schedule = reading.Schedule()
    if schedules := _schedule_files(step):
        schedule = _schedule(schedules, groups, step)
        files += [disk.FileState.of(path) for path in schedules]
        ledger.carried("position of the schedule, and next learning rate", os.path.dirname(schedules[0]))
    metas: Mapping[str, Any] = {}
    path = os.path.join(step, METADATA)
    if os.path.isfile(path):
        metas = _section(documents.read_json_object(path), "metas")
        files.append(disk.FileState.of(path))
        ledger.carried(ledgers.PROGRESS.what, path, "metas")
    iteration, samples = metas.get("last_train_step"), metas.get("consumed_train_samples")
    tokens = metas.get("consumed_tokens_total")
    iteration = iteration if type(iteration) is int else None
    if iteration is not None and count > iteration:
        raise FormatError(
            "the moments are of another step than the model",
            file=os.path.join(step, "optimizer"),
            found=f"step {count}",
            expected=f"at most {iteration}, the last_train_step of {METADATA}",
            fix="copy the files of one step again",
        )
    state = reading.Training(
        count,
        tuple(groups),
        optimizer,
        schedule,
        iterations=iteration,
        skipped_steps=None if iteration is None else iteration - count,
        consumed_samples=samples if type(samples) is int else None,
        consumed_tokens=tokens if type(tokens) is int else None,
        clip_grad=_clip_grad(step),
    )
    return state, files


def _schedule_files(step: str) -> list[str]:
    """The schedule: one file in release 0.4, on main one for each file of the optimizer."""
    folder = os.path.join(step, "lr_scheduler")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [os.path.join(folder, name) for name in names if name.startswith("lr_scheduler") and name.endswith(".pt")]


def _schedule(files: Sequence[str], groups: Sequence[reading.Group], step: str) -> reading.Schedule:
    """Where the schedule stands. `FormatError` for files that say it otherwise than each other, or than the groups of the optimizer."""
    said = {path: torch_files.read_torch_file(path) for path in files}
    found: dict[str, tuple[object, list[object]]] = {}
    for path, held in said.items():
        rates = held.get("_last_lr") if isinstance(held, dict) else None
        if not isinstance(held, dict) or not isinstance(rates, list):
            raise FormatError("this is not the state of a schedule", file=path, found=torch_files.brief(held))
        found[path] = held.get("last_epoch"), rates
    first = next(iter(found))
    position, own = found[first][0], {group.lr for group in groups}
    for path, (at, rates) in found.items():
        if at != position or not all(rate in own for rate in rates):
            raise FormatError(
                "the schedule and the optimizer are of different steps",
                file=path,
                found=f"last_epoch {torch_files.brief(at)}, learning rates {rates!r:.60}",
                expected=f"last_epoch {torch_files.brief(position)}, as in {first}, and {sorted(own)!r:.60}, as in the optimizer",
                fix="copy the files of one step again",
            )
    next_lr = next(iter(own)) if len(own) == 1 else None
    return reading.Schedule(position if type(position) is int else None, "step", next_lr, _curve(step))


def _curve(step: str) -> dict[str, Any]:
    """The curve of the learning rate, which config.yaml has, as nanotron says it."""
    curve = _section(_settings(step), "learning_rate_scheduler")
    return {"nanotron": dict(curve)} if curve else {}


def _clip_grad(step: str) -> float | None:
    """At what gradients are clipped, 0 where they are not; None where config.yaml does not say it."""
    said = _settings(step)
    value = said.get("clip_grad")
    return float(value or 0.0) if "clip_grad" in said and isinstance(value, int | float | None) else None


def _settings(step: str) -> Mapping[str, Any]:
    """What config.yaml says of the optimizer."""
    path = os.path.join(step, TRAINING_CONFIG)
    return _section(documents.read_yaml_object(path), "optimizer") if os.path.isfile(path) else {}
