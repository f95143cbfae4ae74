"""What is written, by the package gguf and by transformers, which read it; and what is refused by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from ckpt_core import convert, fingerprint
from ckpt_core.api import plan_conversion, read_checkpoint
from ckpt_core.errors import CkptError, Refusal, UsageError
from ckpt_gguf.container import plan_file, read_header
from ckpt_tests import tiny
from ckpt_tests.families import CASES, build
from ckpt_tests.program import ckpt

IDS = {"dst.tokenizer": "none"}
GOLDENS = Path(__file__).parents[3] / "tests/data/golden-2026/quantised"


def made(tmp_path: Path, name: str, **changes: Any) -> Path:
    if name in CASES:
        build(CASES[name], tmp_path / "hf", **changes)
    else:
        tiny.build(tmp_path / "hf", name, **changes)
    return tmp_path / "hf"


def written(source: Path, tmp_path: Path, **options: str) -> Path:
    out = tmp_path / "model.gguf"
    convert(source, out, to="gguf", options={**IDS, **{f"dst.{name}": value for name, value in options.items()}})
    return out


@pytest.mark.parametrize(("type", "number"), [("F32", 0), ("F16", 1), ("BF16", 32), ("Q8_0", 7)])
def test_each_type_is_that_of_the_package(type: str, number: int, tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama", intermediate_size=64)
    reader = gguf.GGUFReader(str(written(tmp_path / "hf", tmp_path, type=type)))
    stored = load_file(tmp_path / "hf/model.safetensors")
    found = {tensor.name: tensor for tensor in reader.tensors}
    for name, theirs in (
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"),
        ("token_embd.weight", "model.embed_tokens.weight"),
    ):
        wanted = gguf.quants.quantize(stored[theirs], gguf.GGMLQuantizationType[type])
        assert found[name].tensor_type.name == type
        assert np.array_equal(found[name].data.view(np.uint8), wanted.view(np.uint8)), name
    assert {one.tensor_type.name for one in reader.tensors if one.name.endswith("norm.weight")} == {"F32"}
    assert reader.fields["general.file_type"].contents() == number


def test_quantised_again_it_is_the_same(tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama", intermediate_size=64)
    first = written(tmp_path / "hf", tmp_path, type="Q8_0")
    second = tmp_path / "again.gguf"
    convert(first, second, to="gguf", options={**IDS, "dst.type": "Q8_0"})
    assert fingerprint(first) == fingerprint(second)


def test_blocks_are_kept_bit_for_bit_from_file_to_file(tmp_path: Path) -> None:
    source = GOLDENS / "gguf_llama_q4_k/checkpoint/model.gguf"
    out = tmp_path / "kept.gguf"
    convert(source, out, to="gguf", options={"dst.quantised": "keep", "dst.name": "kept"})
    stored, found = ({one.name: one for one in gguf.GGUFReader(str(file)).tensors} for file in (source, out))
    assert {one.tensor_type.name for one in found.values()} >= {"Q4_K", "Q6_K", "Q5_0"}
    for name, tensor in stored.items():
        assert found[name].tensor_type == tensor.tensor_type
        assert np.array_equal(found[name].data, tensor.data), name
    assert fingerprint(out) == fingerprint(source)


def test_blocks_are_kept_of_a_file_that_has_them_and_as_they_are(tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama")
    with pytest.raises(Refusal, match="no blocks to keep"):
        written(tmp_path / "hf", tmp_path, quantised="keep")
    with pytest.raises(UsageError, match="-o type"):
        written(GOLDENS / "gguf_llama_q4_k/checkpoint/model.gguf", tmp_path, quantised="keep", type="Q8_0")


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_transformers_computes_the_same_of_the_file(name: str, tmp_path: Path) -> None:
    model = tiny.build(tmp_path / "hf", name, num_hidden_layers=2, intermediate_size=64)
    file = written(tmp_path / "hf", tmp_path, type="F32")
    other = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    with torch.no_grad():
        assert (other(tiny.tokens()).logits - model(tiny.tokens()).logits).abs().max() < 1e-4


def test_queries_are_written_pair_by_pair(tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama")
    reader = gguf.GGUFReader(str(written(tmp_path / "hf", tmp_path)))
    heads, width = 12, 8
    stored = load_file(tmp_path / "hf/model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    wanted = stored.reshape(heads, 2, width // 2, -1).swapaxes(1, 2).reshape(stored.shape)
    assert np.array_equal(next(one for one in reader.tensors if one.name == "blk.0.attn_q.weight").data, wanted)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "shares of experts": ("qwen3_moe", {"norm_topk_prob": False, "decoder_sparse_step": 1}, "normalise"),
    "dense layers between": ("qwen3_moe", {"norm_topk_prob": True}, "mlp.moe"),
    "a window": ("qwen3", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}, "attention.window"),
    "a window of all layers": ("mistral", {"sliding_window": 9}, "-o window=left-out"),
    "scores after norms of heads": ("phi", {"qk_layernorm": True}, "attention.qk_norm"),
    "experts one after the other": ("phimoe", {}, "mlp.moe.router.margin"),
    "groups by their best": ("deepseek_v2", {"rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "group_score"),
    "gelu": ("gpt_neox", {}, "-o gelu=tanh"),
    "windows of another number of layers": ("exaone4", {"hidden_size": 120}, "attention.window"),
    "a theta of windows": ("mellum", {}, "attention.rotary.theta"),
    # of 26 and of 27 layers, as the published Lite has, llama.cpp loads no compressed queries
    "compressed queries of 26 layers": ("deepseek_v3", {"num_hidden_layers": 26}, "latent_attention.q_rank"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_key_says_is_refused_by_name(what: str, tmp_path: Path) -> None:
    name, changes, said = REFUSED[what]
    with pytest.raises(Refusal) as refused:
        written(made(tmp_path, name, **changes), tmp_path)
    assert said in str(refused.value)
    assert not os.path.exists(tmp_path / "model.gguf")


def test_the_exact_gelu_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    source = made(tmp_path, "gpt_neox")
    plan = plan_conversion(source, tmp_path / "x.gguf", to="gguf", options={**IDS, "dst.gelu": "tanh"})
    assert any(loss.kind == "assumed" and "GELU" in loss.subject for loss in plan.losses)


def test_a_window_of_all_layers_is_left_out_where_it_is_asked_for(tmp_path: Path) -> None:
    source = made(tmp_path, "mistral", sliding_window=9)
    plan = plan_conversion(source, tmp_path / "x.gguf", to="gguf", options={**IDS, "dst.window": "left-out"})
    assert plan.target.decisions["architecture"] == "llama"
    assert any(loss.kind == "assumed" and "9 positions" in loss.subject for loss in plan.losses)


@pytest.mark.parametrize("window", [63, 64])
def test_a_window_of_all_positions_is_none(window: int, tmp_path: Path) -> None:
    source = made(tmp_path, "mistral", sliding_window=window, max_position_embeddings=64)
    if window < 64:
        with pytest.raises(Refusal, match=r"attention\.window"):
            plan_conversion(source, tmp_path / "x.gguf", to="gguf", options=IDS)
        return
    losses = plan_conversion(source, tmp_path / "x.gguf", to="gguf", options=IDS).losses
    assert any(loss.kind == "assumed" and "64 positions" in loss.subject for loss in losses)


def test_ends_of_a_ramp_that_llama_cpp_rounds_are_named(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    for truncate in (False, True):
        source = made(tmp_path / str(truncate), "gpt_oss", rope_parameters={**yarn, "truncate": truncate})
        losses = plan_conversion(source, tmp_path / "x.gguf", to="gguf", options=IDS).losses
        named = {loss.kind for loss in losses if "scaling.truncate" in loss.subject}
        assert named == ({"unsaid"} if truncate else {"assumed"})


TOLD_OTHERWISE = {
    "several facts that the file says otherwise": {
        "rope_type": "llama3",
        "rope_theta": 5000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "a number that 32 bits do not hold": {"rope_type": "default", "rope_theta": 1234567.891},
}


@pytest.mark.parametrize("rotary", TOLD_OTHERWISE.values(), ids=TOLD_OTHERWISE)
def test_what_is_told_as_a_loss_is_no_difference(rotary: dict[str, object], tmp_path: Path) -> None:
    source = made(tmp_path, "llama", rope_parameters=rotary)
    out = written(source, tmp_path)
    code, said = ckpt("verify", source, out)
    assert code == 0, said
    assert "explained" in said
    assert ckpt("diff", source, out)[0] == 3


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama")
    with pytest.raises(Refusal, match="tokenizer=none"):
        convert(tmp_path / "hf", tmp_path / "x.gguf", to="gguf")


def test_a_length_that_nothing_says_is_assumed_or_given(tmp_path: Path) -> None:
    from ckpt_core.testing import example
    from ckpt_core.testing.examples import write_ir

    source = write_ir(str(tmp_path / "ir"), example("llama"))
    plan = plan_conversion(source, tmp_path / "x.gguf", to="gguf", options=IDS)
    assert any("context of 4096" in str(loss) for loss in plan.losses)
    convert(source, tmp_path / "x.gguf", to="gguf", options={**IDS, "dst.context_length": "77"})
    assert read_checkpoint(tmp_path / "x.gguf").notes["max_positions"] == 77


def test_a_kind_of_blocks_that_is_damaged_is_refused(tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "llama", intermediate_size=64)
    file = written(tmp_path / "hf", tmp_path, type="Q8_0")
    place = next(one.data_offset for one in gguf.GGUFReader(str(file)).tensors if one.name == "blk.0.ffn_up.weight")
    with open(file, "rb+") as stream:
        stream.seek(int(place))
        stream.write(b"\x00\x7c")  # infinity as a float16
    Path(f"{file}.ckpt-receipt.json").unlink()
    with pytest.raises(CkptError, match=r"blk\.0\.ffn_up\.weight"):
        convert(file, tmp_path / "out", to="ir")


def test_a_gate_of_shared_experts_is_read_as_a_row_and_as_a_vector(tmp_path: Path) -> None:
    tiny.build(tmp_path / "hf", "qwen2_moe")
    file = written(tmp_path / "hf", tmp_path)
    gates = [one.shape.tolist() for one in gguf.GGUFReader(str(file)).tensors if "gate_inp_shexp" in one.name]
    assert gates == [[96, 1]] * 3
    header, body = read_header(str(file)), file.read_bytes()
    shapes = {
        key: (one.kind, one.shape[-1:] if "gate_inp_shexp" in key else one.shape) for key, one in header.tensors.items()
    }
    plan = plan_file(shapes, header.metadata)
    out = bytearray(plan.header + bytes(plan.size - len(plan.header)))
    for key, one in header.tensors.items():
        out[plan.offsets[key] : plan.offsets[key] + one.size] = body[one.offset : one.offset + one.size]
    vector = tmp_path / "vector.gguf"
    vector.write_bytes(out)
    assert fingerprint(vector) == fingerprint(tmp_path / "hf")
