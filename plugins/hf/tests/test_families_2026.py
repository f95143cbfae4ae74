"""Models that transformers itself made and computed: read to the recorded logits and back bit for bit, or refused by name."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest

from ckpt_core import convert, open_checkpoint
from ckpt_core.api import config_architecture
from ckpt_core.errors import CkptError
from ckpt_core.reference import forward
from ckpt_core.reference.inputs import Inputs
from ckpt_hf.config import FAMILIES
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.goldens import Golden, beside
from ckpt_tests.models import weights

TOLERANCE = 1e-4
CLASSES = {family.class_name for family in FAMILIES}
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
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
    convert(tmp_path / "ir", tmp_path / "hf", to="hf", dtype=DTYPES[golden.case["dtype"]])
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


SIZES = {"hidden_size": 96, "vocab_size": 61, "num_hidden_layers": 2, "num_attention_heads": 16, "num_local_experts": 5}
GPT_OSS = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", **SIZES}


def test_gpt_oss_has_a_yarn_of_its_own_where_none_is_said(tmp_path: Path) -> None:
    """Left out, it is the class's; version 4 of transformers takes null for none, and version 5 for the class's."""
    from transformers import GptOssConfig

    (tmp_path / "config.json").write_text(json.dumps(GPT_OSS))
    left_out = config_architecture(str(tmp_path / "config.json"))
    filled = GptOssConfig(**SIZES).to_dict() | GPT_OSS
    (tmp_path / "config.json").write_text(json.dumps(filled, default=str))
    said = config_architecture(str(tmp_path / "config.json"))
    assert said.decoder.layers[0].attention.rotary.scaling.factor == 32.0
    assert left_out.decoder == said.decoder
    (tmp_path / "config.json").write_text(json.dumps({**GPT_OSS, "rope_scaling": None}))
    with pytest.raises(CkptError, match="rotary scaling is null"):
        config_architecture(str(tmp_path / "config.json"))


@pytest.mark.parametrize(("key", "value"), [("swiglu_limit", 6.0), ("swiglu_alpha", 1.5), ("experts_per_token", 3)])
def test_what_versions_of_transformers_read_otherwise_is_refused(key: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**GPT_OSS, "num_experts_per_tok": 4, key: value}))
    with pytest.raises(CkptError, match=key):
        config_architecture(str(tmp_path / "config.json"))
