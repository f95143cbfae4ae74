"""Hybrid models: what Bridge has no word for is refused, and a pattern is what says which layer is what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.architecture import PerLayer
from ckpt_core.errors import CkptError
from ckpt_core.testing import ABSENT, example, write_ir
from ckpt_tests.bridge import changed, model
from ckpt_tests.families import CASES, Case, build
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.models import weights

# Layers M - * M - *, with what core has in its code: convolutions over four positions, with a bias.
DENSE = {
    "mlp__moe": ABSENT, "mlp__ffn?": ABSENT, "mlp?": PerLayer((False, True, False, False, True, False)),
    "mamba__conv": 4,
}  # fmt: skip


def written(folder: Path, options: dict[str, str] | None = None, **changes: object) -> Path:
    write_ir(folder / "ir", example("one-block", **{**DENSE, **changes}))
    convert(folder / "ir", folder / "run", to="megatron-bridge", tp=2, options=options or {})
    return folder / "run"


def test_a_pattern_says_which_layer_is_what(tmp_path: Path) -> None:
    run = written(tmp_path)
    assert model(run)["hybrid_layer_pattern"] == "M-*M-*"
    assert fingerprint(run) == fingerprint(tmp_path / "ir")
    with open_checkpoint(tmp_path / "ir") as one, open_checkpoint(changed(run, hybrid_layer_pattern="M-*|M-*")) as two:
        assert two.architecture.decoder == one.architecture.decoder


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"hybrid_layer_pattern": "M-*M-G"}, "hybrid_layer_pattern"),
        ({"hybrid_layer_pattern": "M-*M-*/M"}, "hybrid_layer_pattern"),
        ({"hybrid_layer_pattern": None}, "hybrid_layer_pattern"),
        ({"hybrid_layer_pattern": "M-*M-*M"}, "num_layers"),
        ({"mtp_num_layers": 1}, "mtp_num_layers"),
        ({"mamba_state_dim": 12}, "n="),
        ({"hybrid_stack_spec": "mine"}, "hybrid_stack_spec"),
    ],
)
def test_another_model_is_refused(fields: dict[str, object], named: str, tmp_path: Path) -> None:
    run = changed(written(tmp_path), **fields)
    with pytest.raises(CkptError) as refusal:
        convert(run, tmp_path / "out", to="ir")
    assert named in str(refusal.value)
    assert_nothing_at(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "options", "named"),
    [
        ({}, {"bridge_version": "0.4"}, "bridge_version"),
        ({}, {"names": "local"}, "names"),
        ({"mamba__conv": 3}, {}, "mamba.conv"),
        ({"mamba__conv_bias": False}, {}, "mamba.conv_bias"),
        ({"mamba__norm_groups": 2}, {}, "mamba.norm_groups"),
        ({"mamba__gated_norm__eps": 1e-6}, {}, "mamba.gated_norm.eps"),
        ({"mamba__bias": True}, {}, "mamba.bias"),
        ({"mlp?": ABSENT}, {}, "mlp"),
    ],
)
def test_what_bridge_lacks_is_refused_by_name(
    changes: dict[str, object], options: dict[str, str], named: str, tmp_path: Path
) -> None:
    with pytest.raises(CkptError) as refusal:
        written(tmp_path, options, **changes)
    assert named in str(refusal.value)
    assert_nothing_at(tmp_path / "run")


# Layers M E * M E * of one kind of fed block, and M - * M E * of both
MIXED = {
    "mlp__moe?": PerLayer((False, False, False, False, True, False)),
    "mlp__ffn?": PerLayer((False, True, *[False] * 4)),
}
SPARSE = {"mlp__moe?": ABSENT, "mlp__ffn?": ABSENT, "mlp__ffn": ABSENT}
BOTH = {"mlp?": PerLayer((False, True, False, False, True, False)), "mamba__conv": 4}


@pytest.mark.parametrize(("changes", "pattern"), [(MIXED, "M-*ME*"), (SPARSE, "ME*ME*")])
def test_experts_are_a_kind_of_block(changes: dict[str, object], pattern: str, tmp_path: Path) -> None:
    write_ir(tmp_path / "ir", example("one-block", **{**BOTH, **changes}))
    convert(tmp_path / "ir", tmp_path / "run", to="megatron-bridge", tp=2, pp=2, ep=2)
    said = model(tmp_path / "run")
    assert said["hybrid_layer_pattern"] == pattern
    assert (said["num_moe_experts"], said["moe_latent_size"], said["moe_grouped_gemm"]) == (10, 44, True)
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "ir")
    with open_checkpoint(tmp_path / "ir") as one, open_checkpoint(tmp_path / "run") as two:
        assert two.architecture.decoder == one.architecture.decoder


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_moe_experts": None}, "num_moe_experts"),
        ({"moe_latent_size": 43}, "m="),
        ({"moe_latent_size": None}, "latent"),
    ],
)
def test_experts_are_what_the_fields_say(fields: dict[str, object], named: str, tmp_path: Path) -> None:
    write_ir(tmp_path / "ir", example("one-block", **{**BOTH, **SPARSE}))
    convert(tmp_path / "ir", tmp_path / "run", to="megatron-bridge")
    with pytest.raises(CkptError) as refusal:
        convert(changed(tmp_path / "run", **fields), tmp_path / "out", to="ir")
    assert named in str(refusal.value)


def test_what_transformers_alone_computes_by_comes_back(tmp_path: Path) -> None:
    """transformers cuts steps below `time_step_min`, of which no field of Bridge says anything: the receipt keeps it."""
    usual = {"conv_kernel": 4, "n_group": 1, "time_step_min": 0.002, "chunk_size": 32}
    build(Case("nemotron_h", {**CASES["nemotron_h"].config, **usual}), tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "run", to="megatron-bridge", tp=2)
    convert(tmp_path / "run", tmp_path / "back", to="hf")
    assert_same_bits(weights(tmp_path / "back"), weights(tmp_path / "hf"))
    back = json.loads((tmp_path / "back/config.json").read_text())
    assert {key: back[key] for key in ("time_step_min", "chunk_size")} == {"time_step_min": 0.002, "chunk_size": 32}
    (tmp_path / "run/ckpt-receipt.json").unlink()
    convert(tmp_path / "run", tmp_path / "alone", to="hf")
    assert json.loads((tmp_path / "alone/config.json").read_text())["time_step_min"] == 1e-9
