"""The optimizer beside the weights of a rank (torch): moments by number, or in the flat buffers of a distributed optimizer.

model_optim_rng.pt: optimizer     state[number]; a group lists numbers, and its parameters in the order of the file's own model. Experts that expert parallel
                                  ranks share out have an optimizer of their own: the two are in a list (core 0.16, optimizer/optimizer.py, `ChainedOptimizer`)
distrib_optim.pt                  for each virtual stage a buffer, see `buffers`; dp does not matter, since data parallel ranks are gathered
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpt_core.sdk import FormatError, StoredTensor, errors, reading, schema, torch_files
from ckpt_megatron.files import optimizer_file
from ckpt_megatron.masters import BUFFERS, KEY
from ckpt_megatron.optimizer.buffers import fitted, walked
from ckpt_megatron.optimizer.found import KINDS, check_precision
from ckpt_megatron.optimizer.groups import DROP, Divided, check_divided, decay_rule, place_of, said_of
from ckpt_megatron.ranks import RankFile

_HALF = ("bf16", "fp16")
_HEADS = ("output_layer.weight", "embedding.word_embeddings.weight")

Place = tuple[int, str]
"""A parameter of a rank: its virtual stage, and its name in the file."""


@schema.dataclass
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
    found = RankOptimizer({}, [], [{} for _ in rank.chunks], {}, rank.path)
    several = saved if isinstance(saved, list) else [saved]
    bodies = [_bodies(one, rank.path) for one in several]
    every = [body for of_one in bodies for body in of_one]
    check_divided(every, rank.path)
    places = _places(rank, every)
    for one, of_one in zip(several, bodies, strict=True):
        if beside is None:
            _enter_numbered(found, rank, one, of_one, places)
        else:
            _enter_groups(found, of_one, places)
    if beside is not None:
        _enter_flat(found, rank, os.path.join(os.path.dirname(rank.path), beside), len(several))
    missing = [name for of_kind in places.values() for _, name in of_kind]
    if missing:
        raise errors.NotCarried(
            f"{missing[0]!r} is in no group of the optimizer",
            file=rank.path,
            found=f"{len(missing)} parameters",
            fix=DROP,
        )
    return found


def _bodies(one: object, file: str) -> list[Mapping[str, Any]]:
    """The groups of one optimizer."""
    if not isinstance(one, dict):
        raise FormatError("the optimizer is not a dict", file=file, found=torch_files.brief(one))
    inner = one.get("optimizer", one)
    bodies = inner.get("param_groups") if isinstance(inner, dict) else None
    if not isinstance(bodies, list) or not all(isinstance(body, dict) for body in bodies):
        raise errors.NotCarried("the optimizer has no groups", file=file, fix=DROP)
    return bodies


def _parameters(rank: RankFile) -> Iterator[tuple[int, str, StoredTensor]]:
    """The parameters of a rank in the order of its model, with their virtual stage and stored name."""
    for chunk, tensors in enumerate(rank.chunks):
        for name, tensor in tensors.items():
            if not BUFFERS.search(name):
                yield chunk, name, tensor


def _places(rank: RankFile, bodies: Sequence[Mapping[str, Any]]) -> dict[Divided, list[Place]]:
    """The parameters of a rank as Megatron divides them into groups of these `bodies`."""
    found: dict[Divided, list[Place]] = {}
    apart = any(said_of(body).experts for body in bodies)
    rule = decay_rule(rank.args or {}, bodies, rank.path)
    for chunk, name, tensor in _parameters(rank):
        found.setdefault(place_of(name, len(tensor.shape), apart, rule), []).append((chunk, name))
    return found


def _enter_groups(
    found: RankOptimizer, bodies: Sequence[Mapping[str, Any]], places: dict[Divided, list[Place]]
) -> list[list[Place]]:
    """The parameters of each group; those of `places` that are in one are taken out."""
    members = []
    stepped: dict[str, Mapping[str, Any]] = {}
    for body in bodies:
        number, own = len(found.groups), places.pop(said_of(body), [])
        found.groups.append(body)
        for chunk, name in own:
            found.group_of[chunk][name] = number
        if own:
            stepped[f"group {number}"] = body
        members.append(own)
    found.steps |= reading.adam.steps_of_groups(stepped, found.file)
    return members


def _enter_numbered(
    found: RankOptimizer,
    rank: RankFile,
    one: Mapping[str, Any],
    bodies: Sequence[Mapping[str, Any]],
    places: dict[Divided, list[Place]],
) -> None:
    inner, masters = one.get("optimizer", one), one.get(KEY)
    states = inner.get("state")
    if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
        raise FormatError("the optimizer has no states", file=rank.path, found=torch_files.brief(states))
    stepped: dict[str, Mapping[str, Any]] = {}
    for number, (body, own) in enumerate(zip(bodies, _enter_groups(found, bodies, places), strict=True)):
        numbers = body.get("params")
        if not isinstance(numbers, list) or len(numbers) != len(own):
            raise errors.NotCarried(
                "the order of the parameters in the optimizer can't be established",
                file=rank.path,
                found=f"group {number} of {torch_files.brief(numbers)}",
                expected=f"{len(own)} parameters, in the order of the model",
                fix=DROP,
            )
        for (chunk, name), index in zip(own, numbers, strict=True):
            state = states.get(index, {})
            reading.adam.check_state(name, state, StoredTensor, rank.path)
            for kind in reading.MOMENTS:
                check_precision(kind, name, state[kind], rank.path)
                _enter(found, kind, chunk, name, state[kind])
            stepped[name if chunk == 0 else f"{name} of virtual stage {chunk}"] = state
        if isinstance(masters, list):
            _enter_masters(found, rank, own, masters[number] if number < len(masters) else [], number)
    found.steps |= reading.adam.steps_of(stepped, (), rank.path)


def _enter_masters(found: RankOptimizer, rank: RankFile, own: Sequence[Place], held: object, number: int) -> None:
    # A parameter that is fp32 in a model of bf16 has no master of its own (optimizer/optimizer.py).
    rounded = [(chunk, name) for chunk, name in own if rank.chunks[chunk][name].dtype.name in _HALF]
    if (
        not isinstance(held, list)
        or len(held) != len(rounded)
        or not all(isinstance(master, StoredTensor) for master in held)
    ):
        raise FormatError(
            f"optimizer.{KEY}[{number}] has not a master for each parameter",
            file=rank.path,
            found=torch_files.brief(held),
            expected=errors.plural(len(rounded), "tensor"),
        )
    for (chunk, name), master in zip(rounded, held, strict=True):
        _enter(found, reading.MASTER, chunk, name, master)
    for chunk, name in set(own) - set(rounded):
        _enter(found, reading.MASTER, chunk, name, rank.chunks[chunk][name])


def _enter(found: RankOptimizer, kind: reading.Kind, chunk: int, name: str, tensor: StoredTensor) -> None:
    found.tensors.setdefault(kind, [{} for _ in found.group_of])[chunk][name] = tensor


def _enter_flat(found: RankOptimizer, rank: RankFile, file: str, optimizers: int) -> None:
    """The tensors in the buffers of a distributed optimizer, or of two: experts of expert parallel ranks have one of their own."""
    content = torch_files.read_torch_file(file)
    found.file = file
    states = content if isinstance(content, list) else [content]
    if len(states) != optimizers or not all(isinstance(state, dict) for state in states):
        raise errors.NotCarried(
            "the buffers of this distributed optimizer are not known",
            file=file,
            found=torch_files.brief(content),
            fix=DROP,
        )
    for chunk in range(len(rank.chunks)):
        for number, state in enumerate(states):
            shapes = {
                name: tensor.shape
                for at, name, tensor in _parameters(rank)
                if at == chunk and (optimizers == 1 or bool(number) == (".experts." in name))
            }
            if shapes:
                _enter_buffer(found, chunk, shapes, state.get(chunk), file)


def _enter_buffer(
    found: RankOptimizer, chunk: int, shapes: Mapping[str, tuple[int, ...]], buffers: object, file: str
) -> None:
    """The tensors in one buffer, whose buckets are joined. That the walk ends where the buffer does proves the order."""
    held = list(buffers.values()) if isinstance(buffers, dict) else []
    if len(held) != 1 or not isinstance(held[0], dict):
        raise errors.NotCarried(
            "a stage has other buffers than one of a single dtype",
            file=file,
            found=torch_files.brief(buffers),
            fix=DROP,
        )
    elements = held[0].get("numel_unpadded")
    # An embedding that two stages share has a bucket of its own, which makes a difference where it is no multiple of the alignment.
    ways = [walked(shapes), *(walked(shapes, name) for name in _HEADS if name in shapes)]
    starts, sizes = next((way for way in ways if sum(way[1]) == elements), ways[0])
    if sum(sizes) != elements:
        starts = fitted(shapes, [elements] if type(elements) is int else [], file, "the flat buffer")
    for key in ("param", *reading.MOMENTS):
        flat = held[0].get(key)
        if not isinstance(flat, StoredTensor) or len(flat.shape) != 1 or flat.elements < sum(sizes):
            raise FormatError(
                f"{key} of the buffer is missing, or is cut off", file=file, found=torch_files.brief(flat)
            )
        check_precision(key, "the buffer", flat, file)
        for name, (bucket, start) in starts.items():
            _enter(found, KINDS[key], chunk, name, _view(flat, sum(sizes[:bucket]) + start, shapes[name]))


def _view(flat: StoredTensor, start: int, shape: tuple[int, ...]) -> StoredTensor:
    """A range of a flat tensor as a tensor of a shape."""
    view = StoredTensor.contiguous(flat.file, flat.dtype, shape, flat.offset + start * flat.dtype.size)
    return StoredTensor(view.file, view.dtype, view.shape, view.offset, view.strides, flat.record)
