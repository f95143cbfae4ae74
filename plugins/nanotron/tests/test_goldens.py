"""Nanotron's own checkpoints: read to its own logits, written back to its own files."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckpt_core import convert, fingerprint, open_checkpoint
from ckpt_core.architecture import parameters
from ckpt_hf import load_model
from ckpt_tests import nanotron
from ckpt_tests.folders import assert_same_bits
from ckpt_tests.goldens import Golden, each
from ckpt_tests.models import load, logits_of, weights
from ckpt_tests.rows import wrong_sentences

TOLERANCE = 1e-4  # of fp32 logits; the frameworks' own two forwards differ by up to 2e-5
WRONG = 0.1  # what a mistake in the layout does to logits, at the least

_CONVERTED: dict[Path, Path] = {}


@pytest.fixture
def hf(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The case as an HF folder, converted once."""
    if golden.folder not in _CONVERTED:
        folder = tmp_path_factory.mktemp(str(golden)) / "hf"
        convert(golden.checkpoint, folder, to="hf")
        _CONVERTED[golden.folder] = folder
    return _CONVERTED[golden.folder]


def has_masters(golden: Golden) -> bool:
    path = nanotron.step_of(golden.checkpoint) / "optimizer" / "optimizer_config.json"
    return path.is_file() and json.loads(path.read_text())["type"] == "OptimizerFromGradientAccumulator"


def is_llama_like(golden: Golden) -> bool:
    return golden.case["model_kind"] != "starcoder2"


def is_interleaved(golden: Golden) -> bool:
    return is_llama_like(golden) and golden.case["model_config"].get("rope_interleaved", True)


def layouts(golden: Golden) -> list[tuple[int, int]]:
    """Every layout (tp, pp) that the model's sizes allow, the case's own left out."""
    config = golden.case["model_config"]
    moe = config.get("moe_config") or {}
    sizes = [config["num_attention_heads"], config["intermediate_size"], moe.get("shared_expert_intermediate_size", 0)]
    sizes.append(config.get("num_kv_heads") or config.get("num_key_value_heads") or config["num_attention_heads"])
    common = math.gcd(*sizes)
    stages = range(1, config["num_hidden_layers"] + 1)
    own = golden.parallel["tp"], golden.parallel["pp"]
    return [(tp, pp) for tp in range(1, common + 1) if common % tp == 0 for pp in stages if (tp, pp) != own]


# --- to HF ---------------------------------------------------------------------------------------------------------


@each("nanotron")
def test_transformers_computes_the_recorded_logits(golden: Golden, hf: Path) -> None:
    model = load(hf)
    assert type(model).__name__ == golden.case["hf_class"]
    assert golden.off_by(logits_of(model, golden.input_ids)) <= TOLERANCE


@each("nanotron")
def test_the_stored_dtype_is_kept(golden: Golden, hf: Path) -> None:
    kept = {
        str(tensor.dtype).removeprefix("torch.")
        for name, tensor in weights(hf).items()
        if "mlp.gate.weight" not in name
    }
    assert kept == {golden.case["dtype"]}


@each("nanotron")
def test_load_model_equals_the_written_folder(golden: Golden, hf: Path) -> None:
    straight = load_model(golden.checkpoint, dtype="fp32")
    assert type(straight).__name__ == golden.case["hf_class"]
    written = load(hf)
    assert_same_bits(dict(straight.state_dict()), dict(written.state_dict()))
    assert (logits_of(straight, golden.input_ids) - logits_of(written, golden.input_ids)).abs().max() <= 1e-6


@each("nanotron")
def test_bin_files_hold_the_same_tensors(golden: Golden, hf: Path, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "bin", to="hf", options={"container": "bin"})
    assert not list((tmp_path / "bin").glob("*.safetensors"))
    held = torch.load(tmp_path / "bin" / "pytorch_model.bin", weights_only=True)
    assert_same_bits(dict(held), weights(hf))
    assert golden.off_by(logits_of(load(tmp_path / "bin"), golden.input_ids)) <= TOLERANCE
    assert fingerprint(tmp_path / "bin") == fingerprint(golden.checkpoint)


@each("nanotron")
@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_small_shards_have_an_index(golden: Golden, hf: Path, tmp_path: Path, container: str) -> None:
    limit = 20_000
    convert(golden.checkpoint, tmp_path / "hf", to="hf", options={"max_shard_size": str(limit), "container": container})
    (index_file,) = (tmp_path / "hf").glob("*.index.json")
    index = json.loads(index_file.read_text())
    whole = weights(hf)
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    read = load_file if container == "safetensors" else lambda path: dict(torch.load(path, weights_only=True))
    shards = {name: read(tmp_path / "hf" / name) for name in sorted(set(index["weight_map"].values()))}
    assert len(shards) > 1
    assert all(len(shard) == 1 or sum(tensor.nbytes for tensor in shard.values()) <= limit for shard in shards.values())
    assert_same_bits({name: shards[file][name] for name, file in index["weight_map"].items()}, whole)
    assert fingerprint(tmp_path / "hf") == fingerprint(golden.checkpoint)


# --- and back ------------------------------------------------------------------------------------------------------


# what only training or logging reads, and no HF config has a key for
UNSAID_BY_HF = {
    "attn_pdrop", "embd_pdrop", "resid_pdrop", "z_loss_enabled", "z_loss_coefficient", "pretraining_tp", "use_cache", "log_attn_probs",
    "_attn_implementation", "_fused_rms_norm", "_fused_rotary_emb", "_use_doc_masking", "flex_attention_mask", "ring_attn_heads_k_stride",
    "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32",
}  # fmt: skip


def assert_same_run(written: Path, golden: Golden, unsaid: Collection[str] = ()) -> None:
    """The same files, bit for bit in their tensors, and saying the same of their slices; configs but for `unsaid` keys."""
    ours, theirs = nanotron.parameter_files(written), nanotron.parameter_files(golden.checkpoint)
    assert_same_bits(nanotron.tensors(written), nanotron.tensors(golden.checkpoint))
    for name in theirs:
        one, two = nanotron.metadata_of(ours[name]), nanotron.metadata_of(theirs[name])
        assert one.keys() == two.keys(), name
        if two:
            assert one["unsharded_shape"] == str(nanotron.shape_in(two)), name
            assert one["local_global_slices_pairs"] == two["local_global_slices_pairs"], name
            assert one["version"] == two["version"], name
    model_config = json.loads((nanotron.step_of(written) / "model_config.json").read_text())
    assert model_config.keys() == golden.case["model_config"].keys()
    assert {key: model_config[key] for key in model_config if key not in unsaid} == {
        key: value for key, value in golden.case["model_config"].items() if key not in unsaid
    }


@each("nanotron")
def test_hf_to_nanotron_is_the_original(golden: Golden, hf: Path, tmp_path: Path) -> None:
    convert(hf, tmp_path / "run", to="nanotron", **golden.parallel)
    assert_same_run(tmp_path / "run", golden, UNSAID_BY_HF)


@each("nanotron")
def test_nanotron_to_nanotron_is_the_original(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "run", to="nanotron", **golden.parallel)
    assert_same_run(tmp_path / "run", golden)


@each("nanotron")
def test_ir_to_nanotron_is_the_original(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "ir", to="ir")
    convert(
        tmp_path / "ir",
        tmp_path / "run",
        to="nanotron",
        **golden.parallel,
        dtype={"float32": "fp32", "bfloat16": "bf16"}[golden.case["dtype"]],
    )
    assert_same_run(tmp_path / "run", golden)


@each("nanotron")
def test_ir_holds_every_parameter_in_fp32(golden: Golden, tmp_path: Path) -> None:
    receipt = convert(golden.checkpoint, tmp_path / "ir", to="ir")
    held = weights(tmp_path / "ir")
    with open_checkpoint(golden.checkpoint) as source:
        assert held.keys() == parameters(source.architecture).keys()
        assert_same_bits(held, {name: torch.from_numpy(tensor.numpy().copy()) for name, tensor in source.items()})
        assert open_checkpoint(tmp_path / "ir").architecture == source.architecture
    assert {tensor.dtype for tensor in held.values()} == {torch.float32}
    assert receipt.fingerprint == fingerprint(tmp_path / "ir") == fingerprint(golden.checkpoint)


@each("nanotron", lambda golden: len(layouts(golden)) > 0)
def test_every_layout_has_the_same_fingerprint(golden: Golden, tmp_path: Path) -> None:
    expected, whole = fingerprint(golden.checkpoint), nanotron.merged(golden.checkpoint)
    for tp, pp in layouts(golden):
        run = tmp_path / f"tp{tp}pp{pp}"
        convert(golden.checkpoint, run, to="nanotron", tp=tp, pp=pp)
        assert fingerprint(run) == expected, f"tp={tp} pp={pp}"
        merged = nanotron.merged(run)
        rows = {name: tensor[: len(whole[name])] for name, tensor in merged.items()}  # more ranks may need more padding
        assert_same_bits(rows, whole)


@each("nanotron", has_masters)
def test_masters_are_the_gradient_accumulators(golden: Golden, tmp_path: Path) -> None:
    expected = nanotron.masters(golden.checkpoint)
    convert(golden.checkpoint, tmp_path / "run", to="nanotron", weights="master")
    assert_same_bits(nanotron.merged(tmp_path / "run"), expected)
    assert {tensor.dtype for tensor in expected.values()} == {torch.float32}


@each("nanotron", lambda golden: has_masters(golden) and golden.case["train_steps"] > 0)
def test_masters_are_finer_than_the_weights(golden: Golden, tmp_path: Path) -> None:
    """The other half of the test above: were masters and weights equal, it could not tell them apart."""
    masters, stored = nanotron.masters(golden.checkpoint), nanotron.merged(golden.checkpoint)
    assert any(not torch.equal(masters[name], stored[name].float()) for name in stored)
    convert(golden.checkpoint, tmp_path / "run", to="nanotron")
    assert_same_bits(nanotron.merged(tmp_path / "run"), stored)


# --- would these tests notice? -----------------------------------------------------------------------------------------


def concatenated(text: str, data, shape, path):
    """Shards one after the other, as `torch.cat` would have them."""
    from ckpt_core.tensors.assembly import Shard

    rank = int(Path(path).name.split("_tp-rank-")[1].split("-")[0])
    split = next((dim for dim, (here, whole) in enumerate(zip(data.shape, shape, strict=True)) if here != whole), 0)
    return [Shard(tuple(rank * size if dim == split else 0 for dim, size in enumerate(data.shape)), data)]


HALF, INTERLEAVED = "(q[g r d] + k[g d] + v[g d])", "(q[g r (e c + o)] + k[g (e c + o)] + v[g d])"


def off(golden: Golden) -> float:
    return golden.off_by(logits_of(load_model(golden.checkpoint, dtype="fp32"), golden.input_ids))


@each("nanotron", is_interleaved)
def test_notices_interleaved_rows_read_as_half_split(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_sentences(monkeypatch, {INTERLEAVED: HALF, f"{INTERLEAVED} h": f"{HALF} h"})
    assert off(golden) > WRONG


@each("nanotron", lambda golden: is_llama_like(golden) and not is_interleaved(golden))
def test_notices_half_split_rows_read_as_interleaved(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_sentences(monkeypatch, {HALF: INTERLEAVED, f"{HALF} h": f"{INTERLEAVED} h"})
    assert off(golden) > WRONG


@each("nanotron", lambda golden: is_llama_like(golden) and golden.case["tp"] > 1)
def test_notices_shards_put_one_after_the_other(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckpt_nanotron import files

    monkeypatch.setattr(files, "parse_slices", concatenated)
    assert off(golden) > WRONG


@each("nanotron", is_llama_like)
def test_notices_gate_and_up_in_the_wrong_order(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_sentences(monkeypatch, {"((gate + up) f) h": "((up + gate) f) h"})
    assert off(golden) > WRONG


@each("nanotron", lambda golden: golden.case["model_config"].get("moe_config") is not None)
def test_notices_experts_in_the_wrong_order(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_sentences(monkeypatch, {"x h ((gate + up) f)": "x h ((up + gate) f)"})
    assert off(golden) > WRONG


@each("nanotron", lambda golden: golden.case["model_config"].get("grouped_query", False))
def test_notices_grouped_qkv_read_as_blocks(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_sentences(monkeypatch, {"(g (q[r] + k + v) d) h": "(q[g r d] + k[g d] + v[g d]) h"})
    assert off(golden) > WRONG
