"""A wrong mapping shows: any tensor of any golden, with one axis the other way round, gives other logits.

Else equal logits would prove little. The only tensors that move nothing are biases of keys: see `is_inert`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ckpt_core.reference import Inputs
from ckpt_core.testing.hearing import WholeModel, is_inert
from ckpt_tests.forwards import TOLERANCE, opened, recorded
from ckpt_tests.goldens import Golden

MOVED = 10 * TOLERANCE
Which = Callable[[WholeModel], Iterator[tuple[str, int]]]


def loaded(golden: Golden, folder: Path) -> WholeModel:
    with opened(golden, folder) as model:
        return WholeModel.of(model)


def moves(model: WholeModel, inputs: Inputs, usual: torch.Tensor, name: str, axis: int) -> float:
    """How far an axis that is the other way round moves the logits."""
    return float((model.reversed(name, axis).every_logit(inputs) - usual).abs().max())


def still(golden: Golden, folder: Path, which: Which) -> tuple[list[tuple[str, int]], set[str], set[str]]:
    """The axes of a golden that were tried, the tensors that moved nothing, and those that are inert."""
    model = loaded(golden, folder)
    inputs, _ = recorded(golden)
    usual = model.every_logit(inputs)
    tried = list(which(model))
    found = {name for name, axis in tried if moves(model, inputs, usual, name, axis) <= MOVED}
    return tried, found, {name for name, _ in tried if is_inert(name, model.architecture)}
