"""What a transformers class has of zeros, because it always has it, is taken off again on the way back to nanotron."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckpt_core import convert
from ckpt_core.architecture import Architecture, PerLayer
from ckpt_core.testing import example, write_ir
from ckpt_core.testing.examples import ABSENT
from ckpt_tests import nanotron
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.models import load, weights
from ckpt_tests.program import assert_refused

BIASED = {f"attention__{part}_bias": True for part in "qkv"}
EVERY_THIRD = {"attention__rotary?": PerLayer((True, True, False, True, True, False))}
# The model, the class of transformers that holds it, and the tensors which that class has besides
MODELS: dict[str, tuple[Architecture, str, str]] = {
    "no shared expert": (
        example("moe", hidden=216, mlp__moe__shared=ABSENT, **BIASED),
        "Qwen2MoeForCausalLM",
        "shared_expert",
    ),
    "biases of q, k and v": (example("smollm3", hidden=216, **BIASED), "SmolLM3ForCausalLM", "o_proj.bias"),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, str]:
    """A run of nanotron, and what transformers makes of it."""
    architecture, class_name, added = MODELS[request.param]
    convert(write_ir(tmp_path / "ir", architecture), tmp_path / "run", to="nanotron", tp=2)
    return tmp_path / "run", class_name, added


def test_the_class_has_zeros_and_the_receipt_says_so(case: tuple[Path, str, str], tmp_path: Path) -> None:
    run, class_name, added = case
    convert(run, tmp_path / "hf", to="hf")
    assert json.loads((tmp_path / "hf/config.json").read_text())["architectures"] == [class_name]
    zeros = [tensor for name, tensor in weights(tmp_path / "hf").items() if added in name]
    assert zeros and not any(tensor.any() for tensor in zeros)
    assert type(load(tmp_path / "hf")).__name__ == class_name
    decisions = json.loads((tmp_path / "hf/ckpt-receipt.json").read_text())["target"]["decisions"]
    assert any("added" in text for text in decisions["rewrites"])


def test_back_in_nanotron_the_files_are_the_same(case: tuple[Path, str, str], tmp_path: Path) -> None:
    run, _, _ = case
    convert(run, tmp_path / "hf", to="hf")
    convert(tmp_path / "hf", tmp_path / "back", to="nanotron", tp=2)
    assert_same_bits(nanotron.tensors(tmp_path / "back"), nanotron.tensors(run))
    before, after = (json.loads((folder / "0/model_config.json").read_text()) for folder in (run, tmp_path / "back"))
    assert after == before


def test_an_output_bias_with_values_is_still_refused(tmp_path: Path) -> None:
    architecture, _, added = MODELS["biases of q, k and v"]
    convert(write_ir(tmp_path / "ir", architecture), tmp_path / "hf", to="hf")
    (tmp_path / "hf/ckpt-receipt.json").unlink()
    convert(tmp_path / "hf", tmp_path / "zeros", to="nanotron")  # without a receipt the values tell
    file = tmp_path / "hf/model.safetensors"
    held = load_file(file)
    held[next(name for name in held if added in name)][3] = 1e-30
    save_file(held, file, metadata={"format": "pt"})
    assert_refused(tmp_path / "hf", "attention.out_bias", to="nanotron")


def test_a_shared_expert_that_was_trained_stays(tmp_path: Path) -> None:
    """Of zeros or not: it is taken off only where the run had none."""
    architecture, _, _ = MODELS["no shared expert"]
    convert(write_ir(tmp_path / "ir", architecture), tmp_path / "hf", to="hf")
    convert(tmp_path / "hf", tmp_path / "run", to="nanotron")
    assert json.loads((tmp_path / "run/0/model_config.json").read_text())["moe_config"]["enable_shared_expert"]
    convert(tmp_path / "run", tmp_path / "again", to="hf")
    convert(tmp_path / "again", tmp_path / "back", to="nanotron")
    assert_same_bits(nanotron.tensors(tmp_path / "back"), nanotron.tensors(tmp_path / "run"))
    held = nanotron.merged(tmp_path / "back")
    assert torch.equal(
        held["model.decoder.0.pp_block.mlp.shared_expert_gate.weight"], torch.zeros(1, 216, dtype=torch.bfloat16)
    )
