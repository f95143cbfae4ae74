"""How two checkpoints differ: as architectures, and tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ckpt_core import numpy as np
from ckpt_core.api import digests
from ckpt_core.architecture import Architecture, differing, facts_of
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.engine.run import Listener
from ckpt_core.lean import dataclass
from ckpt_core.storage.dtypes import decode
from ckpt_core.tensors.assembly import LazyParameter
from ckpt_core.tensors.box import boxes
from ckpt_core.tensors.source import SourceFiles
from ckpt_core.training import KINDS, Training, named

_CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Difference:
    """One way in which two checkpoints differ; of tensors also how many elements do, and by how much at most."""

    subject: str
    left: str
    right: str
    elements: int | None = None
    largest: float | None = None


def compare(left: Checkpoint, right: Checkpoint, *, listener: Listener | None = None) -> list[Difference]:
    """How two checkpoints of any formats differ, as architectures and as tensors; vocabulary padding aside.

    If the vocabularies differ in size, the common rows are compared and the sizes are reported.
    """
    found = architecture_differences(left.architecture, right.architecture)
    return [*found, *tensor_differences(left, right, listener=listener)]


def compare_training(left: Checkpoint, right: Checkpoint, *, listener: Listener | None = None) -> list[Difference]:
    """How the states of two trainings differ: in what their optimizers do with each parameter, in the counters that both say, and in their moments
    and masters.

    A master is the weight where none lies beside it.
    """
    found = stepping_differences(left.training, right.training)
    one, two = _counted(left.training), _counted(right.training)
    found += [Difference(key, one[key], two[key]) for key in one if key in two and one[key] != two[key]]
    sides = (replace(side, tensors=_state_of(side.training)) for side in (left, right))
    return [*found, *tensor_differences(*sides, listener=listener)]


def stepping_differences(left: Training | None, right: Training | None) -> list[Difference]:
    """How two optimizers step otherwise: in how often they did, and in what they do with each parameter."""
    one, two = _said(left), _said(right)
    return [
        Difference(subject, one.get(subject, "absent"), two.get(subject, "absent"))
        for subject in sorted(one.keys() | two.keys())
        if one.get(subject) != two.get(subject)
    ]


def _counted(state: Training | None) -> dict[str, str]:
    """The counters and numbers that a state has: formats do not all say the same of them."""
    if state is None:
        return {}
    unit = state.schedule.unit
    said = {
        "iterations": state.iterations,
        "consumed samples": state.consumed_samples,
        "consumed tokens": state.consumed_tokens,
        "loss scale": state.loss_scale,
        "where gradients are clipped": state.clip_grad,
        f"position of the schedule, in {unit}s": state.schedule.position,
    }
    peaks = {f"peak learning rate of {name}": group.initial_lr for group in state.groups for name in group.parameters}
    return {key: f"{value!r}" for key, value in (said | peaks).items() if value is not None}


def _said(state: Training | None) -> dict[str, str]:
    """What a state says besides its tensors, by what it is said of. Groups are said of their parameters: frameworks divide them differently."""
    if state is None:
        return {}
    of_groups = {
        f"optimizer of {name}": f"lr {group.lr!r}, betas {group.betas[0]!r} {group.betas[1]!r}, eps {group.eps!r}, weight decay {group.weight_decay!r}"
        for group in state.groups
        for name in group.parameters
    }
    return {"optimizer": state.optimizer, "step": str(state.step), **of_groups, **dict.fromkeys(state.frozen, "frozen")}


def _state_of(state: Training | None) -> dict[str, LazyParameter]:
    if state is None:
        return {}
    return {named(kind, name): tensor for kind in KINDS for name, tensor in state.of(kind).items()}


def tensor_differences(left: Checkpoint, right: Checkpoint, *, listener: Listener | None = None) -> list[Difference]:
    """How the tensors of two checkpoints differ; see `compare`."""
    found: list[Difference] = []
    one, two = with_common_rows(left, right)
    first, second = digests(one, listener=listener), digests(two, listener=listener)
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            here, there = (
                str(side.tensors[name].parameter) if name in side.tensors else "absent" for side in (left, right)
            )
            found.append(Difference(name, here, there))
        elif one.tensors[name].parameter.true_shape != two.tensors[name].parameter.true_shape:
            found.append(Difference(name, str(one.tensors[name].parameter), str(two.tensors[name].parameter)))
        elif first[name].digest != second[name].digest:
            found.append(first_difference(one, two, name))
    return found


def with_common_rows(left: Checkpoint, right: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Both checkpoints with the vocabulary rows that they have in common as the true ones."""
    one, two = left.architecture.tokens, right.architecture.tokens
    rows = None if one is None or two is None else min(one.vocabulary, two.vocabulary)
    return replace(left, tensors=_with_true_rows(left, rows)), replace(right, tensors=_with_true_rows(right, rows))


def _with_true_rows(side: Checkpoint, rows: int | None) -> dict[str, LazyParameter]:
    tokens = side.architecture.tokens

    def common(assembly: LazyParameter) -> LazyParameter:
        parameter = assembly.parameter
        if (
            rows is None
            or tokens is None
            or not parameter.axes
            or parameter.axes[0].name != "v"
            or parameter.shape[0] != tokens.padded_vocabulary
        ):
            return assembly
        return replace(assembly, parameter=replace(parameter, true_rows=rows))

    return {name: common(assembly) for name, assembly in side.tensors.items()}


def architecture_differences(left: Architecture, right: Architecture) -> Iterator[Difference]:
    """The facts that differ, vocabulary padding aside."""
    one, two = facts_of(left), facts_of(right)
    for path in differing(one, two):
        if path != "tokens.padded_vocabulary":
            yield Difference(path, str(one.get(path, "absent")), str(two.get(path, "absent")))


def first_difference(left: Checkpoint, right: Checkpoint, name: str) -> Difference:
    """Where two tensors of one shape first differ, and by how much at most, read in pieces."""
    sources = [SourceFiles(side.files) for side in (left, right)]
    assemblies = [side.tensors[name] for side in (left, right)]
    shape = assemblies[0].parameter.true_shape
    largest, count, first = 0.0, 0, ("", "")
    for box in boxes(shape, _CHUNK_ELEMENTS):
        a, b = (
            decode(source.read(assembly, box), assembly.value_dtype)
            for source, assembly in zip(sources, assemblies, strict=True)
        )
        different = a.view(np.uint32) != b.view(np.uint32)
        if different.any():
            with np.errstate(invalid="ignore"):
                largest = float(np.fmax(largest, np.fmax.reduce(np.abs(a - b), axis=None)))
            if not count:
                inside = tuple(int(i) for i in np.argwhere(different)[0])
                where = tuple(start + i for (start, _), i in zip(box, inside, strict=True))
                axes = " ".join(f"{axis.name}={i}" for axis, i in zip(assemblies[0].parameter.axes, where, strict=True))
                first = (f"{a[inside]!s} at {axes}", str(b[inside]))
            count += int(different.sum())
    for source in sources:
        source.close()
    return Difference(name, *first, count, largest)
