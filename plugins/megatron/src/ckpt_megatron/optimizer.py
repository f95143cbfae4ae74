"""The optimizer in Megatron's files: moments by number, by a range of a flat buffer, or by the keys of the model.

torch         model_optim_rng.pt: optimizer.state[number]; a group lists numbers, and its parameters in the order of the file's own model:
              those with weight decay first, then vectors and biases (core 0.16, optimizer/__init__.py)
torch         distrib_optim.pt beside it: all parameters of a rank from last to first, each at a multiple of 64 elements (core 0.16,
              distributed/param_and_grad_buffer.py); dp does not matter, since data parallel ranks are gathered
torch_dist    optimizer.state.exp_avg.KEY, of the shape of the model's KEY (fully_reshardable, and without a distributed optimizer)
"""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckpt_core.sdk import FormatError, StoredTensor, chunked, disk, errors, lazy, ledgers, reading, torch_files
from ckpt_megatron.files import optimizer_file
from ckpt_megatron.found import RankShare
from ckpt_megatron.masters import BUFFERS, KEY
from ckpt_megatron.names import layer_of
from ckpt_megatron.ranks import RankFile

_ALIGNMENT = 64
_DROP = "convert the weights alone, with --training-state drop"
_DIST = re.compile(r"(?:chained_\d+\.)?optimizer\.state\.(param|fp32_param|exp_avg|exp_avg_sq)\.(.+)")
_KINDS: dict[str, reading.Kind] = {
    "param": reading.MASTER,
    "fp32_param": reading.MASTER,
    "exp_avg": reading.EXP_AVG,
    "exp_avg_sq": reading.EXP_AVG_SQ,
}
_FLAT = re.compile(r"(?:chained_\d+\.)?optimizer\.distributed\.")

Place = tuple[int, str]
"""A parameter of a rank: its virtual stage, and its name in the file."""
Divided = tuple[bool, bool]
"""By what Megatron divides parameters into groups: whether they are of experts, and whether they are without weight decay."""


@dataclass
class FoundOptimizer:
    """What was found of an optimizer, by the names of the tables: tensors by kind, and the groups with their members."""

    shares: dict[reading.Kind, list[RankShare]]
    bodies: list[Mapping[str, Any]]
    members: list[list[str]]
    step: int
    where: str
    files: list[disk.FileState] = field(default_factory=list)
    carried: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)


@dataclass
class RankOptimizer:
    """The optimizer of one rank: the tensors of each virtual stage by stored name, and the group of every parameter."""

    tensors: dict[reading.Kind, list[dict[str, StoredTensor]]]
    groups: list[Mapping[str, Any]]
    group_of: list[dict[str, int]]
    steps: dict[str, object]
    file: str

    def holding(self, rank: RankFile, kind: reading.Kind) -> RankFile:
        """The rank's file with the tensors of a kind in the place of its weights."""
        moved = copy.copy(rank)
        moved.chunks = self.tensors[kind]
        return moved

    def grouped(self, rank: RankFile) -> RankFile:
        """The rank's file with the number of its group in the place of each weight."""
        moved = copy.copy(rank)
        moved.chunks = self.group_of  # type: ignore[assignment]
        return moved


def rank_optimizer(rank: RankFile) -> RankOptimizer | None:
    """The optimizer in a rank's file, or beside it; None where it was not saved. `NotCarried` where which parameter is which can't be told."""
    saved = rank.content.get("optimizer")
    if not saved:
        return None
    beside = optimizer_file(rank.path)
    if isinstance(saved, list) and beside is not None:
        raise errors.NotCarried("several optimizers share the flat buffers of a rank", file=rank.path, fix=_DROP)
    places = _places(rank)
    found = RankOptimizer({}, [], [{} for _ in rank.chunks], {}, rank.path)
    for one in saved if isinstance(saved, list) else [saved]:
        if not isinstance(one, dict):
            raise FormatError("the optimizer is not a dict", file=rank.path, found=torch_files.brief(one))
        inner = one.get("optimizer", one)
        bodies = inner.get("param_groups") if isinstance(inner, dict) else None
        if not isinstance(bodies, list) or not all(isinstance(body, dict) for body in bodies):
            raise errors.NotCarried("the optimizer has no groups", file=rank.path, fix=_DROP)
        if beside is None:
            _enter_numbered(found, rank, inner, one.get(KEY), places)
        else:
            _enter_groups(found, bodies, places)
    if beside is not None:
        _enter_flat(found, rank, os.path.join(os.path.dirname(rank.path), beside))
    missing = [name for (_, name), _ in _listed(places)]
    if missing:
        raise errors.NotCarried(
            f"{missing[0]!r} is in no group of the optimizer",
            file=rank.path,
            found=f"{len(missing)} parameters",
            fix=_DROP,
        )
    return found


def _places(rank: RankFile) -> dict[Divided, list[Place]]:
    """The parameters of a rank in the order of its model, as Megatron divides them."""
    found: dict[Divided, list[Place]] = {}
    for chunk, tensors in enumerate(rank.chunks):
        for name, tensor in tensors.items():
            if not BUFFERS.search(name):
                undecayed = name.endswith(".bias") or len(tensor.shape) == 1
                found.setdefault((".experts." in name, undecayed), []).append((chunk, name))
    return found


def _listed(places: Mapping[Divided, Sequence[Place]]) -> Iterator[tuple[Place, Divided]]:
    for kind, of_kind in places.items():
        for place in of_kind:
            yield place, kind


def _divided(body: Mapping[str, Any]) -> Divided:
    # NeMo 2 renames wd_mult (lightning/_strategy_lib.py), and Megatron-Core takes either
    return bool(body.get("is_expert_parallel")), body.get("wd_mult", body.get("pre_wd_mult", 1.0)) == 0.0


def _enter_groups(
    found: RankOptimizer, bodies: Sequence[Mapping[str, Any]], places: dict[Divided, list[Place]]
) -> list[list[Place]]:
    """The parameters of each group; those of `places` that are in one are taken out."""
    members = []
    for body in bodies:
        number, own = len(found.groups), places.pop(_divided(body), [])
        found.groups.append(body)
        for chunk, name in own:
            found.group_of[chunk][name] = number
        if own and "step" in body:
            found.steps[f"group {number}"] = body["step"]
        members.append(own)
    return members


def _enter_numbered(
    found: RankOptimizer,
    rank: RankFile,
    inner: Mapping[str, Any],
    masters: object,
    places: dict[Divided, list[Place]],
) -> None:
    states, bodies = inner.get("state"), inner["param_groups"]
    if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
        raise FormatError("the optimizer has no states", file=rank.path, found=torch_files.brief(states))
    for number, (body, own) in enumerate(zip(bodies, _enter_groups(found, bodies, places), strict=True)):
        numbers = body.get("params")
        if not isinstance(numbers, list) or len(numbers) != len(own):
            raise errors.NotCarried(
                "the order of the parameters in the optimizer can't be established",
                file=rank.path,
                found=f"group {number} of {torch_files.brief(numbers)}",
                expected=f"{len(own)} parameters, in the order of the model",
                fix=_DROP,
            )
        for (chunk, name), index in zip(own, numbers, strict=True):
            state = states.get(index, {})
            reading.adam.check_state(name, state, StoredTensor, rank.path)
            for kind in reading.MOMENTS:
                _enter(found, kind, chunk, name, state[kind])
            if "step" in state:
                found.steps[name] = state["step"]
        if isinstance(masters, list):
            # A parameter that is fp32 in a model of bf16 has no master of its own (optimizer/optimizer.py).
            rounded = [(chunk, name) for chunk, name in own if rank.chunks[chunk][name].dtype.name in ("bf16", "fp16")]
            held = masters[number] if number < len(masters) else []
            if (
                not isinstance(held, list)
                or len(held) != len(rounded)
                or not all(isinstance(m, StoredTensor) for m in held)
            ):
                raise FormatError(
                    f"optimizer.{KEY}[{number}] has not a master for each parameter",
                    file=rank.path,
                    found=torch_files.brief(held),
                    expected=f"{len(rounded)} tensors",
                )
            for (chunk, name), master in zip(rounded, held, strict=True):
                _enter(found, reading.MASTER, chunk, name, master)
            for chunk, name in set(own) - set(rounded):
                _enter(found, reading.MASTER, chunk, name, rank.chunks[chunk][name])


def _enter(found: RankOptimizer, kind: reading.Kind, chunk: int, name: str, tensor: StoredTensor) -> None:
    found.tensors.setdefault(kind, [{} for _ in found.group_of])[chunk][name] = tensor


def _enter_flat(found: RankOptimizer, rank: RankFile, file: str) -> None:
    """The tensors in the buffers of a distributed optimizer. That the walk ends where the buffer does proves the order."""
    content = torch_files.read_torch_file(file)
    found.file = file
    if not isinstance(content, dict) or any(".experts." in name for tensors in rank.chunks for name in tensors):
        raise errors.NotCarried("the buffers of this distributed optimizer are not known", file=file, fix=_DROP)
    for chunk, tensors in enumerate(rank.chunks):
        buffers = content.get(chunk)
        held = list(buffers.values()) if isinstance(buffers, dict) else []
        if len(held) != 1 or not isinstance(held[0], dict):
            raise errors.NotCarried(
                "a stage has other buffers than one of a single dtype",
                file=file,
                found=torch_files.brief(buffers),
                fix=_DROP,
            )
        position, starts = 0, dict[str, int]()
        for name, tensor in reversed(tensors.items()):
            if not BUFFERS.search(name):
                position += -position % _ALIGNMENT
                starts[name] = position
                position += math.prod(tensor.shape)
        if held[0].get("numel_unpadded") != position:
            raise errors.NotCarried(
                "the flat buffer does not end where its parameters do: which lies where can't be told",
                file=file,
                found=f"{held[0].get('numel_unpadded')!r:.40} elements",
                expected=f"{position}: all parameters of the rank from last to first, each at a multiple of {_ALIGNMENT}",
                fix=_DROP,
            )
        for key in ("param", *reading.MOMENTS):
            flat = held[0].get(key)
            if not isinstance(flat, StoredTensor) or len(flat.shape) != 1 or flat.elements < position:
                raise FormatError(
                    f"{key} of the buffer is missing, or is cut off", file=file, found=torch_files.brief(flat)
                )
            for name, start in starts.items():
                _enter(found, _KINDS[key], chunk, name, _view(flat, start, tensors[name].shape))


def _view(flat: StoredTensor, start: int, shape: tuple[int, ...]) -> StoredTensor:
    """A range of a flat tensor as a tensor of a shape."""
    view = StoredTensor.contiguous(flat.file, flat.dtype, shape, flat.offset + start * flat.dtype.size)
    return StoredTensor(view.file, view.dtype, view.shape, view.offset, view.strides, flat.record)


# --- torch_dist ------------------------------------------------------------------------------------------------------


def dist_tensors(checkpoint: chunked.DistributedCheckpoint) -> dict[reading.Kind, dict[str, chunked.ChunkedTensor]]:
    """The tensors of an optimizer in model space by kind, and by the key of the model's tensor."""
    found: dict[reading.Kind, dict[str, chunked.ChunkedTensor]] = {}
    for key, tensor in checkpoint.tensors.items():
        if match := _DIST.fullmatch(key):
            found.setdefault(_KINDS[match[1]], {})[match[2]] = tensor
    return found


# The modules of a layer in the order in which Megatron's local spec registers them (core 0.16, run), by the names of the tables.
_REGISTERED = (
    "input_layernorm.",
    "self_attention.linear_proj.",
    "self_attention.linear_qkv.",
    "pre_mlp_layernorm.",
    "mlp.linear_fc1.",
    "mlp.linear_fc2.",
)
_BEGINS, _ENDS = ("embedding.word_embeddings.weight",), ("decoder.final_layernorm.", "output_layer.")


def in_buckets(checkpoint: chunked.DistributedCheckpoint) -> bool:
    """Whether the moments lie in the buckets of data parallel groups (dp_reshardable), one for each pipeline stage."""
    return any(_FLAT.match(key) for key in checkpoint.tensors)


def flat_shares(
    checkpoint: chunked.DistributedCheckpoint, weights: RankShare, args: Mapping[str, Any], layers: int
) -> tuple[dict[reading.Kind, list[RankShare]], list[Mapping[str, Any]], dict[str, object]]:
    """The tensors in buckets by kind, under the names of the tables, the groups, and their steps.

    A checkpoint in chunks does not tell the order of registration: it is that of the local spec, and that the walk ends where the bucket does bears it
    out. `NotCarried` for what was not seen: tensor parallel ranks, virtual stages, several buckets, TransformerEngine.
    """
    stages = args.get("pipeline_model_parallel_size", 1)
    seen = args.get("tensor_model_parallel_size", 1) == 1 and args.get("virtual_pipeline_model_parallel_size") is None
    if not seen or args.get("transformer_impl") != "local" or type(stages) is not int or layers % max(1, stages):
        raise errors.NotCarried(
            "the moments lie in flat buffers of one parallel layout (dp_reshardable, dp_zero_gather_scatter), whose order is not known for this one",
            file=checkpoint.folder,
            expected="the local spec, tp=1, stages of as many layers",
            fix="save with --dist-ckpt-optim-fully-reshardable, or convert the weights alone with --training-state drop",
        )
    shares = {kind: RankShare({}, False) for kind in (reading.MASTER, *reading.MOMENTS)}
    bodies: list[Mapping[str, Any]] = []
    steps: dict[str, object] = {}
    for stage in range(stages):
        prefix = f"optimizer.distributed.dp_group_idx_{stage}."
        held = {
            key.removeprefix(prefix): tensor for key, tensor in checkpoint.tensors.items() if key.startswith(prefix)
        }
        places, end = _walk(weights, stage, stages, layers // stages, checkpoint.folder)
        for key in ("param", *reading.MOMENTS):
            flat = [tensor for name, tensor in held.items() if name.endswith(f".{key}")]
            if len(flat) != 1 or len(flat[0].shape) != 1:
                raise errors.NotCarried(
                    f"stage {stage} has {len(flat)} buckets", file=checkpoint.folder, expected="one", fix=_DROP
                )
            if flat[0].shape[0] != end:
                raise errors.NotCarried(
                    f"the bucket of stage {stage} does not end where its parameters do: which lies where can't be told",
                    file=checkpoint.folder,
                    found=f"{flat[0].shape[0]} elements",
                    expected=f"{end}",
                    fix=_DROP,
                )
            pieces = [(origin[0], stored) for origin, stored in flat[0].stored()]
            for name, (start, shape) in places.items():
                ranges = _ranges(pieces, start, math.prod(shape))
                shares[_KINDS[key]].add(name, lazy.ranges_as_shards(shape, ranges), name)
        blob = checkpoint.objects.get(f"{prefix}optimizer/shard_0_1")
        value = blob.read() if blob is not None else None
        said = value[0] if isinstance(value, list) and value else None
        found, own = dist_groups({"optimizer": said}, checkpoint.folder)
        bodies = bodies or found
        steps |= {f"{name} of stage {stage}": step for name, step in own.items()}
    return {kind: [share] for kind, share in shares.items()}, bodies, steps


def _walk(
    weights: RankShare, stage: int, stages: int, layers: int, folder: str
) -> tuple[dict[str, tuple[int, tuple[int, ...]]], int]:
    """Where each parameter of a stage begins in its bucket, with its shape, and where the bucket ends."""
    order: list[tuple[tuple[int, int, int], str]] = []
    for number, name in enumerate(weights.tensors):
        layer = layer_of(name)
        if layer is not None:
            rest = name.partition(f"layers.{layer}.")[2]
            part = next((n for n, begins in enumerate(_REGISTERED) if rest.startswith(begins)), None)
            if part is None:
                raise errors.NotCarried(f"the place of {name!r} in a bucket is not known", file=folder, fix=_DROP)
            if stage * layers <= layer < (stage + 1) * layers:
                order.append(((1, layer, part), name))
        elif name.startswith(_BEGINS):
            order += [((0, 0, number), name)] * (stage == 0)
        elif name.startswith(_ENDS):
            order += [((2, 0, _ENDS.index(next(b for b in _ENDS if name.startswith(b)))), name)] * (stage == stages - 1)
        elif not BUFFERS.search(name):
            raise errors.NotCarried(f"the place of {name!r} in a bucket is not known", file=folder, fix=_DROP)
    position, places = 0, dict[str, tuple[int, tuple[int, ...]]]()
    for _, name in sorted(order, reverse=True):
        shape = lazy.whole_shape(weights.tensors[name][0]) or ()
        position += -position % _ALIGNMENT
        places[name] = position, shape
        position += math.prod(shape)
    return places, position


def _ranges(pieces: Sequence[tuple[int, StoredTensor]], start: int, count: int) -> Iterator[tuple[int, StoredTensor]]:
    """Elements [start, start + count) of a flat tensor in pieces, each range with its place from there."""
    for origin, stored in pieces:
        part = lazy.within_box(lazy.Shard((origin,), stored), (start,), (count,))
        if part is not None:
            yield part.origin[0], part.stored


def dist_groups(common: Mapping[str, Any], file: str) -> tuple[list[Mapping[str, Any]], dict[str, object]]:
    """The groups in the common state, and the steps that it has."""
    saved = common.get("optimizer")
    if isinstance(saved, list) and len(saved) == 1:  # NeMo 2 has a list, of one for a model without experts
        (saved,) = saved
    inner = saved.get("optimizer", saved) if isinstance(saved, dict) else None
    bodies = inner.get("param_groups") if isinstance(inner, dict) else None
    if (
        not isinstance(inner, dict)
        or not isinstance(bodies, list)
        or not all(isinstance(body, dict) for body in bodies)
    ):
        raise errors.NotCarried("the common state has no groups of one optimizer", file=file, fix=_DROP)
    steps: dict[str, object] = {f"group {n}": body["step"] for n, body in enumerate(bodies) if "step" in body}
    states = inner.get("state")
    if isinstance(states, dict) and "common_step" in states:
        steps["all parameters"] = states["common_step"]
    # torch's AdamW has a step for each parameter, which NeMo 2 leaves here (fully_sharded_model_space)
    left = saved.get("param_state") if isinstance(saved, dict) else None
    for number, state in left.items() if isinstance(left, dict) else ():
        if isinstance(state, dict) and "step" in state:
            steps[f"parameter {number}"] = state["step"]
    return bodies, steps


def members_of(bodies: Sequence[Mapping[str, Any]], share: RankShare, file: str) -> list[list[str]]:
    """The parameters of each group by the names of the tables, as Megatron divides them."""
    left: dict[Divided, list[str]] = {}
    for name, copies in share.tensors.items():
        undecayed = name.endswith(".bias") or len(copies[0][0].origin) == 1
        left.setdefault((".experts." in name, undecayed), []).append(name)
    found = [left.pop(_divided(body), []) for body in bodies]
    if left:
        (names, *_) = left.values()
        raise errors.NotCarried(f"{names[0]!r} is in no group of the optimizer", file=file, fix=_DROP)
    return found


# --- what the rest of the file says ----------------------------------------------------------------------------------


def saved_training(
    found: FoundOptimizer,
    content: Mapping[Any, Any],
    args: Mapping[str, Any],
    ranks: Mapping[reading.Kind, Sequence[Any]],
) -> reading.SavedTraining:
    """The state of a training, with the counters and the schedule in the `content` of a rank's file, or of the common state."""
    groups = [
        reading.adam.group_of(body, of, found.where) for body, of in zip(found.bodies, found.members, strict=True) if of
    ]
    schedule, saved = content.get("opt_param_scheduler"), content.get("optimizer")
    native = (
        {str(key): value for key, value in schedule.items() if isinstance(value, int | float | str)}
        if isinstance(schedule, dict)
        else {}
    )
    position = native.get("num_steps")  # it counts samples (training/training.py, get_optimizer_param_scheduler)
    rates = {group.lr for group in groups}
    iteration = content.get("iteration")
    scaler = saved.get("grad_scaler") if isinstance(saved, dict) else None
    scale = scaler.get("scale") if isinstance(scaler, dict) else None
    if scale is not None:
        source = found.files
        scale = reading.adam.one_step({"the loss scale": scale}, found.where, source)
    ledger = ledgers.Ledger()
    for file, keys in found.carried:
        ledger.carried(ledgers.OPTIMIZER.what, file, *keys)
        if "iteration" in keys and "consumed_train_samples" in args:
            ledger.carried(ledgers.PROGRESS.what, file, "args.consumed_train_samples")
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
        reading.adam.kind_of(found.bodies, found.where),
        reading.Schedule(
            position if type(position) is int else None,
            "sample",
            rates.pop() if len(rates) == 1 else None,
            {"megatron": native} if native else {},
        ),
        iterations=iteration if type(iteration) is int else None,
        consumed_samples=_count(args, "consumed_train_samples"),
        skipped_steps=iteration - found.step if type(iteration) is int else None,
        loss_scale=None if scale is None else float(scale),
        clip_grad=float(args["clip_grad"]) if isinstance(args.get("clip_grad"), int | float) else None,
    )
    return reading.SavedTraining(
        state=state,
        ranks=ranks,
        where=found.where,
        files=found.files,
        ledger=ledger,
        rest_is_frozen=True,
    )


def _count(args: Mapping[str, Any], key: str) -> int | None:
    value = args.get(key)
    return value if type(value) is int and value >= 0 else None
