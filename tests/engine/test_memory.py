"""Memory is what was asked for, however large the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.large import large

from ckpt_core.api import plan_conversion

HUNGRY = Path(__file__).with_name("hungry.py")
BUDGET = 128 << 20


def measured(source: Path, destination: Path, **arguments: object) -> dict:
    asked = {"source": str(source), "destination": str(destination), "arguments": arguments}
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(
        [sys.executable, str(HUNGRY), json.dumps(asked)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# every row is permuted (interleaved rotary), every column split over ranks
WAYS = {
    "split over ranks": {"to": "nanotron", "tp": 2},
    "interleaved, in fp32": {"to": "nanotron", "tp": 4, "dtype": "fp32", "options": {"target": "0.4"}},
    "into one .bin": {"to": "hf", "options": {"container": "bin"}},
}


@pytest.mark.parametrize("arguments", WAYS.values(), ids=WAYS)
def test_private_memory_stays_within_the_budget(arguments: dict, tmp_path: Path) -> None:
    source = large(tmp_path / "hf", layers=3)
    size = (source / "model.safetensors").stat().st_size
    assert size > 300 << 20
    found = measured(source, tmp_path / "out", **arguments, max_memory=BUDGET, workers=2)
    assert found["samples"] > 20
    assert found["peak"] <= BUDGET, f"{found['peak'] >> 20} MiB for a model of {size >> 20} MiB"


def test_the_plan_says_no_less_than_what_is_used(tmp_path: Path) -> None:
    source = large(tmp_path / "hf", layers=1)
    arguments = {"to": "nanotron", "tp": 2, "max_memory": BUDGET, "workers": 2}
    plan = plan_conversion(source, tmp_path / "out", **arguments)
    found = measured(source, tmp_path / "out", **arguments)
    assert found["peak"] <= plan.peak_memory <= BUDGET


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    peaks = []
    for layers in (1, 4):
        source = large(tmp_path / f"hf{layers}", layers)
        peaks.append(
            measured(source, tmp_path / f"out{layers}", to="nanotron", tp=2, max_memory=BUDGET, workers=2)["peak"]
        )
    assert peaks[1] <= peaks[0] + (16 << 20)
