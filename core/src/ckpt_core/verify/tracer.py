"""The tracer: where a format puts every element of a model, and whether it finds each one there again.

A model without data is written: its files are made, with all their headers, but the tensors in them are holes. So a
70B model takes seconds and no disk. The format then reads those files. What it wrote said, for every coordinate of every
canonical tensor, at which byte of which file it lies; what it reads says where it would look for it. The two are
compared coordinate by coordinate: every index of every axis is tried (on very long axes a sample, ends included).

Where reader and writer share a mistake they agree. So what was written is also compared, element by element, with the
sentences that the format declares beside its tables (`declared`), which checkpoints of the framework itself bear out.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field

from ckpt_core import numpy as np
from ckpt_core.architecture import Architecture, Parameter, parameters
from ckpt_core.checkpoint import Checkpoint, Target
from ckpt_core.engine.plan import Plan, make_plan
from ckpt_core.errors import CkptError, UsageError, did_you_mean
from ckpt_core.layout import Native, parse
from ckpt_core.lean import dataclass
from ckpt_core.plugins.discovery import Plugin, load, require
from ckpt_core.plugins.installed import format_names
from ckpt_core.plugins.request import ReadRequest, WriteRequest
from ckpt_core.plugins.values import typed_options
from ckpt_core.reading import checkpoint_at
from ckpt_core.storage.dtypes import DType
from ckpt_core.tensors.assembly import StoredPart
from ckpt_core.verify.declared import Declared, Sentences
from ckpt_core.verify.elements import StrayElement, departure, sampled
from ckpt_core.verify.holes import model_of_holes


@dataclass(frozen=True, slots=True)
class MisplacedElement:
    """An element that is looked for where another one was put. `found` says which, or that nothing was."""

    tensor: str
    axis: str
    index: int
    found: str

    def __str__(self) -> str:
        return f"{self.tensor}: index {self.index} of axis {self.axis} is read where {self.found} was written"


@dataclass
class Trace:
    """What a trace saw: how many tensors, elements and files there are, how many places were compared, and what is wrong.

    `sentences` are the declared sentences that were met; `undeclared` the tensors, by native name, of which nothing is declared.
    """

    tensors: int = 0
    elements: int = 0
    files: int = 0
    compared: int = 0
    misplaced: list[MisplacedElement] = field(default_factory=list)
    departed: list[StrayElement] = field(default_factory=list)
    sentences: list[Declared] = field(default_factory=list)
    undeclared: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.misplaced and not self.departed


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

    `options` are those of both sides. Raises what the format raises if it cannot hold the model, or read what it wrote;
    `UsageError` for an option that it does not have.
    """
    plugin = require(format)
    given = _by_side(plugin, options or {})
    with tempfile.TemporaryDirectory(prefix="ckpt-trace-") as folder:
        out = os.path.join(folder, "out")
        written = {**plugin.info.bare, **given["write"]}
        asked = WriteRequest(typed_options(plugin.info, written, "write"), None, tp, pp, ep, out)
        target: Target = plugin.hooks.ckpt_write(checkpoint=model_of_holes(architecture, dtype), request=asked)
        plan = make_plan(model_of_holes(architecture, dtype), target)
        path = materialise(target, out)
        request = ReadRequest(typed_options(plugin.info, given["read"], "read"), None, "auto")
        back = checkpoint_at(plugin, path, request)
        found = _compared(plan, back, out)
    hold_against_declared(found, plugin, target)
    return found


def _by_side(plugin: Plugin, options: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The given options of reading and of writing."""
    sides: dict[str, dict[str, str]] = {"read": {}, "write": {}}
    for name, text in options.items():
        takers = [one.side for one in plugin.info.options if one.name == name]
        if not takers:
            known = [one.name for one in plugin.info.options]
            raise UsageError(
                f"format {plugin.name} has no option {name!r}",
                expected=", ".join(known) or "no options",
                fix=did_you_mean(name, known, f"see: ckpt formats {plugin.name}"),
            )
        for side in sides:
            if takers[0] in (side, "both"):
                sides[side][name] = text
    return sides


def materialise(target: Target, out: str) -> str:
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
    written = {tensor.name: [delivery.block for delivery in tensor.deliveries] for tensor in plan.tensors}
    wanted = {name: assembly.parameter for name, assembly in plan.target.tensors.items()}
    if wanted.keys() != back.tensors.keys():
        names = sorted(wanted.keys() ^ back.tensors.keys())
        raise CkptError("other tensors are read than were written", found=", ".join(names[:4]))
    found = Trace(files=len(plan.target.files), tensors=len(wanted))
    for name, parameter in wanted.items():
        found.elements += parameter.elements
        places = sampled(parameter.shape)
        found.compared += len(places)
        put = [(os.path.realpath(os.path.join(out, block.path)), _offsets(block, places)) for block in written[name]]
        for block in (*back.tensors[name].blocks, *back.tensors[name].copies):
            wrong = _first_unwritten(block, places, put)
            if wrong is not None:
                found.misplaced.append(_explained(parameter, places[wrong], block, written, wanted, out))
                break
    return found


def _offsets(block: StoredPart, places: np.ndarray) -> np.ndarray:
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


def _first_unwritten(block: StoredPart, places: np.ndarray, put: Sequence[tuple[str, np.ndarray]]) -> int | None:
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
    block: StoredPart,
    written: Mapping[str, Sequence[StoredPart]],
    wanted: Mapping[str, Parameter],
    out: str,
) -> MisplacedElement:
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
                return MisplacedElement(
                    parameter.name, *_first(parameter, place), f"{name} {_text(wanted[name], there)}"
                )
            number = next(number for number, index in enumerate(there) if index != place[number])
            return MisplacedElement(name, parameter.axes[number].name, int(place[number]), f"index {there[number]}")
    return MisplacedElement(parameter.name, *_first(parameter, place), "nothing")


def _first(parameter: Parameter, place: Sequence[int] | np.ndarray) -> tuple[str, int]:
    """The first axis of a parameter, and the index there. One number has neither."""
    return (parameter.axes[0].name, int(place[0])) if parameter.axes else ("()", 0)


def _coordinate(block: StoredPart, address: int) -> tuple[int, ...] | None:
    """The canonical coordinate that a block keeps at a byte of its file; None if none."""
    rest = (address - block.offset) // block.dtype.size - block.tile.native_base[0]
    place = list(block.tile.canonical_base)
    for link in sorted(block.tile.links, key=lambda link: -link.stride):
        if link.size > 1:
            index = max(0, min(rest // link.stride, link.size - 1))
            rest -= index * link.stride
            place[link.axis] += index * link.step
    return tuple(place) if rest == 0 else None


def hold_against_declared(found: Trace, plugin: Plugin, target: Target) -> None:
    """Hold every native tensor that was written against the sentences that the format itself declares for it.

    Those of another format are asked where the format says that it keeps its tensors (`FormatInfo.keeps`), and else never:
    another framework may have a tensor of the same name, and arrange it in another way.
    """
    known, own = parameters(target.architecture), Sentences.beside(plugin.module)
    kept = [Sentences.beside(load(name).module) for name in plugin.info.keeps if name in format_names()]
    met: dict[Declared, None] = {}
    for placement in target.placements:
        native = placement.native
        lines = own.of(native.row, target.decisions)
        lines = lines or next(filter(None, (sentences.of(native.row, {}) for sentences in kept)), [])
        if not lines:
            found.undeclared.append(native.name)
            continue
        said = Declared.of(native.row)
        line = next((line for line in lines if line.says_the_same(said)), None)
        if line is None:
            found.departed.append(_departure(native, known, said, lines[0]))
            continue
        met[line] = None
        # How much padding there is depends on the layout, and no line says it.
        wrong = None if parse(line.sentence).padding_names() else departure(native, known, line.sentence)
        if wrong is not None:
            found.departed.append(wrong)
    found.sentences = list(met)


def _departure(native: Native, known: Mapping[str, Parameter], said: Declared, line: Declared) -> StrayElement:
    """How a native tensor departs from the line that its row should be: at an element, or as a whole."""
    if said.canonical == line.canonical:
        wrong = departure(native, known, line.sentence)
        if wrong is not None:
            return wrong
    differs = next(
        name for name in ("canonical", "sentence", "division", "values") if getattr(said, name) != getattr(line, name)
    )
    shown, expected = (f"`{getattr(one, differs)}`" if getattr(one, differs) else "none" for one in (said, line))
    piece = native.pieces[0]
    axis, first = _first(known[piece.parameter], (0,))
    found = f"in {native.name} by its {_COLUMN[differs]} {shown}"
    return StrayElement(piece.parameter, axis, first, found, f"one is {expected}")


_COLUMN = {
    "canonical": "parameter",
    "sentence": "sentence",
    "division": "division over ranks",
    "values": "map of values",
}


def _text(parameter: Parameter, place: Sequence[int]) -> str:
    return " ".join(f"{axis.name}={index}" for axis, index in zip(parameter.axes, place, strict=True))


def sizes(architecture: Architecture) -> Iterator[str]:
    """The sizes that a user chose, in words."""
    elements = sum(math.prod(parameter.shape) for parameter in parameters(architecture).values())
    yield f"{elements / 1e9:.3g} billion parameters" if elements > 10**9 else f"{elements:,} parameters"
    yield f"hidden {architecture.hidden}"
    for prefix, stack in architecture.towers.items():
        yield f"{len(stack.layers)} {prefix.removesuffix('.') or 'layers'}"
