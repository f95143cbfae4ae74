"""Models that see, as Megatron-Bridge keeps them: its own files, and what its own forward would compute otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.api import plan_conversion
from ckpt_core.architecture import facts_of
from ckpt_core.errors import CkptError
from ckpt_core.testing import ABSENT, example, write_ir
from ckpt_core.testing.examples import small_numbers
from ckpt_tests import distributed
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.goldens import Golden, of_2026
from ckpt_tests.models import weights

CASES = [golden for golden in of_2026("families", "megatron-bridge") if str(golden) == "qwen3vl_tp1"]
STEP = "iter_0000000"
MOE = {
    "mlp__ffn": None,
    "mlp__moe__experts": 10,
    "mlp__moe__ffn": 20,
    "mlp__moe__router__top_k": 3,
    "mlp__moe__router__normalise": True,
}
# the tower of Qwen 3.5, which has no taps
TOWER = {
    path.replace(".", "__"): value
    for path, value in facts_of(example("seeing")).items()
    if path.startswith("vision.") and not path.startswith("vision.tap")
}
DELTA = {**TOWER, "attention__rotary__sections": (2, 2, 1), "attention__rotary__interleaved": True}
EPS = {f"{norm}__eps": 1e-5 for norm in ("attention__norm", "mlp__norm", "final_norm", "attention__qk_norm")}


def tensors(root: Path) -> dict[str, torch.Tensor]:
    return distributed.tensors(root / STEP)


def model_of(root: Path) -> dict:
    return yaml.safe_load((root / STEP / "run_config.yaml").read_text())["model"]


@pytest.mark.parametrize("golden", CASES, ids=str)
def test_its_own_files_are_those_of_transformers(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "hf", to="hf")
    assert_same_bits(weights(tmp_path / "hf"), weights(golden.source))
    with open_checkpoint(golden.checkpoint) as source:
        assert [loss.subject for loss in source.checkpoint.provenance.losses] == ["the activation of the projectors"]


@pytest.mark.parametrize("golden", CASES, ids=str)
def test_what_is_written_is_what_bridge_wrote(golden: Golden, tmp_path: Path) -> None:
    options = {"make_vocab_size_divisible_by": 16}
    plan = plan_conversion(golden.source, tmp_path / "run", to="megatron-bridge", options=options)
    assert "tanh form of GELU" in next(
        loss.reason for loss in plan.losses if loss.subject == "the activation of the projectors"
    )
    convert(golden.source, tmp_path / "run", to="megatron-bridge", options=options)
    assert_same_bits(tensors(tmp_path / "run"), tensors(golden.checkpoint))
    found, original = model_of(tmp_path / "run"), model_of(golden.checkpoint)
    assert {key: found[key] for key in found if key != "vision_config"} == {
        key: original[key] for key in found if key != "vision_config"
    }
    assert found["vision_config"].items() <= original["vision_config"].items()
    objects = {
        name for name in distributed.metadata_of(golden.checkpoint / STEP).state_dict_metadata if "_extra_state" in name
    }
    assert objects <= set(distributed.metadata_of(tmp_path / "run" / STEP).state_dict_metadata)


@pytest.mark.parametrize(
    ("name", "facts", "options", "target"),
    [
        ("seeing", EPS, {}, "Qwen3VLModelProvider"),
        ("seeing", EPS | MOE, {}, "Qwen3VLMoEModelProvider"),
        ("delta", DELTA, {}, "Qwen35VLModelProvider"),
        ("delta", DELTA | MOE, {}, "Qwen35VLMoEModelProvider"),
        ("seeing-squares", {}, {}, "Qwen25VLModelProvider"),
        ("seeing-whole", {"attention__window": 40}, {"post_norm_eps": "1e-5"}, "Gemma3VLModelProvider"),
    ],
)  # fmt: skip
def test_every_class_reads_back(name: str, facts: dict, options: dict, target: str, tmp_path: Path) -> None:
    changes = {path: ABSENT if value is None else value for path, value in facts.items()}
    write_ir(
        tmp_path / "ir", example(name, **changes), values=small_numbers
    )  # Bridge adds one to a norm of a delta net
    convert(tmp_path / "ir", tmp_path / "run", to="megatron-bridge", options=options)
    assert model_of(tmp_path / "run")["_target_"].endswith(f".{target}")
    (tmp_path / "run/ckpt-receipt.json").unlink()
    with open_checkpoint(tmp_path / "ir") as before, open_checkpoint(tmp_path / "run") as after:
        assert before.architecture == after.architecture
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "ir")


@pytest.mark.parametrize(
    ("name", "facts", "options", "arguments", "words"),
    [
        ("seeing", EPS, {}, {"tp": 8}, "tp=8 does not divide"),
        ("seeing", EPS, {}, {"pp": 6}, "on the first pipeline stage"),
        ("seeing", EPS, {"names": "local"}, {}, "the newest Bridge and TransformerEngine's modules alone"),
        ("seeing", EPS, {"container": "fsdp_dtensor"}, {}, "torch_dist alone"),
        ("seeing", {**EPS, "vision__mlp__norm__eps": 1e-5}, {}, {}, "vision.mlp.norm.eps is always 1e-06"),
        ("seeing", {**EPS, "attention__rotary__interleaved": False}, {}, {}, "it has m-rope without a scaling, interleaved"),
        ("seeing-whole", {"attention__window": 5}, {"post_norm_eps": "1e-5"}, {}, "no more of what comes after it"),
    ],
)  # fmt: skip
def test_what_bridge_computes_otherwise_is_refused(
    name: str, facts: dict, options: dict, arguments: dict, words: str, tmp_path: Path
) -> None:
    write_ir(tmp_path / "ir", example(name, **facts))
    with pytest.raises(CkptError, match=words):
        convert(tmp_path / "ir", tmp_path / "run", to="megatron-bridge", options=options, **arguments)
    assert_nothing_at(tmp_path / "run")
