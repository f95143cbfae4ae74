"""Synthetic checkpoints of a given size: real shapes and random bf16 weights, no framework needed; and files of holes."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ckpt_core import convert, open_checkpoint
from ckpt_core.api import config_architecture, plan_conversion
from ckpt_core.architecture import parameters
from ckpt_core.checkpoint import Target
from ckpt_core.testing import write_ir
from ckpt_core.training import MOMENTS, Group, Training, named
from ckpt_core.training import to_json as training_json

Config = dict[str, object]
_PIECE = 1 << 23


def llama(layers: int, large: bool) -> Config:
    """A Llama with grouped queries and a vocabulary of 32000."""
    hidden, heads, ffn = (4096, 32, 14336) if large else (2048, 32, 5632)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": hidden // heads,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "vocab_size": 32000,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def bloom(layers: int, large: bool) -> Config:
    """A BLOOM with a quarter of its vocabulary."""
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "hidden_size": 4096 if large else 2048,
        "n_head": 32 if large else 16,
        "n_layer": layers,
        "vocab_size": 62720,
        "layer_norm_epsilon": 1e-5,
        "torch_dtype": "bfloat16",
    }


def t5(layers: int, large: bool) -> Config:
    """A gated T5 with a head of its own, as UL2."""
    hidden, heads, ffn = (4096, 32, 10240) if large else (2048, 32, 5120)
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "d_model": hidden,
        "d_kv": hidden // heads,
        "num_heads": heads,
        "d_ff": ffn,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "vocab_size": 32128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


MODELS: dict[str, Callable[[int, bool], Config]] = {"llama": llama, "bloom": bloom, "t5": t5}


def write_hf(folder: Path, model: str, gigabytes: float) -> int:
    """Write a Hugging Face folder of about `gigabytes` (10^9 bytes) of bf16. Returns bytes of weights."""
    with tempfile.TemporaryDirectory() as work:
        config = Path(work) / "config.json"

        def architecture(layers: int):
            config.write_text(json.dumps(MODELS[model](layers, gigabytes >= 4)))
            return config_architecture(str(config))

        def size(layers: int) -> int:
            return sum(2 * parameter.elements for parameter in parameters(architecture(layers)).values())

        layer = size(2) - size(1)
        layers = max(1, round((gigabytes * 1e9 - size(1)) / layer) + 1)
        start = write_ir(Path(work) / "ir", architecture(layers), dtype="bf16", sparse=True)
        options = {"max_shard_size": "1GB"}
        target = plan_conversion(start, folder, to="hf", options=options).target
    write_files(target, folder, data=True)
    return sum(file.size for file in target.files)


def write_run(folder: Path, gigabytes: float) -> int:
    """Write a run of Megatron with tensor parallel 2: about `gigabytes` of bf16 weights, and `distrib_optim.pt` with masters and moments in fp32, seven times
    as much in all. Returns bytes of weights."""
    random = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        source, ir = Path(work) / "hf", Path(work) / "ir"
        weights = write_hf(source, "llama", gigabytes)
        convert(source, ir, to="ir", dtype="fp32")
        shutil.rmtree(source)
        (ir / "training").mkdir()
        index: dict[str, str] = {}
        names: dict[bool, list[str]] = {True: [], False: []}
        with open_checkpoint(ir) as model:
            for number, (name, tensor) in enumerate(model.items()):
                shard = f"tensors-{number:05}.safetensors"
                moments = {named(kind, name): random.random(tensor.shape, dtype=np.float32) * 1e-4 for kind in MOMENTS}
                save_file(moments, ir / "training" / shard)
                index |= dict.fromkeys(moments, shard)
                names[len(tensor.shape) > 1].append(name)
        groups = tuple(
            Group(tuple(names[decayed]), 1e-4, (0.9, 0.95), 1e-8, 0.1 * decayed, 3e-4) for decayed in (True, False)
        )
        state = Training(1000, groups, iterations=1000, consumed_samples=64000)
        (ir / "training" / "tensors.index.json").write_text(json.dumps(index))
        (ir / "training" / "training.json").write_text(json.dumps(training_json(state)))
        options = {"container": "torch", "optimizer": "distributed", "global_batch_size": "64"}
        convert(ir, folder, to="megatron", tp=2, dtype="bf16", options=options, training_state="keep")
    return weights


def write_files(target: Target, folder: Path, *, data: bool) -> None:
    """What `target` would be, with all its headers and documents; random bf16 values, or holes, for the weights."""
    random = np.random.default_rng(0)
    for file in target.files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as stream:
            for start in range(0, file.size, 2 * _PIECE) if data else ():
                # bf16 values of about N(0, 0.02): sign and mantissa random, exponents near 2^-6
                bits = random.integers(0, 1 << 16, min(_PIECE, math.ceil((file.size - start) / 2)), dtype=np.uint16)
                stream.write(((bits & 0x81FF) | 0x3C00).tobytes())
            stream.truncate(file.size)
            for offset, known in file.literals:
                stream.seek(offset)
                stream.write(known)
    for name, text in target.documents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
