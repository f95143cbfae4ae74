"""What a classifier reads of a sequence: the first position, each, or the last that is not padding."""

from __future__ import annotations

import torch

from ckpt_core.architecture import Architecture
from ckpt_core.reference import Inputs, forward
from ckpt_core.testing.examples import example
from ckpt_tests.random_model import RandomModel

PADDING = 3


def scores(architecture: Architecture, tokens: torch.Tensor) -> torch.Tensor:
    *_, last = forward(RandomModel(architecture), Inputs(tokens=tokens))
    return last.values


def test_padding_behind_a_sequence_is_not_counted() -> None:
    model = example("llama-scored", classifier__padding=PADDING)
    tokens = torch.tensor([[9, 4, PADDING, 7, 8]])
    behind = torch.tensor([[9, 4, PADDING, 7, 8, PADDING, PADDING]])
    assert torch.allclose(scores(model, behind), scores(model, tokens), atol=1e-6)
    other = example("llama-scored", classifier__padding=PADDING + 2)
    assert not torch.allclose(scores(other, behind), scores(model, behind), atol=1e-3)


def test_padding_before_a_sequence_and_within_it_changes_nothing_of_where_it_ends() -> None:
    model, each = example("llama-scored", classifier__padding=PADDING), example("llama-tagged", classifier__bias=False)
    tokens = torch.tensor([[PADDING, PADDING, 9, 4], [9, PADDING, 4, PADDING], [PADDING] * 4])
    all_of_them = scores(each, tokens)
    assert torch.allclose(scores(model, tokens), all_of_them[torch.arange(3), torch.tensor([3, 2, 0])], atol=1e-6)


def test_without_padding_the_last_position_is_read_and_of_first_the_first() -> None:
    tokens = torch.tensor([[9, 4, 7, PADDING]])
    each = scores(example("llama-tagged", classifier__bias=False), tokens)
    last = example("llama-tagged", classifier__bias=False, classifier__pooling="last")
    first = example("llama-tagged", classifier__bias=False, classifier__pooling="first")
    assert torch.allclose(scores(last, tokens), each[:, -1], atol=1e-6)
    assert torch.allclose(scores(first, tokens), each[:, 0], atol=1e-6)
