"""Falcon-H1 as Bridge's own class keeps it: both ways, and what that class computes otherwise is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ckpt_core import convert, fingerprint
from ckpt_core.errors import CkptError
from ckpt_core.storage.chunks.dcp import read_distributed
from ckpt_core.testing import ABSENT, example, write_ir
from ckpt_tests.families import CASES, build
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.models import weights

STEP = "iter_0000000"
LLAMA3 = {
    f"attention__rotary__scaling__{name}": value
    for name, value in (("factor", 8.0), ("original_positions", 8192), ("low_frequency_factor", 1.0), ("high_frequency_factor", 4.0))
}  # fmt: skip
PREDICTING = {
    f"predictors__{part}_norm__{name}": value for part in ("embed", "hidden") for name, value in (("kind", "rms"), ("eps", 1e-5))
}  # fmt: skip
CLASS = "megatron.bridge.models.falcon_h1.falconh1_provider.FalconH1ModelProvider"


def model(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / STEP / "run_config.yaml").read_text())["model"]


def changed(run: Path, **fields: object) -> Path:
    path = run / STEP / "run_config.yaml"
    body = yaml.safe_load(path.read_text())
    body["model"] |= fields
    path.write_text(yaml.safe_dump(body))
    (run / "ckpt-receipt.json").unlink()
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("falcon_h1")
    build(CASES["falcon_h1"], folder / "hf")
    convert(folder / "hf", folder / "run", to="megatron-bridge", tp=2)
    return folder


def test_it_comes_back_with_every_multiplier(folder: Path, tmp_path: Path) -> None:
    convert(folder / "run", tmp_path / "back", to="hf")
    assert_same_bits(weights(tmp_path / "back"), weights(folder / "hf"))
    assert fingerprint(folder / "run") == fingerprint(folder / "hf")
    said = model(folder / "run")
    case = CASES["falcon_h1"].config
    assert said["_target_"] == CLASS
    same = {name: value for name, value in case.items() if name.endswith(("multiplier", "multipliers"))}
    assert len(same) == 9
    assert {name: said[name] for name in same} == same
    # the width of the heads together need not be a multiple of the hidden size, but expand times that one of a head's
    assert said["expand"] * said["hidden_size"] % said["mamba_head_dim"] == 0
    assert said["chunk_size"] == case["mamba_chunk_size"]
    assert (said["rmsnorm"], said["norm_before_gate"]) == (True, False)


def test_a_layer_has_the_names_of_the_class(folder: Path) -> None:
    keys = read_distributed(folder / "run" / STEP).tensors
    names = {key.removeprefix("decoder.layers.1.") for key in keys if key.startswith("decoder.layers.1.")}
    parts = ("in_proj.weight.z", "in_proj.weight.dt", "conv1d.weight.B", "conv1d.bias.x", "A_log", "D", "norm.weight")
    assert {f"mamba_mixer.{part}" for part in parts} <= names
    assert {"norm.weight", "mlp.linear_fc1.layer_norm_weight", "self_attention.linear_qkv.weight"} <= names
    assert not any("linear_qkv.layer_norm" in name or name.startswith("mixer.") for name in names)
    assert "decoder.final_norm.weight" in keys


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"use_attention": False}, "use_attention"),
        ({"falconh1_ratio": 0.5}, "falconh1_ratio"),
        ({"hybrid_override_pattern": "M-"}, "hybrid_override_pattern"),
        ({"qk_layernorm": True}, "qk_layernorm"),
        ({"add_bias_linear": True}, "add_bias_linear"),
        ({"ssm_multipliers": [1.0, 2.0]}, "ssm_multipliers"),
        ({"D_has_hdim": True}, "D_has_hdim"),
        ({"mtp_num_layers": 1}, "mtp_num_layers"),
        ({"position_embedding_type": "learned_absolute"}, "position_embedding_type"),
        ({"falconh1_stack_spec": "mine.spec"}, "falconh1_stack_spec"),
    ],
)
def test_another_model_is_refused(fields: dict[str, object], named: str, folder: Path, tmp_path: Path) -> None:
    convert(folder / "hf", tmp_path / "run", to="megatron-bridge", tp=2)
    with pytest.raises(CkptError) as refusal:
        convert(changed(tmp_path / "run", **fields), tmp_path / "out", to="ir")
    assert named in str(refusal.value)
    assert_nothing_at(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "options", "named"),
    [
        ({}, {"bridge_version": "0.4"}, "bridge_version"),
        ({}, {"names": "local"}, "names"),
        ({"attention__out_bias": True}, {}, "attention.out_bias"),
        ({"mamba__bias": True}, {}, "mamba.bias"),
        ({"mamba__norm_groups": 2}, {}, "mamba.norm_groups"),
        ({"mamba__gated_norm__eps": 1e-6}, {}, "mamba.gated_norm.eps"),
        ({"attention__qk_norm__kind": "rms", "attention__qk_norm__eps": 1e-5}, {}, "attention.qk_norm"),
        ({"mlp__clamp": 7.0}, {}, "mlp.clamp"),
        ({"residual_scale": 0.5}, {}, "residual_scale"),
        ({"attention__rotary": ABSENT, "positions__count": 40}, {}, "position"),
        ({"attention__rotary__scaling__kind": "llama3", **LLAMA3}, {}, "rope_scaling"),
        ({"predictors__count": 1, **PREDICTING}, {}, "predictors"),
    ],
)
def test_what_the_class_lacks_is_refused_by_name(
    changes: dict[str, object], options: dict[str, str], named: str, tmp_path: Path
) -> None:
    write_ir(tmp_path / "ir", example("side-by-side", **changes))
    with pytest.raises(CkptError) as refusal:
        convert(tmp_path / "ir", tmp_path / "run", to="megatron-bridge", tp=2, options=options)
    assert named in str(refusal.value)
    assert_nothing_at(tmp_path / "run")


def test_a_block_without_its_norm_is_held(tmp_path: Path) -> None:
    write_ir(tmp_path / "ir", example("side-by-side", mamba__gated_norm=ABSENT, mamba__norm_before_gate=False))
    convert(tmp_path / "ir", tmp_path / "run", to="megatron-bridge", tp=2)
    assert model(tmp_path / "run")["rmsnorm"] is False
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "ir")
