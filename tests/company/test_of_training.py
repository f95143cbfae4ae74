"""What is of a training among the files beside a model stays behind with it, whatever the formats of source and target."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ckpt_core import convert, open_checkpoint
from ckpt_core.testing import example, write_ir
from ckpt_tests.training import runs

OF_TRAINING = (
    *("trainer_state.json", "random_states_0.pkl", "custom_checkpoint_0.pkl", "latest", "zero_to_fp32.py"),
    *("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_1.pth", "training_args.bin"),
)
COMPANIONS = ("train_results.json", "README.md")


def files_below(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("*") if file.is_file()} if folder.is_dir() else set()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers in which Trainer, accelerate and DeepSpeed saved, without a state that can be read."""
    folder = tmp_path_factory.mktemp("model")
    write_ir(str(folder / "ir"), example("llama", layers=2, hidden=216))
    convert(folder / "ir", folder / "hf", to="hf")
    (folder / "hf" / "ckpt-receipt.json").unlink()
    for name in (*OF_TRAINING, *COMPANIONS):
        (folder / "hf" / name).write_text("{}")
    return folder / "hf"


@pytest.mark.parametrize(
    "format",
    ["hf", "ir", "fsdp", "deepspeed", "nanotron", "nemo", "nemo2", "nxdt", "megatron", "megatron-bridge", "gguf"],
)
def test_no_target_gets_them_and_each_is_named(format: str, model: Path, tmp_path: Path) -> None:
    options = {"tokenizer": "none"} if format == "gguf" else {}
    receipt = convert(model, tmp_path / "out", to=format, options=options, training_state="drop")
    own = {"scheduler.pt"} if format == "nxdt" else set()  # what the target itself has
    assert files_below(tmp_path / "out") & set(OF_TRAINING) <= own
    said = "\n".join(f"{loss['subject']} {loss['reason']}" for loss in receipt.losses)
    assert [name for name in OF_TRAINING if name not in said and not name.startswith("rng_state")] == []


@pytest.mark.parametrize("format", ["ir", "fsdp", "deepspeed", "nanotron", "nxdt", "megatron", "megatron-bridge"])
def test_what_an_older_conversion_carried_goes_no_further(format: str, model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "out", to=format, training_state="drop")
    (companion,) = (file for file in (tmp_path / "out").rglob("*") if file.name == "train_results.json")
    for name in OF_TRAINING[:5]:
        if format != "deepspeed" or name != "latest":  # there it says which step is read
            (companion.parent / name).write_text("{}")
    receipt = convert(tmp_path / "out", tmp_path / "hf", to="hf", training_state="drop")
    assert files_below(tmp_path / "hf") & set(OF_TRAINING) == set()
    assert "train_results.json" in files_below(tmp_path / "hf")
    assert "trainer_state.json" in str(receipt.losses) and "random_states_0.pkl" in str(receipt.losses)


def test_the_account_of_a_run_goes_with_its_state_alone(tmp_path: Path) -> None:
    run, *_ = runs("hf-trainer")
    source = shutil.copytree(run.checkpoint, tmp_path / "run")
    for state, there in ((None, True), ("keep", True), ("drop", False)):
        convert(source, tmp_path / str(state), to="hf", training_state=state)
        found = files_below(tmp_path / str(state))
        assert ({"trainer_state.json", "optimizer.pt", "scheduler.pt"} <= found) is there
        assert ("trainer_state.json" in found) is there
    (source / "optimizer.pt").write_bytes(b"damaged")
    receipt = convert(source, tmp_path / "damaged", to="hf")
    assert "trainer_state.json" not in files_below(tmp_path / "damaged")
    assert "trainer_state.json" in str(receipt.losses)
    (source / "optimizer.pt").unlink()
    convert(source, tmp_path / "log", to="hf")  # without an optimizer it is a log like any other
    assert "trainer_state.json" in files_below(tmp_path / "log")
    with open_checkpoint(source) as found_there:
        assert "trainer_state.json" not in found_there.checkpoint.sidecars
