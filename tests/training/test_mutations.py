"""A state of a training that is not whole, or is not of one step, is refused by name; its weights are still converted."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_core import convert
from ckpt_core.errors import CkptError, NotCarried
from ckpt_tests.training import runs

Change = Callable[[dict[str, Any]], object]


def state_of(held: dict[str, Any], number: int) -> dict[str, Any]:
    return held["state"][number]


def exchanged(held: dict[str, Any], one: int, other: int) -> None:
    held["state"][one], held["state"][other] = held["state"][other], held["state"][one]


def transposed(held: dict[str, Any]) -> None:
    state_of(held, 7)["exp_avg"] = state_of(held, 7)["exp_avg"].t().contiguous()


def negative(held: dict[str, Any]) -> None:
    state_of(held, 7)["exp_avg_sq"][3, 4] *= -1


REFUSED: dict[str, tuple[Change, str]] = {
    "a moment is missing": (
        lambda held: state_of(held, 3).pop("exp_avg"),
        r"exp_avg of 'model\.layers\.0\.self_attn\.v_proj\.weight' is missing",
    ),
    "two states are exchanged": (
        lambda held: exchanged(held, 6, 7),
        r"'exp_avg of model\.layers\.0\.mlp\.up_proj\.weight' does not have the shape",
    ),
    "a moment is transposed": (
        transposed,
        r"'exp_avg of model\.layers\.0\.mlp\.down_proj\.weight' does not have the shape",
    ),
    "all are of a later step than the model": (
        lambda held: [state.update(step=torch.tensor(7.0)) for state in held["state"].values()],
        r"the moments are of another step than the model",
    ),
    "the learning rate is not that of the schedule": (
        lambda held: [group.update(lr=0.001) for group in held["param_groups"]],
        r"the schedule and the optimizer are of different steps",
    ),
    "there is a state of no parameter": (
        lambda held: held["state"].update({40: state_of(held, 16)}),
        r"states of no parameter(.|\n)*40",
    ),
    "two parameters have one number": (
        lambda held: held["param_groups"][1].update(params=[16, 17, 18, 19, 19]),
        r"in two groups",
    ),
}

NOT_CARRIED: dict[str, tuple[Change, str]] = {
    "groups of another program": (
        lambda held: held["param_groups"][1]["params"].append(held["param_groups"][0]["params"].pop()),
        "not those of the Trainer",
    ),
    "amsgrad": (lambda held: held["param_groups"][0].update(amsgrad=True), "amsgrad=True"),
    "another optimizer": (lambda held: [group.pop("betas") for group in held["param_groups"]], "is not Adam"),
    "more than Adam keeps": (
        lambda held: state_of(held, 0).update(max_exp_avg_sq=torch.zeros(2)),
        "keeps max_exp_avg_sq of 'model.embed_tokens.weight'",
    ),
}


NOT_CARRIED |= {
    "one parameter is of another step": (
        lambda held: state_of(held, 20).update(step=torch.tensor(5.0)),
        r"made different numbers of steps(.|\n)*'model\.norm\.weight' made 5",
    ),
    "torch's RAdam": (lambda held: [group.pop("amsgrad") for group in held["param_groups"]], "says amsgrad"),
    "moments without correction of bias": (
        lambda held: [group.update(bias_correction=False) for group in held["param_groups"]],
        "bias_correction=False",
    ),
    "Adafactor": (
        lambda held: held.update(state={n: {"step": 6, "RMS": 1.0} for n in held["state"]}),
        "keeps RMS of 'model.embed_tokens.weight', and is not Adam",
    ),
}


def changed(change: Change, folder: Path) -> Path:
    shutil.copytree(runs("hf-trainer")[0].checkpoint, folder)
    held = torch.load(folder / "optimizer.pt", weights_only=True)
    change(held)
    torch.save(held, folder / "optimizer.pt")
    return folder


@pytest.mark.parametrize("name", REFUSED | NOT_CARRIED)
def test_it_is_refused_by_name_where_it_is_asked_for_and_named_where_it_is_not(name: str, tmp_path: Path) -> None:
    change, message = (REFUSED | NOT_CARRIED)[name]
    source = changed(change, tmp_path / "source")
    with pytest.raises(CkptError) as found:
        convert(source, tmp_path / "kept", to="ir", training_state="keep")
    assert re.search(message, str(found.value)), str(found.value)
    assert isinstance(found.value, NotCarried) == (name in NOT_CARRIED)
    assert "training-state drop" in str(found.value) or "copy the files" in str(found.value)
    assert not (tmp_path / "kept").exists()
    receipt = convert(source, tmp_path / "weights", to="ir")
    (loss,) = (loss for loss in receipt.losses if loss["subject"].startswith("optimizer state"))
    assert "training starts anew: " in loss["reason"] and "training" not in receipt.body


def not_a_number(held: dict[str, Any]) -> None:
    negative(held)
    for state in held["state"].values():
        state["exp_avg_sq"][state["exp_avg_sq"] < 0] = float("nan")


@pytest.mark.parametrize("change", [negative, not_a_number])
def test_a_mean_of_squares_that_is_none_is_found_when_it_is_read(change: Change, tmp_path: Path) -> None:
    source = changed(change, tmp_path / "source")
    with pytest.raises(
        CkptError, match=r"optimizer\.exp_avg_sq/layers\.0\.mlp\.down\.weight has values that are not at least 0"
    ):
        convert(source, tmp_path / "out", to="ir")
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "weights", to="ir", training_state="drop")


def test_a_model_that_is_not_of_the_step_is_refused(tmp_path: Path) -> None:
    source = changed(lambda held: None, tmp_path / "source")
    file = source / "trainer_state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"global_step": 5}))
    with pytest.raises(CkptError, match="the moments are of another step than the model"):
        convert(source, tmp_path / "out", to="ir", training_state="keep")


def test_a_rate_that_is_no_number_is_refused(tmp_path: Path) -> None:
    source = changed(lambda held: held["param_groups"][0].update(lr=float("nan")), tmp_path / "source")
    with pytest.raises(CkptError, match="lr of the optimizer is not a number"):
        convert(source, tmp_path / "out", to="ir", training_state="keep")


def test_an_optimizer_of_an_older_step_is_named(tmp_path: Path) -> None:
    source = changed(
        lambda held: [state.update(step=torch.tensor(4.0)) for state in held["state"].values()], tmp_path / "source"
    )
    receipt = convert(source, tmp_path / "out", to="ir", training_state="keep")
    (loss,) = (loss for loss in receipt.losses if loss["subject"].startswith("an optimizer that made"))
    assert loss["subject"] == "an optimizer that made 4 steps, 2 less than the model" and "counts 6" in loss["reason"]


def test_a_schedule_of_a_metric_goes_on_in_the_trainer(tmp_path: Path) -> None:
    """It remembers an infinity, which a receipt can't say, and the best value, which the Trainer needs."""
    source = changed(lambda held: None, tmp_path / "source")
    rates = torch.load(source / "scheduler.pt", weights_only=True)["_last_lr"]
    kept = {"last_epoch": 6, "_last_lr": rates, "best": 4.7, "num_bad_epochs": 2, "mode_worse": float("inf")}
    torch.save(kept, source / "scheduler.pt")
    convert(source, tmp_path / "ir", to="ir", training_state="keep")
    convert(tmp_path / "ir", tmp_path / "hf", to="hf", training_state="keep")
    held = torch.load(tmp_path / "hf" / "scheduler.pt", weights_only=True)
    assert (held["best"], held["num_bad_epochs"], held["last_epoch"], held["_last_lr"]) == (4.7, 2, 6, rates)
    assert "mode_worse" not in held


def test_a_peak_that_the_source_does_not_say_is_named(tmp_path: Path) -> None:
    source = changed(lambda held: [group.pop("initial_lr") for group in held["param_groups"]], tmp_path / "source")
    for target in ("hf", "fsdp", "deepspeed", "nemo2"):
        receipt = convert(source, tmp_path / target, to=target, training_state="keep")
        (loss,) = (loss for loss in receipt.losses if loss["subject"].startswith("peak learning rate"))
        assert "set base_lrs and initial_lr" in loss["reason"]


def test_the_peak_of_a_megatron_without_its_curve_comes_back(tmp_path: Path) -> None:
    source, between = changed(lambda held: None, tmp_path / "source"), tmp_path / "megatron"
    convert(source, between, to="megatron", training_state="keep", options={"global_batch_size": 4})
    receipt = convert(between, tmp_path / "hf", to="hf", training_state="keep")
    assert not [loss for loss in receipt.losses if loss["subject"].startswith("peak learning rate")]
    held, was = (torch.load(folder / "scheduler.pt", weights_only=True) for folder in (tmp_path / "hf", source))
    assert held["base_lrs"] == was["base_lrs"] != was["_last_lr"]


def test_groups_of_two_rates_are_not_megatrons(tmp_path: Path) -> None:
    source = changed(lambda held: held["param_groups"][1].update(lr=0.5), tmp_path / "source")
    (source / "scheduler.pt").unlink()
    with pytest.raises(NotCarried, match="schedule gives all of them one"):
        convert(source, tmp_path / "out", to="megatron", training_state="keep", options={"global_batch_size": 4})


def test_decay_of_gradients_is_refused_or_named(tmp_path: Path) -> None:
    source = changed(
        lambda held: [group.update(decoupled_weight_decay=False) for group in held["param_groups"]], tmp_path / "source"
    )
    with pytest.raises(NotCarried, match="nanotron's adamW decays the weights"):
        convert(source, tmp_path / "nanotron", to="nanotron", training_state="keep")
    for target in ("hf", "fsdp", "deepspeed"):
        receipt = convert(source, tmp_path / target, to=target, training_state="keep")
        assert [loss for loss in receipt.losses if loss["subject"] == "a program that goes on with Adam"]


def test_a_mean_of_gradients_that_is_no_number_is_found(tmp_path: Path) -> None:
    source = changed(lambda held: state_of(held, 7)["exp_avg"][3, 4:5].fill_(float("nan")), tmp_path / "source")
    with pytest.raises(
        CkptError, match=r"optimizer\.exp_avg/layers\.0\.mlp\.down\.weight has values that are no numbers"
    ):
        convert(source, tmp_path / "out", to="ir", training_state="keep")


def test_a_schedule_that_is_missing_is_named(tmp_path: Path) -> None:
    source = changed(lambda held: None, tmp_path / "source")
    (source / "scheduler.pt").unlink()
    receipt = convert(source, tmp_path / "out", to="ir", training_state="keep")
    assert "position of the schedule, of scheduler.pt" in [loss["subject"] for loss in receipt.losses]
