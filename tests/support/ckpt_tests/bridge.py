"""Runs of Megatron-Bridge that a test has written: what their config says of the model, and the same run with another config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

STEP = "iter_0000000"


def model(run: Path) -> dict[str, Any]:
    """The fields of the model."""
    return yaml.safe_load((run / STEP / "run_config.yaml").read_text())["model"]


def changed(run: Path, **fields: object) -> Path:
    """The run with other fields of the model, and without the receipt, which would say so."""
    path = run / STEP / "run_config.yaml"
    body = yaml.safe_load(path.read_text())
    body["model"] |= fields
    path.write_text(yaml.safe_dump(body))
    (run / "ckpt-receipt.json").unlink()
    return run
