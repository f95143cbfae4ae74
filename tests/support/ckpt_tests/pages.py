"""Checkpoints to look at: what a page must show well, without any disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ckpt_core.storage.dtypes import BF16, FP32, encode
from ckpt_core.storage.safetensors import plan_file

TINY = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "vocab_size": 61,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
LARGE = {"hidden_size": 8192, "intermediate_size": 28672, "vocab_size": 128256, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8}  # fmt: skip


def llama_shapes(sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama, under the names of transformers."""
    hidden, ffn, vocabulary = sizes["hidden_size"], sizes["intermediate_size"], sizes["vocab_size"]
    keys = hidden // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    layer = {
        "input_layernorm": (hidden,), "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, hidden), "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden), "mlp.down_proj": (hidden, ffn),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for number in range(sizes["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def _config(folder: Path, sizes: dict[str, int]) -> None:
    rest = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
        "max_position_embeddings": 2048, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**sizes, **rest}))


def large_llama(folder: Path, files: int = 30) -> Path:
    """A Llama of 70 billion zeros in bf16, in so many files that occupy no disk."""
    _config(folder, LARGE)
    names, places = list(llama_shapes(LARGE)), {}
    for number in range(files):
        file = f"model-{number + 1:05}-of-{files:05}.safetensors"
        held = names[number * len(names) // files : (number + 1) * len(names) // files]
        plan = plan_file({name: (BF16, llama_shapes(LARGE)[name]) for name in held}, {"format": "pt"})
        with open(folder / file, "wb") as stream:
            stream.write(plan.header)
            stream.truncate(plan.size)
        places |= dict.fromkeys(held, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def tiny_values() -> dict[str, np.ndarray]:
    """Random values for a tiny Llama, with NaNs in one tensor, and an infinity and zeros in another."""
    random = np.random.default_rng(5)
    values = {name: random.standard_normal(shape).astype(np.float32) for name, shape in llama_shapes(TINY).items()}
    values["model.layers.1.mlp.up_proj.weight"][3, 2:5] = np.nan
    values["model.layers.2.self_attn.q_proj.weight"][0, :4] = (np.inf, 0.0, -0.0, 9.0)
    return values


def tiny_llama(folder: Path, values: dict[str, np.ndarray]) -> Path:
    """A tiny Llama of these values, its norms in fp32 and everything else in bf16."""
    _config(folder, TINY)
    dtypes = {name: FP32 if "norm" in name else BF16 for name in values}
    plan = plan_file({name: (dtypes[name], held.shape) for name, held in values.items()}, {"format": "pt"})
    data = bytearray(plan.size)
    data[: len(plan.header)] = plan.header
    for name, held in values.items():
        raw = encode(held, dtypes[name]).tobytes()
        data[plan.offsets[name] : plan.offsets[name] + len(raw)] = raw
    (folder / "model.safetensors").write_bytes(data)
    return folder
