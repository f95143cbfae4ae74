"""The memory in which an adapter is merged."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_core import plan_conversion
from ckpt_core.errors import CkptError
from ckpt_core.tensors.assembly import Merged

GOLDEN = Path(__file__).parents[3] / "tests/data/golden-2026/lora/peft-llama-patterns"


def test_the_factors_of_an_adapter_count_in_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Merged, "working_bytes", property(lambda _: 50 << 20))
    source, options = GOLDEN / "adapter", {"base": str(GOLDEN / "base")}
    with pytest.raises(CkptError, match="the memory budget is too small"):
        plan_conversion(source, tmp_path / "out", to="hf", options=options, max_memory=96 << 20, workers=1)
    plan = plan_conversion(source, tmp_path / "out", to="hf", options=options, max_memory=110 << 20, workers=1)
    assert 94 << 20 < plan.peak_memory <= 110 << 20
