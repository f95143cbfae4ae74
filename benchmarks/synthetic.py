"""Synthetic Llama folders of a given size: real shapes, random bf16 weights, no framework needed; and files of holes."""

from __future__ import annotations

import json
import math
import os

import numpy as np

from ckpt_core.checkpoint import Target
from ckpt_core.storage import safetensors
from ckpt_core.storage.dtypes import BF16

_SHARD = 1_000_000_000


def llama_config(gigabytes: float) -> dict[str, object]:
    """A Llama config of about `gigabytes` (10^9 bytes) in bf16, with grouped queries and a vocabulary of 32000."""
    hidden, heads, groups, ffn = {True: (2048, 32, 8, 5632), False: (4096, 32, 8, 14336)}[gigabytes < 4]
    head_dim = hidden // heads
    layer = 2 * (2 * hidden * hidden + 2 * hidden * groups * head_dim + 3 * hidden * ffn)
    ends = 2 * 2 * 32000 * hidden
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head_dim,
        "intermediate_size": ffn,
        "num_hidden_layers": max(1, round((gigabytes * 1e9 - ends) / layer)),
        "vocab_size": 32000,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def shapes(config: dict[str, object]) -> dict[str, tuple[int, ...]]:
    """Tensor shapes of a Llama config, in the order transformers saves them."""
    h, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q, kv = config["num_attention_heads"] * config["head_dim"], config["num_key_value_heads"] * config["head_dim"]
    found = {"model.embed_tokens.weight": (v, h)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        found |= {
            f"{prefix}self_attn.q_proj.weight": (q, h),
            f"{prefix}self_attn.k_proj.weight": (kv, h),
            f"{prefix}self_attn.v_proj.weight": (kv, h),
            f"{prefix}self_attn.o_proj.weight": (h, q),
            f"{prefix}mlp.gate_proj.weight": (f, h),
            f"{prefix}mlp.up_proj.weight": (f, h),
            f"{prefix}mlp.down_proj.weight": (h, f),
            f"{prefix}input_layernorm.weight": (h,),
            f"{prefix}post_attention_layernorm.weight": (h,),
        }
    return found | {"model.norm.weight": (h,), "lm_head.weight": (v, h)}


def write_llama(folder: str, gigabytes: float, *, data: bool = True) -> int:
    """Write a folder of about `gigabytes`; without `data` its weight files are sparse. Returns bytes of weights."""
    os.makedirs(folder)
    config = llama_config(gigabytes)
    groups, size = [{}], 0
    for name, shape in shapes(config).items():
        count = 2 * math.prod(shape)
        if groups[-1] and size + count > _SHARD:
            groups.append({})
            size = 0
        groups[-1][name] = (BF16, shape)
        size += count
    random = np.random.default_rng(0)
    total, index = 0, {}
    for number, group in enumerate(groups, 1):
        name = "model.safetensors" if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        plan = safetensors.plan_file(group, {"format": "pt"})
        with open(os.path.join(folder, name), "wb") as file:
            file.write(plan.header)
            for _ in range(len(plan.header), plan.size, 1 << 24) if data else ():
                # bf16 values of about N(0, 0.02): sign and mantissa random, exponents near 2^-6
                bits = random.integers(0, 1 << 16, 1 << 23, dtype=np.uint16)
                file.write(((bits & 0x81FF) | 0x3C00).tobytes())
            file.truncate(plan.size)
        total += plan.size
        index |= dict.fromkeys(group, name)
    if len(groups) > 1:
        with open(os.path.join(folder, "model.safetensors.index.json"), "w") as file:
            json.dump({"metadata": {"total_size": total}, "weight_map": index}, file)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file, indent=2)
    return total


def write_holes(target: Target, folder: str) -> None:
    """What `target` would be, with all its headers and documents, but with holes for the weights."""
    for file in target.files:
        path = os.path.join(folder, file.path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            stream.truncate(file.size)
            for offset, data in file.literals:
                stream.seek(offset)
                stream.write(data)
    for name, data in target.documents.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(data)
