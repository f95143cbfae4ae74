"""Models some of whose layers are delta nets: what Bridge has no word for is refused, and the words of other models stay as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.architecture import Parameter
from ckpt_core.errors import CkptError
from ckpt_core.storage.dtypes import DType
from ckpt_core.testing import example, write_ir
from ckpt_tests import distributed
from ckpt_tests.bridge import STEP, changed, model
from ckpt_tests.folders import assert_nothing_at

CENTRED = ("attention.norm", "mlp.norm", "final_norm", "attention.qk_norm", "delta.norm")


def exact_less_one(generator: np.random.Generator, parameter: Parameter, dtype: DType) -> np.ndarray:
    """Numbers from which one is taken, and to which it is added again, without rounding."""
    return (generator.integers(64, 256, parameter.shape) / 128).astype(np.float32)


def written(folder: Path, **changes: object) -> Path:
    write_ir(folder / "ir", example("delta", **changes), values=exact_less_one)
    convert(folder / "ir", folder / "run", to="megatron-bridge", tp=2, pp=2)
    return folder / "run"


@pytest.mark.parametrize("centred", [True, False])
def test_norms_of_heads_are_stored_as_the_other_norms_are(centred: bool, tmp_path: Path) -> None:
    run = written(tmp_path, **{f"{norm}.zero_centred": centred for norm in CENTRED})
    stored = distributed.tensors(run / STEP)["decoder.layers.0.self_attention.out_norm.weight"]
    with open_checkpoint(tmp_path / "ir") as one:
        original = torch.from_numpy(one["layers.0.delta.head_norm.weight"].numpy())
    assert torch.equal(stored, original - 1 if centred else original)
    assert model(run)["layernorm_zero_centered_gamma"] is centred
    assert fingerprint(run) == fingerprint(tmp_path / "ir")


def test_a_number_says_which_layers_attend(tmp_path: Path) -> None:
    run = written(tmp_path)
    assert model(run)["linear_attention_freq"] == [1, 1, 0, 1, 1, 0]
    with open_checkpoint(tmp_path / "ir") as one, open_checkpoint(changed(run, linear_attention_freq=3)) as two:
        assert two.architecture.decoder == one.architecture.decoder


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"experimental_attention_variant": "dsa"}, "experimental_attention_variant"),
        ({"experimental_attention_variant": None}, "linear_attention_freq"),
        ({"linear_attention_freq": [1] * 6}, "linear_attention_freq"),
        ({"add_bias_linear": True}, "mlp.up_bias"),
        ({"linear_conv_kernel_dim": 4}, "t=4"),
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
        ({"delta__beta_scale": 2.0}, {}, "delta.beta_scale"),
        ({"delta__head_norm__eps": 1e-5}, {}, "delta.head_norm.eps"),
        ({"mlp__activation": "gelu_erf"}, {}, "delta?"),
    ],
)
def test_what_bridge_lacks_is_refused_by_name(
    changes: dict[str, object], options: dict[str, str], named: str, tmp_path: Path
) -> None:
    write_ir(tmp_path / "ir", example("delta", **changes))
    with pytest.raises(CkptError) as refusal:
        convert(tmp_path / "ir", tmp_path / "run", to="megatron-bridge", options=options)
    assert named in str(refusal.value)
    assert_nothing_at(tmp_path / "run")


def test_a_model_without_them_is_told_nothing_of_them(tmp_path: Path) -> None:
    write_ir(tmp_path / "ir", example("llama"))
    convert(tmp_path / "ir", tmp_path / "run", to="megatron-bridge")
    said = model(tmp_path / "run")
    assert not any(key.startswith(("linear_", "experimental", "attention_output_gate")) for key in said)


def test_a_layer_that_predicts_a_further_token_attends_as_the_last_one_does(tmp_path: Path) -> None:
    """Qwen3-Next and Qwen 3.5, whose files Bridge brings to the same names (qwen3_next_bridge.py)."""
    norm = {"kind": "rms", "eps": 1e-6, "zero_centred": True}
    said = {
        f"predictors.{part}_norm.{fact}": value for part in ("embed", "hidden", "out") for fact, value in norm.items()
    }
    run = written(tmp_path, **{"predictors.count": 1, **said})
    assert model(run)["mtp_num_layers"] == 1
    stored = distributed.tensors(run / STEP)
    block = "mtp.layers.0.transformer_layer"
    assert f"{block}.self_attention.linear_qkv.weight" in stored
    assert not any(name.startswith(f"{block}.self_attention.in_proj") for name in stored)
    assert fingerprint(run) == fingerprint(tmp_path / "ir")
