"""ZeRO and universal checkpoints, judged by the released DeepSpeed: what it saves we read as it does, what we write it loads.

Run in the environment of `requirements-deepspeed.txt`; needs no GPU.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckpt_core import convert

JUDGE = Path(__file__).parent / "deepspeed_judge.py"
CASES = {
    "zero1 over 2 ranks": (2, "--stage=1"),
    "zero1, round robin": (3, "--stage=1", "--robin", "--groups"),
    "zero2 over 3 ranks, frozen": (3, "--stage=2", "--frozen"),
    "zero2, tied": (2, "--stage=2", "--tied"),
    "zero2, four groups": (4, "--stage=2", "--groups", "--frozen", "--tied"),
    "zero3 over 3 ranks, frozen": (3, "--stage=3", "--frozen"),
    "zero3, one group of all": (2, "--stage=3", "--subgroup=1000000000", "--groups"),
    "zero3 over 1 rank, tied": (1, "--stage=3", "--tied", "--frozen"),
}
LOADS = [(1, 1), (2, 1), (2, 2), (1, 3), (3, 3)]  # ranks, stage


def run(ranks: int, *arguments: object) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", "29623"]
    return subprocess.run([*launcher, str(JUDGE), *map(str, arguments)], capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module", params=CASES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that DeepSpeed saved, and what it makes of it."""
    folder = tmp_path_factory.mktemp("case")
    ranks, *how = CASES[request.param]
    done = run(ranks, "save", folder / "run", *how)
    assert done.returncode == 0, done.stderr[-3000:]
    done = subprocess.run(
        [sys.executable, JUDGE, "consolidate", folder / "run", folder / "fp32.safetensors"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_weights_are_those_of_deepspeeds_own_consolidation(saved: Path) -> None:
    convert(saved / "run", saved / "hf", to="hf")
    ours = {name: t for path in (saved / "hf").glob("*.safetensors") for name, t in load_file(path).items()}
    theirs = load_file(saved / "fp32.safetensors")
    assert ours.keys() == theirs.keys() or ours.keys() | {"lm_head.weight"} == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def test_deepspeed_loads_our_universal_checkpoint_and_trains_on(saved: Path) -> None:
    for ranks, stage in LOADS:
        destination = saved / f"universal-{ranks}-{stage}"
        convert(saved / "run", destination, to="deepspeed", options={"dst.flat": str(stage == 3).lower()})
        done = run(ranks, "load", destination, saved / "fp32.safetensors", f"--stage={stage}")
        assert done.returncode == 0, f"{ranks} ranks, stage {stage}: {done.stdout[-500:]}{done.stderr[-3000:]}"
