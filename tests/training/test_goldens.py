"""The state of a training as frameworks saved it: to what they had in memory, bit for bit, and on from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ckpt_core import convert, open_checkpoint
from ckpt_core.cli.main import main
from ckpt_core.errors import NotCarried
from ckpt_core.training import EXP_AVG, EXP_AVG_SQ, MASTER
from ckpt_tests.training import KINDS, Run, State, judged, loaded, runs

CARRIED = ("hf-trainer", "fsdp2-dcp", "deepspeed", "megatron", "nanotron")
each = pytest.mark.parametrize("run", runs(*CARRIED), ids=str)


def assert_same(found: State, expected: State) -> None:
    for kind in KINDS:
        assert found[kind].keys() == expected[kind].keys()
        assert [name for name, value in expected[kind].items() if not torch.equal(found[kind][name], value)] == [], kind


@each
def test_it_is_what_was_in_memory_and_goes_on(run: Run, tmp_path: Path) -> None:
    convert(run.checkpoint, tmp_path / "hf", to="hf", config=run.config_in(tmp_path), training_state="keep")
    state = loaded(run, tmp_path / "hf")
    assert_same(state, run.expected)
    assert judged(run, state, tmp_path) in (True, None)


@each
@pytest.mark.parametrize("way", ["ir", "fsdp nested", "fsdp accelerate"])
def test_it_is_the_same_on_every_way(run: Run, way: str, tmp_path: Path) -> None:
    to, _, layout = way.partition(" ")
    options = {"layout": layout} if layout else {}
    config = run.config_in(tmp_path)
    one = convert(run.checkpoint, tmp_path / "between", to=to, options=options, config=config, training_state="keep")
    two = convert(tmp_path / "between", tmp_path / "hf", to="hf", training_state="keep")
    assert_same(loaded(run, tmp_path / "hf"), run.expected)
    if run.golden.case["framework"] != "megatron":  # where masters lie beside the weights, and rows are padding
        assert one.body["training"]["fingerprint"] == two.body["training"]["fingerprint"]
    state, samples = two.body["training"]["state"], run.golden.case["framework"] == "megatron"
    position = run.training["step"] * (run.training["sequences_per_step"] if samples and way == "ir" else 1)
    assert (state["step"], state["schedule"]["position"]) == (run.training["step"], position)
    assert state["schedule"]["next_lr"] == pytest.approx(run.training["next_lr"][0], rel=1e-12)
    decayed = run.training["weight_decay"]
    norms = decayed if run.golden.case["framework"] == "nanotron" else 0.0  # it decays all alike
    assert [group["weight_decay"] for group in state["groups"]] == [decayed, norms]
    assert (state["groups"][0]["betas"], state["groups"][0]["eps"]) == (run.training["betas"], run.training["eps"])


@each
def test_the_canonical_names_have_it(run: Run, tmp_path: Path) -> None:
    with open_checkpoint(run.checkpoint, config=run.config_in(tmp_path), training_state="keep") as source:
        assert source.training is not None and source.training.frozen == ()
        for kind in KINDS:
            name = MASTER if kind == "weights" else EXP_AVG if kind == EXP_AVG else EXP_AVG_SQ
            moment = source.moment(name, "layers.1.mlp.gate.weight")
            if name != MASTER or source.training.own_masters:
                assert moment.name == f"optimizer.{name}/layers.1.mlp.gate.weight"
            assert torch.equal(
                torch.from_numpy(moment.numpy()), run.expected[kind]["model.layers.1.mlp.gate_proj.weight"]
            )


@each
def test_without_it_nothing_is_written_but_the_weights(run: Run, tmp_path: Path) -> None:
    config = run.config_in(tmp_path)
    receipt = convert(run.checkpoint, tmp_path / "hf", to="hf", config=config, training_state="drop")
    assert "training" not in receipt.body and not (tmp_path / "hf" / "optimizer.pt").exists()
    assert any(loss["subject"].startswith("optimizer state") for loss in receipt.losses)


def test_a_target_that_does_not_carry_it_says_so(tmp_path: Path) -> None:
    run = runs("hf-trainer")[0]
    receipt = convert(run.checkpoint, tmp_path / "titan", to="torchtitan")
    assert any(loss["subject"].startswith("optimizer state") for loss in receipt.losses)
    with pytest.raises(NotCarried, match="format torchtitan does not take the state of a training along yet"):
        convert(run.checkpoint, tmp_path / "kept", to="torchtitan", training_state="keep")
    json.dumps(receipt.body)


def test_the_commands_speak_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, copy = str(runs("hf-trainer")[0].checkpoint), str(tmp_path / "ir")

    def said(*arguments: str) -> str:
        assert main([*arguments]) in (0, None)
        return capsys.readouterr().out

    assert "adamw after 6 steps, next learning rate 0.0025" in said("inspect", source)
    assert json.loads(said("inspect", source, "--json"))["training"]["tensors"] == 42
    assert "kept: adamw after 6 steps, 42 tensors" in said("convert", source, copy, "--to", "ir", "--dry-run")
    assert "training   " not in said("convert", source, copy, "--to", "ir", "--dry-run", "--training-state", "drop")
    assert "set the data loader to skip" in said("convert", source, copy, "--to", "ir")
    assert "63 equal" in said("verify", source, copy)
    one, two = (said("fingerprint", path, "--training-state").split()[0] for path in (source, copy))
    assert one == two != said("fingerprint", source).split()[0]
    assert said("diff", source, copy, "--training-state").startswith("equal")
    body = json.loads((tmp_path / "ir" / "training" / "training.json").read_text())
    body["groups"][0]["weight_decay"] = 0.2
    (tmp_path / "ir" / "training" / "training.json").write_text(json.dumps(body))
    assert main(["diff", source, copy, "--training-state"]) == 3
    assert "optimizer of layers.0.mlp.up.weight" in capsys.readouterr().out
    assert main(["diff", source, copy]) == 0
