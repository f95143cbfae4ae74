"""Adapters that Megatron-Bridge trained: merged to the tensors of Bridge's own merge, or refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.cli.main import main
from ckpt_core.errors import CkptError
from ckpt_tests import adapters
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.goldens import Golden, beside
from ckpt_tests.models import load, logits_of, weights

CASES = beside("lora", "checkpoint/latest_checkpointed_iteration.txt")
Change = Callable[[dict], object]


@pytest.mark.parametrize("golden", CASES, ids=str)
def test_the_merged_model_is_that_of_bridge(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "hf", to="hf", options={"base": str(golden.folder / "base")})
    assert_same_bits(weights(tmp_path / "hf"), load_file(golden.folder / "full.safetensors"))
    assert golden.off_by(logits_of(load(tmp_path / "hf"), golden.input_ids)) <= 1e-4


def test_a_base_on_several_ranks_gives_the_same_model(tmp_path: Path) -> None:
    golden = CASES[0]
    convert(golden.folder / "base", tmp_path / "base", to="megatron-bridge", tp=2)
    (iteration,) = golden.checkpoint.glob("iter_*")
    of_hf, of_bridge = (
        fingerprint(place, options={"base": str(base)})
        for place, base in ((golden.checkpoint, golden.folder / "base"), (iteration, tmp_path / "base"))
    )
    assert of_hf == of_bridge


REFUSED: dict[str, tuple[Change, tuple[str, ...]]] = {
    "another method": (lambda peft: peft.update(_target_="megatron.bridge.peft.prompt.Prompt"), ("prompt.Prompt", "CanonicalLoRA")),
    "DoRA without magnitudes": (lambda peft: peft.update(_target_="megatron.bridge.peft.dora.DoRA"), ("no magnitude",)),
    "another rank": (lambda peft: peft.update(dim=8), ("the rank of decoder.layers.0", "4", "8")),
    "no rank": (lambda peft: peft.pop("dim"), ("peft.dim",)),
    "no alpha": (lambda peft: peft.pop("alpha"), ("peft.alpha",)),
    "matrices that all experts share": (lambda peft: peft.update(experts_shared_outer_loras=True), ("experts_shared_outer_loras",)),
    "an unknown key": (lambda peft: peft.update(fancy=1), ("peft.fancy",)),
    "a module that is not there": (lambda peft: peft["target_modules"].append("output_layer"), ("target_modules names output_layer",)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(name: str, tmp_path: Path) -> None:
    golden, (change, words) = CASES[0], REFUSED[name]
    shutil.copytree(golden.checkpoint, tmp_path / "run")
    (file,) = (tmp_path / "run").glob("iter_*/run_config.yaml")
    config = yaml.safe_load(file.read_text())
    change(config["peft"])
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(CkptError) as refusal:
        convert(tmp_path / "run", tmp_path / "out", to="hf", options={"base": str(golden.folder / "base")})
    for word in words:
        assert word in str(refusal.value)
    assert_nothing_at(tmp_path / "out")


def test_a_base_of_another_width_is_refused(tmp_path: Path) -> None:
    adapters.base(tmp_path / "base")
    with pytest.raises(CkptError, match="do not fit the base"):
        open_checkpoint(CASES[0].checkpoint, options={"base": str(tmp_path / "base")})


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """The adapter of the golden, saved again by torch with other tensors."""
    shutil.copytree(CASES[0].checkpoint, folder)
    (iteration,) = folder.glob("iter_*")
    metadata = FileSystemReader(iteration).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(one.size) for name, one in metadata.items() if hasattr(one, "size")}
    dcp.load(tensors, checkpoint_id=iteration, no_dist=True)
    change(tensors)
    (iteration / ".metadata").unlink(missing_ok=True)
    dcp.save(tensors, checkpoint_id=iteration, no_dist=True)
    return folder


def test_a_tensor_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    name = "decoder.layers.{}self_attention.linear_proj.adapter.linear_in.weight"
    options = {"base": str(CASES[0].folder / "base")}
    again = {
        "wrapped": lambda t: t.update({f"module.{name.format('')}": t[name.format("")].clone()}),
        "by itself": lambda t: t.update({name.format("1."): t[name.format("")][1].clone()}),
    }
    for number, change in enumerate(again.values()):
        with pytest.raises(CkptError, match=r"layers\.\d\..*linear_proj.*linear_in.* is there twice"):
            open_checkpoint(rewritten(tmp_path / str(number), change), options=options)


def test_the_state_of_a_training_is_left_and_named(tmp_path: Path) -> None:
    """What Bridge saves with `save_optim` and `save_rng`: the optimizer of the adapter, the random states and the common state."""

    def trained(tensors: dict[str, object]) -> None:
        for name in list(tensors):
            for kind in ("exp_avg", "exp_avg_sq", "fp32_param"):
                tensors[f"optimizer.state.{kind}.module.{name}"] = torch.zeros(3)
        tensors["rng_state/shard_0_1"] = {"seed": 1}
        tensors["rerun_state_machine_state/shard_0_1"] = {"step": 1}

    run, options = rewritten(tmp_path / "run", trained), {"base": str(CASES[0].folder / "base")}
    with open_checkpoint(run, options=options) as opened, open_checkpoint(CASES[0].checkpoint, options=options) as bare:
        assert opened.format == "megatron-lora"
        left = {entry.what for entry in opened.checkpoint.ledger if entry.fate == "left"}
        assert {"optimizer state", "fp32 master weights", "states of random generators"} <= left
        assert not any("does not know" in what for what in left)
        name = "layers.1.attention.q.weight"
        assert (opened[name].numpy() == bare[name].numpy()).all()
    (iteration,) = run.glob("iter_*")
    (iteration / "metadata.json").write_text("[]")
    with pytest.raises(CkptError, match=r"metadata\.json"):
        open_checkpoint(run, options=options)


def test_trackers_that_disagree_are_refused(tmp_path: Path) -> None:
    shutil.copytree(CASES[0].checkpoint, tmp_path / "run")
    torch.save({"step": torch.tensor(9)}, tmp_path / "run/latest_train_state.pt")
    with pytest.raises(CkptError, match="disagree"):
        open_checkpoint(tmp_path / "run", format="megatron-lora", options={"base": str(CASES[0].folder / "base")})


def test_an_adapter_of_megatron_swift_is_refused_by_name(tmp_path: Path) -> None:
    name = "decoder.layers.0.self_attention.linear_qkv.lora_A.default.weight"
    run = tmp_path / "run"
    dcp.save({name: torch.zeros(4, 48)}, checkpoint_id=str(run / "iter_0000005"), no_dist=True)
    (run / "latest_checkpointed_iteration.txt").write_text("5")
    (run / "args.json").write_text('{"mcore_model": "base", "lora_rank": 4, "lora_alpha": 8}')
    for path in (run, run / "iter_0000005"):
        with pytest.raises(CkptError, match=r"adapters of Megatron-SWIFT[^\0]*args\.json[^\0]*folder of PEFT"):
            convert(path, tmp_path / "out", to="hf", options={"base": str(CASES[0].folder / "base")})


def test_inspect_explains_it(capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", str(CASES[0].checkpoint)]) == 0
    shown = capsys.readouterr().out
    for word in ("megatron-lora", "linear_qkv", "alpha 6", "4,608", "base_megatron", "-o base=FOLDER"):
        assert word in shown
