"""Megatron-FSDP's fsdp_dtensor: to the tensors that torch itself reads of it, and to the recorded logits."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.errors import CkptError, Refusal
from ckpt_core.plugins.discovery import detect
from ckpt_core.testing import example
from ckpt_core.testing.examples import calm_numbers, write_ir
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
def test_it_is_written_again_under_its_own_names_with_its_own_bits(golden: Golden, tmp_path: Path) -> None:
    """In one chunk each; torch reads the same tensors of both."""
    convert(golden.checkpoint, tmp_path / "again", to="megatron")
    known = distributed.tensors(golden.checkpoint / STEP)
    written = distributed.tensors(tmp_path / "again/release")
    assert_same_bits(written, {name: tensor for name, tensor in known.items() if name.startswith("model.")})
    assert fingerprint(tmp_path / "again") == fingerprint(golden.checkpoint)
    (tmp_path / "again/ckpt-receipt.json").unlink()
    with open_checkpoint(tmp_path / "again") as source:
        hints = source.checkpoint.provenance.hints
        assert hints["container"] == "fsdp_dtensor" and not source.checkpoint.provenance.losses


MODELS = {
    "gated": example("llama", layers=2, head__tied=True),
    "plain": example("gpt2", layers=1),
    "experts": example("moe", layers=2),
    "latent": example("latent", layers=2, mlp__norm__eps=1e-6, final_norm__eps=1e-6),
}


@pytest.mark.parametrize("model", MODELS)
def test_what_is_written_is_read_again(model: str, tmp_path: Path) -> None:
    """With Megatron-LM's args and with Bridge's run config, grouped experts and single ones; the weights are fp32, unless asked otherwise."""
    source = write_ir(tmp_path / "ir", MODELS[model], values=calm_numbers)
    for number, (to, options) in enumerate(WAYS):
        out = tmp_path / f"{number}"
        convert(source, out, to=to, options={"container": "fsdp_dtensor", **options})
        assert fingerprint(out) == fingerprint(source)
        ((plugin, _),) = detect(str(out))
        assert plugin.name == to
        (folder,) = (file.parent for file in out.rglob(".metadata"))
        names = distributed.tensors(folder).keys()
        assert {name.startswith("model.module.") for name in names} == {True}
        halves = {name for name in names if re.search(r"linear_fc1\.weight\d*_[wv]$", name)}
        assert bool(halves) == (model != "plain")
        grouped = options.get("experts") != "sequential"
        assert any(".mlp.experts.linear_fc1.weight" in name for name in halves) == (model in MIXTURES and grouped)
        assert any(".local_experts." in name for name in halves) == (model in MIXTURES and not grouped)
        assert {tensor.dtype for tensor in distributed.tensors(folder).values()} == {torch.float32}
    convert(source, tmp_path / "narrow", to="megatron", dtype="bf16", options={"container": "fsdp_dtensor"})
    kept = distributed.tensors(tmp_path / "narrow/release")
    assert torch.bfloat16 in {tensor.dtype for tensor in kept.values()}


MIXTURES = ("experts",)
WAYS = [
    ("megatron", {"experts": "grouped"}),
    ("megatron", {"experts": "sequential", "names": "local"}),
    ("megatron-bridge", {}),
]


def test_legacy_models_have_no_such_container(tmp_path: Path) -> None:
    source = write_ir(tmp_path / "ir", MODELS["plain"], values=calm_numbers)
    with pytest.raises(Refusal, match="torch files alone"):
        convert(source, tmp_path / "out", to="megatron", options={"container": "fsdp_dtensor", "names": "legacy"})


@pytest.mark.parametrize("to", ["megatron", "megatron-bridge"])
def test_grouped_experts_of_local_modules_are_refused(to: str, tmp_path: Path) -> None:
    """Nobody has seen what Megatron-FSDP makes of GroupedMLP, which has one weight for all experts."""
    source = write_ir(tmp_path / "ir", MODELS["experts"], values=calm_numbers)
    options = {"container": "fsdp_dtensor", "names": "local", **({"experts": "grouped"} if to == "megatron" else {})}
    with pytest.raises(Refusal, match="grouped experts of local modules"):
        convert(source, tmp_path / "out", to=to, options=options)


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
