"""The reference forward computes what the frameworks computed, also where no other class could hold the model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckpt_tests.forwards import ROUNDED_FREQUENCIES, TOLERANCE, off_by, opened, recorded
from ckpt_tests.goldens import Golden, every_golden


def test_the_whole_set_is_here_if_it_is_named() -> None:
    assert len(every_golden()) >= (90 if os.environ.get("CKPT_GOLDENS") else 20)


@pytest.mark.parametrize("golden", every_golden(), ids=str)
def test_it_computes_what_the_framework_computed(golden: Golden, tmp_path: Path) -> None:
    with opened(golden, tmp_path) as model:
        assert off_by(model, *recorded(golden)) <= ROUNDED_FREQUENCIES.get(golden.folder.name, TOLERANCE)
