"""Checkpoints that someone damaged: each is refused by name, and nothing is written."""

from __future__ import annotations

import functools
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckpt_core import convert
from ckpt_tests import refusals, tiny
from ckpt_tests.refusals import changed

refused = functools.partial(refusals.refused, format="megatron")

RANK = "release/mp_rank_{:02d}_{:03d}/model_optim_rng.pt"
LAYER = "decoder.layers.0"
ALL = -1  # every rank


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tied model as torch files of two by two ranks, and as torch_dist."""
    folder = tmp_path_factory.mktemp("originals")
    tiny.build(folder / "hf", "llama", num_hidden_layers=4, tie_word_embeddings=True)
    convert(
        folder / "hf", folder / "torch", to="megatron", tp=2, pp=2, options={"container": "torch", "names": "local"}
    )
    convert(folder / "hf", folder / "torch_dist", to="megatron", options={"container": "torch_dist"})
    return {container: folder / container for container in ("torch", "torch_dist")}


def copied(original: Path, tmp_path: Path) -> Path:
    """A copy to be damaged, without the receipt."""
    run = tmp_path / "run"
    shutil.copytree(original, run)
    (run / "ckpt-receipt.json").unlink()
    return run


def renamed(content: dict, old: str, new: str) -> None:
    content["model"][new] = content["model"].pop(old)


def spoiled(content: dict, name: str) -> None:
    content["model"][name] = content["model"][name].clone()
    content["model"][name].view(-1)[-1] += 1


def on_args(**values: object) -> Callable[[dict], None]:
    return lambda content: content["args"].__dict__.update(values)


CHANGES: dict[str, tuple[Callable[[dict], object], int, int, str]] = {
    "drop": (lambda c: c["model"].pop(f"{LAYER}.mlp.linear_fc1.weight"), 0, 1, r"'decoder.layers.2.mlp.linear_fc1.weight' is missing"),
    "drop one rank's": (lambda c: c["model"].pop(f"{LAYER}.mlp.linear_fc2.weight"), 1, 0, r"'decoder.layers.0.mlp.linear_fc2.weight' is missing"),
    "rename": (lambda c: renamed(c, f"{LAYER}.mlp.linear_fc2.weight", f"{LAYER}.mlp.linear_fc3.weight"), 0, 0, "linear_fc3.weight' is not part"),
    "add": (lambda c: c["model"].update({"decoder.extra.weight": torch.zeros(3)}), 0, 0, "'decoder.extra.weight' is not part"),
    "reshape": (lambda c: c["model"].update({f"{LAYER}.mlp.linear_fc2.weight": torch.zeros(28, 96)}), 0, 0, "does not have the shape"),
    "shorten": (lambda c: c["model"].update({"embedding.word_embeddings.weight": torch.zeros(100, 96)}), 0, 0, "does not have the shape"),
    "no tensor": (lambda c: c["model"].update({f"{LAYER}.mlp.linear_fc2.weight": "gone"}), 0, 0, "is not a tensor"),
    "another dtype": (
        lambda c: c["model"].update({f"{LAYER}.mlp.linear_fc2.weight": torch.zeros(96, 28, dtype=torch.bfloat16)}), 1, 0, "different dtypes: bf16, fp32"),
    "integers": (lambda c: c["model"].update({f"{LAYER}.input_layernorm.weight": torch.zeros(96, dtype=torch.int64)}), 0, 0, "int64"),
    "a replica": (lambda c: spoiled(c, f"{LAYER}.input_layernorm.weight"), 1, 0, "two copies of layers.0.attention.norm.weight differ"),
    "the tied copy": (lambda c: spoiled(c, "output_layer.weight"), 1, 1, "two copies of embedding.tokens.weight differ"),
    "both names of a norm": (
        lambda c: c["model"].update({f"{LAYER}.self_attention.linear_qkv.layer_norm_weight": torch.zeros(96)}), 0, 0, "two copies of|has 192 elements"),
    "a layer": (lambda c: [c["model"].pop(name) for name in list(c["model"]) if ".layers.0." in name], 0, 0, "not numbered from 0"),
    "fewer layers": (on_args(num_layers=3), ALL, ALL, "another number of layers"),
    "other ranks": (on_args(tensor_model_parallel_size=4), ALL, ALL, "args.tensor_model_parallel_size is 4"),
    "other virtual stages": (on_args(virtual_pipeline_model_parallel_size=2), ALL, ALL, "virtual_pipeline_model_parallel_size is 2"),
    "another model": (on_args(qk_l2_norm=True), ALL, ALL, "key 'qk_l2_norm' has a value that is not supported"),
    "a strange norm": (on_args(normalization="GroupNorm"), ALL, ALL, "GroupNorm"),
    "a strange position": (on_args(position_embedding_type="alibi"), ALL, ALL, "alibi"),
    "a wrong kind of value": (on_args(hidden_size="ninety-six"), ALL, ALL, "hidden"),
    "no model": (lambda c: c.pop("model"), 0, 0, "holds no model"),
    "one rank's args": (on_args(rotary_base=777), 0, 1, "args.rotary_base is"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_rank_file_is_refused(name: str, originals: dict[str, Path], tmp_path: Path) -> None:
    change, tp, pp, problem = CHANGES[name]
    run = copied(originals["torch"], tmp_path)
    for rank in [(tp, pp)] if tp != ALL else [(0, 0), (0, 1), (1, 0), (1, 1)]:
        changed(run / RANK.format(*rank), change)
    refused(run, problem=problem)


def test_a_missing_rank_is_refused(originals: dict[str, Path], tmp_path: Path) -> None:
    run = copied(originals["torch"], tmp_path)
    shutil.rmtree(run / "release/mp_rank_01_001")
    refused(run, problem="no file of tensor parallel rank 1, pipeline rank 1")


def test_a_stale_rank_is_refused(originals: dict[str, Path], tmp_path: Path) -> None:
    run = copied(originals["torch"], tmp_path)
    shutil.copytree(run / "release/mp_rank_01_001", run / "release/mp_rank_02_001")
    refused(run, problem="3 ranks|rank 2, pipeline rank 0")


def test_swapped_stages_are_refused(originals: dict[str, Path], tmp_path: Path) -> None:
    run = copied(originals["torch"], tmp_path)
    swap(run / RANK.format(0, 0), run / RANK.format(0, 1))
    refused(run, problem="the embedding is not in the first pipeline stage")


def test_swapped_tensor_ranks_are_refused(originals: dict[str, Path], tmp_path: Path) -> None:
    """Both files have the same shapes; the rank that Megatron saves among the args, and we too, tells them apart."""
    run = copied(originals["torch"], tmp_path)
    swap(run / RANK.format(0, 1), run / RANK.format(1, 1))
    refused(run, problem="written by another rank than its folder says")


def test_converters_save_the_same_rank_in_all_files(originals: dict[str, Path], tmp_path: Path) -> None:
    run = copied(originals["torch"], tmp_path)
    for rank in ((0, 0), (0, 1), (1, 0), (1, 1)):
        changed(run / RANK.format(*rank), on_args(rank=0, world_size=1))
    convert(run, tmp_path / "ir", to="ir")


def test_a_file_of_another_iteration_is_refused(originals: dict[str, Path], tmp_path: Path) -> None:
    run = copied(originals["torch"], tmp_path)
    changed(run / RANK.format(1, 1), lambda content: content.update(iteration=7))
    refused(run, problem="iteration is 7")


def test_a_folder_of_another_iteration_is_refused(originals: dict[str, Path], tmp_path: Path) -> None:
    for container in ("torch", "torch_dist"):
        run = copied(originals[container], tmp_path / container)
        (run / "release").rename(run / "iter_0000009")
        (run / "latest_checkpointed_iteration.txt").write_text("9")
        refused(run, problem="of another iteration than the folder")


def test_a_rank_without_bounds_is_refused(originals: dict[str, Path], tmp_path: Path) -> None:
    run = copied(originals["torch"], tmp_path)
    (run / "release/mp_rank_01_001").rename(run / "release/mp_rank_99999999999_001")
    refused(run, problem="fewer files than ranks")


def swap(one: Path, two: Path) -> None:
    aside = one.with_suffix(".aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


@pytest.mark.parametrize(
    ("content", "problem"), [("nine", "names no iteration"), ("7", "is not there"), ("../up", "names no iteration")]
)
def test_a_wrong_tracker_is_refused(content: str, problem: str, originals: dict[str, Path], tmp_path: Path) -> None:
    run = copied(originals["torch"], tmp_path)
    (run / "latest_checkpointed_iteration.txt").write_text(content)
    refused(run, problem=problem)


def test_two_iterations_without_a_tracker_are_refused(originals: dict[str, Path], tmp_path: Path) -> None:
    run = copied(originals["torch"], tmp_path)
    (run / "latest_checkpointed_iteration.txt").unlink()
    convert(run, tmp_path / "one", to="ir")
    shutil.copytree(run / "release", run / "iter_0000009")
    refused(run, problem="says which iteration to read")


# --- torch_dist ----------------------------------------------------------------------------------------------------


def info_of(metadata, fqn: str):
    return next(info for index, info in metadata.storage_data.items() if index.fqn == fqn)


def entry(metadata):
    return metadata.state_dict_metadata["decoder.layers.mlp.linear_fc2.weight"]


def _drop(metadata) -> None:
    name = "decoder.layers.mlp.linear_fc2.weight"
    del metadata.state_dict_metadata[name]
    for index in [index for index in metadata.storage_data if index.fqn == name]:
        del metadata.storage_data[index]


def _rename(metadata) -> None:
    old, new = "decoder.layers.mlp.linear_fc2.weight", "decoder.layers.mlp.linear_fc9.weight"
    metadata.state_dict_metadata[new] = metadata.state_dict_metadata.pop(old)
    for index in [index for index in metadata.storage_data if index.fqn == old]:
        info = metadata.storage_data.pop(index)
        object.__setattr__(index, "fqn", new)
        metadata.storage_data[index] = info


def _set(metadata, **values: object) -> None:
    for key, value in values.items():
        setattr(info_of(metadata, "decoder.layers.mlp.linear_fc2.weight"), key, value)


class Harmful:
    def __reduce__(self) -> tuple:
        return os.system, ("touch /tmp/ckpt-was-here",)


METADATA_CHANGES: dict[str, tuple[Callable, str]] = {
    "drop": (_drop, "'decoder.layers.0.mlp.linear_fc2.weight' is missing"),
    "rename": (_rename, "linear_fc9.weight' is not part"),
    "a path up": (lambda m: _set(m, relative_path="../run/release/__0_0.distcp"), "outside the folder"),
    "an absolute path": (lambda m: _set(m, relative_path="/etc/passwd"), "outside the folder"),
    "no such file": (lambda m: _set(m, relative_path="__9_9.distcp"), "is missing"),
    "far away": (lambda m: _set(m, offset=1 << 50), "lies outside the file"),
    "too long": (lambda m: _set(m, length=1 << 40), "lies outside the file"),
    "too short": (lambda m: _set(m, length=100), "torch file|ends too early|zip"),
    "negative": (lambda m: _set(m, offset=-1), "is impossible"),
    "somewhere else": (lambda m: _set(m, offset=info_of(m, "decoder.final_layernorm.weight").offset), "share bytes|not a torch file|zip"),
    "a smaller shape": (lambda m: setattr(entry(m), "size", torch.Size([4, 96, 55])), "do not tile"),
    "a missing chunk": (lambda m: entry(m).chunks.pop(), "do not tile|places"),
    "a larger chunk": (lambda m: setattr(entry(m).chunks[0], "sizes", torch.Size([1, 96, 57])), "do not tile"),
    "a chunk before the start": (lambda m: setattr(entry(m).chunks[0], "offsets", torch.Size([-2, 0, 0])), r"(?s)a chunk of .* is impossible.* at \(-2, 0, 0\)"),
    "a chunk of no file": (lambda m: setattr(entry(m).chunks[0], "offsets", torch.Size([0, 1, 0])), r"(?s)at \(0, 1, 0\) lies nowhere.*files have its chunks at \(0, 0, 0\)"),
    "overlapping chunks": (lambda m: setattr(entry(m).chunks[1], "offsets", entry(m).chunks[0].offsets), "do not tile"),
    "another dtype": (lambda m: setattr(entry(m).properties, "dtype", torch.bfloat16), "is not what the checkpoint's metadata says"),
    "another kind": (lambda m: m.state_dict_metadata.update({"decoder.layers.mlp.linear_fc2.weight": 3}), "neither a tensor nor an object"),
    "a harmful class": (lambda m: setattr(m, "planner_data", Harmful()), "system"),
}  # fmt: skip


@pytest.mark.parametrize("name", METADATA_CHANGES)
def test_changed_metadata_is_refused(name: str, originals: dict[str, Path], tmp_path: Path) -> None:
    change, problem = METADATA_CHANGES[name]
    run = copied(originals["torch_dist"], tmp_path)
    path = run / "release/.metadata"
    metadata = pickle.loads(path.read_bytes())  # ours, written a moment ago
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))
    refused(run, problem=problem)
    assert not Path("/tmp/ckpt-was-here").exists()


def test_a_truncated_file_is_refused(originals: dict[str, Path], tmp_path: Path) -> None:
    run = copied(originals["torch_dist"], tmp_path)
    path = run / "release/__0_0.distcp"
    os.truncate(path, path.stat().st_size // 2)
    refused(run, problem="lies outside the file that holds it")


@pytest.mark.parametrize("name", ["metadata.json", ".metadata"])
def test_a_link_that_leaves_the_folder_is_refused(originals: dict[str, Path], tmp_path: Path, name: str) -> None:
    run = copied(originals["torch_dist"], tmp_path)
    path = run / "release" / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    refused(run, problem="a link that leads out of the checkpoint")


def test_swapped_files_are_refused(originals: dict[str, Path], tmp_path: Path) -> None:
    run = copied(originals["torch_dist"], tmp_path)
    swap(run / "release/__0_0.distcp", run / "release/__1_0.distcp")
    refused(run, problem="lies outside the file that holds it")


@pytest.mark.parametrize("content", [b"", b"{", b'{"sharded_backend": "tensorstore"}', b"[]"])
def test_other_backends_are_refused(content: bytes, originals: dict[str, Path], tmp_path: Path) -> None:
    run = copied(originals["torch_dist"], tmp_path)
    (run / "release/metadata.json").write_bytes(content)
    refused(run, problem="no weights|which iteration")
