"""Megatron's own checkpoints: read to its own logits, written back to its own tensors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.architecture import parameters
from ckpt_core.errors import CkptError
from ckpt_hf import load_model
from ckpt_tests import megatron
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.goldens import Golden, each, one_of_each_model
from ckpt_tests.models import load, logits_of, weights
from ckpt_tests.rows import wrong_sentences

TOLERANCE = 1e-4  # of fp32 logits; the two frameworks' own forwards differ by up to 1e-5
WRONG = 1e-2  # what a mistake in the layout does to logits, at the least


def has_optimizer(golden: Golden) -> bool:
    return golden.case["has_optimizer_state"]


def is_legacy(golden: Golden) -> bool:
    return golden.folder.name.startswith("legacy")


def is_torch(golden: Golden) -> bool:
    return golden.case["format"].startswith("torch (")


def off(golden: Golden) -> float:
    return golden.off_by(logits_of(load_model(golden.checkpoint, dtype="fp32"), golden.input_ids))


# --- to HF and to ir ---------------------------------------------------------------------------------------------------


@each("megatron")
def test_transformers_computes_the_recorded_logits(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "hf", to="hf")
    assert golden.off_by(logits_of(load(tmp_path / "hf"), golden.input_ids)) <= TOLERANCE
    assert fingerprint(tmp_path / "hf") == fingerprint(golden.checkpoint)


@each("megatron")
def test_the_true_vocabulary_is_that_of_the_case(golden: Golden) -> None:
    """Args before 2021 have no vocabulary but the padded one; there the user says it."""
    options = {"vocab": str(golden.case["vocab_size"])} if "vocab_size" not in megatron.args_of(golden) else {}
    with open_checkpoint(golden.checkpoint, options=options) as source:
        assert source.architecture.tokens.vocabulary == golden.case["vocab_size"]


@each("megatron")
def test_ir_holds_every_parameter_in_fp32(golden: Golden, tmp_path: Path) -> None:
    receipt = convert(golden.checkpoint, tmp_path / "ir", to="ir")
    held = weights(tmp_path / "ir")
    with open_checkpoint(golden.checkpoint) as source:
        assert held.keys() == parameters(source.architecture).keys()
        assert_same_bits(held, {name: torch.from_numpy(tensor.numpy().copy()) for name, tensor in source.items()})
    assert receipt.fingerprint == fingerprint(tmp_path / "ir") == fingerprint(golden.checkpoint)


@each("megatron")
def test_the_parallel_layout_is_found(golden: Golden) -> None:
    with open_checkpoint(golden.checkpoint) as source:
        found = source.checkpoint.parallel
        assert {name: found.get(name, 1) for name in ("tp", "pp", "ep")} == {
            name: golden.case[name] for name in ("tp", "pp", "ep")
        }
        assert source.checkpoint.provenance.masters == has_optimizer(golden)


# --- and back ------------------------------------------------------------------------------------------------------


@each("megatron")
def test_back_in_its_own_layout_every_tensor_is_the_original(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "run", to="megatron", **megatron.own_layout(golden))
    assert_same_bits(megatron.tensors(tmp_path / "run"), megatron.tensors(golden.checkpoint))


@each("megatron")
def test_through_hf_every_tensor_but_the_padding_is_the_original(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "hf", to="hf")
    convert(tmp_path / "hf", tmp_path / "run", to="megatron", **megatron.own_layout(golden))
    assert fingerprint(tmp_path / "run") == fingerprint(golden.checkpoint)
    written, original = megatron.tensors(tmp_path / "run"), megatron.tensors(golden.checkpoint)
    tables = [name for name in original if "word_embeddings" in name or "output_layer" in name]
    assert_same_bits(
        *({name: tensor for name, tensor in side.items() if name not in tables} for side in (written, original))
    )


def test_every_layout_has_the_same_fingerprint(tmp_path: Path) -> None:
    for golden in one_of_each_model("megatron"):
        expected = fingerprint(golden.checkpoint)
        for number, layout in enumerate(megatron.layouts(golden)):
            run = tmp_path / f"{golden.folder.name}-{number}"
            receipt = convert(golden.checkpoint, run, to="megatron", **layout)
            assert receipt.fingerprint == fingerprint(run) == expected, (golden, layout)


@each("megatron", lambda golden: not is_legacy(golden))
def test_torch_to_torch_dist_and_back_is_the_original(golden: Golden, tmp_path: Path) -> None:
    layout = megatron.own_layout(golden)
    for container, source in (
        ("torch", golden.checkpoint),
        ("torch_dist", tmp_path / "torch"),
        ("torch", tmp_path / "torch_dist"),
    ):
        destination = tmp_path / (container if source != tmp_path / "torch_dist" else "again")
        convert(
            source, destination, to="megatron", **layout | {"options": {**layout["options"], "container": container}}
        )
        assert fingerprint(destination) == fingerprint(golden.checkpoint)
    assert_same_bits(megatron.tensors(tmp_path / "torch"), megatron.tensors(tmp_path / "again"))


@each("megatron", is_legacy)
def test_legacy_files_become_those_of_core(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "run", to="megatron", tp=2, options={"names": "te", "container": "torch"})
    names = {name.split("/model.")[1] for name in megatron.tensors(tmp_path / "run")}
    assert "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight" in names
    assert fingerprint(tmp_path / "run") == fingerprint(golden.checkpoint)


# --- masters -------------------------------------------------------------------------------------------------------


@each("megatron", has_optimizer)
def test_masters_are_those_of_the_optimizer(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "run", to="megatron", weights="master", **megatron.own_layout(golden))
    written, stored = megatron.tensors(tmp_path / "run"), megatron.tensors(golden.checkpoint)
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    assert_same_bits({name: tensor.to(torch.bfloat16) for name, tensor in written.items()}, stored)
    assert any(not torch.equal(written[name], stored[name].float()) for name in stored), (
        "they can't be told from the weights"
    )
    folder = megatron.iteration_of(golden.checkpoint)
    if is_torch(golden):
        groups = megatron.load(folder / "mp_rank_00/model_optim_rng.pt")["optimizer"]["fp32_from_fp16_params"]
        masters = sorted(tensor.double().sum().item() for group in groups for tensor in group)
        assert masters == sorted(
            tensor.double().sum().item() for name, tensor in written.items() if name.startswith("mp_rank_00/")
        )
    else:
        assert_same_bits(written, megatron.dist_tensors(folder, "optimizer.state.param."))


@each("megatron", lambda golden: not has_optimizer(golden))
def test_masters_that_are_not_there_are_refused(golden: Golden) -> None:
    with pytest.raises(Exception, match="no fp32 masters"):
        fingerprint(golden.checkpoint, weights="master")


# --- would these tests notice? -------------------------------------------------------------------------------------


@each("megatron", lambda golden: is_torch(golden) and golden.case["tp"] > 1 and "gpt2" not in golden.folder.name)
def test_notices_gate_and_up_put_one_after_the_other(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_sentences(monkeypatch, {"((gate + up) f) h": "(f (gate + up)) h"}, "mlp.linear_fc1.weight")
    assert off(golden) > WRONG


@each("megatron", lambda golden: golden.folder.name.startswith("legacy_ckptver"))
def test_notices_another_order_of_q_k_v(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = {"0": "((q[r] + k + v) g d)", "1.0": "(g d (q[r] + k + v))", "2.0": "(g (q[r] + k + v) d)"}
    for order, wanted in orders.items():
        with monkeypatch.context() as patch:
            wrong_sentences(
                patch, {f"{own} h": f"{wanted} h" for own in orders.values()}, "self_attention.linear_qkv.weight"
            )
            far = off(golden) > WRONG
        wrong = f"ckptver{order}_" not in golden.folder.name
        assert far == wrong, order


@each("megatron", lambda golden: "groupedmlp" in golden.folder.name and is_torch(golden))
def test_notices_grouped_experts_cut_by_columns(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckpt_core.storage.tensor import StoredTensor
    from ckpt_megatron import read_torch

    def columns(tensor, name, local):
        rows, width = tensor.shape
        if name.endswith("weight1"):
            return StoredTensor(
                tensor.file, tensor.dtype, (local, rows, width // local), tensor.offset, (width // local, width, 1)
            )
        return StoredTensor.contiguous(tensor.file, tensor.dtype, (local, rows // local, width), tensor.offset)

    monkeypatch.setattr(read_torch, "_viewed", columns)
    assert off(golden) > WRONG


# --- damaged -------------------------------------------------------------------------------------------------------


def rank_files(run: Path) -> list[Path]:
    return sorted(run.rglob("model_optim_rng.pt")) or sorted(run.rglob("*.distcp"))


@each("megatron", lambda golden: len(rank_files(golden.checkpoint)) > 1)
def test_swapped_and_missing_files_are_refused(golden: Golden, tmp_path: Path) -> None:
    """Files of tensor and expert parallel ranks have the same shapes; the args tell which rank saved each."""
    shutil.copytree(golden.checkpoint, tmp_path / "run")
    one, *_, two = rank_files(tmp_path / "run")
    aside = tmp_path / "aside"
    for old, new in ((one, aside), (two, one), (aside, two)):
        old.rename(new)
    with pytest.raises(CkptError, match=r"written by another rank|first pipeline stage|outside the file that holds it"):
        open_checkpoint(tmp_path / "run")
    one.unlink()
    with pytest.raises(CkptError, match=r"is missing|no file of|ranks|but the files are of"):
        open_checkpoint(tmp_path / "run")
