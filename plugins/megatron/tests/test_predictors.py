"""Layers of multi-token prediction: in the last stage, with an embedding of its own; built as the last layer is, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.api import launch_of
from ckpt_core.architecture import PerLayer
from ckpt_core.errors import CkptError
from ckpt_core.testing import example, write_ir
from ckpt_core.testing.examples import ABSENT
from ckpt_tests.folders import assert_nothing_at

DROP = {"predictors": "drop"}
LAYER_NORMS = {
    f"{norm}__{field}": value
    for norm in (
        "attention__norm",
        "mlp__norm",
        "final_norm",
        *(f"predictors__{part}_norm" for part in ("embed", "hidden", "out")),
    )
    for field, value in (("kind", "layer"), ("bias", True))
}
EXPERTS = {
    "mlp__ffn": 56,
    "mlp__moe__experts": 10,
    "mlp__moe__ffn": 20,
    "mlp__moe__router__top_k": 3,
    "mlp.moe?": PerLayer((False, True, True, True)),
    "mlp.ffn?": PerLayer((True, False, False, False)),
}
MODELS = {
    "llama": example("predicting", layers=4),
    "layer norms": example("predicting", layers=4, **LAYER_NORMS),
    "experts": example("predicting", layers=4, **EXPERTS),
}
TORCH = {"container": "torch"}
WAYS: dict[str, dict[str, Any]] = {
    "torch_dist": {"to": "megatron"},
    "torch": {"to": "megatron", "tp": 2, "pp": 2, "options": TORCH},
    "torch, local, virtual stages": {"to": "megatron", "pp": 2, "options": TORCH | {"names": "local", "vpp": 2}},
    "fsdp_dtensor": {"to": "megatron", "options": {"container": "fsdp_dtensor"}},
    "bridge": {"to": "megatron-bridge", "tp": 2},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_they_come_back(model: str, way: str, tmp_path: Path) -> None:
    source = write_ir(tmp_path / "ir", MODELS[model])
    convert(source, tmp_path / "run", **WAYS[way])
    (tmp_path / "run/ckpt-receipt.json").unlink()
    assert fingerprint(tmp_path / "run") == fingerprint(source)
    assert fingerprint(tmp_path / "run", options=DROP) == fingerprint(source, options=DROP)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Rank files of two stages."""
    write_ir(tmp_path / "ir", MODELS["llama"])
    convert(tmp_path / "ir", tmp_path / "run", to="megatron", pp=2, options=TORCH)
    (tmp_path / "run/ckpt-receipt.json").unlink()
    return tmp_path / "run"


def changed(run: Path, change: Callable[[dict], None]) -> None:
    for path in sorted(run.rglob("*.pt")):
        content = torch.load(path, weights_only=False)
        change(content)
        torch.save(content, path)


def test_the_last_stage_has_them_and_embeds(run: Path) -> None:
    first, last = (torch.load(path, weights_only=False)["model"] for path in sorted(run.rglob("*.pt")))
    assert not any(name.startswith("mtp.") for name in first)
    embedding = "embedding.word_embeddings.weight"
    assert torch.equal(first[embedding].view(torch.int32), last[embedding].view(torch.int32))
    names = {
        name.removeprefix("mtp.layers.1.")
        for name in last
        if name.startswith("mtp.layers.1.") and last[name] is not None
    }
    assert {"enorm.weight", "hnorm.weight", "eh_proj.weight", "final_layernorm.weight"} < names
    assert "mtp_model_layer.self_attention.linear_qkv.layer_norm_weight" in names


def test_the_block_has_another_name_before_core_0_17(run: Path) -> None:
    def older(content: dict) -> None:
        content["model"] = {
            name.replace("mtp_model_layer", "transformer_layer"): value for name, value in content["model"].items()
        }

    before = fingerprint(run)
    changed(run, older)
    assert fingerprint(run) == before


def test_an_embedding_of_the_last_stage_that_is_another_is_refused(run: Path) -> None:
    def other(content: dict) -> None:
        if any(name.startswith("mtp.") for name in content["model"]):
            content["model"]["embedding.word_embeddings.weight"][3] += 1

    changed(run, other)
    with pytest.raises(CkptError, match=r"embedding\.tokens\.weight differ"):
        fingerprint(run)


def test_one_layer_that_is_applied_twice_is_refused(run: Path) -> None:
    changed(run, lambda content: setattr(content["args"], "mtp_use_repeated_layer", True))
    with pytest.raises(CkptError, match="mtp_use_repeated_layer"):
        open_checkpoint(run)
    assert fingerprint(run, options=DROP) == fingerprint(run.parent / "ir", options=DROP)


def test_files_without_them_are_of_a_model_without_whatever_the_args_say(run: Path) -> None:
    def without(content: dict) -> None:
        if any(name.startswith("mtp.") for name in content["model"]):
            own = {
                name: value for name, value in content["model"].items() if not name.startswith(("mtp.", "embedding."))
            }
            content["model"] = own

    changed(run, without)
    with open_checkpoint(run) as model:
        assert model.architecture.decoder.predictors is None


def test_dropping_them_is_named(run: Path) -> None:
    with open_checkpoint(run, options=DROP) as model:
        assert [str(loss) for loss in model.checkpoint.provenance.losses if "mtp" in loss.subject]


def test_the_command_line_says_how_many(run: Path) -> None:
    (argument,) = (one for one in launch_of(run).arguments if one.name == "mtp_num_layers")
    assert argument.words == ("--mtp-num-layers", "2")


@pytest.mark.parametrize("to", ["megatron", "megatron-bridge"])
@pytest.mark.parametrize(
    "facts",
    [
        {"attention__window": 16, "attention.window?": PerLayer((True, False) * 3)},
        {"predictors__out_norm": ABSENT},
        {"predictors__embed_norm__eps": 3e-4},
    ],
    ids=["a window in some layers", "no last norm", "another epsilon"],
)
def test_what_megatron_would_build_otherwise_is_refused(facts: dict[str, Any], to: str, tmp_path: Path) -> None:
    source = write_ir(tmp_path / "ir", example("predicting", **facts))
    with pytest.raises(CkptError, match="predictors"):
        convert(source, tmp_path / "run", to=to)
    assert_nothing_at(tmp_path / "run")


def test_models_before_megatron_core_have_none(tmp_path: Path) -> None:
    source = write_ir(tmp_path / "ir", example("predicting", hidden=216))
    with pytest.raises(CkptError, match="multi-token prediction"):
        convert(source, tmp_path / "run", to="megatron", options={"names": "legacy"})
