"""Gemma 2 and 3 in NeMo 2: what its own forward does otherwise than transformers is said in other fields, or asked for by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_tests.families import CASES, build
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.goldens import Golden, of_2026
from ckpt_tests.models import weights

EPS = {"post_norm_eps": "1e-5"}
FIRST = {"gemma2_windows": "first"}
GEMMA3 = [golden for golden in of_2026("families", "megatron-bridge") if golden.case["family"] == "gemma3_text"]


def fields(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "context/model.yaml").read_text())["config"]


def test_a_gemma_2_whose_windows_nemo_applies_to_other_layers_is_written_when_asked(tmp_path: Path) -> None:
    build(CASES["gemma2"], tmp_path / "hf")
    for options, named in (({}, "attention.out_norm.eps = 1e-06"), (EPS, "the first among them")):
        with pytest.raises(CkptError, match=named):
            convert(tmp_path / "hf", tmp_path / "run", to="nemo2", options=options)
        assert_nothing_at(tmp_path / "run")
    receipt = convert(tmp_path / "hf", tmp_path / "run", to="nemo2", tp=2, options=EPS | FIRST)
    subjects = " ".join(loss["subject"] for loss in receipt.losses)
    assert "layers that slide" in subjects and "epsilon" in subjects
    said = fields(tmp_path / "run")
    assert said["_target_"] == "nemo.collections.llm.gpt.model.gemma2.Gemma2Config"
    assert "gemma2_windows" not in said and said["window_size"][1] == 0
    (tmp_path / "run/ckpt-receipt.json").unlink()
    with pytest.raises(CkptError, match="-o gemma2_windows=first"):
        fingerprint(tmp_path / "run")
    with open_checkpoint(tmp_path / "hf") as one, open_checkpoint(tmp_path / "run", options=FIRST) as two:
        assert one.architecture.decoder == two.architecture.decoder
        assert one.architecture.head == two.architecture.head
    convert(tmp_path / "run", tmp_path / "back", to="hf", options=FIRST | {"vocab": "61"})
    assert_same_bits(weights(tmp_path / "back"), weights(tmp_path / "hf"))
    with open_checkpoint(tmp_path / "run", options={"gemma2_windows": "none"}) as none:
        assert not any(layer.attention.window for layer in none.architecture.decoder.layers)


@pytest.mark.parametrize("golden", GEMMA3, ids=str)
def test_a_window_of_gemma_3_is_a_field_of_one_less_since_core_counts_the_positions_before(
    golden: Golden, tmp_path: Path
) -> None:
    convert(golden.source, tmp_path / "run", to="nemo2", tp=2, options=EPS)
    said, window = (
        fields(tmp_path / "run"),
        open_checkpoint(golden.source).architecture.decoder.layers[0].attention.window,
    )
    assert (said["window_size"], said["_target_"].rpartition(".")[2]) == (window - 1, "Gemma3Config")
    assert len(said["rotary_base"]) == 2
    (tmp_path / "run/ckpt-receipt.json").unlink()
    with open_checkpoint(golden.source) as one, open_checkpoint(tmp_path / "run") as two:
        assert one.architecture.decoder == two.architecture.decoder
    assert fingerprint(tmp_path / "run", options={"vocab": "86"}) == fingerprint(golden.source)
