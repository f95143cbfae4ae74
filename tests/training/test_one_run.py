"""The files of a run are of one step and of one optimizer, which is Adam: what says otherwise in a single file is refused by its name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_core import convert, open_checkpoint
from ckpt_core.api import read_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.training import ADAM
from ckpt_tests import deepspeed
from ckpt_tests.training import runs

MADE: dict[str, tuple[str, dict[str, int], dict[str, object]]] = {
    "plain": ("megatron", {"tp": 2, "pp": 2}, {"container": "torch", "adam": "torch", "names": "local"}),
    "flat": ("megatron", {"tp": 2}, {"container": "torch", "optimizer": "distributed"}),
    "dist": ("megatron", {"tp": 2}, {"container": "torch_dist"}),
    "nanotron": ("nanotron", {"tp": 2}, {"zero": "1", "dp": "2", "target": "0.4"}),
    "main": ("nanotron", {"tp": 2}, {"target": "main"}),
    "trainer": ("hf", {}, {}),
}
MORE = {"global_batch_size": 4}
LAST = {
    "plain": "mp_rank_01_001/model_optim_rng.pt",
    "flat": "mp_rank_01/model_optim_rng.pt",
    "dist": "common.pt",
    "nanotron": "optimizer_pp-0-of-1_dp-1-of-2_tp-1-of-2_exp-0-of-1.pt",
    "main": "lr_scheduler_pp-0-of-1_tp-1-of-2_exp-0-of-1.pt",
    "trainer": "optimizer.pt",
}
Change = Callable[[Any], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where a format's files of the Trainer's run lie; each is written once."""
    folder = tmp_path_factory.mktemp("made")

    def of(name: str) -> Path:
        to, ranks, options = MADE[name]
        if not (folder / name).exists():
            more = MORE if to == "megatron" else {}
            source = runs("hf-trainer")[0].checkpoint
            convert(source, folder / name, to=to, options=options | more, training_state="keep", **ranks)
        return folder / name

    return of


def groups_in(held: dict[str, Any]) -> list[dict[str, Any]]:
    held = held.get("optimizer", held)
    return held.get("optimizer", held)["param_groups"]


def with_groups(**said: object) -> Change:
    return lambda held: [body.update(said) for body in groups_in(held)]


def with_args(**said: object) -> Change:
    return lambda held: [setattr(held["args"], key, value) for key, value in said.items()]


def with_a_rate_of_its_own(held: dict[str, Any]) -> None:
    """As --decoupled-lr of Megatron: the embeddings are in a group that weight decay does not tell from the first."""
    bodies = groups_in(held)
    bodies.insert(1, bodies[0] | {"lr": 1e-4, "max_lr": 2e-4})


REFUSED: dict[str, tuple[str, Change, str]] = {
    "a learning rate": ("plain", with_groups(lr=0.001), r"lr 0\.001 of group 0(.|\n)*mp_rank_00_000"),
    "betas": ("flat", with_groups(betas=(0.5, 0.6)), r"the ranks have other groups(.|\n)*betas \(0\.5, 0\.6\)"),
    "where the schedule stands": (
        "plain",
        lambda held: held["opt_param_scheduler"].update(num_steps=20),
        r"the ranks are of different steps(.|\n)*num_steps 20",
    ),
    "the place in the data": ("plain", with_args(consumed_train_samples=20), "consumed_train_samples 20"),
    "a step of a parameter": (
        "plain",
        lambda held: held["optimizer"]["state"][1].pop("step"),
        "the step of '.*' is missing",
    ),
    "groups that decay does not tell apart": ("dist", with_a_rate_of_its_own, "another max_lr each|another lr each"),
    "another optimizer of Megatron": ("dist", with_args(optimizer="muon"), "args.optimizer 'muon'"),
    "a rank of nanotron": ("nanotron", with_groups(lr=0.001), "ranks step '.*' otherwise than each other"),
    "a moment of no group": (
        "nanotron",
        lambda held: held["param_groups"][0]["params"].remove(3),
        "the moments of '.*' are of no group",
    ),
    "a schedule of another step": ("main", lambda held: held.update(last_epoch=4), "of different steps(.|\n)*last_epoch 4"),
    "a schedule of another rate": ("main", lambda held: held.update(_last_lr=[0.1]), r"learning rates \[0\.1\]"),
    "LAMB": ("trainer", with_groups(max_grad_norm=1.0, grad_averaging=True), "its groups say max_grad_norm"),
    "a step that is none": (
        "trainer",
        lambda held: held["state"][3].update(step=torch.tensor(float("nan"))),
        "is not a count",
    ),
    "one step too few": ("trainer", lambda held: held["state"][3].pop("step"), "the step of '.*v_proj.weight' is missing"),
    "betas of no Adam": ("trainer", with_groups(betas=(1.5, 0.9)), "does not step with betas 1.5"),
    "names of no parameter": (
        "trainer",
        lambda held: [body.update(param_names=[f"x{n}" for n in body["params"]]) for body in held["param_groups"]],
        "names 'x0', which is no parameter",
    ),
}  # fmt: skip


def changed(source: Path, folder: Path, name: str, change: Change) -> Path:
    shutil.copytree(source, folder)
    (file,) = folder.rglob(name)
    held = torch.load(file, weights_only=False)
    change(held)
    torch.save(held, file)
    return folder


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_says_otherwise_is_refused(name: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    source, change, message = REFUSED[name]
    copy = changed(made(source), tmp_path / "run", LAST[source], change)
    with pytest.raises(CkptError, match=message):
        read_checkpoint(copy, training_state="keep")
    assert read_checkpoint(copy, training_state="auto").training is None


def test_betas_may_be_tensors(made: Callable[[str], Path], tmp_path: Path) -> None:
    """As torch takes them since 2.7 (optim/adam.py): what they are in float32 is what the optimizer steps with."""
    betas = torch.tensor(0.9), torch.tensor(0.98, dtype=torch.float64)
    copy = changed(made("trainer"), tmp_path / "run", "optimizer.pt", with_groups(betas=betas))
    found = read_checkpoint(copy, training_state="keep").training
    assert found is not None and {group.betas for group in found.groups} == {(float(betas[0]), 0.98)}
    assert float(betas[0]) != 0.9
    for wrong in ((torch.tensor([0.9, 0.9]), 0.9), (torch.tensor(float("nan")), 0.9)):
        copy = changed(made("trainer"), tmp_path / str(len(str(wrong))), "optimizer.pt", with_groups(betas=wrong))
        with pytest.raises(CkptError, match="betas of the optimizer is not a number"):
            read_checkpoint(copy, training_state="keep")


def on_the_device(held: dict[str, Any]) -> None:
    """As with `capturable`, where the optimizer is part of a CUDA graph."""
    for body in groups_in(held):
        body.update(lr=torch.tensor(body["lr"]), step=torch.tensor([6], dtype=torch.int32))


# What frameworks write: the file or files that are changed, and how.
WRITTEN: dict[str, tuple[str, str, Change]] = {
    "rank 0 steps no vector": ("dist", "common.pt", lambda held: groups_in(held)[1].pop("step")),
    "a rank steps no vector": ("flat", "model_optim_rng.pt", lambda held: groups_in(held)[1].pop("step")),
    "norms come first on a stage": ("plain", "mp_rank_0?_001/*.pt", lambda held: groups_in(held).reverse()),
    "a CUDA graph": ("flat", "model_optim_rng.pt", on_the_device),
    "FusedAdam of a loop": ("trainer", "optimizer.pt", with_groups(step=0, bias_correction=True)),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_frameworks_write_every_day_is_read(name: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    source, files, change = WRITTEN[name]
    copy = shutil.copytree(made(source), tmp_path / "run")
    for file in copy.rglob(files):
        held = torch.load(file, weights_only=False)
        change(held)
        torch.save(held, file)
    found, told = (read_checkpoint(one, training_state="keep").training for one in (copy, made(source)))
    assert found is not None and told is not None and found.step == told.step == 6
    assert {frozenset(group.parameters): group.weight_decay for group in found.groups} == {
        frozenset(group.parameters): group.weight_decay for group in told.groups
    }
    assert [group.lr for group in found.groups] == pytest.approx([group.lr for group in told.groups])


@pytest.mark.parametrize("frozen", [[17], [16, 17, 18, 19, 20]])
def test_a_parameter_that_never_had_a_gradient_is_frozen(
    frozen: list[int], made: Callable[[str], Path], tmp_path: Path
) -> None:
    """An optimizer that was given all parameters keeps nothing of it; here one, or all, of those that are not decayed."""

    def without(held: dict[str, Any]) -> None:
        for number in frozen:
            held["state"].pop(number)

    copy = changed(made("trainer"), tmp_path / "run", "optimizer.pt", without)
    convert(copy, tmp_path / "back", to="ir", training_state="keep")
    for place in (copy, tmp_path / "back"):
        training = read_checkpoint(place, training_state="keep").training
        assert training is not None and training.step == 6 and len(training.frozen) == len(frozen)
        assert not {*training.frozen} & {name for group in training.groups for name in group.parameters}


@pytest.mark.parametrize(
    ("to", "options"), [("megatron", {"container": "torch_dist"} | MORE), ("nanotron", {"target": "0.4"})]
)
@pytest.mark.parametrize("frozen", [0, 15])
def test_a_frozen_embedding_or_head_goes_along(
    frozen: int, to: str, options: dict[str, object], made: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = changed(made("trainer"), tmp_path / "run", "optimizer.pt", lambda held: held["state"].pop(frozen))
    convert(copy, tmp_path / "out", to=to, options=options, training_state="keep", pp=2 if to == "nanotron" else None)
    training = read_checkpoint(tmp_path / "out", training_state="keep").training
    assert training is not None and training.frozen == (("embedding.tokens.weight", "head.weight")[frozen == 15],)


def test_moments_of_some_layers_are_no_tensor_of_all(made: Callable[[str], Path], tmp_path: Path) -> None:
    copy = changed(made("trainer"), tmp_path / "run", "optimizer.pt", lambda held: held["state"].pop(4))
    options = {"container": "torch_dist"} | MORE
    with pytest.raises(CkptError, match=r"layers\.0\.\S+ is not trained and \S+layers\.1\.\S+ is"):
        convert(copy, tmp_path / "kept", to="megatron", options=options, training_state="keep")
    convert(copy, tmp_path / "weights", to="megatron", options=options)
    assert read_checkpoint(tmp_path / "weights", training_state="auto").training is None


def test_the_unchanged_runs_are_read(made: Callable[[str], Path]) -> None:
    """Else the refusals above prove nothing."""
    for name in MADE:
        training = read_checkpoint(made(name), training_state="keep").training
        assert training is not None and training.step == 6, name


@pytest.mark.parametrize("kept", ["its groups", "its scale"])
def test_what_megatron_says_of_its_optimizer_goes_along(kept: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    change: Change = with_args(decoupled_weight_decay=False)
    if kept == "its scale":
        change = lambda held: held["optimizer"].update(grad_scaler={"scale": torch.tensor([0.5])})  # noqa: E731
    copy = changed(made("dist"), tmp_path / "run", LAST["dist"], change)
    training = read_checkpoint(copy, training_state="keep").training
    assert training is not None
    assert (training.optimizer == ADAM, training.loss_scale) == ((True, None) if kept == "its groups" else (False, 0.5))


def test_fused_adam_of_a_trainer_counts_the_steps_of_a_group(made: Callable[[str], Path], tmp_path: Path) -> None:
    def fused(held: dict[str, Any]) -> None:
        for state in held["state"].values():
            del state["step"]
        for body in held["param_groups"]:
            body.update(step=6)

    copy = changed(made("trainer"), tmp_path / "run", "optimizer.pt", fused)
    training = read_checkpoint(copy, training_state="keep").training
    assert training is not None and training.step == 6


def test_an_optimizer_that_names_its_parameters_is_believed(made: Callable[[str], Path], tmp_path: Path) -> None:
    """torch's own, made of named parameters in an order of its own: one of them is not trained, and some are wrapped."""
    names = ["model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.gate_proj.weight"]  # fmt: skip
    shape = runs("hf-trainer")[0].expected["weights"][names[0]].shape
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for _ in names]
    optimizer = torch.optim.AdamW([(f"module.{n}", p) for n, p in zip(names, parameters, strict=True)], lr=0.0025)
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full(shape, float(number + 1))
    for _ in range(6):
        optimizer.step()
    copy = shutil.copytree(made("trainer"), tmp_path / "run")
    torch.save(optimizer.state_dict(), copy / "optimizer.pt")
    (copy / "scheduler.pt").unlink()
    with open_checkpoint(copy, training_state="keep") as source:
        assert source.training is not None and len(source.training.frozen) == 18
        for name, parameter in zip(names, parameters, strict=True):
            _, _, layer, _, kind, _ = name.split(".")
            found = source.moment("exp_avg", f"layers.{layer}.mlp.{kind.removesuffix('_proj')}.weight")
            assert torch.equal(torch.from_numpy(found.numpy()), optimizer.state[parameter]["exp_avg"]), name


# --- DeepSpeed ---------------------------------------------------------------------------------------------------------

ZERO = runs("deepspeed")


def zero_run(stage: int, tmp_path: Path, files: str, change: Change) -> tuple[Path, str]:
    """A run of this stage in which the last of some files is another, and its config; skipped where no such run is here."""
    found = [run for run in ZERO if f"zero{stage}-" in str(run)]
    if not found:
        pytest.skip("the run is not here")
    copy = shutil.copytree(found[0].checkpoint, tmp_path / "run")
    config = found[0].config_in(tmp_path)
    assert config is not None
    file = sorted(copy.glob(f"*/{files}"))[-1]
    held = deepspeed.load(file)
    change(held)
    deepspeed.save(held, file)
    return copy, config


def of_zero(change: Callable[[dict[str, Any]], object]) -> Change:
    def inside(held: dict[str, Any]) -> None:
        optimizer = held["optimizer_state_dict"]
        change(optimizer.get("base_optimizer_state", optimizer.get("optimizer_state_dict")))

    return inside


def at_step_4(held: dict[str, Any]) -> None:
    for state in held["state"].values():
        state["step"] = torch.tensor(4.0)


OF_ZERO: dict[str, tuple[str, Change, str, bool]] = {
    "groups": ("*optim_states.pt", of_zero(lambda o: [body.update(lr=0.1) for body in o["param_groups"]]), r"lr 0\.1 of group 0", True),
    "a step of a flat tensor": ("*optim_states.pt", of_zero(lambda o: o["state"][1].pop("step")), "the step of 'flat tensor 1' is missing", True),
    "masters of another step": ("*optim_states.pt", of_zero(at_step_4), "the moments are of different steps", False),
}  # fmt: skip


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("name", OF_ZERO)
def test_a_file_of_zero_that_says_otherwise_is_refused(name: str, stage: int, tmp_path: Path) -> None:
    files, change, message, weights = OF_ZERO[name]
    copy, config = zero_run(stage, tmp_path, files, change)
    with pytest.raises(CkptError, match=message):
        read_checkpoint(copy, config=config, training_state="keep")
    if weights:
        assert read_checkpoint(copy, config=config, training_state="drop").training is None
    else:  # the masters are the weights
        with pytest.raises(CkptError, match=message):
            read_checkpoint(copy, config=config, training_state="drop")


@pytest.mark.parametrize("stage", [1, 3])
def test_fused_adam_of_deepspeed_counts_in_its_states(stage: int, tmp_path: Path) -> None:
    """Its groups have a step, too, which stays where the run began (ops/adam/fused_adam.py, 0.10 to 0.19)."""
    copy, config = zero_run(stage, tmp_path, "*optim_states.pt", lambda held: None)
    for file in copy.glob("*/*optim_states.pt"):
        held = deepspeed.load(file)
        of_zero(lambda o: [body.update(step=0, bias_correction=True) for body in o["param_groups"]])(held)
        deepspeed.save(held, file)
    training = read_checkpoint(copy, config=config, training_state="keep").training
    assert training is not None and training.step > 0


def test_an_optimizer_of_deepspeed_that_began_anew_is_named(tmp_path: Path) -> None:
    copy, config = zero_run(
        1, tmp_path, "*model_states.pt", lambda held: held.update(global_steps=held["global_steps"] + 3)
    )
    source = read_checkpoint(copy, config=config, training_state="keep")
    assert source.training is not None and source.training.skipped_steps == 3
    assert any("3 less than the model" in loss.subject for loss in source.provenance.losses)


def test_model_states_of_another_step_are_refused(tmp_path: Path) -> None:
    copy, config = zero_run(3, tmp_path, "*model_states.pt", lambda held: held.update(global_steps=4))
    with pytest.raises(CkptError, match=r"the ranks are of different steps(.|\n)*global_steps 4"):
        read_checkpoint(copy, config=config, training_state="drop")


def test_a_programs_own_adam_says_in_its_groups_how_it_decays(tmp_path: Path) -> None:
    """torch.optim.Adam, which a program gives to deepspeed.initialize: the config has no optimizer."""

    def decays(held: dict[str, Any]) -> None:
        for body in held["param_groups"]:
            body.update(decoupled_weight_decay=False)

    copy, config = zero_run(3, tmp_path, "*optim_states.pt", of_zero(decays))
    first = sorted(copy.glob("*/*optim_states.pt"))[0]
    held = deepspeed.load(first)
    of_zero(decays)(held)
    deepspeed.save(held, first)
    training = read_checkpoint(copy, config=config, training_state="keep").training
    assert training is not None and training.optimizer == ADAM


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_steps_that_an_optimizer_lacks_are_named(
    scale: float | None, made: Callable[[str], Path], tmp_path: Path
) -> None:
    """Megatron's, whose iteration is ahead of it; a loss scale, which skips steps, explains it."""

    def behind(held: dict[str, Any]) -> None:
        with_groups(step=4)(held)
        if scale is not None:
            held["optimizer"]["grad_scaler"] = {"scale": torch.tensor([scale])}

    source = read_checkpoint(changed(made("dist"), tmp_path / "run", "common.pt", behind), training_state="keep")
    assert source.training is not None and source.training.skipped_steps == 2
    subjects = [loss.subject for loss in source.provenance.losses]
    assert ("an optimizer that made 4 steps, 2 less than the model" in subjects) == (scale is None)
