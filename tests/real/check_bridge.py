"""Folders of format megatron-bridge, judged by the real Megatron-Bridge: what we write it loads, computes and exports; what it writes we read.

Run by `nox -s real_bridge`, in an environment of its own per version; $BRIDGE_SOURCE and $MEGATRON_SOURCE are the sources.
Every test starts one process that judges all models, as the frameworks take long to import.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ckpt_core import convert, fingerprint
from ckpt_tests.adapters import pair, save
from ckpt_tests.models import weights
from ckpt_tests.rows import wrong_sentences

HERE = Path(__file__).parent
TOLERANCE = 1e-4

# Families whose models are written; those that Bridge cannot make itself, or not export, are named below.
DENSE = [
    "llama",
    "llama_odd",
    "mistral",
    "qwen2",
    "qwen2_tied",
    "qwen3",
    "qwen3_tied",
    "gemma",
    "nemotron",
    "llama31",
    "llama32_tied",
]
EXPERTS = ["qwen3_moe", "mixtral", "deepseek_v2", "deepseek_v3"]
INDEXED = ["glm_moe_dsa"]  # Bridge has it since 0.6
UNKNOWN_TO_BRIDGE = [
    "gpt2",
    "starcoder2",
    "mixtral",
]  # it has no bridge for the HF class, so it loads and computes alone


def package(folder: str) -> Path:
    return Path(os.environ[folder])


@functools.cache
def version() -> str:
    """Of the sources, as `-o bridge_version` has it."""
    path = package("BRIDGE_SOURCE") / "src/megatron/bridge/package_info.py"
    numbers = dict(line.split(" = ") for line in path.read_text().splitlines() if line.startswith(("MAJOR", "MINOR")))
    return "0.2" if int(numbers["MINOR"]) < 3 else "0.6"


@pytest.fixture(scope="session")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models of transformers, made by the version of it that this Bridge has."""
    folder = tmp_path_factory.mktemp("hf")
    names = dict.fromkeys([*DENSE, *EXPERTS, *UNKNOWN_TO_BRIDGE, *(INDEXED if version() != "0.2" else [])])
    subprocess.run([sys.executable, HERE / "tiny_models.py", folder, *names], check=True)
    return folder


@pytest.fixture(scope="session")
def folders(hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What we write of them for this version of Bridge, which is the default or asked for."""
    out = tmp_path_factory.mktemp("folders")
    options = {"bridge_version": version()} if version() == "0.2" else {}
    for source in sorted(path for path in hf.iterdir() if path.is_dir()):
        convert(source, out / source.name, to="megatron-bridge", options=options)
    return out


def judge(task: str, folder: Path, hf: Path, names: list[str], *words: str, **ranks: int) -> dict[str, dict[str, Any]]:
    """The judge's results by name, whichever rank gave them."""
    search = [str(HERE / "te"), str(package("MEGATRON_SOURCE")), str(package("BRIDGE_SOURCE") / "src")]
    layout = [word for name, size in ranks.items() for word in (f"--{name}", str(size))]
    done = subprocess.run(
        [sys.executable, HERE / "bridge_judge.py", task, folder, hf, *names, *layout, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    results = {result.pop("name"): result for result in found}
    print(*(f"{name}: {result}" for name, result in results.items()), sep="\n")
    assert results.keys() == set(names), done.stderr[-4000:]
    return results


def assert_loaded(results: dict[str, dict[str, Any]]) -> None:
    wrong = {name: result for name, result in results.items() if not result.get("logits", 1.0) <= TOLERANCE}
    assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.parametrize(
    ("names", "ranks"),
    [
        (DENSE + EXPERTS, {}),
        (DENSE + EXPERTS, {"tp": 2}),
        (DENSE, {"tp": 2, "pp": 2}),
        (EXPERTS, {"ep": 2}),
        (EXPERTS, {"pp": 2, "ep": 2}),
    ],
    ids=str,
)
def test_bridge_loads_computes_and_exports(
    hf: Path, folders: Path, tmp_path: Path, names: list[str], ranks: dict[str, int]
) -> None:
    mine = [name for name in names if name not in UNKNOWN_TO_BRIDGE]
    results = judge("load", folders, hf, mine, "--export", str(tmp_path), **ranks)
    assert_loaded(results)
    for name, result in results.items():
        assert result["exported"]["equal"] and not result["exported"]["different"] + result["exported"]["alone"], name
    assert_loaded(judge("load", folders, hf, UNKNOWN_TO_BRIDGE, **ranks))


def test_bridge_loads_and_exports_an_indexer_and_what_it_makes_is_read(hf: Path, folders: Path, tmp_path: Path) -> None:
    if version() == "0.2":
        pytest.skip("0.2 has no indexers")
    for ranks in ({}, {"ep": 2}):  # tp asks for sequence parallelism, which a judge on one sequence has not
        results = judge("load", folders, hf, INDEXED, "--export", str(tmp_path / f"out{len(ranks)}"), **ranks)
        assert_loaded(results)
        assert all(not one["exported"]["different"] + one["exported"]["alone"] for one in results.values())
    assert all(one.get("imported") for one in judge("import", tmp_path / "made", hf, INDEXED).values())
    assert all(fingerprint(tmp_path / "made" / name) == fingerprint(hf / name) for name in INDEXED)


def test_a_training_run_loads_it(hf: Path, folders: Path) -> None:
    assert_loaded(judge("train", folders, hf, DENSE + EXPERTS))


def test_what_bridge_makes_of_a_model_is_read(hf: Path, tmp_path: Path) -> None:
    names = [name for name in DENSE + EXPERTS if name not in UNKNOWN_TO_BRIDGE]
    results = judge("import", tmp_path, hf, names)
    assert all(result.get("imported") for result in results.values()), results
    unlike = [name for name in names if fingerprint(tmp_path / name) != fingerprint(hf / name)]
    assert not unlike


@pytest.mark.parametrize("canonical", [False, True], ids=["fused layers", "canonical"])
def test_bridge_loads_an_adapter_and_exports_it(hf: Path, tmp_path: Path, canonical: bool) -> None:
    """An adapter of PEFT, with an A for each module, comes back out of Bridge as the one that we make of it again."""
    if version() == "0.2":
        pytest.skip("0.2 has no export of adapters, and adds canonical ones to other rows")
    names = ["llama", "llama_odd", "qwen3", *([] if canonical else ["qwen3_moe"])]
    for part in ("run", "back"):
        (tmp_path / part).mkdir()
    for name in names:
        base = weights(hf / name)
        modules = [key.removesuffix(".weight") for key in base if key.endswith(("_proj.weight",))]
        made = {key: tensor for module in modules for key, tensor in pair(module, base[f"{module}.weight"]).items()}
        save(tmp_path / "peft" / name, made)
        options = {"canonical": canonical}
        convert(
            tmp_path / "peft" / name,
            tmp_path / "run" / name,
            to="megatron-lora",
            config=hf / name / "config.json",
            options=options,
        )
        convert(tmp_path / "run" / name, tmp_path / "back" / name, to="peft")
    results = judge("adapter", tmp_path / "run", hf, names, "--export", str(tmp_path / "out"))
    assert all(result.get("exported") for result in results.values()), results
    for name in names:
        ours, theirs = (load_file(tmp_path / part / name / "adapter_model.safetensors") for part in ("back", "out"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items()), name


def test_the_judge_sees_gate_and_up_exchanged(hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: of what is written in another order than Bridge's, the logits are far off."""
    wrong_sentences(monkeypatch, {"((gate + up) f) h": "((up + gate) f) h"}, "mlp.linear_fc1.weight")
    convert(hf / "llama", tmp_path / "llama", to="megatron-bridge")
    assert judge("load", tmp_path, hf, ["llama"])["llama"]["logits"] > 0.1
