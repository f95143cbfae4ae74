"""The loaders of torch and of transformers take what is written: the optimizer, the schedule and the Trainer's account of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerState

from ckpt_core import convert
from ckpt_tests.training import Run, runs

RUN = runs("hf-trainer")[0]


def stepped(model: PreTrainedModel) -> torch.optim.AdamW:
    """An optimizer of torch with the groups of the run, before its first step."""
    no_decay = set(RUN.training["no_decay"])
    named = dict(model.named_parameters())
    groups = [
        {"params": [value for name, value in named.items() if name not in no_decay], "weight_decay": 0.3},
        {"params": [value for name, value in named.items() if name in no_decay], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1.0)


def assert_is_of(run: Run, model: PreTrainedModel, optimizer: torch.optim.AdamW) -> None:
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        assert torch.equal(parameter.data, run.expected["weights"][name]), name
        assert torch.equal(state["exp_avg"], run.expected["exp_avg"][name]), name
        assert torch.equal(state["exp_avg_sq"], run.expected["exp_avg_sq"][name]), name
        assert float(state["step"]) == run.training["step"]
    rates = {group["lr"] for group in optimizer.param_groups}
    assert rates == {run.training["next_lr"][0]}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [run.training["weight_decay"], 0.0]


def test_the_folder_of_a_trainer(tmp_path: Path) -> None:
    convert(RUN.checkpoint, tmp_path / "ir", to="ir")
    (tmp_path / "ir" / "sidecars" / "trainer_state.json").unlink()  # as of a run of another framework
    convert(tmp_path / "ir", tmp_path / "hf", to="hf", training_state="keep")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    optimizer = stepped(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 1.0] * 2)
    optimizer.load_state_dict(torch.load(tmp_path / "hf" / "optimizer.pt", weights_only=True))
    schedule.load_state_dict(torch.load(tmp_path / "hf" / "scheduler.pt", weights_only=True))
    assert_is_of(RUN, model, optimizer)
    assert (schedule.last_epoch, schedule.base_lrs) == (6, [0.005, 0.005])
    assert TrainerState.load_from_json(str(tmp_path / "hf" / "trainer_state.json")).global_step == 6


@pytest.mark.parametrize("layout", ["nested", "accelerate"])
def test_a_distributed_checkpoint(layout: str, tmp_path: Path) -> None:
    convert(RUN.checkpoint, tmp_path / "fsdp", to="fsdp", options={"layout": layout}, training_state="keep")
    convert(RUN.checkpoint, tmp_path / "hf", to="hf", training_state="drop")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    optimizer = stepped(model)
    for group in optimizer.param_groups:
        group["initial_lr"] = 1.0
    weights, state = get_state_dict(model, optimizer)
    folders = {"model": tmp_path / "fsdp", "optimizer": tmp_path / "fsdp"}
    if layout == "accelerate":
        folders = {"model": tmp_path / "fsdp" / "pytorch_model_fsdp_0", "optimizer": tmp_path / "fsdp" / "optimizer_0"}
    held: dict[str, Any] = {"model": weights, "optimizer": state}
    for key, folder in folders.items():
        dcp.load({key: held[key]}, checkpoint_id=folder, no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"])
    assert_is_of(RUN, model, optimizer)
