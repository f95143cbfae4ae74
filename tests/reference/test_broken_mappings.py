"""A wrong mapping shows: any tensor of any golden, with one axis the other way round, gives other logits.

    python tests/reference/test_broken_mappings.py        the same, counted

Else equal logits would prove little. The only tensors that move nothing are biases of keys: see `is_inert`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a program, too

import numpy as np
import pytest
import torch
from support.forwards import TOLERANCE, opened, recorded
from support.goldens import Golden, every_golden

from ckpt_core.architecture import Architecture
from ckpt_core.reference import Inputs, forward

MOVED = 10 * TOLERANCE


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Such small products are ten times as dear on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.mark.parametrize("golden", every_golden(), ids=str)
def test_no_axis_can_be_the_other_way_round(golden: Golden, tmp_path: Path) -> None:
    tried, found, inert = still(golden, tmp_path)
    assert len(tried) >= 20
    assert found == inert


if __name__ == "__main__":
    torch.set_num_threads(1)
    tried = unmoved = 0
    for golden in every_golden():
        with tempfile.TemporaryDirectory() as folder:
            axes_of_one, found, inert = still(golden, Path(folder))
        tried += len(axes_of_one)
        unmoved += len(found)
        print(
            golden,
            len(axes_of_one),
            "axes; inert:",
            *sorted(inert),
            "; WRONG:" if found != inert else "",
            *sorted(found ^ inert),
        )
    print(f"{tried} axes of the tensors of {len(every_golden())} goldens; {unmoved} tensors move nothing")
