"""Vision transformers as NeMo wrote them: to transformers where a class computes the same, and back bit for bit."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTForImageClassification

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.reference import Inputs, forward
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.goldens import Golden, goldens
from ckpt_tests.nemo import archive_of, config_of, own_layout, tensors

TOLERANCE = 1e-4
CASES = [golden for golden in goldens("nemo") if "-vit" in f"-{golden}"]
cases = pytest.mark.parametrize("golden", CASES, ids=str)


@functools.cache
def recorded(golden: Golden) -> dict[str, torch.Tensor]:
    return load_file(golden.folder / "expected.safetensors")


def source(golden: Golden) -> Path:
    return archive_of(golden.checkpoint) or golden.checkpoint


def has_class(golden: Golden) -> bool:
    return "no HF class" not in golden.case["parity"]


def layout(golden: Golden, folder: Path) -> tuple[Path, dict]:
    """Where and how to write a case as NeMo wrote it."""
    if "tp" not in golden.case:  # of the repartitioning tool
        return folder / "back.nemo", {"tp": int(golden.folder.name.rpartition("-tp")[2][0])}
    asked = {name: value for name, value in own_layout(golden).items() if name != "pp"}
    return folder / ("back" if asked.get("options") else "back.nemo"), asked


@cases
def test_the_reference_computes_the_recorded_logits_with_or_without_a_class(golden: Golden) -> None:
    with open_checkpoint(source(golden)) as model:
        *_, last = forward(model, Inputs(pixels=recorded(golden)["pixel_values"]))
    assert (last.values - recorded(golden)["logits"]).abs().max() <= TOLERANCE


@cases
def test_transformers_computes_the_recorded_logits_or_the_case_is_refused(golden: Golden, tmp_path: Path) -> None:
    if not has_class(golden):
        with pytest.raises(CkptError) as refusal:
            convert(source(golden), tmp_path / "hf", to="hf")
        said = config_of(source(golden))
        lacking = [
            *(["class_token_length"] if said.get("class_token_length", 8) != 1 else []),
            *([] if said.get("finetune") else ["finetune"]),
        ]
        assert lacking
        for key in lacking:
            assert key in str(refusal.value)
        assert not (tmp_path / "hf").exists()
        return
    convert(source(golden), tmp_path / "hf", to="hf")
    model = ViTForImageClassification.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        found = model(pixel_values=recorded(golden)["pixel_values"]).logits
    assert (found - recorded(golden)["logits"]).abs().max() <= TOLERANCE
    path, asked = layout(golden, tmp_path)
    convert(tmp_path / "hf", path, to="nemo", **asked)
    assert_same_bits(tensors(path), tensors(source(golden)))


@cases
def test_in_its_own_layout_every_tensor_is_the_original(golden: Golden, tmp_path: Path) -> None:
    path, asked = layout(golden, tmp_path)
    convert(source(golden), path, to="nemo", **asked)
    assert_same_bits(tensors(path), tensors(source(golden)))
    assert fingerprint(path) == fingerprint(source(golden))
    if path.suffix == ".nemo":
        assert config_of(path) == config_of(source(golden))


@pytest.mark.parametrize("golden", [golden for golden in CASES if "source_case" in golden.case], ids=str)
def test_other_ranks_hold_what_the_tool_of_nemo_gives_them(golden: Golden, tmp_path: Path) -> None:
    before = next(one for one in CASES if str(one) == golden.case["source_case"])
    path, asked = layout(golden, tmp_path)
    convert(source(before), path, to="nemo", **asked)
    assert_same_bits(tensors(path), tensors(source(golden)))


@cases
def test_class_tokens_that_no_key_says_are_eight(golden: Golden) -> None:
    with open_checkpoint(source(golden)) as found:
        said = golden.case.get("model", {}).get("class_token_length")
        assert found.architecture.patches.class_tokens == (said or (1 if "source_case" in golden.case else 8))
        assert any("default" in line for line in found.checkpoint.provenance.evidence) == (
            said is None and "source_case" not in golden.case
        )
