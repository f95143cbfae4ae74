"""The state of a training after the rewrites that the weights went through, as the weights themselves tell.

A rewrite changes lazy tensors: it cuts or pads their rows, multiplies them, or makes others. What it did to a weight is seen by comparing
the tensor before with the one after, and the same is done to its moments, each by the power of the map; nothing of a rewrite is said twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ckpt_core.errors import CkptError, NotCarried, Problems
from ckpt_core.layout import Scale, ValueMap
from ckpt_core.ledger import Loss
from ckpt_core.tensors.assembly import LazyParameter, resized
from ckpt_core.training.moments import KINDS, Kind, moment_map, moment_of
from ckpt_core.training.state import Group, Training

_DROP = "leave the state of the training behind with --training-state drop"


def followed(
    training: Training, before: Mapping[str, LazyParameter], after: Mapping[str, LazyParameter]
) -> tuple[Training, list[Loss]]:
    """`training` of the weights `before` as that of the weights `after`, and what is not exactly continued.

    Raises `NotCarried` for parameters that are new, gone, or made of others: what was learned of their gradients says nothing of these.
    """
    problems = Problems("the state of the training can't follow the weights")
    for name in sorted(before.keys() - after.keys()):
        problems.add(NotCarried(f"{name} is not a parameter of the target, and its moments have no place", fix=_DROP))
    steps: dict[str, tuple[ValueMap, ...]] = {}
    for name, tensor in after.items():
        try:
            steps[name] = _steps(name, before.get(name), tensor)
        except CkptError as problem:
            problems.add(problem)
    if problems.found:
        raise NotCarried(
            "the state of the training can't follow the weights into this target",
            found="; ".join(problem.problem for problem in problems.found[:4]),
            fix=_DROP,
        )
    moved: dict[Kind, dict[str, LazyParameter]] = {
        kind: {name: _followed(kind, tensor, after[name], steps[name]) for name, tensor in training.of(kind).items()}
        for kind in KINDS
    }
    state = replace(training, master=moved["master"], exp_avg=moved["exp_avg"], exp_avg_sq=moved["exp_avg_sq"])
    return state, [*_of_rows(training, before, after), *_of_maps(training, steps)]


def _steps(name: str, old: LazyParameter | None, new: LazyParameter) -> tuple[ValueMap, ...]:
    """The value maps that a weight got on the way."""
    if old is None:
        kind = "is a copy of another parameter" if new.fill is None else "did not exist in the source"
        raise NotCarried(f"{name} {kind}: it has no moments of its own", fix=_DROP)
    added = new.factors[len(old.factors) :]
    same = {(part.path, part.offset) for part in new.blocks} <= {(part.path, part.offset) for part in old.blocks}
    if added or not same or new.fill != old.fill or new.added != old.added or new.maps[: len(old.maps)] != old.maps:
        raise NotCarried(f"{name} is computed of other parameters, and so are not its moments", fix=_DROP)
    return new.maps[len(old.maps) :]


def _followed(kind: Kind, tensor: LazyParameter, weight: LazyParameter, steps: tuple[ValueMap, ...]) -> LazyParameter:
    parameter = moment_of(kind, weight.parameter)
    moved = tensor if tensor.parameter.shape == parameter.shape else resized(tensor, parameter)
    maps = (moment_map(kind, step, weight.parameter.name) for step in steps)
    return replace(moved, parameter=parameter, maps=(*tensor.maps, *(step for step in maps if step is not None)))


def _of_rows(training: Training, before: Mapping[str, LazyParameter], after: Mapping[str, LazyParameter]) -> list[Loss]:
    changed = [name for name in training.exp_avg if before[name].parameter.shape != after[name].parameter.shape]
    if not changed:
        return []
    rows = {(before[name].parameter.shape[0], after[name].parameter.shape[0]) for name in changed}
    said = ", ".join(f"{old} rows become {new}" for old, new in sorted(rows))
    return [
        Loss(
            "dropped",
            f"padding of the vocabulary in the state of the training: {said}",
            "rows of padding of an output layer take part in the loss, which changes at the first step by about log(1 + "
            "sum(exp(padding logits)) / sum(exp(real logits))); it is trained on as a slightly different model",
        )
    ]


def _of_maps(training: Training, steps: Mapping[str, tuple[ValueMap, ...]]) -> list[Loss]:
    trained = {name: maps for name, maps in steps.items() if maps and name in training.exp_avg}
    scaled = [name for name, maps in trained.items() if any(isinstance(step, Scale) for step in maps)]
    decays = {name for group in training.groups if _decays(group) for name in group.parameters}
    shifted = [name for name, maps in trained.items() if name in decays and not all(isinstance(s, Scale) for s in maps)]
    losses = []
    if scaled:
        why = "Adam does not scale with its weights: exact are lr times c, eps and weight decay divided by c, for these parameters"
        losses.append(Loss("assumed", f"moments of {_some(scaled)}, whose weights are multiplied by a constant c", why))
    if shifted:
        why = "they decay towards another value than in the source"
        losses.append(Loss("assumed", f"weight decay of {_some(shifted)}, which are stored with another origin", why))
    return losses


def _decays(group: Group) -> bool:
    return group.weight_decay != 0.0


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
