"""The state of a training in the files of one rank (torch): see `rank_files` for what they hold."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any

from ckpt_core.sdk import dtypes, errors, layouts, reading, schema, torch_files
from ckpt_megatron.builder import GPTBuilder
from ckpt_megatron.masters import KEY
from ckpt_megatron.optimizer.buffers import walked
from ckpt_megatron.optimizer.found import KINDS
from ckpt_megatron.optimizer.groups import DROP, Divided, place_of
from ckpt_megatron.optimizer.written import WrittenState

DISTRIBUTED_FILE = "distrib_optim.pt"
_STATES = ("param", "exp_avg", "exp_avg_sq")


@schema.dataclass(frozen=True)
class KeptParameter:
    """A parameter of a rank: its native tensor, the shape that the file has it in, and its virtual stage."""

    native: layouts.Native
    shape: tuple[int, ...]
    chunk: int


@schema.dataclass
class WrittenRank:
    """What a rank's file says of its optimizer, where it puts tensors (by their path in the file), and the bytes of those that are known.

    `flat` are the tensors of the file beside it, each with its path in that and the element where it begins.
    """

    said: Any
    placed: dict[tuple[Any, ...], layouts.Native] = field(default_factory=dict)
    known: dict[tuple[Any, ...], bytes] = field(default_factory=dict)
    beside: Any = None
    flat: list[tuple[tuple[Any, ...], int, layouts.Native]] = field(default_factory=list)


def written_rank(builder: GPTBuilder, state: WrittenState, kept: Sequence[KeptParameter], shared: bool) -> WrittenRank:
    """The optimizer of the parameters that a rank keeps, in the order of registration. `shared`: its embedding or head is that of another stage, too."""
    rank = WrittenRank([])
    several = state.optimizers
    for number, places in enumerate(several):
        inside: tuple[Any, ...] = ("optimizer",) if len(several) == 1 else ("optimizer", number)
        members = {place: list(_members(builder, state, kept, place)) for place in places}
        if state.choice.distributed:
            rank.said.append({"optimizer": {"param_groups": state.counted(places)}})
        else:
            rank.said.append(_numbered(builder, state, members, inside, rank))
    if state.choice.distributed:
        buffers = [
            _buffers(builder, kept, places, state, shared, rank, number) for number, places in enumerate(several)
        ]
        rank.beside = buffers[0] if len(several) == 1 else buffers
    rank.said = rank.said[0] if len(several) == 1 else rank.said
    return rank


def _members(
    builder: GPTBuilder, state: WrittenState, kept: Sequence[KeptParameter], place: Divided
) -> Iterator[KeptParameter]:
    apart = any(one.experts for one in state.bodies)
    for parameter in kept:
        if place_of(parameter.native.name, len(parameter.shape), apart) == place and _moment(
            builder, reading.EXP_AVG, parameter
        ):
            yield parameter


def _moment(builder: GPTBuilder, kind: reading.Kind, parameter: KeptParameter) -> layouts.Native | None:
    return builder.moments(kind, {"": parameter.native}).get("")


def _numbered(
    builder: GPTBuilder,
    state: WrittenState,
    members: Mapping[Divided, Sequence[KeptParameter]],
    inside: tuple[Any, ...],
    rank: WrittenRank,
) -> dict[str, Any]:
    """The states by number, which run on over the groups, and the masters of parameters in half precision."""
    states: dict[int, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    masters: list[list[Any]] = []
    inner = (*inside, "optimizer") if state.choice.masters else inside
    for place, own in members.items():
        numbers = list(range(len(states), len(states) + len(own)))
        groups.append(state.bodies[place] | {"params": numbers})
        masters.append([])
        for number, parameter in zip(numbers, own, strict=True):
            tensor = torch_files.TensorSpec(dtypes.FP32, parameter.shape)
            states[number] = dict.fromkeys(reading.MOMENTS, tensor)
            for kind in reading.MOMENTS:
                _put(builder, rank, (*inner, "state", number, kind), kind, parameter)
            if not state.choice.fused:
                states[number]["step"] = torch_files.TensorSpec(dtypes.FP32, ())
                rank.known[*inner, "state", number, "step"] = struct.pack("<f", float(state.step))
            if builder.dtype_of(parameter.native) != dtypes.FP32:
                place_of_master = (*inside, KEY, len(masters) - 1, len(masters[-1]))
                masters[-1].append(tensor)
                _put(builder, rank, place_of_master, reading.MASTER, parameter)
    said = {"state": states, "param_groups": groups}
    return {"optimizer": said, KEY: masters} if state.choice.masters else said


def _put(
    builder: GPTBuilder, rank: WrittenRank, place: tuple[Any, ...], kind: reading.Kind, parameter: KeptParameter
) -> None:
    native = _moment(builder, kind, parameter)
    assert native is not None
    rank.placed[place] = native


def _buffers(
    builder: GPTBuilder,
    kept: Sequence[KeptParameter],
    places: Sequence[Divided],
    state: WrittenState,
    shared: bool,
    rank: WrittenRank,
    number: int,
) -> dict[Any, Any]:
    """The buffers of one distributed optimizer, one for each virtual stage that has parameters of it."""
    found: dict[Any, Any] = {"buckets_coalesced": True}
    apart = any(one.experts for one in state.bodies)
    several = len(state.optimizers) > 1
    for chunk in sorted({parameter.chunk for parameter in kept}):
        held = {
            parameter.native.name: parameter
            for parameter in kept
            if parameter.chunk == chunk
            and place_of(parameter.native.name, len(parameter.shape), apart) in places
            and _moment(builder, reading.EXP_AVG, parameter)
        }
        if not held:
            continue
        kinds = {builder.dtype_of(parameter.native) for parameter in held.values()}
        if len(kinds) > 1:
            raise errors.NotCarried(
                "a stage has parameters of several dtypes, and how its buffers are numbered is not known",
                found=", ".join(sorted(map(str, kinds))),
                fix=f"write torch_dist, or -o optimizer=plain; or {DROP}",
            )
        embedding = next((name for name in _SHARED if name in held), None) if shared else None
        starts, sizes = walked({name: parameter.shape for name, parameter in held.items()}, embedding)
        (dtype,) = kinds
        key = (dtype, dtypes.FP32 if dtype.name != "fp16" else dtype)  # gradients of bf16 are summed in fp32
        flat = torch_files.TensorSpec(dtypes.FP32, (sum(sizes),))
        found[chunk] = {key: {**dict.fromkeys(_STATES, flat), "numel_unpadded": sum(sizes)}}
        for what in _STATES:
            inside = (*((number,) if several else ()), chunk, key, what)
            for name, (bucket, start) in starts.items():
                native = _moment(builder, KINDS[what], held[name])
                assert native is not None
                rank.flat.append((inside, sum(sizes[:bucket]) + start, native))
    return found


_SHARED = ("embedding.word_embeddings.weight", "output_layer.weight")
