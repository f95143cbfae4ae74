"""The state of a training in a universal checkpoint: as DeepSpeed's own converter has it, and refused by name where it is not whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckpt_core import convert
from ckpt_core.errors import CkptError
from ckpt_core.storage.torch import read_torch_file
from ckpt_tests.training import KINDS, Run, judged, loaded, runs

UNIVERSAL, TIED = "deepspeed-universal-from-zero2", "deepspeed-zero1-bf16-dp2"
NAME = "model.layers.1.mlp.gate_proj.weight"


def run_of(name: str) -> Run:
    found = (run for run in runs("nanotron", "megatron", "deepspeed") if str(run) == name)
    return next(found, None) or pytest.skip(f"{name} is not here")


def test_it_is_written_as_deepspeed_saves_it(tmp_path: Path) -> None:
    """A universal folder, written again: the same files of every parameter, the same groups, counters and place of the schedule."""
    run = run_of(UNIVERSAL)
    convert(run.checkpoint, tmp_path / "run", to="deepspeed", config=run.config_in(tmp_path), training_state="keep")
    theirs, ours = (folder / "global_step4_universal" for folder in (run.checkpoint, tmp_path / "run"))
    assert (tmp_path / "run" / "latest_universal").read_text() == "global_step4_universal"
    for path in sorted(theirs.glob("zero/*/*.pt")):
        held, found = (torch.load(folder / path.relative_to(theirs), weights_only=True) for folder in (theirs, ours))
        if path.name == "step.pt":
            assert torch.equal(held, found) and held.dtype == found.dtype
        else:
            assert held["cat_dim"] == found["cat_dim"] and torch.equal(held["param"], found["param"])
    held, found = (read_torch_file(str(folder / "zero" / "optimizer_state.pt")) for folder in (theirs, ours))
    for one, other in zip(held["param_groups"], found["param_groups"], strict=True):
        for key in ("lr", "betas", "eps", "weight_decay"):
            assert one[key] == other[key], key
    held, found = (read_torch_file(str(folder / "mp_rank_00_model_states.pt")) for folder in (theirs, ours))
    for key in ("global_steps", "global_samples", "skipped_steps", "shared_params"):
        assert held[key] == found[key], key
    assert held["lr_scheduler"]["last_batch_iteration"] == found["lr_scheduler"]["last_batch_iteration"] == 3
    assert [set(group) for group in held["param_shapes"]] == [set(group) for group in found["param_shapes"]]


@pytest.mark.parametrize(
    ("name", "flat"),
    [("megatron-distopt-fp32-tp2-dp2-torch", False), ("nanotron-zero1-fp32-tp2-dp2", True), (TIED, True)],
)
def test_it_goes_through_a_universal_checkpoint(name: str, flat: bool, tmp_path: Path) -> None:
    run = run_of(name)
    options, config = {"dst.flat": str(flat).lower()}, run.config_in(tmp_path)
    convert(run.checkpoint, tmp_path / "run", to="deepspeed", options=options, config=config, training_state="keep")
    convert(tmp_path / "run", tmp_path / "hf", to="hf", training_state="keep")
    state = loaded(run, tmp_path / "hf")
    for kind in KINDS:
        assert [key for key, value in run.expected[kind].items() if not torch.equal(state[kind][key], value)] == []
    if not flat:
        assert judged(run, state, tmp_path) in (True, None)


def test_the_module_has_the_dtype_that_the_run_computes_in(tmp_path: Path) -> None:
    run = run_of("megatron-bf16-tp2-pp2-tied-torch")
    convert(run.checkpoint, tmp_path / "run", to="deepspeed", training_state="keep")
    (path,) = (tmp_path / "run").glob("*/mp_rank_00_model_states.pt")
    module = read_torch_file(str(path))["module"]
    assert {tensor.dtype.name for tensor in module.values()} == {"bf16"}


Change = Callable[[Path], object]


def changed(file: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "zero" / NAME / file
        held = torch.load(path, weights_only=True)
        torch.save({**held, "param": change(held["param"])} if isinstance(held, dict) else change(held), path)

    return apply


def exchanged(folder: Path) -> None:
    one, other = (folder / "zero" / name / "exp_avg.pt" for name in (NAME, "model.layers.1.mlp.down_proj.weight"))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def negative(tensor: torch.Tensor) -> torch.Tensor:
    tensor[3, 4] *= -1
    return tensor


REFUSED: dict[str, tuple[Change, str]] = {
    "a moment is missing": (lambda folder: (folder / "zero" / NAME / "exp_avg.pt").unlink(), f"exp_avg of '{re.escape(NAME)}' is missing"),
    "a moment is transposed": (changed("exp_avg.pt", lambda held: held.t().contiguous()), r"exp_avg of model\.layers\.1\.mlp\.gate_proj"),
    "two moments are exchanged": (exchanged, r"exp_avg of model\.layers\.1\.mlp\.(gate|down)_proj"),
    "a mean of squares is negative": (changed("exp_avg_sq.pt", negative), r"exp_avg_sq/layers\.1\.mlp\.gate\.weight has values that are not at least 0"),
    "one parameter is of another step": (changed("step.pt", lambda held: held + 1), "the moments are of different steps"),
    "one parameter has no step": (lambda folder: (folder / "zero" / NAME / "step.pt").unlink(), f"the step of '{re.escape(NAME)}' is missing"),
    "masters of another step": (changed("fp32.pt", lambda held: held * 1.01), "does not round to"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(name: str, tmp_path: Path) -> None:
    change, message = REFUSED[name]
    run = run_of("deepspeed-universal-from-zero2")
    config = run.config_in(tmp_path)
    convert(run.checkpoint, tmp_path / "run", to="deepspeed", config=config, training_state="keep", dtype="bf16")
    change(next((tmp_path / "run").glob("global_step*")))
    with pytest.raises(CkptError) as found:
        convert(tmp_path / "run", tmp_path / "kept", to="ir", training_state="keep")
    assert re.search(message, str(found.value)), str(found.value)
    assert not (tmp_path / "kept").exists()
