"""Files that llama.cpp's own converter and quantiser wrote, with the numbers that the package gguf makes of them, and their logits."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from ckpt_core import convert
from ckpt_core.api import open_checkpoint
from ckpt_core.reference import Inputs
from ckpt_core.testing.hearing import WholeModel
from ckpt_tests.goldens import Golden, of_2026

CASES = [golden for golden in of_2026("quantised") if golden.case.get("format") == "gguf"]


@pytest.fixture(params=CASES, ids=str)
def golden(request: pytest.FixtureRequest) -> Golden:
    return request.param


def test_every_number_is_that_of_the_package_bit_for_bit(golden: Golden, tmp_path) -> None:
    if not (golden.folder / "dequantised.safetensors").is_file():
        pytest.skip("the numbers of this case are not shipped")
    convert(golden.checkpoint, tmp_path / "hf", to="hf", dtype="fp32")
    found, wanted = load_file(tmp_path / "hf/model.safetensors"), load_file(golden.folder / "dequantised.safetensors")
    assert found.keys() == wanted.keys() - ({"lm_head.weight"} if "lm_head.weight" not in found else set())
    for name, values in found.items():
        assert np.array_equal(values.view(np.uint32), wanted[name].view(np.uint32)), name


def test_it_computes_the_logits_of_transformers(golden: Golden) -> None:
    with open_checkpoint(golden.checkpoint) as opened:
        logits = WholeModel.of(opened).logits(Inputs(tokens=golden.input_ids))
    # the logits of one case reach 100 and more, of which float32 holds no more than six digits
    assert golden.off_by(logits) < 1e-4 * max(1.0, golden.logits.abs().max().item() / 30)
