"""A wrong mapping shows: any tensor of any golden, with one axis the other way round, gives other logits.

Else equal logits would prove little. The only tensors that move nothing are biases of keys: see `is_inert`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ckpt_core.architecture import Architecture
from ckpt_core.reference import Inputs, forward
from ckpt_tests.forwards import TOLERANCE, opened, recorded
from ckpt_tests.goldens import Golden

MOVED = 10 * TOLERANCE


class Model(dict[str, np.ndarray]):
    """A whole small model in memory, in the place of an opened checkpoint."""

    def __init__(self, architecture: Architecture, tensors: dict[str, np.ndarray]) -> None:
        super().__init__(tensors)
        self.architecture = architecture

    def reversed(self, name: str, axis: int) -> Model:
        return Model(self.architecture, {**self, name: np.flip(self[name], axis).copy()})

    def logits(self, inputs: Inputs) -> torch.Tensor:
        *_, last = forward(self, inputs)  # type: ignore[arg-type]
        return last.values if inputs.mask is None else last.values[inputs.mask.bool()]


def loaded(golden: Golden, folder: Path) -> Model:
    with opened(golden, folder) as model:
        return Model(model.architecture, {name: np.ascontiguousarray(model[name][...]) for name in model})


def axes(model: Model) -> Iterator[tuple[str, int]]:
    """Every axis that is another one the other way round; of these goldens, all that are longer than 1."""
    for name, tensor in model.items():
        for axis in range(tensor.ndim):
            if not np.array_equal(np.flip(tensor, axis), tensor):
                yield name, axis


def is_inert(name: str, architecture: Architecture) -> bool:
    """Whether a tensor is a bias of keys that adds the same to all scores of a query, which the softmax takes away."""
    for prefix, stack in architecture.stacks.items():
        for index, layer in enumerate(stack.layers):
            for part, attention in (("attention", layer.attention), ("cross_attention", layer.cross_attention)):
                if name == f"{prefix}layers.{index}.{part}.k.bias" and attention is not None:
                    return attention.rotary is None and attention.qk_norm is None and attention.softcap is None
    return False


def moves(model: Model, inputs: Inputs, usual: torch.Tensor, name: str, axis: int) -> float:
    """How far an axis that is the other way round moves the logits."""
    return float((model.reversed(name, axis).logits(inputs) - usual).abs().max())


def still(golden: Golden, folder: Path) -> tuple[list[tuple[str, int]], set[str], set[str]]:
    """Every axis of a golden that was tried, the tensors that moved nothing, and those that are inert."""
    model = loaded(golden, folder)
    inputs, _ = recorded(golden)
    usual = model.logits(inputs)
    tried = list(axes(model))
    found = {name for name, axis in tried if moves(model, inputs, usual, name, axis) <= MOVED}
    return tried, found, {name for name, _ in tried if is_inert(name, model.architecture)}
