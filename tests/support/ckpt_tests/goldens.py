"""Checkpoints that frameworks wrote themselves, with the logits they computed from them.

`GOLDENS/FRAMEWORK/CASE/` holds `checkpoint/`, `expected.safetensors` (input_ids, logits) and `case.json`. The
cases shipped with the repository are one per trap; `CKPT_GOLDENS` names a folder with more. Cases of newer models have the
HF folder that they were made of beside them, `source_hf/`, and a folder of their own, or `CKPT_GOLDENS_2026`.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckpt_core.api import read_checkpoint
from ckpt_core.checkpoint import Checkpoint

SHIPPED = Path(__file__).parents[2] / "data/golden"
_SHIPPED_2026 = Path(__file__).parents[2] / "data/golden-2026"


@dataclass(frozen=True)
class Golden:
    """One case."""

    folder: Path

    def __str__(self) -> str:
        return self.folder.name

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def source(self) -> Path:
        """The HF folder that the framework made the checkpoint of."""
        return self.folder / "source_hf"

    @functools.cached_property
    def case(self) -> dict:
        return json.loads((self.folder / "case.json").read_text())

    @property
    def input_ids(self) -> torch.Tensor:
        return load_file(self.folder / "expected.safetensors")["input_ids"]

    @property
    def logits(self) -> torch.Tensor:
        return load_file(self.folder / "expected.safetensors")["logits"]

    @property
    def parallel(self) -> dict[str, int]:
        return {"tp": self.case["tp"], "pp": self.case["pp"]}

    def off_by(self, logits: torch.Tensor) -> float:
        """The largest difference to the recorded logits, over the columns that both have."""
        columns = min(logits.shape[-1], self.logits.shape[-1])
        return (logits[..., :columns].float() - self.logits[..., :columns]).abs().max().item()


def root() -> Path:
    """The folder of all cases."""
    return Path(os.environ.get("CKPT_GOLDENS") or SHIPPED)


def goldens(framework: str) -> list[Golden]:
    """Every case of a framework; an error if `CKPT_GOLDENS` is set to a place without any golden."""
    cases = sorted(root().rglob("case.json"))
    if not cases:
        raise pytest.UsageError(
            f"no golden (a folder with case.json) lies below {root()}: set CKPT_GOLDENS to where they are, or unset it"
        )
    return [Golden(case.parent) for case in cases if json.loads(case.read_text())["framework"] == framework]


def every_golden() -> list[Golden]:
    """All cases with recorded logits, of whatever framework."""
    frameworks = {json.loads(path.read_text())["framework"] for path in root().rglob("case.json")}
    found = [golden for name in sorted(frameworks) for golden in goldens(name)]
    return [golden for golden in found if (golden.folder / "expected.safetensors").is_file()]


def one_of_each_model(framework: str, which: Callable[[Golden], bool] = lambda golden: True) -> list[Golden]:
    """Of the cases that `which` chooses, the first of each model: others have its architecture and dtypes in another layout."""
    found: dict[object, Golden] = {}
    for golden in filter(which, goldens(framework)):
        found.setdefault(kind_of(read_checkpoint(golden.checkpoint)), golden)
    return list(found.values())


def kind_of(checkpoint: Checkpoint) -> object:
    """What checkpoints have in common that differ in their ranks and values alone."""
    dtypes = {tensor.dtype.name for tensor in checkpoint.tensors.values()}
    return checkpoint.format, checkpoint.architecture, frozenset(dtypes)


def each(framework: str, which: Callable[[Golden], bool] = lambda golden: True) -> pytest.MarkDecorator:
    """Run a test for every case of a framework that `which` chooses."""
    return pytest.mark.parametrize("golden", [golden for golden in goldens(framework) if which(golden)], ids=str)


def of_2026(part: str, framework: str | None = None) -> list[Golden]:
    """The newer cases of a framework that have a checkpoint: those below PART/ that are shipped, or all of them.

    Without `framework`, all below PART/."""
    wanted = [golden for golden in _of_2026(part) if framework in (None, golden.case.get("framework"))]
    return [golden for golden in wanted if golden.checkpoint.is_dir()]


def beside(part: str, file: str) -> list[Golden]:
    """The newer cases below PART/ that have a file of this name: those that are shipped, or all of them."""
    return [golden for golden in _of_2026(part) if (golden.folder / file).is_file()]


def _of_2026(part: str) -> list[Golden]:
    folder = Path(os.environ.get("CKPT_GOLDENS_2026") or _SHIPPED_2026) / part
    found = [Golden(path.parent) for path in sorted(folder.rglob("case.json"))]
    if not found:
        raise pytest.UsageError(f"no golden lies below {folder}: set CKPT_GOLDENS_2026 to where they are, or unset it")
    return found
