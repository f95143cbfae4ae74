"""Latent attention that sees what an indexer chose (GLM-5, DeepSeek V3.2): what Bridge says of it comes back, and what it lacks is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.architecture import PerLayer
from ckpt_core.errors import CkptError
from ckpt_core.testing import example, write_ir
from ckpt_tests import distributed
from ckpt_tests.bridge import STEP, changed, model
from ckpt_tests.config_classes import LATENT
from ckpt_tests.families import CASES, build
from ckpt_tests.folders import assert_nothing_at
from ckpt_tests.models import weights

INDEXER = "self_attention.core_attention.indexer"


def written(folder: Path, **changes: object) -> Path:
    write_ir(folder / "ir", example("latent-indexed", **(LATENT | changes)))
    convert(folder / "ir", folder / "run", to="megatron-bridge", tp=2)
    return folder / "run"


def test_every_third_layer_borrows_what_the_one_below_chose(tmp_path: Path) -> None:
    with pytest.raises(CkptError, match=r"every n-th has an indexer(.|\n)*\[0, 1, 3, 4\]"):
        written(tmp_path)
    kinds = (True, True, False, True, False, True)
    layers = {"indexer?": PerLayer(kinds), "index_from_before": PerLayer(not kind for kind in kinds)}
    run = written(tmp_path, **{f"latent_attention__{name}": value for name, value in layers.items()})
    said = model(run)
    assert (said["dsa_indexer_topk_freq"], said["dsa_indexer_skip_topk_offset"]) == (2, 2)
    assert (said["experimental_attention_variant"], said["dsa_indexer_k_norm_epsilon"]) == ("dsa", 1e-6)
    stored = distributed.tensors(run / STEP)
    assert [layer for layer in range(6) if f"decoder.layers.{layer}.{INDEXER}.linear_wk.weight" in stored] == [
        0,
        1,
        3,
        5,
    ]
    assert "decoder.layers.2.self_attention.kv_layernorm.weight" in stored  # which is never fused here
    (run / "ckpt-receipt.json").unlink()
    assert fingerprint(run) == fingerprint(tmp_path / "ir")
    with open_checkpoint(run) as one, open_checkpoint(tmp_path / "ir") as two:
        assert one.architecture.decoder == two.architecture.decoder


def test_rows_lie_as_in_glm_5_and_those_of_older_cores_in_halves(tmp_path: Path) -> None:
    build(CASES["glm_moe_dsa"], tmp_path / "hf")
    options = {"latent_norm_eps": "1e-5"}
    convert(tmp_path / "hf", tmp_path / "run", to="megatron-bridge", options={"src.latent_norm_eps": "1e-5"})
    row = distributed.tensors(tmp_path / "run" / STEP)[f"decoder.layers.0.{INDEXER}.linear_wk.weight"]
    assert torch.equal(row, weights(tmp_path / "hf")["model.layers.0.self_attn.indexer.wk.weight"])
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "hf", options=options)
    older = changed(tmp_path / "run", dsa_indexer_rope_interleaved=False)
    assert fingerprint(older) != fingerprint(tmp_path / "hf", options=options)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"dsa_indexer_scoring_relu": False}, "dsa_indexer_scoring_relu"),
        ({"dsa_indexer_topk": None}, "dsa_indexer_topk"),
        ({"experimental_attention_variant": "gated_delta_net"}, "experimental_attention_variant"),
    ],
)
def test_another_model_is_refused(fields: dict[str, object], named: str, tmp_path: Path) -> None:
    uniform = {
        "latent_attention__indexer?": PerLayer([True] * 6),
        "latent_attention__index_from_before": PerLayer([False] * 6),
    }
    run = changed(written(tmp_path, **uniform), **fields)
    with pytest.raises(CkptError, match=named):
        convert(run, tmp_path / "out", to="ir")
    assert_nothing_at(tmp_path / "out")


@pytest.mark.parametrize("options", [{"bridge_version": "0.4"}, {"names": "local"}])
def test_other_versions_and_modules_are_refused(options: dict[str, str], tmp_path: Path) -> None:
    build(CASES["deepseek_v32"], tmp_path / "hf")
    with pytest.raises(CkptError, match="indexers are written for the newest Bridge"):
        convert(tmp_path / "hf", tmp_path / "run", to="megatron-bridge", options=options)
    assert_nothing_at(tmp_path / "run")
