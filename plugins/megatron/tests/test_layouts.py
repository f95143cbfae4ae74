"""Models of other formats as Megatron checkpoints of any layout, and what Megatron's GPTModel cannot hold."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_tests import megatron, tiny
from ckpt_tests.families import CASES, build
from ckpt_tests.folders import assert_nothing_at, assert_same_bits
from ckpt_tests.models import load, logits_of


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {family: tmp_path_factory.mktemp(family) / "hf" for family in ("llama", "qwen2_moe")}
    for family, folder in folders.items():
        tiny.build(folder, family)
    return folders


def test_biases_are_all_or_none(tmp_path: Path) -> None:
    """add_bias_linear gives biases to the MLP too; the ones a model lacks are written as zeros."""
    model = tiny.build(tmp_path / "hf", "llama", attention_bias=True)
    receipt = convert(tmp_path / "hf", tmp_path / "run", to="megatron", tp=2, options={"container": "torch"})
    assert any("zero biases" in rewrite for rewrite in receipt.body["target"]["decisions"]["rewrites"])
    held = megatron.tensors(tmp_path / "run")
    assert not held["mp_rank_00/model.decoder.layers.0.mlp.linear_fc1.bias"].any()
    assert held["mp_rank_00/model.decoder.layers.0.self_attention.linear_proj.bias"].any()
    convert(tmp_path / "run", tmp_path / "back", to="hf")
    assert torch.equal(logits_of(load(tmp_path / "back"), tiny.tokens()), logits_of(model.float(), tiny.tokens()))


def test_more_ranks_than_groups_cut_rows(tmp_path: Path) -> None:
    """With fewer groups than ranks, Megatron cuts linear_qkv into equal blocks of rows, through a group if need be."""
    tiny.build(tmp_path / "hf", "llama", num_key_value_heads=2)
    for tp in (1, 4):
        convert(
            tmp_path / "hf",
            tmp_path / f"tp{tp}",
            to="megatron",
            tp=tp,
            options={"container": "torch", "make_vocab_size_divisible_by": "16"},
        )
    whole, blocks = megatron.tensors(tmp_path / "tp1"), megatron.tensors(tmp_path / "tp4")
    name = "model.decoder.layers.1.self_attention.linear_qkv.weight"
    assert torch.equal(
        torch.cat([blocks[f"mp_rank_{rank:02d}/{name}"] for rank in range(4)]), whole[f"mp_rank_00/{name}"]
    )
    assert fingerprint(tmp_path / "tp4") == fingerprint(tmp_path / "hf")
    with pytest.raises(
        CkptError, match=r"neither divides the 2 query groups.*\n  fix: --tp 1 or 2 or 4 or 6 or 12, as far as heads go"
    ):
        convert(tmp_path / "hf", tmp_path / "tp3", to="megatron", tp=3)


def test_virtual_stages_take_turns(tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama", num_hidden_layers=8)
    convert(
        tmp_path / "hf",
        tmp_path / "run",
        to="megatron",
        pp=2,
        options={"container": "torch", "names": "local", "vpp": "2"},
    )
    convert(tmp_path / "hf", tmp_path / "flat", to="megatron", options={"container": "torch", "names": "local"})
    run, flat = megatron.tensors(tmp_path / "run"), megatron.tensors(tmp_path / "flat")
    for stage, chunk, first in ((0, 0, 0), (1, 0, 2), (0, 1, 4), (1, 1, 6)):
        for layer in range(2):
            here = run[f"mp_rank_00_{stage:03d}/model{chunk}.decoder.layers.{layer}.mlp.linear_fc2.weight"]
            assert torch.equal(here, flat[f"mp_rank_00/model.decoder.layers.{first + layer}.mlp.linear_fc2.weight"])
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "hf")


@pytest.mark.parametrize(("pp", "options", "problem"), [
    (2, {}, "pp=2 does not divide the 3 layers"),
    (1, {"vpp": "3"}, "virtual stages need more than one"),
    (4, {}, "pp=4 does not divide"),
    (3, {"vpp": "2"}, "pp=3 vpp=2 does not divide"),
    (1, {"names": "legacy", "container": "torch_dist"}, "torch files alone"),
])  # fmt: skip
def test_impossible_layouts_are_refused(
    pp: int, options: dict[str, str], problem: str, models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CkptError, match=problem):
        convert(models["llama"], tmp_path / "run", to="megatron", pp=pp, options=options)
    assert_nothing_at(tmp_path / "run")


def test_a_tied_head_is_copied_to_the_last_stage_alone(tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama", tie_word_embeddings=True)
    for pp in (1, 3):
        convert(tmp_path / "hf", tmp_path / str(pp), to="megatron", pp=pp, options={"container": "torch"})
    assert not [name for name in megatron.tensors(tmp_path / "1") if "output_layer" in name]
    held = megatron.tensors(tmp_path / "3")
    assert [name for name in held if "output_layer" in name] == ["mp_rank_00_002/model.output_layer.weight"]
    assert torch.equal(
        held["mp_rank_00_002/model.output_layer.weight"], held["mp_rank_00_000/model.embedding.word_embeddings.weight"]
    )


def test_the_vocabulary_is_padded_for_the_ranks(models: dict[str, Path], tmp_path: Path) -> None:
    for tp, multiple, rows in ((1, "16", 64), (2, "16", 64), (4, "32", 128)):
        run = tmp_path / f"{tp}-{multiple}"
        convert(
            models["llama"],
            run,
            to="megatron",
            tp=tp,
            options={"container": "torch_dist", "make_vocab_size_divisible_by": multiple},
        )
        held = megatron.tensors(run)["embedding.word_embeddings.weight"]
        assert held.shape[0] == rows
        assert not held[61:].any()
        with open_checkpoint(run) as source:
            assert source.architecture.tokens.vocabulary == 61


def test_torch_files_load_with_weights_only(models: dict[str, Path], tmp_path: Path) -> None:
    convert(models["llama"], tmp_path / "run", to="megatron", dtype="bf16", options={"container": "torch"})
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(tmp_path / "run/release/mp_rank_00/model_optim_rng.pt", weights_only=True, mmap=True)
    assert content["checkpoint_version"] == 3.0
    assert content["iteration"] == 0
    assert content["args"].params_dtype is torch.bfloat16
    for name in (
        "num_layers",
        "hidden_size",
        "num_attention_heads",
        "add_position_embedding",
        "max_position_embeddings",
        "tokenizer_type",
    ):
        assert hasattr(content["args"], name), "check_checkpoint_args compares it"
    assert (tmp_path / "run/latest_checkpointed_iteration.txt").read_text() == "release"


def test_torch_loads_what_we_write_as_torch_dist(models: dict[str, Path], tmp_path: Path) -> None:
    convert(models["qwen2_moe"], tmp_path / "run", to="megatron", options={"iteration": "12"})
    folder = tmp_path / "run/iter_0000012"
    assert json.loads((folder / "metadata.json").read_text()) == {
        "sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1,
    }  # fmt: skip
    reader = dcp.FileSystemReader(str(folder))
    metadata = reader.read_metadata()
    state = {
        name: torch.zeros(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
        if hasattr(entry, "chunks")
    }
    dcp.load(state, storage_reader=reader, no_dist=True)
    assert_same_bits(state, megatron.dist_tensors(folder))
    extra = [name for name in metadata.state_dict_metadata if name not in state]
    assert "decoder.layers.self_attention.linear_qkv._extra_state/shard_0_3" in extra
    assert "decoder.layers.mlp.experts.experts.linear_fc1._extra_state/shard_2.4_3.5" in extra
    assert state["decoder.layers.mlp.experts.experts.linear_fc1.weight"].shape == (3, 5, 48, 96)
    common = torch.load(folder / "common.pt", weights_only=False)
    assert common["args"].num_experts == 5


def without_args(run: Path) -> None:
    """The args taken out of every file, as converters of old leave them out."""
    for path in run.rglob("*.pt"):
        content = torch.load(path, weights_only=False)
        del content["args"]
        torch.save(content, path)
    (run / "ckpt-receipt.json").unlink()


def test_without_args_the_config_says_what_the_model_is(models: dict[str, Path], tmp_path: Path) -> None:
    for container in ("torch", "torch_dist"):
        run = tmp_path / container
        convert(models["llama"], run, to="megatron", tp=2, options={"container": container})
        without_args(run)
        with pytest.raises(CkptError, match="--config"):
            fingerprint(run)
        assert fingerprint(run, config=str(models["llama"] / "config.json")) == fingerprint(models["llama"])


def test_without_args_the_router_says_how_many_experts_are_grouped(tmp_path: Path) -> None:
    build(CASES["mixtral"], tmp_path / "hf", num_local_experts=8)
    options = {"container": "torch", "names": "local", "experts": "grouped"}
    convert(tmp_path / "hf", tmp_path / "run", to="megatron", ep=2, options=options)
    without_args(tmp_path / "run")
    assert fingerprint(tmp_path / "run", config=str(tmp_path / "hf/config.json")) == fingerprint(tmp_path / "hf")


@pytest.mark.parametrize("pp", [1, 2])
def test_without_args_the_second_number_of_a_folder_is_understood(pp: int, tmp_path: Path) -> None:
    """mp_rank_00_001 is the second stage, or the second rank of experts of the only stage."""
    build(CASES["mixtral"], tmp_path / "hf", num_local_experts=8)
    convert(tmp_path / "hf", tmp_path / "run", to="megatron", pp=pp, ep=3 - pp, options={"container": "torch"})
    assert (tmp_path / "run/release/mp_rank_00_001").is_dir()
    without_args(tmp_path / "run")
    with open_checkpoint(tmp_path / "run", config=str(tmp_path / "hf/config.json")) as source:
        assert source.checkpoint.parallel == {"tp": 1, "pp": pp, "ep": 3 - pp}
    assert fingerprint(tmp_path / "run", config=str(tmp_path / "hf/config.json")) == fingerprint(tmp_path / "hf")
