"""What Megatron-Bridge 0.6 itself made of models of transformers: read to the models' own tensors and logits, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path

import pytest

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_tests import distributed
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.goldens import Golden, of_2026
from ckpt_tests.models import load, logits_of, weights

TOLERANCE = 1e-4
STEP = "iter_0000000"
DELTA = ("qwen3_next", "qwen3_5_text")
# Families whose layers Bridge makes by functions of its own, and Megatron-LM's args can't say: with what they lack.
UNUSUAL = {
    "gemma3_text": "attention.out_norm",
    "exaone4": "attention.out_norm",
    "olmoe": "attention.qk_norm_whole",
    "minimax_m2": "attention.qk_norm_whole",
    "nemotron_h": r"no mamba\.heads",
}
READ = (
    "qwen3",
    "qwen3_moe",
    "deepseek_v3",
    "gpt_oss",
    "glm4_moe",
    *DELTA,
    *UNUSUAL,
)  # families whose HF models we read
# What names the models that are none of these: a class, a function that makes the layers, or a field.
NAMED = ("_target_", "models of ", "transformer_layer_spec", "key '", "unknown config key")
CASES = of_2026("families", "megatron-bridge")


def family(golden: Golden) -> str:
    return json.loads((golden.source / "config.json").read_text())["model_type"]


def each(read: bool) -> pytest.MarkDecorator:
    cases = [golden for golden in CASES if (family(golden) in READ) is read]
    return pytest.mark.parametrize("golden", cases, ids=str)


@each(read=True)
def test_it_is_the_model_that_bridge_made_it_of(golden: Golden, tmp_path: Path) -> None:
    assert fingerprint(golden.checkpoint) == fingerprint(golden.source)
    with open_checkpoint(golden.checkpoint) as one, open_checkpoint(golden.source) as two:
        assert one.architecture.decoder == two.architecture.decoder
        assert one.architecture.head == two.architecture.head
        assert not one.checkpoint.provenance.losses
    convert(golden.checkpoint, tmp_path / "whole", to="hf")
    assert_same_bits(weights(tmp_path / "whole"), weights(golden.source))
    convert(
        golden.checkpoint, tmp_path / "hf", to="hf", options={"predictors": "drop"}
    )  # no class of transformers has them
    assert golden.off_by(logits_of(load(tmp_path / "hf"), golden.input_ids)) <= TOLERANCE


@each(read=True)
def test_through_hf_and_back_every_tensor_is_the_original(golden: Golden, tmp_path: Path) -> None:
    convert(golden.source, tmp_path / "run", to="megatron-bridge", tp=golden.case["tp"], ep=golden.case["ep"])
    written, original = (distributed.tensors(root / STEP) for root in (tmp_path / "run", golden.checkpoint))
    assert_same_bits(written, original)


def among(families: Container[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("golden", [golden for golden in CASES if family(golden) in families], ids=str)


@among(DELTA)
def test_megatron_lm_s_args_have_no_delta_nets(golden: Golden, tmp_path: Path) -> None:
    with pytest.raises(CkptError, match=r"no attention\.out_gate(.|\n)*no delta\.key_heads"):
        convert(golden.checkpoint, tmp_path / "run", to="megatron", tp=golden.case["tp"])
    assert_nothing_at(tmp_path / "run")


@among(UNUSUAL)
def test_megatron_lm_s_args_have_no_such_layers(golden: Golden, tmp_path: Path) -> None:
    with pytest.raises(CkptError, match=UNUSUAL[family(golden)]):
        convert(golden.checkpoint, tmp_path / "run", to="megatron", tp=golden.case["tp"])
    assert_nothing_at(tmp_path / "run")


@among({*READ} - {*DELTA, *UNUSUAL})
def test_megatron_lm_s_args_say_the_same(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "run", to="megatron", tp=golden.case["tp"])
    (tmp_path / "run/ckpt-receipt.json").unlink()
    assert fingerprint(tmp_path / "run") == fingerprint(golden.source)
    with open_checkpoint(tmp_path / "run") as one, open_checkpoint(golden.source) as two:
        assert one.architecture.decoder == two.architecture.decoder


@each(read=False)
def test_any_other_model_is_read_to_its_logits_or_refused_by_name(golden: Golden, tmp_path: Path) -> None:
    """Bridge says all of some of them in fields that are known, such as GLM 4.5; those must be right."""
    from ckpt_core.reference import forward
    from ckpt_core.reference.inputs import Inputs

    try:
        model = open_checkpoint(golden.checkpoint)
    except CkptError as error:
        assert any(word in str(error) for word in NAMED), str(error)
        with pytest.raises(CkptError):
            convert(golden.checkpoint, tmp_path / "ir", to="ir")
        assert_nothing_at(tmp_path / "ir")
        return
    with model:
        *_, last = forward(model, Inputs(tokens=golden.input_ids.long()))
        assert golden.off_by(last.values) <= TOLERANCE
