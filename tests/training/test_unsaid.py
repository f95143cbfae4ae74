"""What a target does not say of a training is named, and nothing else is: the state that comes back differs in these things alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ckpt_core import convert
from ckpt_core.api import read_checkpoint
from ckpt_core.training import Training
from ckpt_tests.training import runs

SOURCE = runs("hf-trainer")[0].checkpoint
SAYS = {
    "iterations": 9,
    "skipped_steps": 3,
    "consumed_samples": 36,
    "consumed_tokens": 1000,
    "loss_scale": 65536.0,
    "clip_grad": 0.7,
}
NAMED = {
    "iterations": "iterations, of which",
    "consumed_samples": "consumed samples",
    "consumed_tokens": "consumed tokens",
    "loss_scale": "loss scale",
    "clip_grad": "gradients that are clipped at 0.7",
    "schedule": "a schedule of the learning rate",
}
TARGETS: dict[str, tuple[str, dict[str, object]]] = {
    "ir": ("ir", {}),
    "hf": ("hf", {}),
    "fsdp": ("fsdp", {"layout": "accelerate"}),
    "deepspeed": ("deepspeed", {}),
    "megatron": ("megatron", {"container": "torch"}),
    "torch_dist": ("megatron", {"container": "torch_dist"}),
    "bridge": ("megatron-bridge", {}),
    "nanotron": ("nanotron", {"target": "0.4"}),
    "main": ("nanotron", {"target": "main"}),
    "nemo": ("nemo", {"container": "ckpt"}),
    "nemo2": ("nemo2", {}),
    "nxdt": ("nxdt", {}),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state in which every counter and number is known, and differs from the others; its schedule stands elsewhere than its steps."""
    folder = tmp_path_factory.mktemp("source") / "ir"
    convert(SOURCE, folder, to="ir", training_state="keep")
    file = folder / "training" / "training.json"
    body = json.loads(file.read_text()) | SAYS
    body["schedule"]["position"] = 5
    file.write_text(json.dumps(body))
    return folder


def said(training: Training) -> dict[str, object]:
    schedule = training.schedule
    counted = {"iterations": training.iterations or training.step, "schedule": (schedule.position, schedule.unit)}
    return {name: getattr(training, name) for name in NAMED if name not in counted} | counted


@pytest.mark.parametrize("name", TARGETS)
def test_what_does_not_come_back_is_named(name: str, source: Path, tmp_path: Path) -> None:
    to, options = TARGETS[name]
    receipt = convert(source, tmp_path / "out", to=to, options=options, training_state="keep")
    config = SOURCE / "config.json" if to in ("fsdp", "deepspeed", "nxdt") else None
    before, after = (
        read_checkpoint(path, config=given, training_state="keep").training
        for path, given in ((source, None), (tmp_path / "out", config))
    )
    assert before is not None and after is not None
    lost = {key for key, value in said(before).items() if said(after)[key] != value}
    subjects = [loss["subject"] for loss in receipt.losses]
    assert lost == {key for key, words in NAMED.items() if any(words in subject for subject in subjects)}, subjects


def test_an_account_of_another_step_is_not_carried_along(tmp_path: Path) -> None:
    """A run of Megatron's that began with a converted model has the Trainer's account of that model among the files of its tokenizer."""
    convert(SOURCE, tmp_path / "run", to="megatron", options={"global_batch_size": 4}, training_state="keep")
    (stale,) = (tmp_path / "run").rglob("trainer_state.json")
    stale.write_text(json.dumps(json.loads(stale.read_text()) | {"global_step": 2}))
    receipt = convert(tmp_path / "run", tmp_path / "hf", to="hf", training_state="keep")
    assert json.loads((tmp_path / "hf" / "trainer_state.json").read_text())["global_step"] == 6
    assert "trainer_state.json beside the model" in [loss["subject"] for loss in receipt.losses]
    shutil.rmtree(tmp_path / "hf")
    convert(SOURCE, tmp_path / "hf", to="hf", training_state="keep")
    own, theirs = (json.loads((folder / "trainer_state.json").read_text()) for folder in (tmp_path / "hf", SOURCE))
    assert own == theirs and own["log_history"]


def test_nanotron_says_where_it_clips_and_that_it_does_not(tmp_path: Path) -> None:
    for clip, written in ((0.0, "clip_grad: null"), (0.25, "clip_grad: 0.25"), (None, "clip_grad: 1.0")):
        source = tmp_path / f"ir {clip}"
        convert(SOURCE, source, to="ir", training_state="keep")
        file = source / "training" / "training.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"clip_grad": clip}))
        receipt = convert(source, tmp_path / f"run {clip}", to="nanotron", training_state="keep")
        (config,) = (tmp_path / f"run {clip}").glob("*/config.yaml")
        assert written in config.read_text()
        back = read_checkpoint(tmp_path / f"run {clip}", training_state="keep").training
        assert back is not None and back.clip_grad == (1.0 if clip is None else clip)
        named = [loss for loss in receipt.losses if loss["subject"] == "gradients that are clipped at 1"]
        assert len(named) == (clip is None)
