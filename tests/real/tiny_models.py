"""Tiny random HF models for the judges, each with input ids and transformers' own logits beside it.

    python tiny_models.py OUT [NAME ...]

makes OUT/NAME (float32, no parameter at its default), OUT/NAME.ids.safetensors and OUT/NAME.logits.safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

# Sizes are pairwise different, and nearly all fit tp 2 and pp 2. Ids stay below 203, the vocabulary of an odd model.
VOCABULARY = 208
ODD_VOCABULARY = 203
LAYERNORM: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 96, "intermediate_size": 144, "num_hidden_layers": 4,
    "num_attention_heads": 12, "num_key_value_heads": 6, "max_position_embeddings": 64,
}  # fmt: skip
RMS = LAYERNORM | {"rms_norm_eps": 1e-5}
QWEN = LAYERNORM | {"rms_norm_eps": 1e-6}
LLAMA31 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 56, "norm_topk_prob": True}
LATENT = {
    "moe_intermediate_size": 40, "num_key_value_heads": 12, "n_routed_experts": 8, "num_experts_per_tok": 4,
    "first_k_dense_replace": 1, "kv_lora_rank": 24, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10,
}  # fmt: skip
UNTIED = {"tie_word_embeddings": False}
TIED = {"tie_word_embeddings": True}


def rope(theta: float, scaling: dict[str, Any] | None = None) -> dict[str, Any]:
    """Rotary positions, under the keys of this version of transformers."""
    if int(transformers.__version__.split(".")[0]) >= 5:
        return {"rope_parameters": (scaling or {"rope_type": "default"}) | {"rope_theta": theta}}
    return {"rope_theta": theta, **({"rope_scaling": scaling} if scaling else {})}


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", RMS | rope(5000.0) | UNTIED),
    "llama_heads": ("Llama", RMS | rope(5000.0) | UNTIED | {"num_key_value_heads": 12}),
    "llama_odd": ("Llama", RMS | rope(5000.0) | UNTIED | {"vocab_size": ODD_VOCABULARY}),
    "llama31": ("Llama", RMS | rope(500000.0, LLAMA31) | UNTIED),
    "llama32_tied": ("Llama", RMS | rope(500000.0, LLAMA31 | {"factor": 32.0}) | TIED),
    "mistral": ("Mistral", RMS | rope(5000.0) | {"head_dim": 10, "sliding_window": None}),
    "qwen2": ("Qwen2", QWEN | rope(1e6) | UNTIED),
    "qwen2_tied": ("Qwen2", QWEN | rope(1e6) | TIED),
    "qwen3": ("Qwen3", QWEN | rope(1e6) | UNTIED | {"head_dim": 10}),
    "qwen3_tied": ("Qwen3", QWEN | rope(1e6) | TIED | {"head_dim": 10}),
    "qwen3_moe": ("Qwen3Moe", QWEN | rope(1e6) | EXPERTS | {"head_dim": 10, "decoder_sparse_step": 1}),
    "mixtral": ("Mixtral", RMS | rope(1e6) | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma": ("Gemma", QWEN | rope(10000.0) | {"head_dim": 10}),
    "gemma2": ("Gemma2", QWEN | rope(10000.0) | {"head_dim": 10, "query_pre_attn_scalar": 10, "sliding_window": 16}),
    "nemotron": ("Nemotron", LAYERNORM | rope(10000.0) | UNTIED | {"norm_eps": 1e-5, "partial_rotary_factor": 0.5}),
    "gpt2": (
        "GPT2",
        {"vocab_size": VOCABULARY, "n_embd": 96, "n_inner": 144, "n_layer": 4, "n_head": 12, "n_positions": 64},
    ),
    "starcoder2": (
        "Starcoder2",
        LAYERNORM | rope(10000.0) | UNTIED | {"norm_epsilon": 1e-5, "sliding_window": None},
    ),
    "deepseek_v2": (
        "DeepseekV2",
        QWEN | LATENT | rope(10000.0)
        | {"n_shared_experts": 2, "n_group": 1, "topk_group": 1, "q_lora_rank": 32, "topk_method": "greedy"},
    ),
    "deepseek_v3": (
        "DeepseekV3",
        QWEN | LATENT | rope(10000.0)
        | {"n_shared_experts": 1, "n_group": 4, "topk_group": 2, "q_lora_rank": 32},
    ),
    # Every position is chosen: transformers 5.12 rotates the halves of an indexer's rows, where GLM-5 and later versions rotate pairs.
    "glm_moe_dsa": (
        "GlmMoeDsa",
        QWEN | LATENT | rope(10000.0)
        | {"n_shared_experts": 1, "q_lora_rank": 32, "n_group": 1, "topk_group": 1, "indexer_rope_interleave": True}
        | {"index_n_heads": 6, "index_head_dim": 14, "index_topk": 64},
    ),
}  # fmt: skip


def make(out: Path, name: str) -> torch.Tensor:
    """The model `name` at out/name, with its inputs and logits [2, 37, vocabulary]."""
    family, values = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**values)
    torch.manual_seed(7)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.05)
        ids = torch.randint(0, ODD_VOCABULARY, (2, 37))
        logits = model(ids).logits.float().contiguous()
    model.save_pretrained(out / name)
    save_file({"input_ids": ids}, out / f"{name}.ids.safetensors")
    save_file({"logits": logits}, out / f"{name}.logits.safetensors")
    return logits


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    for model_name in names or MODELS:
        made = make(Path(folder), model_name)
        print(model_name, tuple(made.shape), f"largest logit {float(made.abs().max()):.2f}")
