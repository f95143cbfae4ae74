"""What PEFT itself made of bases and adapters: every merged tensor bit for bit, and the logits."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.goldens import Golden, beside
from ckpt_tests.models import load, logits_of, weights

TOLERANCE = 1e-4
CASES = beside("lora", "adapter/adapter_config.json")


@pytest.mark.parametrize("golden", CASES, ids=str)
def test_the_merged_model_is_that_of_peft(golden: Golden, tmp_path: Path) -> None:
    base = {"base": str(golden.folder / "base")}
    convert(golden.folder / "adapter", tmp_path / "hf", to="hf", options=base)
    assert_same_bits(weights(tmp_path / "hf"), load_file(golden.folder / "full.safetensors"))
    assert golden.off_by(logits_of(load(tmp_path / "hf"), golden.input_ids)) <= TOLERANCE
    if golden is CASES[0]:
        convert(golden.folder / "adapter", tmp_path / "run", to="megatron", tp=2, options=base)
        merged = fingerprint(golden.folder / "adapter", options=base)
        assert merged == fingerprint(tmp_path / "hf") == fingerprint(tmp_path / "run")


def test_a_base_in_another_format_gives_the_same_model(tmp_path: Path) -> None:
    golden = CASES[0]
    convert(golden.folder / "base", tmp_path / "base", to="megatron", tp=2)
    hf, megatron = ({"base": str(path)} for path in (golden.folder / "base", tmp_path / "base"))
    assert fingerprint(golden.folder / "adapter", options=hf) == fingerprint(
        golden.folder / "adapter", options=megatron
    )


def test_a_slice_of_a_merged_tensor_is_that_of_all_of_it() -> None:
    golden = CASES[0]
    with open_checkpoint(golden.folder / "adapter", options={"base": str(golden.folder / "base")}) as opened:
        for name in ("layers.0.attention.out.weight", "layers.1.attention.q.weight"):
            whole = opened[name].numpy()
            assert (opened[name][1:3, ..., 2:] == whole[1:3, ..., 2:]).all()
