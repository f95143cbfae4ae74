"""Whether logits feel a mistake: an axis of a tensor the other way round, or a fact of the config that is another one.

Equal logits prove nothing of what they do not feel. Needs torch, but for its import.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING

from ckpt_core import numpy as np
from ckpt_core.architecture import Architecture, Facts, PerLayer, architecture_of, facts_of, parameters
from ckpt_core.architecture.facts import default_of
from ckpt_core.errors import CkptError
from ckpt_core.opened import OpenCheckpoint
from ckpt_core.testing.examples import ABSENT, changed

if TYPE_CHECKING:
    import torch

    from ckpt_core.reference import Inputs

FELT = 1e-3
"""What a mistake must move logits by at least: ten times what they may differ by."""
_SHAPELESS = ("tokens.vocabulary", "tokens.padded_vocabulary", "kind")  # they say nothing of what is computed


class WholeModel(dict[str, np.ndarray]):
    """A whole small model in memory, in the place of an opened checkpoint."""

    def __init__(self, architecture: Architecture, tensors: dict[str, np.ndarray]) -> None:
        super().__init__(tensors)
        self.architecture = architecture

    @classmethod
    def of(cls, model: OpenCheckpoint) -> WholeModel:
        return cls(model.architecture, {name: np.ascontiguousarray(model[name][...]) for name in model})

    def reversed(self, name: str, axis: int) -> WholeModel:
        """The model with one axis of one tensor the other way round."""
        return WholeModel(self.architecture, {**self, name: np.flip(self[name], axis).copy()})

    def logits(self, inputs: Inputs) -> torch.Tensor:
        """What the reference forward computes; of masked inputs, the positions that count."""
        from ckpt_core.reference import forward

        *_, last = forward(self, inputs)  # type: ignore[arg-type]
        return last.values if inputs.mask is None else last.values[inputs.mask.bool()]

    def every_logit(self, inputs: Inputs) -> torch.Tensor:
        """As `logits`, and after them, along the positions, those of the layers that predict further tokens."""
        from ckpt_core.testing.functions import every_logit

        return every_logit(self, inputs) if inputs.mask is None else self.logits(inputs)  # type: ignore[arg-type]


def axes(model: WholeModel) -> Iterator[tuple[str, int]]:
    """Every axis of every tensor that is another one the other way round."""
    for name, tensor in model.items():
        for axis in range(tensor.ndim):
            if not np.array_equal(np.flip(tensor, axis), tensor):
                yield name, axis


def axes_of_each_kind(model: WholeModel) -> Iterator[tuple[str, int]]:
    """As `axes`, of one tensor of each kind: names that differ by numbers alone are one kind."""
    first: dict[str, str] = {}
    for name, axis in axes(model):
        if first.setdefault(re.sub(r"\d+", "#", name), name) == name:
            yield name, axis


def is_inert(name: str, architecture: Architecture) -> bool:
    """Whether a tensor is a bias of keys that adds the same to all scores of a query, which the softmax takes away."""
    for prefix, stack in architecture.towers.items():
        for block, layer in stack.blocks.items():
            for part, attention in (("attention", layer.attention), ("cross_attention", layer.cross_attention)):
                if name == f"{prefix}{block}.{part}.k.bias" and attention is not None:
                    return attention.rotary is None and attention.qk_norm is None and attention.softcap is None
    return False


def turned(architecture: Architecture) -> Iterator[tuple[str, list[Architecture]]]:
    """Each fact of a model that can be another one without another tensor, and the models in which it is. What is at its
    default is not there to be felt."""
    facts, shapes = facts_of(architecture), _shapes(architecture)
    for path, value in facts.items():
        if path in _SHAPELESS or (not path.endswith("?") and value == default_of(path)):
            continue
        models = []
        for changes in _others(path, value, facts):
            try:
                model = architecture_of(changed(facts, changes), path)
            except CkptError:
                continue  # there is no such model
            if model != architecture and _shapes(model) == shapes:
                models.append(model)
        if models:
            yield path, models


def _shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    return {name: parameter.shape for name, parameter in parameters(architecture).items()}


def _others(path: str, value: object, facts: Facts) -> Iterator[dict[str, object]]:
    """Changes of one fact: far away, since a golden that feels it at all shows that it is used."""
    if path.endswith("scaling.kind"):
        whole = path.removesuffix(".kind")
        yield {whole: ABSENT}
    elif isinstance(value, bool):
        yield {path: not value}
    elif isinstance(value, PerLayer):
        yield {path: PerLayer(reversed(tuple(value)))}
        if all(type(one) is bool for one in value):
            yield {path: PerLayer(not one for one in value)}
    elif isinstance(value, int):
        for number in (max(1, value // 4), value * 4, value - 1, value + 1):
            yield {path: number}
    elif isinstance(value, float):
        for real in (value * 10, value / 10, value / 100, 0.1):
            yield {path: real}
    elif isinstance(value, Enum):
        for name in type(value):
            yield {path: name}


def unfelt(model: WholeModel, inputs: Inputs) -> Iterator[str]:
    """What no logit feels, in words: `axis 1 of layers.0.mlp.up.weight`, or `attention.rotary.theta`."""
    usual = model.every_logit(inputs)
    for name, axis in axes_of_each_kind(model):
        if not is_inert(name, model.architecture) and _moved(model.reversed(name, axis), inputs, usual) <= FELT:
            yield f"axis {axis} of {name}"
    for path, models in turned(model.architecture):
        if all(_moved(WholeModel(other, dict(model)), inputs, usual) <= FELT for other in models):
            yield path


def _moved(model: WholeModel, inputs: Inputs, usual: torch.Tensor) -> float:
    try:
        difference = model.every_logit(inputs) - usual
    except CkptError:
        return 0.0  # these inputs do not fit it, so that it shows nothing
    return float(difference.abs().nan_to_num(float("inf")).max())
