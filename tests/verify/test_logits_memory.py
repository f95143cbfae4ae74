"""Running two models takes the memory that was allowed, however large they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ckpt_tests.large import large

BUDGET = 64 << 20


def test_a_model_larger_than_the_budget(tmp_path: Path) -> None:
    source, other = large(tmp_path / "one", layers=3), large(tmp_path / "other", layers=3)
    size = 2 * (source / "model.safetensors").stat().st_size  # in float32
    assert size > 10 * BUDGET
    command = [sys.executable, "-m", "ckpt_tests.thirsty", str(source), str(other), str(BUDGET)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["steps"] == 8 and found["judges"] == 0
    assert found["peak"] - found["before"] <= BUDGET
