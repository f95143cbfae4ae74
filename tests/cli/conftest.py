"""The program with a toy format installed, a broken one, and tiny checkpoints to work on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ckpt_core.architecture import (
    Activation,
    Architecture,
    Attention,
    Head,
    Layer,
    Mlp,
    Norm,
    Rotary,
    Stack,
    Tokens,
    dumps,
    parameters,
)
from ckpt_core.cli import progress
from ckpt_core.cli.main import main
from ckpt_core.plugins import discovery
from ckpt_core.plugins.installed import entry_points
from ckpt_core.storage.dtypes import FP32
from ckpt_core.storage.safetensors import plan_file

HERE = Path(__file__).parent
CORE = Path(discovery.__file__).parents[2]


@dataclass
class Outcome:
    """How a run of the program ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of distributions: `toy`, and `sick`, whose module does not exist."""
    site = tmp_path / "site"
    info = site / "ckpt_toy-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ckpt-toy\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[ckpt.formats]\ntoy = toy\nsick = toy_that_is_missing\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("CKPT_PLUGINS", "toy,sick")
    monkeypatch.delenv("CKPT_DEBUG", raising=False)
    for cached in (entry_points, discovery.load):
        cached.cache_clear()
    yield site
    for cached in (entry_points, discovery.load):
        cached.cache_clear()


@pytest.fixture
def ckpt(
    installed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Run the program in this process; what it says because a machine is slow is not said."""
    monkeypatch.setattr(progress, "SILENCE", 600)

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def process(installed: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run Python code in a fresh process that has the same formats."""

    def run(code: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(map(str, (installed, HERE, CORE)))
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def tiny() -> Architecture:
    """Two layers with pairwise different sizes, and a padded vocabulary."""
    norm = Norm(kind="rms", eps=1e-5)
    attention = Attention(heads=6, groups=2, head_dim=4, norm=norm, rotary=Rotary(theta=10000.0))
    windowed = Attention(heads=6, groups=2, head_dim=4, norm=norm, rotary=Rotary(theta=10000.0), window=5)
    mlp = Mlp(activation=Activation.SILU, gated=True, ffn=10, norm=norm)
    layers = (Layer(attention=attention, mlp=mlp), Layer(attention=windowed, mlp=mlp))
    return Architecture(
        hidden=24,
        tokens=Tokens(vocabulary=13, padded_vocabulary=16),
        decoder=Stack(layers=layers, causal=True, final_norm=norm),
        head=Head(tied=True),
    )


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Write a toy checkpoint; `change` may edit its tensors first."""

    def write(
        name: str,
        change: Callable[[dict[str, np.ndarray]], None] | None = None,
        architecture: Architecture | None = None,
    ) -> Path:
        folder, architecture = tmp_path / name, architecture or tiny()
        random = np.random.default_rng(7)
        tensors = {
            name: random.standard_normal(p.shape).astype(np.float32) for name, p in parameters(architecture).items()
        }
        if change is not None:
            change(tensors)
        plan = plan_file({name: (FP32, values.shape) for name, values in tensors.items()})
        data = bytearray(plan.size)
        data[: len(plan.header)] = plan.header
        for name, values in tensors.items():
            data[plan.offsets[name] : plan.offsets[name] + values.nbytes] = values.tobytes()
        folder.mkdir()
        (folder / "toy.safetensors").write_bytes(data)
        (folder / "architecture.json").write_text(dumps(architecture))
        (folder / "tokenizer.json").write_text("{}")
        return folder

    return write


@pytest.fixture
def model(make: Callable[..., Path]) -> Path:
    return make("model")
