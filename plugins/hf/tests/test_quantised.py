"""Quantised folders, as the tools that quantise wrote them: read to the values that those tools give, kept bit for bit, or refused by name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ckpt_core import convert, open_checkpoint
from ckpt_core.api import plan_conversion
from ckpt_core.errors import CkptError
from ckpt_core.reference import forward
from ckpt_core.reference.inputs import Inputs
from ckpt_core.sdk import containers, disk, lazy, ledgers
from ckpt_hf.quantised.folding import folded, said_in
from ckpt_hf.quantised.schemes import Integers
from ckpt_tests.goldens import Golden, beside
from ckpt_tests.models import weights
from ckpt_tests.program import assert_refused

CASES = [
    golden for golden in beside("quantised", "dequantised.safetensors") if (golden.checkpoint / "config.json").is_file()
]
BY_NAME = {golden.folder.name: golden for golden in CASES}


def _golden(name: str) -> Golden:
    """A case by its name; the repository has some of them, and CKPT_GOLDENS_2026 all."""
    if name not in BY_NAME:
        pytest.skip(f"the golden {name} is not in the repository: set CKPT_GOLDENS_2026")
    return BY_NAME[name]


MODELOPT = 0.01  # ModelOpt rounds the scale before it multiplies, and nobody else does (case.json, `also_right`)

each = pytest.mark.parametrize("golden", CASES, ids=str)


def _is_modelopt(golden: Golden) -> bool:
    return golden.folder.name.startswith("modelopt")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bits(one), _bits(other))


def _receipt(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "ckpt-receipt.json").read_text())


@each
def test_values_are_those_of_the_tool(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "hf", to="hf")
    found, expected = weights(tmp_path / "hf"), load_file(golden.folder / "dequantised.safetensors")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if _is_modelopt(golden):
            torch.testing.assert_close(found[name], values, rtol=MODELOPT, atol=0)
        else:
            assert _same(found[name], values), name
    assert "quantization_config" not in json.loads((tmp_path / "hf/config.json").read_text())
    assert not (tmp_path / "hf/hf_quant_config.json").exists()
    said = [loss["subject"] for loss in _receipt(tmp_path / "hf")["losses"] if loss["kind"] == "dropped"]
    assert any(subject.startswith("quantisation of ") for subject in said)


@each
def test_it_computes_what_transformers_computes_with_those_values(golden: Golden) -> None:
    with open_checkpoint(golden.checkpoint) as model:
        *_, last = forward(model, Inputs(tokens=golden.input_ids.long()))
    off = golden.off_by(last.values)
    assert off <= (2 * MODELOPT * golden.logits.abs().max() if _is_modelopt(golden) else 1e-4)


@each
def test_codes_are_kept_bit_for_bit(golden: Golden, tmp_path: Path) -> None:
    convert(golden.checkpoint, tmp_path / "hf", to="hf", options={"quantised": "keep", "max_shard_size": "200KB"})
    found, expected = weights(tmp_path / "hf"), weights(golden.checkpoint)
    assert found.keys() == expected.keys()
    assert all(_same(found[name], values) for name, values in expected.items())
    settings = [
        json.loads((folder / "config.json").read_text()).get("quantization_config")
        for folder in (tmp_path / "hf", golden.checkpoint)
    ]
    assert settings[0] == settings[1]
    of_codes = [
        entry["fate"]
        for entry in _receipt(tmp_path / "hf")["source"]["ledger"]
        if any(key.startswith("quantiz") for keys in entry.get("places", {}).values() for key in keys)
    ]
    assert {*of_codes} == {"carried"}
    convert(tmp_path / "hf", tmp_path / "plain", to="hf")
    convert(golden.checkpoint, tmp_path / "direct", to="hf")
    assert _receipt(tmp_path / "hf")["fingerprint"] == _receipt(tmp_path / "plain")["fingerprint"]
    assert _receipt(tmp_path / "plain")["fingerprint"] == _receipt(tmp_path / "direct")["fingerprint"]


def test_a_copy_on_other_ranks_has_the_same_fingerprint(tmp_path: Path) -> None:
    golden = _golden("deepseek_v3_fp8_block")
    convert(golden.checkpoint, tmp_path / "megatron", to="megatron", tp=2)
    convert(tmp_path / "megatron", tmp_path / "hf", to="hf")
    convert(golden.checkpoint, tmp_path / "direct", to="hf")
    prints = {_receipt(tmp_path / name)["fingerprint"] for name in ("megatron", "hf", "direct")}
    assert len(prints) == 1


def test_float32_keeps_the_product(tmp_path: Path) -> None:
    golden = _golden("modelopt_fp8")
    convert(golden.checkpoint, tmp_path / "hf", to="hf", dtype="fp32")
    found, stored = weights(tmp_path / "hf"), weights(golden.checkpoint)
    names = [name for name, codes in stored.items() if codes.dtype == torch.float8_e4m3fn]
    assert names
    for name in names:
        assert torch.equal(found[name], stored[name].float() * stored[f"{name}_scale"])


# --- the same in other spellings: what is computed must be what the formula of the scheme gives --------------------------


def _respelt(
    golden: Golden,
    folder: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    said: dict[str, Any],
) -> dict[str, torch.Tensor]:
    """What is read of a golden whose tensors and settings are changed."""
    folder.mkdir()
    config = json.loads((golden.checkpoint / "config.json").read_text())
    if said:
        config["quantization_config"] = said
    (folder / "config.json").write_text(json.dumps(config))
    save_file(change(weights(golden.checkpoint)), folder / "model.safetensors", metadata={"format": "pt"})
    convert(folder, folder.parent / "out", to="hf")
    return weights(folder.parent / "out")


def _power(scale: torch.Tensor) -> torch.Tensor:
    return torch.exp2(torch.round(torch.log2(scale.float())))


SCALES: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "bf16": (".weight_scale_inv", lambda scale: scale.bfloat16()),
    "fp16": (".weight_scale", lambda scale: scale.half()),
    "E8M0": (".scale", lambda scale: _power(scale).to(torch.float8_e8m0fnu)),
    "bytes of E8M0": (".qscale_weight", lambda scale: _power(scale).to(torch.float8_e8m0fnu).view(torch.uint8)),
}


def _value(scale: torch.Tensor) -> torch.Tensor:
    return scale.view(torch.float8_e8m0fnu).float() if scale.dtype == torch.uint8 else scale.float()


@pytest.mark.parametrize("kind", SCALES)
def test_a_scale_of_any_name_and_dtype(kind: str, tmp_path: Path) -> None:
    golden = _golden("deepseek_v3_fp8_block")
    ending, turned = SCALES[kind]

    def change(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        old = ".weight_scale_inv"
        return {name.replace(old, ending): turned(one) if name.endswith(old) else one for name, one in held.items()}

    found, stored = _respelt(golden, tmp_path / "hf", change, {}), weights(golden.checkpoint)
    for name in (name for name in stored if f"{name}_scale_inv" in stored):
        rows, columns = stored[name].shape
        scale = _value(turned(stored[f"{name}_scale_inv"])).repeat_interleave(128, 0).repeat_interleave(128, 1)
        assert torch.equal(found[name], (stored[name].float() * scale[:rows, :columns]).bfloat16()), name


SHAPES: dict[str, tuple[dict[str, Any], Callable[[torch.Tensor], torch.Tensor], str]] = {
    "AutoFP8": ({"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}, lambda codes: torch.tensor(0.013), "_scale"),
    "Ministral": ({"quant_method": "fp8", "weight_block_size": None}, lambda codes: torch.tensor([0.013]), "_scale_inv"),
    "rows": ({"quant_method": "fp8"}, lambda codes: torch.linspace(0.1, 2, len(codes))[:, None], "_scale"),
    "ModelOpt, rows": ({"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, lambda codes: torch.linspace(0.1, 2, len(codes)), "_scale"),
    "ModelOpt, mixed": ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {"model.layers": {"quant_algo": "FP8"}}}, lambda codes: torch.tensor(0.37), "_scale"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHAPES)
def test_a_scale_for_a_tensor_or_its_rows(kind: str, tmp_path: Path) -> None:
    golden = _golden("deepseek_v3_fp8_block")
    said, scale_of, ending = SHAPES[kind]

    def change(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        plain = {name: one for name, one in held.items() if not name.endswith("_scale_inv")}
        codes = {name: one for name, one in plain.items() if one.dtype == torch.float8_e4m3fn}
        scales = {f"{name}{ending}": scale_of(one) for name, one in codes.items()}
        inputs = {name.replace(".weight", ".input_scale"): torch.tensor(2.0) for name in codes}
        return plain | scales | inputs | {"model.layers.0.self_attn.k_scale": torch.tensor(1.0)}

    found, stored = _respelt(golden, tmp_path / "hf", change, said), weights(golden.checkpoint)
    for name in (name for name in stored if f"{name}_scale_inv" in stored):
        scale = scale_of(stored[name])
        scale = scale[:, None] if scale.ndim == 1 and scale.numel() > 1 else scale
        assert torch.equal(found[name], (stored[name].float() * scale).bfloat16()), name
    dropped = {loss["subject"] for loss in _receipt(tmp_path / "out")["losses"]}
    assert any(subject.startswith("*.input_scale") for subject in dropped)


def test_nvfp4_of_modelopt(tmp_path: Path) -> None:
    """ModelOpt keeps the reciprocal of compressed-tensors' global scale, and multiplies by it."""
    golden = _golden("ct_nvfp4")
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])

    def change(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {}
        for name, one in held.items():
            if name.endswith("_global_scale"):
                found[name.replace("_global_scale", "_scale_2")] = (1 / one)[0]
            else:
                found[name.removesuffix("_packed")] = one
        return found

    said = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head", "model.embed*"]}
    found, stored = _respelt(golden, tmp_path / "hf", change, said), weights(golden.checkpoint)
    for name in (name.removesuffix("_packed") for name in stored if name.endswith("_packed")):
        codes = stored[f"{name}_packed"]
        values = table[torch.stack([codes & 15, codes >> 4], -1).reshape(len(codes), -1).long()]
        scale = stored[f"{name}_scale"].float() * (1 / stored[f"{name}_global_scale"])[0]
        assert torch.equal(found[name], (values * scale.repeat_interleave(16, 1)).bfloat16()), name


def test_experts_that_are_fused_have_codes_in_one_tensor(tmp_path: Path) -> None:
    """As transformers 5 saves a mixture that it quantised in memory: [experts, out, in], and scales of each expert's blocks."""
    random = np.random.default_rng(2)
    codes = torch.from_numpy(random.integers(0, 120, (3, 150, 200), np.uint8)).view(torch.float8_e4m3fn)
    scales = torch.from_numpy(random.uniform(0.5, 2, (3, 2, 2)).astype(np.float32))
    name = "model.layers.0.mlp.experts.gate_up_proj"
    save_file({name: codes, f"{name}_scale_inv": scales}, tmp_path / "model.safetensors")
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    _, said = said_in({"quantization_config": settings}, str(tmp_path / "config.json"))
    held = containers.read_header(tmp_path / "model.safetensors").tensors
    (weight,) = folded(held, said, ledgers.Ledger(), str(tmp_path)).tensors.values()
    parameter = lazy.of_shards(name, weight.shape, lazy.whole(weight))
    files = [disk.FileState.of(str(tmp_path / "model.safetensors"))]
    found = lazy.SourceFiles(files).floats(parameter, tuple((0, size) for size in weight.shape))
    whole = scales.repeat_interleave(128, 1).repeat_interleave(128, 2)[:, :150, :200]
    assert torch.equal(torch.from_numpy(found.copy()), (codes.float() * whole).bfloat16().float())


def _packed(rows: np.ndarray, bits: int) -> np.ndarray:
    """Rows of elements as words of 32 bits, by the definition: element i at bit i * bits of the row, which is one long number."""
    words = -(-rows.shape[1] * bits // 32)
    numbers = [sum(int(one) << place * bits for place, one in enumerate(row)) for row in rows]
    return np.array([[(number >> 32 * word) & 0xFFFFFFFF for word in range(words)] for number in numbers], np.uint32)


@pytest.mark.parametrize("bits", range(2, 9))
def test_whole_numbers_of_any_bits(bits: int) -> None:
    random, rows, columns, group = np.random.default_rng(bits), 70, 21, 7
    codes = random.integers(0, 1 << bits, (rows, columns))
    zeros = random.integers(0, 1 << bits, (rows, columns // group))
    scales = random.uniform(0.1, 2, zeros.shape).astype(np.float32)
    words, packed_zeros = _packed(codes, bits), _packed(zeros.T, bits).T
    scheme = Integers(bits, True, rows, columns, group, True)
    shape = np.array([[rows, columns]], np.int64)
    expected = (codes - np.repeat(zeros, group, 1)).astype(np.float32) * np.repeat(scales, group, 1)
    for first, count in ((0, rows), (5, 9), (33, 37), (64, 6)):
        part, held = slice(first, first + count), slice(first // 32 * bits, -(-(first + count) // 32) * bits)
        stored = [words[part].view(np.int32), scales[part], shape, packed_zeros[held].view(np.int32)]
        assert np.array_equal(scheme.decode(stored, first, count), expected[part])
        symmetric = (codes - (1 << bits - 1)).astype(np.float32) * np.repeat(scales, group, 1)
        assert np.array_equal(scheme.decode(stored[:3], first, count), symmetric[part])


# --- one thing wrong -----------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, torch.Tensor], dict[str, Any]], list[str]]
"""Changes the tensors of a folder, and what its config says of them; returns what the error must name."""

Q = "model.layers.0.self_attn.q_a_proj.weight"
SCALE = f"{Q}_scale_inv"
DOWN = "model.layers.0.mlp.down_proj"


def fp8(change: Change) -> tuple[str, Change]:
    return "deepseek_v3_fp8_block", change


def int4(change: Change) -> tuple[str, Change]:
    return "ct_w4a16_group_sym", change


def nvfp4(change: Change) -> tuple[str, Change]:
    return "ct_nvfp4", change


def mxfp4(change: Change) -> tuple[str, Change]:
    return "gpt_oss_mxfp4", change


def modelopt(change: Change) -> tuple[str, Change]:
    return "modelopt_fp8", change


def tensors(*names: str, **changes: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    (change,) = changes.values()

    def changed(held: dict[str, torch.Tensor], settings: dict[str, Any]) -> list[str]:
        change(held)
        return list(names)

    return changed


def settings(*names: str, **values: Any) -> Change:
    def changed(held: dict[str, torch.Tensor], said: dict[str, Any]) -> list[str]:
        said.update(values)
        return list(names)

    return changed


def group(*names: str, **values: Any) -> Change:
    def changed(held: dict[str, torch.Tensor], said: dict[str, Any]) -> list[str]:
        said["config_groups"]["group_0"]["weights"].update(values)
        return list(names)

    return changed


def element(name: str, index: int, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(held: dict[str, torch.Tensor]) -> None:
        held[name].reshape(-1)[index] = value

    return change


MUTATIONS: dict[str, tuple[str, Change]] = {
    "a scale is missing": fp8(tensors(Q, "has no scale", SCALE, change=lambda held: held.pop(SCALE))),
    "a weight is missing": fp8(tensors(SCALE, "scale of no weight", change=lambda held: held.pop(Q))),
    "a scale has another name": fp8(tensors(Q, "has no scale", change=lambda held: held.update({f"{Q}_scal": held.pop(SCALE)}))),
    "a scale is there under two names": fp8(tensors(Q, "two tensors", f"{Q}_scale", change=lambda held: held.update({f"{Q}_scale": held[SCALE].clone()}))),
    "a scale is turned": fp8(tensors(SCALE, "by its shape", "[1, 2]", change=lambda held: held.update({SCALE: held[SCALE].T.contiguous()}))),
    "a scale is too long": fp8(tensors(SCALE, "by its shape", change=lambda held: held.update({SCALE: torch.ones(1, 3)}))),
    "a scale is a whole number": fp8(tensors(SCALE, "no scale by its dtype", "int32", change=lambda held: held.update({SCALE: held[SCALE].int()}))),
    "a scale is no number": fp8(tensors(SCALE, "scales that are no numbers", "nan", change=element(SCALE, 1, float("nan")))),
    "a scale is infinite": fp8(tensors(SCALE, "scales that are no numbers", "inf", change=element(SCALE, 0, float("inf")))),
    "codes are of another shape": fp8(tensors("q_a_proj", "shape", change=lambda held: held.update({Q: held[Q].view(torch.uint8)[:, :140].contiguous().view(torch.float8_e4m3fn)}))),
    "codes of a vector": fp8(tensors("model.norm.weight", "has no scale", change=lambda held: held.update({"model.norm.weight": held["model.norm.weight"].to(torch.float8_e4m3fn)}))),
    "blocks of another size": fp8(settings("by its shape", "64 x 64", weight_block_size=[64, 64])),
    "blocks of enormous size": fp8(settings("by its shape", weight_block_size=[1 << 30, 1 << 30])),
    "no blocks": fp8(settings("by its shape", weight_block_size=None)),
    "blocks of no size": fp8(settings("weight_block_size", weight_block_size=[0, 128])),
    "another method": fp8(settings("'awq'", "are not read", "llm-compressor", quant_method="awq")),
    "a method that nobody has": fp8(settings("'nobody'", quant_method="nobody")),
    "a method that is no name": fp8(settings("quant_method", quant_method={})),
    "a list has a module with codes": fp8(settings(Q, "lists its module", modules_to_not_convert=[Q.removesuffix(".weight")])),
    "the shape lies in its rows": int4(tensors(f"{DOWN}.weight_packed", "weight_shape lies", "[97, 224]", change=element(f"{DOWN}.weight_shape", 0, 97))),
    "the shape lies in its columns": int4(tensors("down_proj", "weight_shape lies", change=element(f"{DOWN}.weight_shape", 1, 223))),
    "the shape is impossible": int4(tensors("weight_shape lies", "-4", change=element(f"{DOWN}.weight_shape", 1, -4))),
    "the shape is missing": int4(tensors(f"{DOWN}.weight_packed", "has no shape", change=lambda held: held.pop(f"{DOWN}.weight_shape"))),
    "words are missing": int4(tensors(f"{DOWN}.weight_packed", "does not hold", change=lambda held: held.update({f"{DOWN}.weight_packed": held[f"{DOWN}.weight_packed"][:, :-1].contiguous()}))),
    "inputs are reordered": int4(tensors("weight_g_idx", "reorders", change=lambda held: held.update({f"{DOWN}.weight_g_idx": torch.zeros(224, dtype=torch.int32)}))),
    "a zero point of a symmetric weight": int4(tensors("weight_zero_point", "symmetric", change=lambda held: held.update({f"{DOWN}.weight_zero_point": torch.zeros(12, 7, dtype=torch.int32)}))),
    "no zero point of an asymmetric weight": int4(group("has no a zero point", symmetric=False)),
    "codes of other bits": int4(group("does not hold", "8 bits", num_bits=8)),
    "codes of no bits": int4(group("config_groups.group_0", num_bits=99)),
    "groups of another size": int4(group("does not hold", group_size=16)),
    "no group": int4(settings("config_groups", config_groups={})),
    "a weight of no group": int4(lambda held, said: said["config_groups"]["group_0"].update(targets=["model.layers.0.mlp.up_proj"]) or ["no group"]),
    "a pattern that is none": int4(lambda held, said: said["config_groups"]["group_0"].update(targets=["re:("]) or ["no regular expression"]),
    "a pattern that takes for ever": int4(settings("take for ever", ignore=["re:(a+)+$"])),
    "a list that is none": fp8(settings("ignored_layers", ignored_layers=7)),
    "a strategy of no size": int4(group("config_groups.group_0", strategy=None, group_size="32")),
    "weights that are not packed": int4(settings("quantization_status", quantization_status="frozen")),
    "rotated weights": int4(settings("transform_config", transform_config={"config_groups": {"u": {}}})),
    "sparse weights": int4(settings("sparse", sparsity_config={"format": "sparse-24-bitmask"})),
    "a format that nobody has": int4(settings("format", format="marlin-24")),
    "no scale of the scales": nvfp4(tensors("weight_scale", "no exponent", change=lambda held: held.pop(f"{DOWN}.weight_global_scale"))),
    "a scale of the scales is zero": nvfp4(tensors("global scale is zero", change=element(f"{DOWN}.weight_global_scale", 0, 0.0))),
    "groups of no size": nvfp4(group("weight_packed", "the strategy of group", "channel", strategy="channel", group_size=None)),
    "codes of bytes": nvfp4(tensors("by its shape", change=lambda held: held.update({f"{DOWN}.weight_packed": held[f"{DOWN}.weight_packed"].repeat(1, 2)}))),
    "no scales of the blocks": mxfp4(tensors("gate_up_proj_blocks", "has no scale", change=lambda held: held.pop("model.layers.1.mlp.experts.gate_up_proj_scales"))),
    "an exponent is no number": mxfp4(tensors("gate_up_proj_scales", "no numbers", change=element("model.layers.1.mlp.experts.gate_up_proj_scales", 5, 255))),
    "blocks of other sizes": mxfp4(tensors("down_proj_blocks", "blocks of 32", change=lambda held: held.update({"model.layers.1.mlp.experts.down_proj_blocks": torch.zeros(3, 64, 6, 8, dtype=torch.uint8)}))),
    "scales of other blocks": mxfp4(tensors("down_proj_scales", "no scale for each", change=lambda held: held.update({"model.layers.1.mlp.experts.down_proj_scales": torch.ones(3, 64, 2, dtype=torch.uint8)}))),
    "a list has experts with codes": mxfp4(settings("gate_up_proj_blocks", "lists its module", modules_to_not_convert=["model.layers.1.mlp.experts"])),
    "an algorithm that changes weights": modelopt(settings("W4A16_AWQ", quant_algo="W4A16_AWQ")),
    "a glob has a module with codes": modelopt(settings("lists its module", ignore=["model.layers.1*"])),
    "a side file that disagrees": modelopt(settings("hf_quant_config.json", "disagree", quant_algo="FP8_PB_WO")),
    "inputs are scaled": modelopt(tensors("pre_quant_scale", change=lambda held: held.update({f"{DOWN}.pre_quant_scale": torch.ones(176)}))),
}  # fmt: skip


def test_a_setting_that_nobody_knows_is_not_said_to_change_nothing(tmp_path: Path) -> None:
    case, change = fp8(settings(spinning="hadamard"))
    _mutate(_golden(case), tmp_path / "hf", change, lambda names: None)
    plan = plan_conversion(tmp_path / "hf", tmp_path / "out", to="hf")
    (loss,) = (loss for loss in plan.losses if "quantization_config.spinning" in loss.subject)
    assert loss.subject.startswith("entries that the reader does not know")


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    case, change = MUTATIONS[name]
    _mutate(_golden(case), tmp_path / "hf", change, lambda names: assert_refused(tmp_path / "hf", *names, to="hf"))


def _mutate(golden: Golden, folder: Path, change: Change, check: Callable[[list[str]], Any]) -> None:
    """Make a changed copy of a golden, in one file, and check what becomes of it."""
    folder.mkdir()
    for file in golden.checkpoint.iterdir():
        if file.suffix == ".json" and not file.name.endswith(".index.json"):
            shutil.copy(file, folder)
    held, config = weights(golden.checkpoint), json.loads((folder / "config.json").read_text())
    names = change(held, config["quantization_config"])
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    check(names)


def test_without_a_word_on_the_scheme_codes_are_refused(tmp_path: Path) -> None:
    def change(held: dict[str, torch.Tensor], said: dict[str, Any]) -> list[str]:
        return ["stored in FP8, and no config says by which scheme", "hf_quant_config.json"]

    def check(names: list[str]) -> None:
        config = json.loads((tmp_path / "hf/config.json").read_text())
        del config["quantization_config"]
        (tmp_path / "hf/config.json").write_text(json.dumps(config))
        assert_refused(tmp_path / "hf", *names, to="hf")

    _mutate(_golden("deepseek_v3_fp8_block"), tmp_path / "hf", change, check)


def test_weights_that_were_dequantised_before(tmp_path: Path) -> None:
    """Copies in bf16 keep the settings of the codes that they were made of."""
    golden = _golden("deepseek_v3_fp8_block")
    (tmp_path / "hf").mkdir()
    shutil.copy(golden.checkpoint / "config.json", tmp_path / "hf")
    shutil.copy(golden.folder / "dequantised.safetensors", tmp_path / "hf/model.safetensors")
    assert_refused(tmp_path / "hf", "no tensor has codes", "ignore_keys=quantization_config", to="hf")
    convert(tmp_path / "hf", tmp_path / "one", to="hf", options={"ignore_keys": "quantization_config"})
    convert(golden.checkpoint, tmp_path / "other", to="hf")
    assert _receipt(tmp_path / "one")["fingerprint"] == _receipt(tmp_path / "other")["fingerprint"]


def test_a_cache_alone_may_be_quantised(tmp_path: Path) -> None:
    golden = _golden("modelopt_fp8")

    def change(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        plain = load_file(golden.folder / "dequantised.safetensors")
        return plain | {"model.layers.0.self_attn.k_proj.k_scale": torch.tensor(0.5)}

    said = {"quant_method": "modelopt", "quant_algo": None, "kv_cache_quant_algo": "FP8"}
    found = _respelt(golden, tmp_path / "hf", change, said)
    assert all(_same(found[name], one) for name, one in load_file(golden.folder / "dequantised.safetensors").items())


@pytest.mark.parametrize("method", [None, "awq", "gptq", "bitsandbytes", "invented"])
def test_a_method_that_is_not_read_is_refused_by_name(method: str | None, tmp_path: Path) -> None:
    shutil.copytree(BY_NAME["deepseek_v3_fp8_block"].checkpoint, tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    config["quantization_config"] = {"bits": 4} if method is None else {"bits": 4, "quant_method": method}
    (tmp_path / "hf/config.json").write_text(json.dumps(config))
    assert_refused(tmp_path / "hf", "quantization_config", repr(method), "config.json", to="hf")


def test_the_side_file_alone_says_the_scheme(tmp_path: Path) -> None:
    golden = _golden("modelopt_fp8")
    shutil.copytree(golden.checkpoint, tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "hf/config.json").write_text(json.dumps(config))
    for source, name in ((tmp_path / "hf", "one"), (golden.checkpoint, "other")):
        convert(source, tmp_path / name, to="hf")
    assert _receipt(tmp_path / "one")["fingerprint"] == _receipt(tmp_path / "other")["fingerprint"]
    convert(tmp_path / "hf", tmp_path / "kept", to="hf", options={"quantised": "keep"})
    assert (tmp_path / "kept/hf_quant_config.json").read_bytes() == (tmp_path / "hf/hf_quant_config.json").read_bytes()


# --- writing -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 whose linear layers are whole blocks of 128, but for those of k and v, written by transformers in bf16."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("plain") / "hf"
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 70,
    }
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=64, num_hidden_layers=2)).bfloat16()
    for parameter in model.parameters():
        if parameter.ndim == 2:  # rows of different sizes, and a block of zeros
            parameter.data = (parameter.data.float() * torch.rand(len(parameter), 1) * 40).bfloat16()
            parameter.data[:128, :128] = 0
    model.save_pretrained(folder)
    return folder


def test_fp8_blocks_are_those_of_transformers(plain: Path, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from transformers import AutoModelForCausalLM, FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    convert(plain, tmp_path / "fp8", to="hf", options={"quantise": "fp8-block", "max_shard_size": "1MB"})
    config = SimpleNamespace(weight_block_size=(128, 128), scale_fmt=None)
    reference = Fp8Quantize(SimpleNamespace(quantization_config=config))
    found, source = weights(tmp_path / "fp8"), weights(plain)
    quantised = [name for name in source if "_proj" in name]
    assert {f"{name}_scale_inv" for name in quantised} == found.keys() - source.keys()
    for name, values in source.items():
        expected = reference._quantize_one(name, values) if name in quantised else {name: values}
        assert all(_same(found[one], other) for one, other in expected.items()), name
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "fp8", dtype=torch.bfloat16, quantization_config=FineGrainedFP8Config(dequantize=True)
    )
    convert(tmp_path / "fp8", tmp_path / "back", to="hf")
    assert all(torch.equal(values, loaded.state_dict()[name]) for name, values in weights(tmp_path / "back").items())
    assert _receipt(tmp_path / "fp8")["fingerprint"] == _receipt(tmp_path / "back")["fingerprint"]
    assert any("stored as codes" in loss["reason"] for loss in _receipt(tmp_path / "fp8")["losses"])


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeepSeek-V3 whose blocks hold rows of several canonical tensors: k and v of a head, what is rotated of it and what is not."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    torch.manual_seed(6)
    folder = tmp_path_factory.mktemp("latent") / "hf"
    heads = {
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
    }
    sizes = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "moe_intermediate_size": 128,
        "q_lora_rank": 128,
        "kv_lora_rank": 128,
    }
    experts = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    }
    config = DeepseekV3Config(**heads, **sizes, **experts, num_hidden_layers=2, vocab_size=90)
    model = DeepseekV3ForCausalLM(config).bfloat16()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = (parameter.data.float() * torch.rand(*parameter.shape[:-1], 1) * 40).bfloat16()
    model.save_pretrained(folder)
    return folder


def test_blocks_across_canonical_tensors(latent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    def quantised(source: Path, name: str) -> dict[str, torch.Tensor]:
        convert(source, tmp_path / name, to="hf", options={"quantise": "fp8-block"})
        return weights(tmp_path / name)

    found, source = quantised(latent, "fp8"), weights(latent)
    config = SimpleNamespace(weight_block_size=(128, 128), scale_fmt=None)
    reference = Fp8Quantize(SimpleNamespace(quantization_config=config))
    names = {name for name in source if f"{name}_scale_inv" in found}
    assert {name.split(".")[-2] for name in names} == {
        "q_b_proj",
        "kv_b_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    for name in names:
        expected = reference._quantize_one(name, source[name])
        assert all(_same(found[one], other) for one, other in expected.items()), name
    convert(latent, tmp_path / "megatron", to="megatron", tp=2)
    others = [quantised(tmp_path / "megatron", "of other ranks")]
    # Boxes that end inside blocks, and groups of as few rows as share a scale.
    monkeypatch.setattr("ckpt_core.engine.plan._chunk_elements", lambda *_: 5000)
    monkeypatch.setattr("ckpt_core.engine.encoding._GROUP", 1)
    others.append(quantised(latent, "in small boxes"))
    assert all(_same(one[name], values) for one in others for name, values in found.items())
    convert(tmp_path / "fp8", tmp_path / "kept", to="hf", options={"quantised": "keep", "max_shard_size": "100KB"})
    assert all(_same(weights(tmp_path / "kept")[name], values) for name, values in found.items())
    prints = {_receipt(tmp_path / name)["fingerprint"] for name in ("fp8", "of other ranks", "in small boxes", "kept")}
    assert len(prints) == 1


def test_layers_that_run_as_one_are_quantised_together_or_not_at_all(tmp_path: Path) -> None:
    """The keys and values of this model have 64 rows: no whole block. vLLM runs q, k and v as one matrix of one scheme."""
    from ckpt_tests import tiny

    tiny.build(
        tmp_path / "plain",
        "llama",
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        dtype=torch.bfloat16,
    )
    convert(tmp_path / "plain", tmp_path / "fp8", to="hf", options={"quantise": "fp8-block"})
    scaled = {name.split(".")[-2] for name in weights(tmp_path / "fp8") if name.endswith("_scale_inv")}
    assert scaled == {"o_proj", "gate_proj", "up_proj", "down_proj"}
    said = json.loads((tmp_path / "fp8/config.json").read_text())["quantization_config"]["modules_to_not_convert"]
    assert {name.split(".")[-1] for name in said} == {"q_proj", "k_proj", "v_proj", "lm_head"}


ASKED = {
    "nothing is quantised": ({"quantised": "keep"}, None, "there are no codes to keep"),
    "no layer has whole blocks": ({"quantise": "fp8-block"}, None, "sizes of whole blocks"),
    "both": ({"quantise": "fp8-block", "quantised": "keep"}, None, "give one"),
    "a torch file": ({"quantise": "fp8-block", "container": "bin"}, None, "safetensors alone"),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_cannot_be_written_is_refused(name: str, tmp_path: Path) -> None:
    from ckpt_tests import tiny

    options, dtype, expected = ASKED[name]
    tiny.build(tmp_path / "plain", "llama")
    with pytest.raises(CkptError, match=re.escape(expected)):
        convert(tmp_path / "plain", tmp_path / "out", to="hf", options=options, dtype=dtype or "keep")


def test_a_dtype_would_change_codes_that_are_kept(tmp_path: Path) -> None:
    golden = _golden("ct_nvfp4")
    with pytest.raises(CkptError, match="--dtype would change"):
        convert(golden.checkpoint, tmp_path / "out", to="hf", options={"quantised": "keep"}, dtype="fp32")


def test_a_value_that_is_no_number_is_not_quantised(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "hf")
    held = load_file(tmp_path / "hf/model.safetensors")
    held["model.layers.1.mlp.up_proj.weight"][200, 7] = np.inf
    save_file(held, tmp_path / "hf/model.safetensors", metadata={"format": "pt"})
    assert_refused(
        tmp_path / "hf",
        "model.layers.1.mlp.up_proj.weight",
        "no numbers",
        to="hf",
        arguments=("-o", "quantise=fp8-block"),
    )
