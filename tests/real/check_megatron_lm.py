"""Megatron-LM, started with exactly what `ckpt launch` prints, gives transformers' logits; without a decisive flag it does not.

Run by `nox -s real_megatron_lm`, in an environment of its own; $MEGATRON_LM_SOURCE is a tree of Megatron-LM (core_v0.16.1).
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import megatron_arguments
import pytest
import tiny_models
from safetensors.torch import load_file

from ckpt_core import convert
from ckpt_core.api import launch_of
from ckpt_core.errors import CkptError
from ckpt_megatron import launch as table

FOLDER = Path(__file__).parent
SOURCE = Path(os.environ["MEGATRON_LM_SOURCE"])
VERSION = megatron_arguments.version_of(SOURCE)
TOLERANCE = 1e-4
CPU = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (FOLDER / "te", SOURCE)))}

# Of each family of HF whose models Megatron writes, and the ranks that it is started on.
RUNS = [
    *(
        (name, {"tp": 1})
        for name in (
            "llama", "llama31", "mistral", "qwen2_tied", "qwen3", "qwen3_moe", "mixtral", "nemotron",
            "gpt2", "starcoder2", "deepseek_v3",
        )
    ),
    ("qwen3_tied", {"tp": 2, "pp": 2}),
    ("nemotron", {"tp": 2, "pp": 2}),
    ("deepseek_v3", {"ep": 2}),
]  # fmt: skip
# Flags without which Megatron-LM starts all the same, and computes another model: the least difference there is.
DECISIVE = {
    "llama31": ["--use-rope-scaling"],
    "qwen3": ["--qk-layernorm", "--norm-epsilon"],
    "nemotron": ["--apply-layernorm-1p"],
}


Found = dict[tuple[str, str | None], float | str]  # by family, and the flag that was left out: see `logits`


def said_of(ranks: dict[str, int]) -> str:
    return " ".join(f"{axis}{size}" for axis, size in ranks.items())


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Found]:
    """For the ranks of some runs: how far the logits of each are off, or why there are none. One process starts all of them."""
    folder = tmp_path_factory.mktemp("judged")

    @functools.cache
    def found(said: str) -> Found:
        runs: list[dict[str, Any]] = []
        for name, ranks in RUNS:
            if said_of(ranks) != said:
                continue
            if not (folder / name).exists():
                tiny_models.make(folder, name)
            place = folder / f"{name} {said}"
            convert(folder / name, place, to="megatron", **ranks)
            launch = launch_of(place, options={"megatron_version": VERSION}).to_json()
            for flag in [None, *(DECISIVE.get(name, []) if said == "tp1" else [])]:
                run = {"name": name, "launch": launch, "ids": f"{folder / name}.ids.safetensors"}
                runs.append(run | {"out": f"{place}{flag or ''}.out", "without": flag})
        file = folder / f"{said}.json"
        file.write_text(json.dumps(runs))
        command = [sys.executable, str(FOLDER / "megatron_lm_judge.py"), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **CPU})
        return {(run["name"], run["without"]): off(run, folder, done.stderr) for run in runs}

    return found


def off(run: dict[str, Any], folder: Path, log: str) -> float | str:
    """The largest difference of the logits of one run from those of transformers, or its error."""
    if not Path(run["out"]).exists():
        error = Path(f"{run['out']}.error")
        return error.read_text() if error.exists() else log[-4000:]
    expected = load_file(f"{folder / run['name']}.logits.safetensors")["logits"]
    difference = load_file(run["out"])["logits"][..., : expected.shape[-1]] - expected
    print(Path(run["out"]).name, f"{difference.abs().max():.2e}")
    return difference.abs().max().item()


@pytest.mark.parametrize(("name", "ranks"), RUNS, ids=str)
def test_started_with_what_is_printed_it_computes_the_model(name, ranks, logits) -> None:
    found = logits(said_of(ranks))[name, None]
    assert isinstance(found, float) and found < TOLERANCE, found


@pytest.mark.parametrize(("name", "flag"), [(name, flag) for name, flags in DECISIVE.items() for flag in flags])
def test_without_a_decisive_flag_it_computes_another(name, flag, logits) -> None:
    found = logits("tp1")[name, flag]
    assert isinstance(found, str) or found > TOLERANCE, found


def test_a_factor_that_it_does_not_pass_on_is_refused(tmp_path: Path) -> None:
    """Llama 3.2: gpt_builder gives the model `rope_scaling` and no factor; the logits were off by 8e-3."""
    tiny_models.make(tmp_path, "llama32_tied")
    with pytest.raises(CkptError, match="says rope_scaling_factor"):
        launch_of(tmp_path / "llama32_tied", to="megatron", options={"megatron_version": VERSION})


def test_the_table_is_that_of_the_tree() -> None:
    """The lines of this version in launch-arguments.json are what its own parser and its `_set_arg` lines say."""
    said = megatron_arguments.asked(SOURCE)
    for name in table.NAMES:
        line = {key: value for key, value in table.line_of(name, VERSION).items() if key not in ("since", "until")}
        assert line == said.get(name, {}), name
