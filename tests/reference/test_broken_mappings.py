"""A wrong mapping shows: a tensor of each kind in any golden, with one axis the other way round, gives other logits.

`python tools/broken_mappings.py` tries every tensor, and counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ckpt_core.testing.hearing import axes_of_each_kind
from ckpt_tests.broken import still
from ckpt_tests.goldens import Golden, every_golden


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Such small products are ten times as dear on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("golden", every_golden(), ids=str)
def test_no_axis_can_be_the_other_way_round(golden: Golden, tmp_path: Path) -> None:
    tried, found, inert = still(golden, tmp_path, axes_of_each_kind)
    assert len(tried) >= 12
    assert found == inert
