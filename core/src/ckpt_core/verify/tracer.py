"""The tracer: where a format puts every element of a model, and whether it finds each one there again.

A model without data is written: its files are made, with all their headers, but the tensors in them are holes. So a
70B model takes seconds and no disk. The format then reads those files. What it wrote said, for every coordinate of every
canonical tensor, at which byte of which file it lies; what it reads says where it would look for it. The two are
compared coordinate by coordinate: every index of every axis is tried (on very long axes a sample, ends included).
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ckpt_core.architecture import Architecture, Parameter, parameters
from ckpt_core.checkpoint import Checkpoint, Target
from ckpt_core.engine.assembly import Assembly, Block, flat_tile
from ckpt_core.engine.plan import Plan, make_plan
from ckpt_core.errors import CkptError
from ckpt_core.layout import Link, Tile
from ckpt_core.plugins import ReadRequest, WriteRequest
from ckpt_core.plugins.discovery import require
from ckpt_core.plugins.request import typed_options
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.tensor import contiguous_strides

_EXHAUSTIVE = 1 << 14
_ALONG_AXIS = 1 << 11
_ROUNDS = 2
_SEED = 20240229


@dataclass(frozen=True, slots=True)
class Misplaced:
    """An element that is looked for where another one was put. `found` says which, or that nothing was."""

    tensor: str
    axis: str
    index: int
    found: str

    def __str__(self) -> str:
        return f"{self.tensor}: index {self.index} of axis {self.axis} is read where {self.found} was written"


@dataclass
class Trace:
    """What a trace saw: how many tensors, elements and files there are, how many places were compared, and what is wrong."""

    tensors: int = 0
    elements: int = 0
    files: int = 0
    compared: int = 0
    misplaced: list[Misplaced] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.misplaced


def trace(
    format: str,
    architecture: Architecture,
    dtype: DType,
    *,
    options: Mapping[str, str] | None = None,
    tp: int | None = None,
    pp: int | None = None,
    ep: int | None = None,
) -> Trace:
    """Write a model of holes in `format` and compare where its reader looks for every tensor.

    `options` are those of both sides. Raises what the format raises if it cannot hold the model, or read what it wrote.
    """
    plugin = require(format)
    known = {
        side: {one.name for one in plugin.info.options if one.side in (side, "both")} for side in ("read", "write")
    }
    given = {
        side: {name: text for name, text in (options or {}).items() if name in names} for side, names in known.items()
    }
    for name in (options or {}).keys() - known["read"] - known["write"]:
        typed_options(plugin.info, {name: ""}, "write")  # says which options there are
    with tempfile.TemporaryDirectory(prefix="ckpt-trace-") as folder:
        out = os.path.join(folder, "out")
        asked = WriteRequest(typed_options(plugin.info, given["write"], "write"), None, tp, pp, ep, out)
        target: Target = plugin.hooks.ckpt_write(checkpoint=_model(architecture, dtype), request=asked)
        plan = make_plan(_model(architecture, dtype), target)
        path = _materialise(target, out)
        request = ReadRequest(typed_options(plugin.info, given["read"], "read"), None, "auto")
        back: Checkpoint = plugin.hooks.ckpt_read(path=path, request=request)
        return _compared(plan, back, out)


def _model(architecture: Architecture, dtype: DType) -> Checkpoint:
    """A checkpoint whose tensors are whole, and nowhere."""
    tensors = {}
    for name, parameter in parameters(architecture).items():
        block = Block("nowhere", dtype, 0, flat_tile(_whole(parameter), contiguous_strides(parameter.shape)))
        tensors[name] = Assembly(parameter, dtype, (block,))
    return Checkpoint("ir", "nowhere", architecture, tensors, [])


def _whole(parameter: Parameter) -> Tile:
    zeros = (0,) * len(parameter.shape)
    return Tile(tuple(Link(size, axis, 1, axis, 1) for axis, size in enumerate(parameter.shape)), zeros, zeros)


def _materialise(target: Target, out: str) -> str:
    """The target's files, with headers and documents, and holes for the tensors; returns what a user would name."""
    for file in target.files:
        with _created(out, file.path) as stream:
            stream.truncate(file.size)
            for offset, data in file.literals:
                stream.seek(offset)
                stream.write(data)
    for path, data in target.documents.items():
        with _created(out, path) as stream:
            stream.write(data)
    return os.path.join(out, target.files[0].path) if target.single_file else out


def _created(out: str, path: str):
    whole = os.path.join(out, path)
    os.makedirs(os.path.dirname(whole), exist_ok=True)
    return open(whole, "wb")


def _compared(plan: Plan, back: Checkpoint, out: str) -> Trace:
    written = {transfer.name: [delivery.block for delivery in transfer.deliveries] for transfer in plan.transfers}
    wanted = {name: assembly.parameter for name, assembly in plan.target.tensors.items()}
    if wanted.keys() != back.tensors.keys():
        names = sorted(wanted.keys() ^ back.tensors.keys())
        raise CkptError("other tensors are read than were written", found=", ".join(names[:4]))
    found = Trace(files=len(plan.target.files), tensors=len(wanted))
    for name, parameter in wanted.items():
        found.elements += parameter.elements
        places = _places(parameter)
        found.compared += len(places)
        put = [(os.path.realpath(os.path.join(out, block.path)), _offsets(block, places)) for block in written[name]]
        for block in (*back.tensors[name].blocks, *back.tensors[name].copies):
            wrong = _first_unwritten(block, places, put)
            if wrong is not None:
                found.misplaced.append(_explained(parameter, places[wrong], block, written, wanted, out))
                break
    return found


def _places(parameter: Parameter) -> np.ndarray:
    """Coordinates [place, axis]: all of a small tensor; of a large one every index of every axis, the others at random."""
    if parameter.elements <= _EXHAUSTIVE:
        return np.indices(parameter.shape).reshape(len(parameter.shape), -1).T
    random = np.random.default_rng(_SEED)
    rows = []
    for axis, size in enumerate(parameter.shape):
        along = (
            np.arange(size) if size <= _ALONG_AXIS else np.unique(np.linspace(0, size - 1, _ALONG_AXIS, dtype=np.int64))
        )
        for _ in range(_ROUNDS):
            places = np.stack([random.integers(0, other, len(along)) for other in parameter.shape], axis=1)
            places[:, axis] = along
            rows.append(places)
    return np.concatenate(rows)


def _offsets(block: Block, places: np.ndarray) -> np.ndarray:
    """The byte at which a block keeps each place; -1 for places that it does not hold."""
    tile = block.tile
    element = np.full(len(places), tile.native_base[0], np.int64)
    held = np.ones(len(places), bool)
    for axis in range(places.shape[1]):
        rest = places[:, axis] - tile.canonical_base[axis]
        held &= rest >= 0
        for link in sorted((link for link in tile.links if link.axis == axis), key=lambda link: -link.step):
            index = np.minimum(rest // link.step, link.size - 1) if link.size > 1 else np.zeros_like(rest)
            rest = rest - index * link.step
            element += index * link.stride
        held &= rest == 0
    return np.where(held, block.offset + element * block.dtype.size, -1)


def _first_unwritten(block: Block, places: np.ndarray, put: Sequence[tuple[str, np.ndarray]]) -> int | None:
    """The number of the first place that the reader looks for where it was not put."""
    looked = _offsets(block, places)
    right = looked < 0
    for path, offsets in put:
        if path == os.path.realpath(block.path):
            right |= looked == offsets
    wrong = np.flatnonzero(~right)
    return int(wrong[0]) if len(wrong) else None


def _explained(
    parameter: Parameter,
    place: np.ndarray,
    block: Block,
    written: Mapping[str, Sequence[Block]],
    wanted: Mapping[str, Parameter],
    out: str,
) -> Misplaced:
    """Which element was put where `place` is looked for, and on which axis the two differ first."""
    address = int(_offsets(block, place[None])[0])
    for name, blocks in written.items():
        for other in blocks:
            if os.path.realpath(os.path.join(out, other.path)) != os.path.realpath(block.path):
                continue
            there = _coordinate(other, address)
            if there is None:
                continue
            if name != parameter.name:
                axis = parameter.axes[0]
                return Misplaced(parameter.name, axis.name, int(place[0]), f"{name} {_text(wanted[name], there)}")
            number = next(number for number, index in enumerate(there) if index != place[number])
            return Misplaced(name, parameter.axes[number].name, int(place[number]), f"index {there[number]}")
    axis = parameter.axes[0]
    return Misplaced(parameter.name, axis.name, int(place[0]), "nothing")


def _coordinate(block: Block, address: int) -> tuple[int, ...] | None:
    """The canonical coordinate that a block keeps at a byte of its file; None if none."""
    rest = (address - block.offset) // block.dtype.size - block.tile.native_base[0]
    place = list(block.tile.canonical_base)
    for link in sorted(block.tile.links, key=lambda link: -link.stride):
        if link.size > 1:
            index = max(0, min(rest // link.stride, link.size - 1))
            rest -= index * link.stride
            place[link.axis] += index * link.step
    return tuple(place) if rest == 0 else None


def _text(parameter: Parameter, place: Sequence[int]) -> str:
    return " ".join(f"{axis.name}={index}" for axis, index in zip(parameter.axes, place, strict=True))


def sizes(architecture: Architecture) -> Iterator[str]:
    """The sizes that a user chose, in words."""
    elements = sum(math.prod(parameter.shape) for parameter in parameters(architecture).values())
    yield f"{elements / 1e9:.3g} billion parameters" if elements > 10**9 else f"{elements:,} parameters"
    yield f"hidden {architecture.hidden}"
    for prefix, stack in architecture.stacks.items():
        yield f"{len(stack.layers)} {prefix.removesuffix('.') or 'layers'}"
