"""Memory is what was asked for, however large the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_core.api import plan_conversion
from ckpt_core.engine import plan as planning
from ckpt_core.errors import CkptError
from ckpt_core.testing import example, write_ir
from ckpt_tests.large import large

BUDGET = 128 << 20


def measured(source: Path, destination: Path, **arguments: object) -> dict:
    asked = {"source": str(source), "destination": str(destination), "arguments": arguments}
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "ckpt_tests.hungry", json.dumps(asked)],
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


def test_rows_that_are_encoded_together_are_in_the_budget(tmp_path: Path) -> None:
    """128 rows share a scale in both directions: of 8,192 columns they take 4 MiB, several times, in each worker."""
    source = large(tmp_path / "hf", layers=1)
    arguments = {"to": "hf", "options": {"quantise": "fp8-block"}, "workers": 4}
    with pytest.raises(CkptError, match="the memory budget is too small") as error:
        plan_conversion(source, tmp_path / "out", **arguments, max_memory=100 << 20)
    least = int(error.value.fix.split("MiB")[0].split()[-1]) << 20
    plan = plan_conversion(source, tmp_path / "out", **arguments, max_memory=least)
    found = measured(source, tmp_path / "out", **arguments, max_memory=least)
    assert found["peak"] <= plan.peak_memory <= least


PLAN = """
import json, sys
from ckpt_tests.memory import watched
from ckpt_core.api import plan_conversion
import ckpt_core.engine.run, numpy  # the program that moves bytes is counted, too
source, arguments = json.loads(sys.argv[1])
with watched() as seen:
    plan = plan_conversion(source, source + "-out", **arguments)
print(json.dumps([max(seen), plan.footprint]))
"""


OF_MANY: dict[str, dict] = {
    "hf": {"to": "hf"},
    "hf, codes and scales": {"to": "hf", "options": {"quantise": "fp8-block"}},
    "torch_dist": {"to": "megatron", "ep": 8},
}


@pytest.mark.parametrize("arguments", OF_MANY.values(), ids=OF_MANY)
def test_a_plan_says_what_it_takes_itself(arguments: dict, tmp_path: Path) -> None:
    """Of many small tensors: 24,000 in hf, 16,000 torch files in torch_dist."""
    sizes = {"hidden": 256, "mlp__moe__ffn": 128, "mlp__moe__experts": 256}
    source = write_ir(tmp_path / "ir", example("moe", layers=32, **sizes), dtype="bf16", sparse=True)
    command = [sys.executable, "-c", PLAN, json.dumps([source, arguments])]
    taken, said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert said > 60 << 20
    assert abs(said - taken) < 0.3 * taken


def test_a_plan_that_leaves_no_room_is_refused_or_gets_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = large(tmp_path / "hf", layers=1)
    monkeypatch.setattr(planning, "_PER_WRITTEN", 20 << 20)
    arguments = {"to": "nanotron", "tp": 2, "workers": 2}
    with pytest.raises(CkptError, match="budget is too small") as caught:
        plan_conversion(source, tmp_path / "out", **arguments, max_memory=planning.DEFAULT_MEMORY)
    plan = plan_conversion(source, tmp_path / "out", **arguments)
    assert f"{plan.footprint >> 20} of them for the plan" in str(caught.value)
    assert planning.DEFAULT_MEMORY < plan.footprint < plan.peak_memory <= plan.memory


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    peaks = []
    for layers in (1, 4):
        source = large(tmp_path / f"hf{layers}", layers)
        peaks.append(
            measured(source, tmp_path / f"out{layers}", to="nanotron", tp=2, max_memory=BUDGET, workers=2)["peak"]
        )
    assert peaks[1] <= peaks[0] + (16 << 20)


def test_workers_apart_have_the_budget_each(tmp_path: Path) -> None:
    """On a cluster nobody shares memory, but for the threads of one process."""
    write_ir(tmp_path / "ir", example("llama"))
    asked = {"to": "hf", "max_memory": BUDGET}
    plan = plan_conversion(tmp_path / "ir", tmp_path / "out", **asked, workers=512, apart=True)
    with pytest.raises(CkptError, match="too small"):
        plan_conversion(tmp_path / "ir", tmp_path / "out", **asked, workers=512)
    assert plan.workers == 512 and plan.peak_memory <= BUDGET
    for threads in (1, 4, 8):
        spread = plan.spread(2048, threads)
        assert spread.workers == 2048 and spread.hash == plan.hash and spread.peak_memory <= BUDGET
    with pytest.raises(CkptError, match="too small"):
        plan.spread(2048, 64)


def test_a_budget_that_nobody_gave_grows_with_the_threads_of_a_process(tmp_path: Path) -> None:
    """A worker of Dask has as many as its machine has cores, unless it is told otherwise."""
    write_ir(tmp_path / "ir", example("llama"))
    plan = plan_conversion(tmp_path / "ir", tmp_path / "out", to="hf", workers=512, apart=True)
    spread = plan.spread(2048, 64)
    assert plan.memory == planning.DEFAULT_MEMORY < spread.memory and spread.peak_memory <= spread.memory
