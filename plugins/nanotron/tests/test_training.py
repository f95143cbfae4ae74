"""The optimizer of a run in nanotron's files: as nanotron itself saves it, in other layouts, and refused by name where it is not whole."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ckpt_core import convert, open_checkpoint
from ckpt_core.api import launch_of
from ckpt_core.errors import CkptError
from ckpt_core.training import KINDS
from ckpt_nanotron.write_optimizer import Ranks, registered
from ckpt_tests.goldens import goldens
from ckpt_tests.training import KINDS as OF_JUDGE
from ckpt_tests.training import Run, judged, loaded, runs

ZERO1 = "nanotron-zero1-fp32-tp2-dp2"


def run_of(name: str) -> Run:
    return next((run for run in runs("nanotron", "megatron", "deepspeed") if str(run) == name), None) or pytest.skip(
        f"{name} is not here"
    )


def files_of(step: Path) -> dict[str, Any]:
    return {
        path.name: torch.load(path, weights_only=True)
        for path in sorted(step.glob("*/*.pt"))
        if path.parent.name != "random"
    }


def test_it_is_written_as_nanotron_saves_it(tmp_path: Path) -> None:
    """A run of release 0.4 with ZeRO-1, in its own layout again: every file of it has the same values in the same order."""
    source = run_of(ZERO1).checkpoint
    convert(source, tmp_path / "run", to="nanotron", tp=2, options={"zero": "1", "dp": "2"}, training_state="keep")
    (step,) = (path.parent for path in (tmp_path / "run").glob("*/config.yaml"))
    theirs, ours = files_of(source / "5"), files_of(step)
    assert theirs.keys() == ours.keys() and step.name == "5" == (tmp_path / "run" / "latest.txt").read_text()
    for name, held in theirs.items():
        if name == "lr_scheduler.pt":
            assert ours[name] == held
            continue
        assert list(ours[name]) == list(held) and list(ours[name]["names"].items()) == list(held["names"].items())
        inert = {"fused": None, "foreach": None}
        assert [body | inert for body in ours[name]["param_groups"]] == [body | inert for body in held["param_groups"]]
        assert ours[name]["state"].keys() == held["state"].keys()
        for number, state in held["state"].items():
            assert all(torch.equal(ours[name]["state"][number][key], value) for key, value in state.items())
    for name in ("optimizer/optimizer_config.json", "checkpoint_metadata.json"):
        assert json.loads((step / name).read_text()) == json.loads((source / "5" / name).read_text()), name
    said, expected = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (step, source / "5"))
    for section, keys in {
        "optimizer": ["adam_beta1", "adam_beta2", "adam_eps", "learning_rate_scheduler", "weight_decay", "zero_stage", "accumulate_grad_in_fp32"],
        "general": ["step", "consumed_train_samples"],
        "parallelism": ["dp", "tp", "pp"],
    }.items():  # fmt: skip
        assert {key: said[section][key] for key in keys} == {key: expected[section][key] for key in keys}
    assert said["checkpoints"]["resume_checkpoint_path"] == str(tmp_path / "run")
    assert said["tokens"]["train_steps"] > 5


@pytest.mark.parametrize(
    ("name", "tp", "pp", "options"),
    [
        ("megatron-distopt-fp32-tp2-dp2-torch", 2, 2, {"zero": "1", "dp": "3", "target": "0.4"}),
        ("megatron-bf16-tp2-pp2-tied-torch", 2, 2, {"zero": "0", "dp": "2", "target": "0.4"}),
        ("megatron-bf16-tp2-pp2-tied-torch", 1, 2, {"zero": "1", "dp": "3"}),
    ],
)
def test_it_goes_through_nanotron(name: str, tp: int, pp: int, options: dict[str, str], tmp_path: Path) -> None:
    run = run_of(name)
    convert(run.checkpoint, tmp_path / "run", to="nanotron", tp=tp, pp=pp, options=options, training_state="keep")
    back = convert(tmp_path / "run", tmp_path / "hf", to="hf", training_state="keep")
    state = loaded(run, tmp_path / "hf")
    for kind in OF_JUDGE:
        assert [key for key, value in run.expected[kind].items() if not torch.equal(state[kind][key], value)] == []
    decays = {group["weight_decay"] for group in back.body["training"]["state"]["groups"]}
    assert decays == ({0.1} if "target" in options else {0.1, 0.0})  # main has a group for each parameter
    if "target" in options and options["zero"] == "1":
        assert judged(run, state, tmp_path) in (True, None)


def test_masters_lie_beside_narrower_weights(tmp_path: Path) -> None:
    """fp32 weights are what nanotron steps; with `--dtype bf16` they become masters, and the weights are those rounded."""
    source = run_of(ZERO1).checkpoint
    convert(source, tmp_path / "fp32", to="nanotron", training_state="keep")
    convert(
        source, tmp_path / "bf16", to="nanotron", dtype="bf16", options={"zero": "1", "dp": "3"}, training_state="keep"
    )
    with (
        open_checkpoint(tmp_path / "fp32", training_state="keep") as one,
        open_checkpoint(tmp_path / "bf16", training_state="keep") as two,
    ):
        assert one.training is not None and two.training is not None
        assert (one.training.own_masters, two.training.own_masters) == (False, True)
        name = "layers.1.attention.q.weight"
        for kind in KINDS:
            assert (one.moment(kind, name).numpy() == two.moment(kind, name).numpy()).all()
        rounded = torch.from_numpy(one[name].numpy()).bfloat16().float()
        assert torch.equal(torch.from_numpy(two[name].numpy()), rounded)


def test_a_run_of_main_has_masters_and_a_group_for_each_parameter(tmp_path: Path) -> None:
    source = next(one for one in goldens("nanotron") if str(one) == "main_llama_tp2_pp2_optim").checkpoint
    convert(source, tmp_path / "run", to="nanotron", tp=2, pp=2, training_state="keep")
    theirs, ours = files_of(source / "2"), files_of(tmp_path / "run" / "2")
    assert theirs.keys() == ours.keys()
    for name, held in theirs.items():
        if name.startswith("lr_scheduler"):
            assert ours[name] == held
            continue
        assert list(ours[name]["names"].items()) == list(held["names"].items())
        assert [body["params"] for body in ours[name]["param_groups"]] == [
            body["params"] for body in held["param_groups"]
        ]
        accumulator = held["gradient_accumulator"]
        assert list(ours[name]["gradient_accumulator"]) == list(accumulator)
        assert all(torch.equal(ours[name]["gradient_accumulator"][key], value) for key, value in accumulator.items())


@pytest.mark.parametrize(("run", "release"), [("main_llama_tp2_pp2_optim", "main"), (ZERO1, "0.4")])
def test_a_launch_speaks_of_its_own_release(run: str, release: str) -> None:
    source = next((one.checkpoint for one in goldens("nanotron") if str(one) == run), None) or run_of(run).checkpoint
    launch = launch_of(source)
    assert launch.framework == f"nanotron {release}" and any("goes on where" in note for note in launch.notes)
    assert any("Release 0.4" in note for note in launch.notes) == (release == "0.4")


@pytest.mark.parametrize(("elements", "dp"), [(7, 3), (8, 3), (9, 3), (2, 3), (1, 4), (1024, 1), (10, 4)])
def test_ranges_are_those_of_zero(elements: int, dp: int) -> None:
    """The rule of `_partition_parameters`: sizes rounded up, the last ones shorter by one."""
    found = Ranks(1, 1, dp, 1).ranges(elements)
    sizes = [stop - start for start, stop in found.values()]
    assert sum(sizes) == elements and sizes == sorted(sizes, reverse=True) and max(sizes) - min(sizes) <= 1
    assert [start for start, _ in found.values()] == [sum(sizes[:n]) for n in range(len(sizes))]


def test_the_ranges_of_other_stages_follow_the_rule(tmp_path: Path) -> None:
    """Nanotron's global rank 0 writes optimizer_config.json, and knows the parameters of its own stage alone."""
    run = run_of("megatron-bf16-tp2-pp2-tied-torch")
    options = {"target": "0.4", "zero": "1", "dp": "3"}
    convert(run.checkpoint, tmp_path / "run", to="nanotron", tp=2, pp=2, options=options, training_state="keep")
    file = tmp_path / "run" / "6" / "optimizer" / "optimizer_config.json"
    body = json.loads(file.read_text())
    for section in body["configs"].values():
        for name in [name for name in section if "decoder.0" not in name]:
            del section[name]
    file.write_text(json.dumps(body))
    convert(tmp_path / "run", tmp_path / "hf", to="hf", training_state="keep")
    state = loaded(run, tmp_path / "hf")
    for kind in OF_JUDGE:
        assert [key for key, value in run.expected[kind].items() if not torch.equal(state[kind][key], value)] == []


def test_the_order_is_that_of_registration() -> None:
    held = torch.load(next((run_of(ZERO1).checkpoint / "5" / "optimizer").glob("*dp-0*tp-0*.pt")), weights_only=True)[
        "names"
    ]
    tables = sorted(held.values(), key=lambda name: ".decoder." in name)  # the tables have the layers last
    assert tables != list(held.values()) == registered(tables)


# --- files that are not whole ----------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], object]
NAME = "model.decoder.1.pp_block.mlp.gate_up_proj.weight"


def number_of(held: dict[str, Any], name: str = NAME) -> int:
    return next(number for number, one in held["names"].items() if one == name)


def state_of(held: dict[str, Any], name: str = NAME) -> dict[str, Any]:
    return held["state"][number_of(held, name)]


def exchanged(held: dict[str, Any]) -> None:
    one, other = number_of(held), number_of(held, "model.decoder.1.pp_block.mlp.down_proj.weight")
    held["state"][one], held["state"][other] = held["state"][other], held["state"][one]


REFUSED: dict[str, tuple[dict[str, str], Change, str]] = {
    "a moment is missing": ({}, lambda held: state_of(held).pop("exp_avg"), f"exp_avg of '{re.escape(NAME)}' is missing"),
    "a parameter has no state": (
        {},
        lambda held: held["state"].pop(number_of(held)),
        f"exp_avg of '{re.escape(NAME)}' is missing",
    ),
    "two states are exchanged": ({}, exchanged, r"exp_avg of .*(gate_up|down)_proj"),
    "a moment is transposed": (
        {},
        lambda held: state_of(held).update(exp_avg=state_of(held)["exp_avg"].t().contiguous()),
        r"exp_avg of .*gate_up_proj",
    ),
    "one parameter is of another step": (
        {},
        lambda held: state_of(held).update(step=torch.tensor(4.0)),
        r"the moments are of different steps",
    ),
    "all are of a later step than the model": (
        {},
        lambda held: [state.update(step=torch.tensor(6.0)) for state in held["state"].values()],
        "the moments are of another step than the model",
    ),
    "a range is not the one that the config says": (
        {"zero": "1", "dp": "2"},
        lambda held: state_of(held).update(exp_avg_sq=state_of(held)["exp_avg_sq"][:-1].clone()),
        "is not the range that optimizer_config.json says",
    ),
    "a master is missing": (
        {"dtype": "bf16"},
        lambda held: held["gradient_accumulator"].pop(NAME),
        r"master of .*gate_up_proj",
    ),
    "two rows of a master are exchanged": (
        {"dtype": "bf16"},
        lambda held: held["gradient_accumulator"].update({NAME: held["gradient_accumulator"][NAME].roll(1, 0)}),
        "does not round to",
    ),
    "a mean of squares is negative": (
        {},
        lambda held: state_of(held)["exp_avg_sq"].view(-1)[5].mul_(-1),
        r"optimizer\.exp_avg_sq/layers\.1\.mlp\.(gate|up)\.weight has values that are not at least 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(name: str, tmp_path: Path) -> None:
    options, change, message = REFUSED[name]
    dtype = options.get("dtype", "keep")
    options = {key: value for key, value in options.items() if key != "dtype"}
    convert(
        run_of(ZERO1).checkpoint, tmp_path / "run", to="nanotron", dtype=dtype, options=options, training_state="keep"
    )
    path = next((tmp_path / "run" / "5" / "optimizer").glob("*.pt"))
    held = torch.load(path, weights_only=True)
    change(held)
    torch.save(held, path)
    with pytest.raises(CkptError) as found:
        convert(tmp_path / "run", tmp_path / "kept", to="ir", training_state="keep")
    assert re.search(message, str(found.value)), str(found.value)
    assert not (tmp_path / "kept").exists()
    convert(tmp_path / "run", tmp_path / "weights", to="ir", training_state="drop")


def test_moments_that_are_behind_the_weights_are_named(tmp_path: Path) -> None:
    source = tmp_path / "run"
    shutil.copytree(run_of(ZERO1).checkpoint, source)
    file = source / "5" / "checkpoint_metadata.json"
    body = json.loads(file.read_text())
    body["metas"]["last_train_step"] = 6
    file.write_text(json.dumps(body))
    receipt = convert(source, tmp_path / "out", to="ir", training_state="keep")
    assert "an optimizer that made 5 steps, 1 less than the model" in [loss["subject"] for loss in receipt.losses]


def test_a_parameter_without_a_name_and_a_state_is_frozen_and_said_to_be(tmp_path: Path) -> None:
    """Torch keeps nothing of a parameter that never had a gradient."""
    convert(run_of(ZERO1).checkpoint, tmp_path / "run", to="nanotron", training_state="keep")
    path = next((tmp_path / "run" / "5" / "optimizer").glob("*.pt"))
    held = torch.load(path, weights_only=True)
    number = number_of(held)
    del held["state"][number], held["names"][number]
    torch.save(held, path)
    receipt = convert(tmp_path / "run", tmp_path / "ir", to="ir", training_state="keep")
    assert receipt.body["training"]["state"]["frozen"] == ["layers.1.mlp.gate.weight", "layers.1.mlp.up.weight"]
