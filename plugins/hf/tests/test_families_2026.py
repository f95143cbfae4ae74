"""Models that transformers itself made and computed: read to the recorded logits and back bit for bit, or refused by name."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest

from ckpt_core import convert, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.reference import forward
from ckpt_core.reference.inputs import Inputs
from ckpt_hf.config import FAMILIES
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.goldens import Golden, beside
from ckpt_tests.models import weights

TOLERANCE = 1e-4
CLASSES = {family.class_name for family in FAMILIES}
CASES = beside("families", "source_hf/config.json")


def class_name(golden: Golden) -> str:
    (name,) = json.loads((golden.source / "config.json").read_text())["architectures"]
    return name


def model_type(golden: Golden) -> str:
    return json.loads((golden.source / "config.json").read_text())["model_type"]


def each(read: bool) -> pytest.MarkDecorator:
    cases = [golden for golden in CASES if (class_name(golden) in CLASSES) is read]
    return pytest.mark.parametrize("golden", cases, ids=str)


@each(read=True)
def test_it_computes_what_transformers_computed(golden: Golden) -> None:
    with open_checkpoint(golden.source) as model:
        *_, last = forward(model, Inputs(tokens=golden.input_ids.long()))
    assert golden.off_by(last.values) <= TOLERANCE


@each(read=True)
def test_every_tensor_comes_back(golden: Golden, tmp_path: Path) -> None:
    convert(golden.source, tmp_path / "ir", to="ir")
    with open_checkpoint(golden.source) as model:
        dropped = {loss.subject for loss in model.checkpoint.provenance.losses if loss.kind == "dropped"}
    convert(tmp_path / "ir", tmp_path / "hf", to="hf")
    original = weights(golden.source)
    kept = {name: value for name, value in original.items() if not any(fnmatch(name, one) for one in dropped)}
    assert_same_bits(weights(tmp_path / "hf"), kept)


@each(read=False)
def test_a_class_that_is_not_read_is_refused_by_its_type(golden: Golden, tmp_path: Path) -> None:
    with pytest.raises(CkptError) as refusal:
        convert(golden.source, tmp_path / "ir", to="ir")
    # not in the whole text, where the file's path may have it
    assert model_type(golden) in f"{refusal.value.problem} {refusal.value.found}"
    assert_nothing_at(tmp_path / "ir")
