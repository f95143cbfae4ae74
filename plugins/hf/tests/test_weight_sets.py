"""A folder with several sets of weights: one is read, the others are named; where nothing says which, it is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckpt_core import convert, fingerprint
from ckpt_core.api import read_checkpoint
from ckpt_core.checkpoint import Checkpoint, Loss
from ckpt_core.errors import CkptError
from ckpt_core.testing import example, write_ir

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """One file of weights."""
    write_ir(tmp_path / "ir", example("llama"))
    convert(tmp_path / "ir", tmp_path / "single", to="hf")
    (tmp_path / "single" / "ckpt-receipt.json").unlink()
    return tmp_path / "single"


@pytest.fixture
def sharded(single: Path, tmp_path: Path) -> Path:
    """The same model with other values, in shards."""
    held = load_file(single / SINGLE)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((single / "config.json").read_bytes())
    save_file({name: tensor + 1 for name, tensor in held.items()}, other / SINGLE)
    convert(other, tmp_path / "sharded", to="hf", options={"max_shard_size": "20kB"})
    (tmp_path / "sharded" / "ckpt-receipt.json").unlink()
    return tmp_path / "sharded"


def options(**given: str) -> dict[str, dict[str, str]]:
    return {"options": given}


def test_a_single_file_beside_shards_is_refused_and_can_be_chosen(single: Path, sharded: Path) -> None:
    expected = {SINGLE: fingerprint(single), INDEX: fingerprint(sharded)}
    assert len(set(expected.values())) == 2
    (sharded / SINGLE).write_bytes((single / SINGLE).read_bytes())
    with pytest.raises(CkptError) as refusal:
        read_checkpoint(sharded)
    for word in (SINGLE, INDEX, "weight_files="):
        assert word in str(refusal.value)
    for name, value in expected.items():
        assert fingerprint(sharded, **options(weight_files=name)) == value
    taken = read_checkpoint(sharded, **options(weight_files=SINGLE))
    assert any("model-00001-of-" in loss.subject for loss in left(taken))
    given = read_checkpoint(sharded / SINGLE, format="hf")
    assert any("model-00001-of-" in loss.subject for loss in left(given))


def test_an_index_of_the_single_file_is_the_same_set(single: Path) -> None:
    weight_map = dict.fromkeys(load_file(single / SINGLE), SINGLE)
    (single / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert left(read_checkpoint(single)) == []


def left(checkpoint: Checkpoint) -> list[Loss]:
    """What is left of the source but for keys of the config."""
    return [loss for loss in checkpoint.all_losses if not loss.subject.startswith("settings of the run")]


def add_predictors(folder: Path) -> str:
    save_file({"model.layers.2.eh_proj.weight": torch.ones(2, 2)}, folder / "mtp.safetensors")
    return "mtp.safetensors"


def add_stale_shard(folder: Path) -> str:
    save_file(load_file(folder / SINGLE), folder / "model-00001-of-00001.safetensors")
    return "model-00001-of-00001.safetensors"


def add_variant(folder: Path) -> str:
    save_file(load_file(folder / SINGLE), folder / "model.fp16.safetensors")
    return "model.fp16.safetensors"


@pytest.mark.parametrize("add", [add_predictors, add_stale_shard, add_variant])
def test_weights_of_the_model_outside_the_set_are_refused(add: Callable[[Path], str], single: Path) -> None:
    expected, name = fingerprint(single), add(single)
    with pytest.raises(CkptError) as refusal:
        read_checkpoint(single)
    for word in (name, SINGLE, f"weight_files={SINGLE}"):
        assert word in str(refusal.value)
    (loss,) = left(read_checkpoint(single, **options(weight_files=SINGLE)))
    assert loss.kind == "dropped" and name in loss.subject
    assert fingerprint(single, **options(weight_files=SINGLE)) == expected


def test_weights_outside_an_index_can_be_read_too(sharded: Path) -> None:
    name = add_predictors(sharded)
    with pytest.raises(CkptError, match=r"mtp\.safetensors"):
        read_checkpoint(sharded)
    with pytest.raises(CkptError, match="eh_proj"):  # both are read, and a Llama has no such tensor
        read_checkpoint(sharded, **options(weight_files=f"{INDEX},{name}"))
    read_checkpoint(sharded, **options(weight_files=INDEX))


def beside(folder: Path) -> dict[str, str]:
    """What official repositories and trainers leave beside the weights, by why it is left."""
    held = load_file(folder / SINGLE)
    torch.save(held, folder / "pytorch_model.bin")
    torch.save({"state": {}}, folder / "optimizer.pt")
    save_file({"layers.0.attention.wq.weight": torch.ones(2)}, folder / "consolidated.safetensors")
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    (folder / "original").mkdir()
    torch.save(held, folder / "original" / "consolidated.00.pth")
    return {
        "pytorch_model.bin": "weights in another container",
        "optimizer.pt": "optimizer state",
        "consolidated.safetensors": "weights under other names",
        "model-Q4_K_M.gguf": "weights of another format",
        "original/consolidated.00.pth": "weights in a folder of their own",
    }


def test_weights_of_other_containers_and_names_are_named(single: Path, tmp_path: Path) -> None:
    expected, reasons = fingerprint(single), beside(single)
    losses = left(read_checkpoint(single))
    for name, what in reasons.items():
        (loss,) = [loss for loss in losses if name in loss.subject]
        assert loss.kind == "dropped"
        assert loss.subject.startswith(f"{what}, ") and "B: " in loss.subject  # with its size
    assert len(losses) == len(reasons)
    assert fingerprint(single) == expected
    receipt = convert(single, tmp_path / "out", to="hf")
    assert receipt is not None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ckpt-receipt.json", "config.json", SINGLE]


@pytest.mark.parametrize("name", ["../single/model.safetensors", "nothing.safetensors", "original"])
def test_the_option_names_files_of_the_folder_alone(name: str, single: Path) -> None:
    beside(single)
    with pytest.raises(CkptError, match="weight_files"):
        read_checkpoint(single, **options(weight_files=name))
