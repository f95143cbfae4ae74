"""Megatron-LM, started with exactly what `ckpt launch` prints, gives transformers' logits; without a decisive flag it does not.

Run by `nox -s real_megatron_lm`, in an environment of its own; $MEGATRON_LM_SOURCE is a tree of Megatron-LM (core_v0.16.1).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str | None], float | str]:
    """By family, ranks and flag that was left out: how far the logits are off, or why there are none."""
    folder = tmp_path_factory.mktemp("judged")
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, ranks in RUNS:
        if not (folder / name).exists():
            tiny_models.make(folder, name)
        said = " ".join(f"{axis}{size}" for axis, size in ranks.items())
        place = folder / f"{name} {said}"
        convert(folder / name, place, to="megatron", **ranks)
        launch = launch_of(place, options={"megatron_version": VERSION}).to_json()
        for flag in [None, *(DECISIVE.get(name, []) if said == "tp1" else [])]:
            out = f"{place}{flag or ''}.out"
            run = {"key": (name, said, flag), "launch": launch, "ids": f"{folder / name}.ids.safetensors"}
            runs.setdefault(said, []).append(run | {"out": out, "without": flag})
    found: dict[tuple[str, str, str | None], float | str] = {}
    for said, together in runs.items():
        file = folder / f"{said}.json"
        file.write_text(json.dumps(together))
        command = [sys.executable, str(FOLDER / "megatron_lm_judge.py"), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **CPU})
        for run in together:
            name = run["key"][0]
            if not Path(run["out"]).exists():
                error = Path(f"{run['out']}.error")
                found[run["key"]] = error.read_text() if error.exists() else done.stderr[-4000:]
                continue
            expected = load_file(f"{folder / name}.logits.safetensors")["logits"]
            off = load_file(run["out"])["logits"][..., : expected.shape[-1]] - expected
            found[run["key"]] = off.abs().max().item()
            print(*run["key"], f"{found[run['key']]:.2e}")
    return found


@pytest.mark.parametrize(("name", "ranks"), RUNS, ids=str)
def test_started_with_what_is_printed_it_computes_the_model(name, ranks, logits) -> None:
    off = logits[name, " ".join(f"{axis}{size}" for axis, size in ranks.items()), None]
    assert isinstance(off, float) and off < TOLERANCE, off


@pytest.mark.parametrize(("name", "flag"), [(name, flag) for name, flags in DECISIVE.items() for flag in flags])
def test_without_a_decisive_flag_it_computes_another(name, flag, logits) -> None:
    off = logits[name, "tp1", flag]
    assert isinstance(off, str) or off > TOLERANCE, off


def test_a_factor_that_it_does_not_pass_on_is_refused(tmp_path: Path) -> None:
    """Llama 3.2: gpt_builder gives the model `rope_scaling` and no factor; the logits were off by 8e-3."""
    tiny_models.make(tmp_path, "llama32_tied")
    with pytest.raises(CkptError, match="says rope_scaling_factor"):
        launch_of(tmp_path / "llama32_tied", to="megatron", options={"megatron_version": VERSION})


def test_the_table_is_that_of_the_tree() -> None:
    """The lines of this version in launch-arguments.json are what its own parser and its `_set_arg` lines say."""
    code = [sys.executable, str(FOLDER / "megatron_arguments.py"), "--one", str(SOURCE)]
    said = json.loads(subprocess.check_output(code).splitlines()[-1])
    for name in table.NAMES:
        line = {key: value for key, value in table.line_of(name, VERSION).items() if key not in ("since", "until")}
        assert line == said.get(name, {}), name
