"""HF -> NeMo 2, judged by the real NeMo: what we write it loads, and its logits are transformers'.

Run by `nox -s real_nemo2`, in an environment of its own. NEMO2_SOURCE and NEMO2_CORE_SOURCE are folders with the sources of NeMo and
Megatron-LM, of the versions in README.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import forked
import pytest
import tiny_models
from safetensors.torch import load_file

from ckpt_core import convert
from ckpt_tests.rows import wrong_sentences

HERE = Path(__file__).parent
TOLERANCE = 1e-4
FAMILIES = [
    "llama", "llama_odd", "llama31", "llama32_tied", "mistral", "mixtral", "qwen2", "qwen2_tied", "qwen3", "qwen3_tied",
    "qwen3_moe", "gemma", "nemotron", "gpt2", "starcoder2", "deepseek_v2", "deepseek_v3",
]  # fmt: skip
# The ranks that a folder is written for. NeMo loads it on one, by the shards of all.
CASES = [
    *((family, {}) for family in FAMILIES),
    ("llama", {"tp": 2, "pp": 2}),
    ("gemma", {"tp": 2, "pp": 2}),
    ("qwen3_moe", {"tp": 2, "ep": 2}),
    ("deepseek_v3", {"pp": 2, "ep": 2}),
]
Nemo = Callable[[forked.Case], str | None]


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For models of transformers, each made when it is asked for."""
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def nemo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nemo]:
    """The judge."""
    sources = {name: os.environ.get(name) for name in ("NEMO2_CORE_SOURCE", "NEMO2_SOURCE")}
    missing = [name for name, folder in sources.items() if not folder]
    assert not missing, f"set {', '.join(missing)}: see README.md"
    path = os.pathsep.join(map(str, (HERE / "te", HERE, *sources.values())))
    log = tmp_path_factory.mktemp("nemo") / "judge.log"
    command = [sys.executable, "-W", "ignore", str(HERE / "nemo2_judge.py")]
    with forked.started(command, log, {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}) as ask:
        yield ask


def off(folder: Path, model: Path, nemo: Nemo) -> float:
    """How far NeMo's logits are from those of transformers at the most."""
    out, inputs = folder.with_suffix(".logits.safetensors"), model.with_suffix(".ids.safetensors")
    failure = nemo({"archive": str(folder), "inputs": str(inputs), "out": str(out), "world": 1})
    assert failure is None, failure
    expected = load_file(model.with_suffix(".logits.safetensors"))["logits"]
    difference = (load_file(out)["logits"][..., : expected.shape[-1]] - expected).abs().max().item()
    print(f"off by {difference:.2e}")
    return difference


@pytest.mark.parametrize(("family", "ranks"), CASES, ids=str)
def test_nemo_computes_what_transformers_computes(
    family: str, ranks: dict[str, int], hf: Path, nemo: Nemo, tmp_path: Path
) -> None:
    if not (hf / family).exists():
        tiny_models.make(hf, family)
    convert(hf / family, tmp_path / "x", to="nemo2", **ranks)
    assert off(tmp_path / "x", hf / family, nemo) <= TOLERANCE


def test_the_judge_sees_gate_and_up_exchanged(nemo: Nemo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: of what is written in another order than NeMo's, the logits are far off."""
    wrong_sentences(monkeypatch, {"((gate + up) f) h": "((up + gate) f) h"}, "mlp.linear_fc1.weight")
    tiny_models.make(tmp_path, "llama")
    convert(tmp_path / "llama", tmp_path / "x", to="nemo2")
    assert off(tmp_path / "x", tmp_path / "llama", nemo) > 0.1
