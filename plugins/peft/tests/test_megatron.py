"""Adapters that Megatron-Bridge trained: merged to the tensors of Bridge's own merge, or refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

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
    "another method": (lambda peft: peft.update(_target_="megatron.bridge.peft.canonical_lora.CanonicalLoRA"), ("CanonicalLoRA",)),
    "DoRA without magnitudes": (lambda peft: peft.update(_target_="megatron.bridge.peft.dora.DoRA"), ("no magnitude",)),
    "another rank": (lambda peft: peft.update(dim=8), ("the rank of decoder.layers.0", "4", "8")),
    "no rank": (lambda peft: peft.pop("dim"), ("peft.dim",)),
    "no alpha": (lambda peft: peft.pop("alpha"), ("peft.alpha",)),
    "an expert's own rank": (lambda peft: peft.update(normalize_moe_lora=True), ("normalize_moe_lora",)),
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


def test_inspect_explains_it(capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", str(CASES[0].checkpoint)]) == 0
    shown = capsys.readouterr().out
    for word in ("megatron-lora", "linear_qkv", "alpha 6", "4,608", "base_megatron", "-o base=FOLDER"):
        assert word in shown
