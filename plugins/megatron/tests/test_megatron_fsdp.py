"""Megatron-FSDP's fsdp_dtensor: to the tensors that torch itself reads of it, and to the recorded logits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError
from ckpt_core.plugins.discovery import detect
from ckpt_tests import distributed
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.goldens import Golden, of_2026
from ckpt_tests.models import load, logits_of, weights

TOLERANCE = 1e-4
CASES = of_2026("fsdp-dtensor")
STEP = "iter_0000002"
GATE = "model.module.decoder.layers.0.mlp.experts.local_experts.1.linear_fc1.weight_w"
each = pytest.mark.parametrize("golden", CASES, ids=str)


@each
def test_every_tensor_and_the_logits_are_those_of_the_run(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "hf", to="hf")
    assert_same_bits(weights(tmp_path / "hf"), load_file(golden.folder / "full.safetensors"))
    assert golden.off_by(logits_of(load(tmp_path / "hf"), golden.input_ids)) <= TOLERANCE


@each
def test_other_containers_have_the_same_fingerprint(golden: Golden, tmp_path: Path) -> None:
    for container in ("torch_dist", "torch"):
        convert(golden.checkpoint, tmp_path / container, to="megatron", tp=2, options={"container": container})
        assert fingerprint(tmp_path / container) == fingerprint(golden.checkpoint)


@each
def test_it_is_megatrons_and_the_weights_are_the_masters(golden: Golden) -> None:
    for path in (golden.checkpoint, golden.checkpoint / STEP):
        ((plugin, _),) = detect(str(path))
        assert plugin.name == "megatron"
    with open_checkpoint(golden.checkpoint, weights="master") as source:
        assert source.checkpoint.provenance.masters
        left = {loss.subject.partition(",")[0].partition(":")[0] for loss in source.checkpoint.all_losses}
        assert left <= {"optimizer state", "iteration and consumed samples", "settings of the run"}


def rewrapped(metadata: Any) -> None:
    """As a script saves whose model has two wrappers more."""
    for name in list(metadata.state_dict_metadata):
        if name.startswith("model.module."):
            distributed.renamed(metadata, name, name.replace("model.", "model.module.module.", 1))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (golden,) = (golden for golden in CASES if golden.folder.name == "mfsdp-moe-dp2-ep2")
    return Path(shutil.copytree(golden.checkpoint, tmp_path / "run", copy_function=shutil.copyfile))


def test_any_number_of_wrappers_is_taken_off(run: Path) -> None:
    known = fingerprint(run)
    distributed.changed(run / STEP, rewrapped)
    assert fingerprint(run) == known


def test_bridge_keeps_it_beside_its_run_config(run: Path, tmp_path: Path) -> None:
    convert(run, tmp_path / "bridge", to="megatron-bridge")
    (config,) = (tmp_path / "bridge").rglob("run_config.yaml")
    shutil.copyfile(config, run / STEP / "run_config.yaml")
    ((plugin, _),) = detect(str(run))
    assert plugin.name == "megatron-bridge"
    known = fingerprint(run)
    assert known == fingerprint(tmp_path / "bridge")
    distributed.changed(run / STEP, without("args"))  # it does not rely on them
    with open_checkpoint(run) as source:
        fates = {entry.key: entry.fate for entry in source.checkpoint.ledger}
        assert (fates["iteration"], fates["checkpoint_version"]) == ("left", "used")
    assert fingerprint(run) == known


def test_a_decoder_of_transformers_in_wrappers_is_not_megatrons(tmp_path: Path) -> None:
    tensors = {"model.module.model.decoder.layers.0.self_attn.q_proj.weight": torch.zeros(2, 3)}  # as BART has it
    dcp.save(tensors, checkpoint_id=str(tmp_path / "run"), no_dist=True)
    assert [plugin.name for plugin, _ in detect(str(tmp_path / "run"))] == ["fsdp"]


def without(name: str) -> Callable[[Any], None]:
    return lambda metadata: distributed.dropped(metadata, name)


def without_a_chunk(metadata: Any) -> None:
    name = "model.module.output_layer.weight"
    metadata.state_dict_metadata[name].chunks.pop()


def twice(metadata: Any) -> None:
    name = "model.module.output_layer.weight"
    metadata.state_dict_metadata["model.output_layer.weight"] = metadata.state_dict_metadata[GATE]
    for index, info in list(metadata.storage_data.items()):
        if index.fqn == GATE:
            metadata.storage_data[type(index)("model.output_layer.weight", index.offset, index.index)] = info
    distributed.dropped(metadata, GATE)
    assert name in metadata.state_dict_metadata


# fmt: off
LIES: dict[str, tuple[Callable[[Any], None], str]] = {
    "half of an expert":                 (without(GATE),                             r"local_experts\.1\.linear_fc1\.weight"),
    "a chunk that is missing":           (without_a_chunk,                           "output_layer.weight"),
    "no args":                           (without("args"),                           "the checkpoint holds no args"),
    "one name under two wrappers":       (twice,                                     "once their wrappers are taken off"),
    "a tensor that is not the model's":  (lambda metadata: distributed.renamed(metadata, GATE, "model.module.decoder.surprise"), "decoder.surprise"),
}
# fmt: on


@pytest.mark.parametrize("what", LIES)
def test_a_lie_of_the_metadata_is_refused_by_name(what: str, run: Path, tmp_path: Path) -> None:
    change, words = LIES[what]
    distributed.changed(run / STEP, change)
    with pytest.raises(CkptError, match=words):
        convert(run, tmp_path / "hf", to="hf")
