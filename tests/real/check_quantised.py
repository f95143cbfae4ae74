"""Weights that compressed-tensors quantised, in each of its ways: ours are those that it dequantises itself, bit for bit.

Run in the environment of `requirements-quantised.txt`; needs no GPU. What llm-compressor's observer finds out is the least and the largest
value of those that share a scale; here these are taken directly. transformers loads what was saved, with `dequantize=True`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

from ckpt_core import convert
from ckpt_tests.models import weights

PACKED, INT, FLOAT = "pack-quantized", "int-quantized", "float-quantized"
GROUP = {"strategy": "group", "group_size": 32}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"int{bits} by group, asymmetric": (PACKED, {"num_bits": bits, **GROUP, "symmetric": False}) for bits in range(3, 9)},
    "int4 by row": (PACKED, {"num_bits": 4, "strategy": "channel"}),
    "int4 by row, asymmetric": (PACKED, {"num_bits": 4, "strategy": "channel", "symmetric": False}),
    "int8 by tensor, packed": (PACKED, {"num_bits": 8, "strategy": "tensor"}),
    "int8 by row": (INT, {"num_bits": 8, "strategy": "channel"}),
    "int8 by row, asymmetric": (INT, {"num_bits": 8, "strategy": "channel", "symmetric": False}),
    "int8 by group": (INT, {"num_bits": 8, **GROUP}),
    "fp8 by tensor": (FLOAT, {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    "fp8 by block, partial": (FLOAT, {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [64, 64]}),
    "fp8 by group": (FLOAT, {"num_bits": 8, "type": "float", **GROUP}),
    "mxfp4": ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", **GROUP, "scale_dtype": torch.uint8}),
    "mxfp8": ("mxfp8-quantized", {"num_bits": 8, "type": "float", **GROUP, "scale_dtype": torch.uint8}),
}  # fmt: skip


def _model() -> LlamaForCausalLM:
    """Rows of different sizes, and no mean of zero, so that zero points matter."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, head_dim=16, num_hidden_layers=1, vocab_size=70)).bfloat16()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            scaled = parameter.data.float() * torch.rand(len(parameter), 1) * 30
            parameter.data = (scaled + (torch.rand(1) - 0.3) * 0.5).bfloat16()
    return model


def _extremes(weight: torch.Tensor, args: QuantizationArgs) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the largest of the values that share a scale."""
    rows, columns = weight.shape
    if args.strategy == "tensor":
        return weight.amin().reshape(1), weight.amax().reshape(1)
    if args.strategy == "block":
        height, width = args.block_structure
        parts = [list(band.split(width, 1)) for band in weight.split(height, 0)]
        found = [
            torch.stack([torch.stack([end(part) for part in band]) for band in parts])
            for end in (torch.amin, torch.amax)
        ]
        return found[0], found[1]
    groups = weight.reshape(rows, -1, args.group_size or columns)
    return groups.amin(-1), groups.amax(-1)


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_compressed_tensors(name: str, tmp_path: Path) -> None:
    format, given = CASES[name]
    args = QuantizationArgs(**{"type": "int", "symmetric": True, **given})
    group = QuantizationScheme(targets=["Linear"], weights=args, format=format)
    config = QuantizationConfig(
        config_groups={"group_0": group}, ignore=["lm_head"], format=format, quantization_status="initialized"
    )
    model = _model()
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            scale, zero = calculate_qparams(*_extremes(module.weight.data, args), args)
            for held, values in ((module.weight_scale, scale), (getattr(module, "weight_zero_point", None), zero)):
                if held is not None:
                    held.data = values.to(held.dtype).reshape(held.shape)
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format=format)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "hf")
    compressor.update_config(tmp_path / "hf")
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.bfloat16, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    convert(tmp_path / "hf", tmp_path / "out", to="hf")
    expected = {key: value for key, value in loaded.state_dict().items() if key.endswith("weight")}
    found = weights(tmp_path / "out")
    assert expected.keys() == found.keys()
    assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []
