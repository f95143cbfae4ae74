"""What two states of a training say besides their tensors is compared: by `ckpt diff`, and by `ckpt verify` what the optimizer steps with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ckpt_core import convert
from ckpt_core.cli.main import main
from ckpt_tests.training import runs

CHANGED: dict[str, tuple[dict[str, Any], str, bool]] = {
    "step": ({"step": 5}, "step", True),
    "optimizer": ({"optimizer": "adam"}, "optimizer", True),
    "rate": ({"lr": 0.0025000001}, "optimizer of layers.0.mlp.up.weight", True),
    "decay": ({"weight_decay": 0.2}, "optimizer of layers.0.mlp.up.weight", True),
    "peak": ({"initial_lr": 0.006}, "peak learning rate of layers.0.mlp.up.weight", False),
    "iterations": ({"iterations": 7}, "iterations", False),
    "samples": ({"consumed_samples": 25}, "consumed samples", False),
    "tokens": ({"consumed_tokens": 25}, "consumed tokens", False),
    "scale": ({"loss_scale": 2.0}, "loss scale", False),
    "clipping": ({"clip_grad": 0.5}, "where gradients are clipped", False),
    "schedule": ({"position": 5}, "position of the schedule, in steps", False),
}
SAID = {"consumed_samples": 24, "consumed_tokens": 24, "loss_scale": 4.0, "clip_grad": 1.0}


def edited(folder: Path, **said: object) -> None:
    """The state in a folder with other fields: those of a group in its first group, the position in its schedule."""
    file = folder / "training" / "training.json"
    body = json.loads(file.read_text())
    for key, value in said.items():
        where = body if key in body else body["schedule"] if key == "position" else body["groups"][0]
        where[key] = value
    file.write_text(json.dumps(body))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared") / "ir"
    convert(runs("hf-trainer")[0].checkpoint, folder, to="ir", training_state="keep")
    (folder / "ckpt-receipt.json").unlink()
    edited(folder, **SAID)
    return folder


@pytest.mark.parametrize("name", CHANGED)
def test_another_state_is_different(
    name: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, subject, steps_otherwise = CHANGED[name]
    other = shutil.copytree(source, tmp_path / "ir")
    edited(other, **said)
    assert main(["diff", str(source), str(other), "--training-state", "--json"]) == 3
    assert subject in [one["subject"] for one in json.loads(capsys.readouterr().out)["differences"]]
    assert main(["verify", str(source), str(other), "--training-state"]) == (3 if steps_otherwise else 0)


def test_what_one_side_alone_says_is_no_difference(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(source, tmp_path / "ir")
    edited(other, **dict.fromkeys(SAID))
    assert main(["diff", str(source), str(other), "--training-state"]) in (0, None)
    said = "equal: architecture and 21 tensors, and the state of the training with 42 tensors\n"
    assert capsys.readouterr().out == said
