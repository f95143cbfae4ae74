"""Masters beside rounded weights: they must be of the same step, and they take the place of the weights only where that is asked for."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckpt_core import convert
from ckpt_core.errors import CkptError
from ckpt_tests.program import ckpt
from ckpt_tests.training import runs

TIED = [run for run in runs("megatron") if "bf16" in str(run)]


class Named:
    """A value of an enum of Megatron, which torch loads and saves by name."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __reduce__(self) -> tuple[type, tuple[object]]:
        return type(self), (self.value,)


@pytest.fixture
def megatron(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules of Megatron that its files name."""
    named = {"megatron.core.enums": "ModelType", "megatron.core.transformer.enums": "AttnBackend"}
    for name in ("megatron", "megatron.core", "megatron.core.transformer", *named):
        module = types.ModuleType(name)
        if name in named:
            setattr(module, named[name], type(named[name], (Named,), {"__module__": name}))
        monkeypatch.setitem(sys.modules, name, module)


def changed(folder: Path, key: str) -> Path:
    """A run in which the masters or the moments of one rank are those of another step."""
    shutil.copytree(TIED[0].checkpoint, folder)
    file = next(folder.glob("iter_*/mp_rank_01_000/model_optim_rng.pt"))
    held = torch.load(file, weights_only=False)
    optimizer = held["optimizer"]
    if key == "masters":
        optimizer["fp32_from_fp16_params"][0][1][3, 4] += 0.5
    elif key == "step":
        optimizer["optimizer"]["state"][2]["step"] += 1
    else:
        optimizer["optimizer"]["param_groups"][0]["params"].pop()
    torch.save(held, file)
    return folder


def test_what_is_of_another_step_is_refused(tmp_path: Path, megatron: None) -> None:
    for key, message in (
        (
            ("masters", r"optimizer\.master/layers\.0\.\S+ in fp32 does not round to its copy in bf16"),
            ("step", r"the moments are of different steps"),
            ("order", r"the order of the parameters in the optimizer can't be established"),
        )
        if TIED
        else ()
    ):
        source = changed(tmp_path / key, key)
        with pytest.raises(CkptError, match=message):
            convert(source, tmp_path / f"{key}-out", to="ir", training_state="keep")


def test_weights_stay_as_they_are_unless_the_state_is_asked_for(tmp_path: Path) -> None:
    for run in TIED:
        receipt = convert(run.checkpoint, tmp_path / "default", to="hf")
        assert "training" not in receipt.body
        (loss,) = (loss for loss in receipt.losses if loss["subject"].startswith("optimizer state"))
        assert "ask" in loss["reason"] or "as the optimizer steps them" in loss["reason"]
        dropped = convert(run.checkpoint, tmp_path / "dropped", to="hf", training_state="drop")
        assert receipt.fingerprint == dropped.fingerprint
        weights = load_file(tmp_path / "default" / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
        kept = convert(run.checkpoint, tmp_path / "ir", to="ir")
        assert kept.body["training"]["state"]["own_masters"] and kept.fingerprint == dropped.fingerprint


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp64"])
@pytest.mark.parametrize(
    ("target", "options"), [("megatron", {}), ("megatron", {"container": "torch"}), ("megatron-bridge", {})]
)
def test_weights_beside_masters_are_these_rounded(
    target: str, options: dict[str, str], dtype: str, tmp_path: Path
) -> None:
    """Weights that were rounded once, to bf16, are not what masters round to in another dtype: the state stays behind, with the reason."""
    run, *_ = TIED
    receipt = convert(run.checkpoint, tmp_path / "out", to=target, dtype=dtype, options=options)
    assert ("training" in receipt.body) is (dtype == "bf16")
    code, said = ckpt("verify", run.checkpoint, tmp_path / "out")
    assert code == 0, said
    if dtype != "bf16":
        assert any("rounded to it" in loss["reason"] for loss in receipt.losses)
        with pytest.raises(CkptError, match="would not be the masters"):
            convert(
                run.checkpoint,
                tmp_path / "kept",
                to=target,
                dtype=dtype,
                options=options,
                training_state="keep",
            )
