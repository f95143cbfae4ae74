"""Names of tensors behind a prefix, or without the one of the class, and state dicts inside a dict: read where all fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckpt_core import convert, fingerprint
from ckpt_core.api import read_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.testing import example, write_ir

Rename = Callable[[str], str]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An HF folder of each kind, as ckpt writes it."""
    folder = tmp_path_factory.mktemp("originals")
    found = {}
    models = {"llama": {}, "llama-tied": {}, "gpt2": {"attention__head_dim": 11}}
    for name, changes in models.items():
        write_ir(folder / f"{name}-ir", example(name, **changes))
        found[name] = folder / name
        convert(folder / f"{name}-ir", found[name], to="hf")
    return found


def renamed(original: Path, folder: Path, rename: Rename) -> Path:
    """The folder with other names of tensors, and no receipt."""
    folder.mkdir()
    (folder / "config.json").write_bytes((original / "config.json").read_bytes())
    tensors = load_file(original / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def bare(name: str) -> str:
    return name.removeprefix("model.").removeprefix("transformer.")


SPELLINGS: dict[str, Rename] = {
    "_orig_mod.": lambda name: f"_orig_mod.{name}",
    "module.": lambda name: f"module.{name}",
    "module._orig_mod.": lambda name: f"module._orig_mod.{name}",
    "_forward_module.": lambda name: f"_forward_module.{name}",
    "base_model.model.": lambda name: f"base_model.model.{name}",
    "model.": lambda name: f"model.{name}",  # of a LightningModule, before names that begin so themselves
    "bare": bare,
    "wrapped and bare": lambda name: f"module.{bare(name)}",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2"])
def test_a_prefix_that_all_names_have_or_lack_is_read(
    name: str, spelling: str, originals: dict[str, Path], tmp_path: Path
) -> None:
    other = renamed(originals[name], tmp_path / "other", SPELLINGS[spelling])
    checkpoint = read_checkpoint(other)
    assert fingerprint(other) == fingerprint(originals[name])
    assert any("names of tensors" in fact for fact in checkpoint.provenance.evidence)
    assert checkpoint.provenance.hints["names"]
    assert "names" not in read_checkpoint(originals[name]).provenance.hints


def but(name: str, rename: Rename) -> Rename:
    """`rename`, but for one name."""
    return lambda one: one if one == name else rename(one)


NORM = "model.layers.0.input_layernorm.weight"


@pytest.mark.parametrize(
    ("rename", "words"),
    [
        (but(NORM, SPELLINGS["module."]), [NORM, "module.model.layers"]),
        (but(NORM, bare), [NORM]),
        (but(NORM, lambda name: f"model.{name}"), [NORM]),
        (lambda name: f"module.{name}".replace("q_proj", "query"), ["module.model.layers.0.self_attn.q_proj.weight"]),
        (lambda name: name.replace("layers.0.", "layers.0._orig_mod."), ["layers.0._orig_mod."]),
    ],
    ids=["one without the prefix", "one with it", "one not wrapped", "one misnamed", "inside the names"],
)
def test_names_that_fit_but_for_some_are_refused_by_name(
    rename: Rename, words: list[str], originals: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CkptError) as refusal:
        read_checkpoint(renamed(originals["llama"], tmp_path / "other", rename))
    for word in words:
        assert word in str(refusal.value)


def test_a_tensor_too_many_behind_a_prefix_is_refused_by_its_name(originals: dict[str, Path], tmp_path: Path) -> None:
    other = renamed(originals["llama"], tmp_path / "other", SPELLINGS["module."])
    held = load_file(other / "model.safetensors")
    save_file(held | {"module.score.weight": torch.ones(2)}, other / "model.safetensors")
    with pytest.raises(CkptError, match=r"module\.score\.weight"):
        read_checkpoint(other)


def in_a_dict(original: Path, folder: Path, wrap: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_bytes((original / "config.json").read_bytes())
    torch.save(wrap(load_file(original / "model.safetensors")), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "module"])
def test_a_state_dict_inside_a_dict_is_read_and_the_rest_is_named(
    wrapper: str, originals: dict[str, Path], tmp_path: Path
) -> None:
    moments = {"state": {0: {"exp_avg": torch.ones(10), "step": 3}}}
    other = in_a_dict(
        originals["llama"],
        tmp_path / "other",
        lambda held: {wrapper: {f"module.{n}": t for n, t in held.items()}, "optimizer": moments, "epoch": 3},
    )
    assert fingerprint(other) == fingerprint(originals["llama"])
    checkpoint = read_checkpoint(other)
    assert checkpoint.provenance.hints["names"] == {"added": "module.", "wrapper": wrapper}
    (loss,) = checkpoint.provenance.losses
    assert loss.kind == "dropped"
    for word in ("pytorch_model.bin", "optimizer", "1 tensor, 40 bytes", "epoch"):
        assert word in loss.subject


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda held: {"model": held, "state_dict": held}, ["state_dict, model"]),
        (lambda held: {"weights": held}, ["weights", "state_dict"]),
        (lambda held: {"state_dict": {**held, "epoch": 3}}, ["epoch"]),
        (lambda held: [held], ["list"]),
    ],
    ids=["two", "another name", "not tensors alone", "a list"],
)
def test_what_is_not_surely_the_weights_is_refused(
    wrap: Callable, words: list[str], originals: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CkptError) as refusal:
        read_checkpoint(in_a_dict(originals["llama"], tmp_path / "other", wrap))
    for word in [*words, "pytorch_model.bin"]:
        assert word in str(refusal.value)
