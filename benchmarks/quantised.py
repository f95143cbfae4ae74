"""What dequantising costs, scheme by scheme, and quantising: beside `cp` of the larger side, as `bench.py` measures.

    python benchmarks/quantised.py --size 0.5 --json benchmarks/results/quantised.json --machine "2 cores, nothing else going on"
    python docs/generate.py     makes the table of docs/performance.md of it

The sources have random codes in a Llama's matrices (of gpt-oss for MXFP4), and scales of bf16 or float32 as the tools write them.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import CONVERT, NO_SYNC, Command, Measured, bytes_of, copies, formats_table, keeping, measure, run, save
from synthetic import MODELS

Parts = Iterator[tuple[str, str, np.ndarray]]
"""Names, dtypes and values of what is stored of one matrix."""

_RANDOM = np.random.default_rng(3)


def bf16(*shape: int) -> np.ndarray:
    """Raw bf16 numbers of about N(0, 0.02): sign and mantissa random, exponents near 2^-6."""
    return (_RANDOM.integers(0, 1 << 16, shape, dtype=np.uint16) & 0x81FF) | 0x3C00


def scales(*shape: int) -> np.ndarray:
    """Float32 scales of full precision."""
    return _RANDOM.uniform(1e-4, 2e-4, shape).astype(np.float32)


def e4m3(*shape: int) -> np.ndarray:
    """E4M3 codes without NaN: normal numbers of both signs below 256."""
    return _RANDOM.integers(0x08, 0x78, shape, dtype=np.uint8) | (_RANDOM.integers(0, 2, shape, dtype=np.uint8) << 7)


def random_bytes(*shape: int) -> np.ndarray:
    return _RANDOM.integers(0, 256, shape, dtype=np.uint8)


def fp8_block(name: str, rows: int, columns: int) -> Parts:
    yield f"{name}.weight", "F8_E4M3", e4m3(rows, columns)
    yield f"{name}.weight_scale_inv", "F32", scales(-(-rows // 128), -(-columns // 128))


def fp8_channel(name: str, rows: int, columns: int) -> Parts:
    yield f"{name}.weight", "F8_E4M3", e4m3(rows, columns)
    yield f"{name}.weight_scale", "BF16", bf16(rows, 1) & 0x7FFF


def int4(name: str, rows: int, columns: int) -> Parts:
    yield f"{name}.weight_packed", "I32", random_bytes(rows, columns // 2).view(np.int32)
    yield f"{name}.weight_scale", "BF16", bf16(rows, columns // 128) & 0x7FFF
    yield f"{name}.weight_shape", "I64", np.array([rows, columns])


def int4_zero_points(name: str, rows: int, columns: int) -> Parts:
    yield from int4(name, rows, columns)
    yield f"{name}.weight_zero_point", "I32", random_bytes(rows // 8, 4 * (columns // 128)).view(np.int32)


def int8(name: str, rows: int, columns: int) -> Parts:
    yield f"{name}.weight", "I8", random_bytes(rows, columns).view(np.int8)
    yield f"{name}.weight_scale", "BF16", bf16(rows, 1) & 0x7FFF


def nvfp4(name: str, rows: int, columns: int) -> Parts:
    yield f"{name}.weight_packed", "U8", random_bytes(rows, columns // 2)
    yield f"{name}.weight_scale", "F8_E4M3", e4m3(rows, columns // 16) & 0x7E
    yield f"{name}.weight_global_scale", "F32", np.array([8192.5], np.float32)


def compressed(kind: str, name: str, **weights: object) -> dict[str, Any]:
    group = {"targets": ["Linear"], "format": name, "weights": {"symmetric": True, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


FROM_BF16 = "bf16 to FP8 blocks"
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
SCHEMES: dict[str, tuple[Callable[[str, int, int], Parts], dict[str, Any]]] = {
    "FP8 blocks": (fp8_block, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "FP8 channels": (fp8_channel, compressed("float", "float-quantized", num_bits=8, type="float", strategy="channel")),
    "INT8 channels": (int8, compressed("int", "int-quantized", num_bits=8, type="int", strategy="channel")),
    "INT4 groups": (int4, compressed("int", "pack-quantized", **INT4)),
    "INT4 zero points": (int4_zero_points, compressed("int", "pack-quantized", **INT4, symmetric=False)),
    "NVFP4": (nvfp4, compressed("float", "nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16)),
}  # fmt: skip


def llama(scheme: str, gigabytes: float, folder: Path) -> float:
    """A quantised Llama of about `gigabytes` when it is dequantised to bf16, and of how many; its embeddings are small."""
    hidden, ffn, groups, head, vocabulary = 2048, 5632, 8, 64, 1024
    parts, settings = SCHEMES[scheme]
    layer = 2 * (2 * hidden * hidden + 2 * groups * head * hidden + 3 * hidden * ffn)
    layers = max(1, round(gigabytes * 1e9 / layer))
    config = {**MODELS["llama"](layers, False), "vocab_size": vocabulary, "quantization_config": settings}
    tensors = [(f"{name}.weight", "BF16", bf16(vocabulary, hidden)) for name in ("model.embed_tokens", "lm_head")]
    tensors.append(("model.norm.weight", "BF16", bf16(hidden)))
    shapes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (groups * head, hidden), "self_attn.v_proj": (groups * head, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden), "mlp.down_proj": (hidden, ffn),
    }  # fmt: skip
    for number in range(layers):
        prefix = f"model.layers.{number}."
        tensors += [(f"{prefix}{name}_layernorm.weight", "BF16", bf16(hidden)) for name in ("input", "post_attention")]
        for name, (rows, columns) in shapes.items():
            tensors += parts(prefix + name, rows, columns)
    write(folder, config, tensors)
    return layers * layer / 1e9


def gpt_oss(gigabytes: float, folder: Path) -> float:
    """A gpt-oss of which the experts are MXFP4; the GB of these in bf16."""
    hidden, ffn, experts, heads, vocabulary = 1024, 1536, 16, 16, 512
    layer = 2 * experts * 3 * hidden * ffn
    layers = max(1, round(gigabytes * 1e9 / layer))
    config = {
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_local_experts": experts, "num_experts_per_tok": 4, "num_attention_heads": heads,
        "num_key_value_heads": heads // 2, "head_dim": 64, "vocab_size": vocabulary, "sliding_window": 128, "swiglu_limit": 7.0,
        "attention_bias": True, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
        "layer_types": [("sliding_attention", "full_attention")[number % 2] for number in range(layers)], "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}, "quantization_config": {"quant_method": "mxfp4"},
    }  # fmt: skip
    tensors = [(f"{name}.weight", "BF16", bf16(vocabulary, hidden)) for name in ("model.embed_tokens", "lm_head")]
    tensors.append(("model.norm.weight", "BF16", bf16(hidden)))
    for number in range(layers):
        prefix = f"model.layers.{number}."
        tensors += [(f"{prefix}{name}_layernorm.weight", "BF16", bf16(hidden)) for name in ("input", "post_attention")]
        for name, rows, columns in (("q", 1024, hidden), ("k", 512, hidden), ("v", 512, hidden), ("o", hidden, 1024)):
            tensors.append((f"{prefix}self_attn.{name}_proj.weight", "BF16", bf16(rows, columns)))
            tensors.append((f"{prefix}self_attn.{name}_proj.bias", "BF16", bf16(rows)))
        tensors.append((f"{prefix}self_attn.sinks", "BF16", bf16(heads)))
        tensors.append((f"{prefix}mlp.router.weight", "BF16", bf16(experts, hidden)))
        tensors.append((f"{prefix}mlp.router.bias", "BF16", bf16(experts)))
        for name, rows, columns in (("gate_up_proj", 2 * ffn, hidden), ("down_proj", hidden, ffn)):
            tensors.append((f"{prefix}mlp.experts.{name}_blocks", "U8", random_bytes(experts, rows, columns // 32, 16)))
            tensors.append(
                (f"{prefix}mlp.experts.{name}_scales", "U8", random_bytes(experts, rows, columns // 32) % 8 + 118)
            )
            tensors.append((f"{prefix}mlp.experts.{name}_bias", "BF16", bf16(experts, rows)))
    write(folder, config, tensors)
    return layers * layer / 1e9


def write(folder: Path, config: dict[str, Any], tensors: list[tuple[str, str, np.ndarray]]) -> None:
    """One safetensors file and config.json."""
    folder.mkdir()
    header: dict[str, Any] = {}
    at = 0
    for name, dtype, values in tensors:
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _, _, values in tensors:
            stream.write(values.tobytes())
    (folder / "config.json").write_text(json.dumps(config))


def source_of(scheme: str, gigabytes: float, folder: Path) -> float:
    """Write the source of a row into `folder`; the GB of its bf16 side."""
    if scheme == "MXFP4":
        return gpt_oss(gigabytes, folder)
    if scheme in SCHEMES:
        return llama(scheme, gigabytes, folder)
    codes = folder.with_name("codes")
    size = llama("FP8 blocks", gigabytes, codes)
    measure([*CONVERT, str(codes), str(folder), "--to", "hf", "--no-sync"], dict(os.environ))
    shutil.rmtree(codes)
    return size


def conversions(scheme: str, source: Path, output: Path) -> Iterator[Command]:
    """To HF, of the other kind of numbers, without a sync and with it; and `cp` of the larger side.

    A gpt-oss goes to Megatron-Bridge: in HF's bf16 its experts' gate and up alternate number by number, and writing that is another thing to measure.
    """
    name = scheme if scheme == FROM_BF16 else f"{scheme} to bf16"
    there = {FROM_BF16: ["--to", "hf", "-o", "quantise=fp8-block"], "MXFP4": ["--to", "megatron-bridge"]}
    words = [*CONVERT, str(source), str(output), *there.get(scheme, ["--to", "hf"])]
    yield Command(f"{name}{NO_SYNC}", [*words, "--no-sync"], output)
    yield Command(name, words, output, kept=True)
    yield from copies(max(source, output, key=bytes_of), output.parent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=0.5, help="GB of bf16 that come of each source")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="schemes whose name contains this")
    parser.add_argument("--work", type=Path, help="a folder with room for three copies")
    keeping(parser)
    arguments = parser.parse_args()
    results: list[Measured] = []
    for scheme in (one for one in (*SCHEMES, "MXFP4", FROM_BF16) if arguments.only in one):
        with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
            source, output = Path(folder) / "source", Path(folder) / "output"
            size = source_of(scheme, arguments.size, source)
            print(f"{size:.2f} GB of bf16: {scheme}", flush=True)
            made = functools.partial(conversions, scheme, source, output)
            results += run(scheme, size, arguments.rounds, Path(folder), made)
    print(f"\n{formats_table(results)}")
    if arguments.json:
        save(arguments.json, arguments.machine, results)


if __name__ == "__main__":
    main()
