"""How scripts name what they save, and what lies around it: distributed checkpoints by torch itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.testing import example
from ckpt_core.testing.examples import calm_numbers, write_ir
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.models import weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch.*")
StateDict = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of transformers in its own folder."""
    folder = tmp_path_factory.mktemp("base")
    convert(write_ir(folder / "ir", example("llama", layers=2), values=calm_numbers), folder / "hf", to="hf")
    return folder / "hf"


@pytest.fixture(scope="module")
def state(base: Path) -> StateDict:
    return weights(base)


def optimizer_of(state: StateDict) -> dict[str, Any]:
    return {"state": {name: {"exp_avg": torch.zeros(2), "step": torch.zeros(())} for name in state}}


# fmt: off
PARTS: dict[str, Callable[[StateDict], dict[str, Any]]] = {
    "an application's state, as torch's guide has it": lambda state: {"app": {"model": state, "optim": optimizer_of(state)}},
    "a state with its step and its loader":            lambda state: {"state": {"model": state, "optimizer": optimizer_of(state), "step": 3, "dataloader": {"at": torch.zeros(2)}}, "epoch": 1},
    "an optimizer by a short name":                    lambda state: {"model": state, "opt": optimizer_of(state)},
    "state dicts by long names":                       lambda state: {"state_dict": state, "optim_state": optimizer_of(state)},
}
# fmt: on


@pytest.mark.parametrize("what", PARTS)
def test_the_model_is_found_among_the_parts_of_a_training(
    what: str, base: Path, state: StateDict, tmp_path: Path
) -> None:
    dcp.save(PARTS[what](state), checkpoint_id=str(tmp_path / "run"))
    receipt = convert(tmp_path / "run", tmp_path / "hf", to="hf", config=base)
    assert_same_bits(weights(tmp_path / "hf"), state)
    assert any(loss["subject"].startswith("optimizer state") for loss in receipt.body["losses"])


def wrapped(state: StateDict, wrapper: str) -> StateDict:
    return {name.replace("layers.1.", f"layers.1.{wrapper}."): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_of_single_layers_are_seen_through(wrapper: str, base: Path, state: StateDict, tmp_path: Path) -> None:
    dcp.save({"model": wrapped(state, wrapper)}, checkpoint_id=str(tmp_path / "run"))
    assert fingerprint(tmp_path / "run", config=base) == fingerprint(base)


def test_a_layer_with_and_without_its_wrapper_is_refused(base: Path, state: StateDict, tmp_path: Path) -> None:
    dcp.save({"model": {**state, **wrapped(state, "_orig_mod")}}, checkpoint_id=str(tmp_path / "run"))
    with pytest.raises(CkptError, match="is there twice, within wrappers and without"):
        fingerprint(tmp_path / "run", config=base)


@pytest.fixture
def trainer(base: Path, state: StateDict, tmp_path: Path) -> Path:
    """What accelerate saves, without a config."""
    folder = tmp_path / "output/checkpoint-5"
    dcp.save({"model": state}, checkpoint_id=str(folder / "pytorch_model_fsdp_0"))
    return folder


def test_the_tokenizer_in_the_checkpoint_goes_along_and_before_that_of_the_base(
    trainer: Path, base: Path, tmp_path: Path
) -> None:
    (trainer / "tokenizer.json").write_text('{"trained": true}')
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base/tokenizer.json").write_text("{}")
    for number, path in enumerate((trainer, trainer / "pytorch_model_fsdp_0")):
        convert(path, tmp_path / f"hf{number}", to="hf", config=tmp_path / "base")
        assert (tmp_path / f"hf{number}/tokenizer.json").read_text() == '{"trained": true}'


def test_the_state_of_a_training_is_counted_whole_and_links_are_not_followed(
    trainer: Path, base: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/huge").write_bytes(b"x" * 5000)
    (trainer / "optimizer_0/deep").mkdir(parents=True)
    for name in ("__0_0.distcp", "deep/more"):
        (trainer / "optimizer_0" / name).write_bytes(b"x" * 100)
    (trainer / "optimizer_1").symlink_to(tmp_path / "elsewhere")
    with open_checkpoint(trainer, config=base) as source:
        left = {
            Path(entry.file).name: (entry.bytes, entry.files) for entry in source.checkpoint.ledger if not entry.key
        }
    assert left["optimizer_0"] == (200, 2)
    assert left["optimizer_1"] == (len(str(tmp_path / "elsewhere")), 1)


def test_a_config_in_the_folder_around_is_not_taken(trainer: Path, base: Path) -> None:
    """It may be of any other model: who knows better gives it."""
    shutil.copy(base / "config.json", trainer.parent)
    with pytest.raises(CkptError, match="nothing says what the model is"):
        fingerprint(trainer)
    assert fingerprint(trainer, config=trainer.parent / "config.json") == fingerprint(base)


def test_a_copy_without_its_hidden_metadata_is_known(trainer: Path, base: Path) -> None:
    (trainer / "pytorch_model_fsdp_0/.metadata").unlink()
    for path in (trainer, trainer / "pytorch_model_fsdp_0"):
        with pytest.raises(CkptError, match="a file of the checkpoint is missing") as caught:
            fingerprint(path, config=base)
        assert str(caught.value.file).endswith(".metadata")


def test_of_several_models_the_named_one_is_read(base: Path, state: StateDict, tmp_path: Path) -> None:
    run = tmp_path / "run"
    dcp.save({"model": state, "ema": {name: tensor / 2 for name, tensor in state.items()}}, checkpoint_id=str(run))
    with pytest.raises(CkptError, match="several models") as refused:
        convert(run, tmp_path / "refused", to="hf", config=base)
    assert "'ema.'" in str(refused.value) and "'model.'" in str(refused.value) and "-o prefix" in str(refused.value)
    receipt = convert(run, tmp_path / "hf", to="hf", config=base, options={"prefix": "ema."})
    assert_same_bits(weights(tmp_path / "hf"), {name: tensor / 2 for name, tensor in state.items()})
    assert any("model.lm_head.weight" in str(loss) for loss in receipt.body["losses"])
    with pytest.raises(CkptError, match="no tensor has a name that begins with 'no'"):
        convert(run, tmp_path / "none", to="hf", config=base, options={"prefix": "no"})
