"""Hybrid models: what Bridge has no word for is refused, and a pattern is what says which layer is what."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.architecture import PerLayer
from ckpt_core.errors import CkptError
from ckpt_core.testing import ABSENT, example, write_ir
from ckpt_tests.bridge import changed, model
from ckpt_tests.folders import assert_nothing_at

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
        ({"hybrid_layer_pattern": "M-*M-E"}, "hybrid_layer_pattern"),
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


def test_mixtures_in_hybrid_models_are_refused_by_name(tmp_path: Path) -> None:
    write_ir(tmp_path / "ir", example("one-block", mamba__conv=4))
    with pytest.raises(CkptError, match=r"mlp\.moe"):
        convert(tmp_path / "ir", tmp_path / "run", to="megatron-bridge")
