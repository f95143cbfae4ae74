"""Classes that transformers runs with the code beside their files: read to the logits of the same modules, and written as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ckpt_core import convert, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.reference import Inputs, forward
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.models import weights
from ckpt_tests.of_authors import MADE, TOKENS, decilm


@pytest.mark.parametrize("kind", MADE)
def test_it_computes_what_its_modules_compute_and_comes_back(kind: str, tmp_path: Path) -> None:
    expected = MADE[kind](tmp_path / "hf")
    with open_checkpoint(tmp_path / "hf") as model:
        *_, last = forward(model, Inputs(tokens=TOKENS))
    assert (torch.as_tensor(last.values) - expected).abs().max() <= 1e-5
    convert(tmp_path / "hf", tmp_path / "ir", to="ir")
    convert(tmp_path / "ir", tmp_path / "back", to="hf")
    assert_same_bits(weights(tmp_path / "back"), weights(tmp_path / "hf"))
    there, back = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("hf", "back"))
    assert (back["model_type"], back["architectures"]) == (there["model_type"], there["architectures"])
    assert [one["ffn"]["ffn_mult"] for one in back.get("block_configs", [])] == [
        one["ffn"]["ffn_mult"] for one in there.get("block_configs", [])
    ]


@pytest.mark.parametrize(
    ("block", "said", "named"),
    [
        ("attention", {"window_length": 8}, "window_length = 8"),
        ("attention", {"replace_with_linear": True}, "replace_with_linear = True"),
        ("attention", {"n_heads_in_group": 4}, "divides its heads unevenly"),
        ("ffn", {"ffn_mult": None}, "ffn_mult"),
    ],
)
def test_a_block_of_another_kind_is_refused(block: str, said: dict[str, object], named: str, tmp_path: Path) -> None:
    decilm(tmp_path / "hf")
    path = tmp_path / "hf/config.json"
    config = json.loads(path.read_text())
    config["block_configs"][0][block] |= said
    path.write_text(json.dumps(config))
    with pytest.raises(CkptError, match=named):
        convert(tmp_path / "hf", tmp_path / "ir", to="ir")
    assert_nothing_at(tmp_path / "ir")
