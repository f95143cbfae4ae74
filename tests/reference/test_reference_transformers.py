"""The reference forward computes what transformers computes, for every class that is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_core import open_checkpoint
from ckpt_tests import judged
from ckpt_tests.forwards import TOLERANCE, off_by


@pytest.mark.parametrize("name", judged.NAMES)
def test_it_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    inputs, logits = judged.computed(judged.build(name, tmp_path))
    with open_checkpoint(tmp_path) as model:
        assert off_by(model, inputs, logits) <= TOLERANCE
