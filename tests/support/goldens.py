"""Checkpoints that frameworks wrote themselves, with the logits they computed from them.

`GOLDENS/FRAMEWORK/CASE/` holds `checkpoint/`, `expected.safetensors` (input_ids, logits) and `case.json`. The
cases shipped with the repository are one per trap; `CKPT_GOLDENS` names a folder with more.
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

_SHIPPED = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True)
class Golden:
    """One case."""

    folder: Path

    def __str__(self) -> str:
        return self.folder.name

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

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
    return Path(os.environ.get("CKPT_GOLDENS") or _SHIPPED)


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


def each(framework: str, which: Callable[[Golden], bool] = lambda golden: True) -> pytest.MarkDecorator:
    """Run a test for every case of a framework that `which` chooses."""
    return pytest.mark.parametrize("golden", [golden for golden in goldens(framework) if which(golden)], ids=str)
