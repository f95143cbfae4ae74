"""Checkpoints that NxD Training and AWS's converter wrote: read to NxDT's own logits, written again to the same tensors."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.layout import Row
from ckpt_hf import load_model
from ckpt_tests import nxdt
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.goldens import Golden, each
from ckpt_tests.models import load, logits_of, weights
from ckpt_tests.rows import wrong_everywhere

TOLERANCE = 1e-4  # of fp32 logits; the frameworks' own forwards differ by up to 2e-5
WRONG = 1.0  # what AWS's converter does to logits where it is wrong: 5 and more


def converted(golden: Golden) -> bool:
    return golden.folder.name.startswith("conv_")


def trained(golden: Golden) -> bool:
    return golden.folder.name.startswith("train_")


def awsbug(golden: Golden) -> bool:
    return golden.folder.name.endswith("_awsbug")


def config_of(golden: Golden) -> str:
    folder = "source_hf" if converted(golden) else "config"
    return str(golden.folder / folder / "config.json")


def qkv_of(golden: Golden) -> str:
    """The attention inputs, by the flags given to AWS's converter."""
    flags = golden.case
    if flags["fuse_qkv"]:
        return "fused"
    return "linear" if flags["qkv_linear"] else "coalesced" if flags["coalesce_qkv"] else "split"


def flags_of(golden: Golden, layout: str) -> dict:
    """The converter's flags as our arguments."""
    options = {"model_style": golden.case["model_style"], "hw_backend": golden.case["hw_backend"], "layout": layout}
    options |= {"kv_size_multiplier": str(golden.case["kv_size_multiplier"])}
    options |= {"virtual_pp": str(golden.case["vpp"])} if golden.case["vpp"] > 1 else {}
    options |= {"qkv": qkv_of(golden)} if golden.case["model_style"] == "hf" else {}
    return {**golden.parallel, "options": options}


def reading(golden: Golden) -> dict:
    """How a case is read: what the files do not say."""
    options = {"layout": "aws-converter"} if awsbug(golden) else {}
    if converted(golden) and golden.case["kv_size_multiplier"] > 1:
        options["hw_backend"] = golden.case["hw_backend"]
    return {"config": config_of(golden), "options": options}


# --- AWS's converter -----------------------------------------------------------------------------------------------


@each("nxdt", converted)
def test_our_export_is_that_of_the_converter(golden: Golden, tmp_path: Path) -> None:
    for layout in ["aws-converter"] if awsbug(golden) else ["native", "aws-converter"]:
        convert(golden.folder / "source_hf", tmp_path / layout, to="nxdt", **flags_of(golden, layout))
        assert_same_bits(nxdt.tensors(tmp_path / layout), nxdt.tensors(golden.checkpoint))


@each("nxdt", converted)
def test_our_import_is_the_source(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "hf", to="hf", **reading(golden))
    assert_same_bits(weights(tmp_path / "hf"), weights(golden.folder / "source_hf"))
    assert golden.off_by(logits_of(load(tmp_path / "hf"), golden.input_ids)) <= TOLERANCE


@each("nxdt", awsbug)
def test_what_the_converter_wrote_is_another_model_to_a_job(golden: Golden, tmp_path: Path) -> None:
    """Read as a job reads them, AWS's files give NxDT's own wrong logits; our native files of that source the right ones."""
    options = {"layout": "native", "hw_backend": golden.case["hw_backend"]}
    if golden.case["kv_size_multiplier"] > 1:  # the ranks of one head then hold different ones
        options["kv_replicas"] = "separate"
    as_job = logits_of(
        load_model(golden.checkpoint, config=config_of(golden), options=options, dtype="fp32"), golden.input_ids
    )
    recorded = load_file(golden.folder / "expected.safetensors")["framework_logits"]
    assert (as_job - recorded).abs().max() <= TOLERANCE
    assert golden.off_by(as_job) > WRONG
    convert(golden.folder / "source_hf", tmp_path / "run", to="nxdt", **flags_of(golden, "native"))
    assert golden.off_by(logits_of(load_model(tmp_path / "run", dtype="fp32"), golden.input_ids)) <= TOLERANCE


@each("nxdt", awsbug)
def test_who_wrote_the_files_must_be_said(golden: Golden) -> None:
    with pytest.raises(Exception, match=r"nothing says (who wrote|whether) these files") as refused:
        open_checkpoint(golden.checkpoint, config=config_of(golden))
    assert "-o layout=aws-converter" in str(refused.value)


# --- training jobs -------------------------------------------------------------------------------------------------


@each("nxdt", trained)
def test_transformers_computes_the_recorded_logits(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "hf", to="hf", **reading(golden))
    assert golden.off_by(logits_of(load(tmp_path / "hf"), golden.input_ids)) <= TOLERANCE


@each("nxdt", trained)
def test_back_in_its_own_layout_every_tensor_is_the_original(golden: Golden, tmp_path: Path) -> None:
    options = {"dst.xser": str(golden.case["xser"]).lower()}
    convert(
        golden.checkpoint, tmp_path / "run", to="nxdt", config=config_of(golden), **golden.parallel, options=options
    )
    assert_same_bits(nxdt.tensors(tmp_path / "run"), nxdt.tensors(golden.checkpoint))


@each("nxdt", trained)
def test_the_config_beside_our_files_is_enough(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "run", to="nxdt", config=config_of(golden), **golden.parallel)
    (tmp_path / "run" / "ckpt-receipt.json").unlink()
    assert fingerprint(tmp_path / "run") == fingerprint(golden.checkpoint, config=config_of(golden))


def has_masters(golden: Golden) -> bool:
    return trained(golden) and golden.case["master_weights_saved"]


@each("nxdt", has_masters)
def test_masters_are_those_of_zero1(golden: Golden, tmp_path: Path) -> None:
    """The shards of all data parallel ranks one after the other, read with torch, numbered as the case says."""
    arguments = {"config": config_of(golden), **golden.parallel}
    convert(golden.checkpoint, tmp_path / "run", to="nxdt", weights="master", **arguments)
    written, stored = nxdt.tensors(tmp_path / "run"), nxdt.tensors(golden.checkpoint)
    optim = next(golden.checkpoint.glob("*/optim"))
    for tp in range(golden.case["tp"]):
        for number, name in enumerate(golden.case["optimizer_param_order"]):
            shards = [zero1_master(optim, dp, tp, number) for dp in range(golden.case["dp"])]
            key = f"dp_rank_00_tp_rank_{tp:02d}_pp_rank_00.pt:{name}"
            assert torch.equal(written[key], torch.cat(shards)[: len(stored[key])]), name
            assert torch.equal(written[key].bfloat16(), stored[key]), name
    assert any(not torch.equal(written[key], stored[key].float()) for key in stored), (
        "they can't be told from the weights"
    )


def zero1_master(optim: Path, dp: int, tp: int, number: int) -> torch.Tensor:
    path = optim / f"dp_rank_{dp:02d}_tp_rank_{tp:02d}_pp_rank_00.pt"
    with nxdt.torch_xla():
        reference = torch.load(path, weights_only=False)["sharded_master_weights"][number]
    return torch.load(f"{path}.tensors/tensor_{reference.tid}.pt")


@each("nxdt", lambda golden: trained(golden) and not has_masters(golden))
def test_masters_that_are_not_there_are_refused(golden: Golden) -> None:
    with pytest.raises(Exception, match="no fp32 masters"):
        fingerprint(golden.checkpoint, config=config_of(golden), weights="master")


# --- what is said, and what is not needed --------------------------------------------------------------------------


@each("nxdt")
def test_the_parallel_layout_is_found(golden: Golden) -> None:
    with open_checkpoint(golden.checkpoint, **reading(golden)) as source:
        assert source.checkpoint.parallel == golden.parallel
        assert source.checkpoint.provenance.masters == has_masters(golden)
        said = " ".join(source.checkpoint.provenance.evidence)
        assert ("written by a training job" in said) == trained(golden)


@each("nxdt")
def test_a_config_is_asked_for(golden: Golden) -> None:
    with pytest.raises(Exception, match=r"(?s)nothing says what the model is.*--config"):
        open_checkpoint(golden.checkpoint, options=reading(golden)["options"])


@each("nxdt", lambda golden: trained(golden) and golden.case["xser"])
def test_no_framework_is_imported(golden: Golden, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom ckpt_core import convert\n"
        f"convert({str(golden.checkpoint)!r}, {str(tmp_path / 'out')!r}, to='ir', config={config_of(golden)!r})\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'torch_xla', 'neuronx_distributed')])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


# --- would these tests notice? -------------------------------------------------------------------------------------


@each(
    "nxdt",
    lambda golden: re.search("trn1.*kvm[2-9]|train.*kvm2", golden.folder.name) and "pp1_kvm4" not in golden.folder.name,
)
def test_notices_the_heads_of_the_other_hardware(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    turned = {"r g": "g r", "g r": "r g"}

    def other_queries(row: Row) -> Row:
        axes = dict(row.splits).get("tp", "")
        if axes in turned and row.canonical in ("attention.q.weight", "attention.out.weight"):
            return replace(row, splits=(("tp", turned[axes]),))
        if axes in turned and row.canonical == "attention.{part}.weight":
            return replace(row, splits=(("tp", f"q: {turned[axes]}; k v: {axes}"),))
        return row

    wrong_everywhere(monkeypatch, other_queries)
    model = load_model(golden.checkpoint, dtype="fp32", **reading(golden))
    assert golden.off_by(logits_of(model, golden.input_ids)) > WRONG
