"""Tiny transformers models with pairwise different sizes and random weights, saved by transformers itself."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    SmolLM3Config,
    Starcoder2Config,
)

# No two sizes are equal: heads 12 = groups 4 x 3 per group, head_dim 8.
SIZES = {
    "vocab_size": 61, "hidden_size": 96, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 12,
    "num_key_value_heads": 4, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LAYOUTS = [(tp, pp) for tp in (1, 2, 4) for pp in (1, 2, 3)]

CONFIGS: dict[str, tuple[type[PreTrainedConfig], dict[str, object]]] = {
    "llama": (LlamaConfig, {}),
    "mistral": (MistralConfig, {"sliding_window": None, "head_dim": 8}),
    "qwen2": (Qwen2Config, {}),
    "qwen2_moe": (
        Qwen2MoeConfig,
        {
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "norm_topk_prob": False,
        },
    ),
    "smollm3": (SmolLM3Config, {"no_rope_layer_interval": 2}),
    "starcoder2": (Starcoder2Config, {}),
}


def config_of(family: str, **overrides: object) -> PreTrainedConfig:
    """The config of a tiny model of a family."""
    kind, own = CONFIGS[family]
    return kind(**{**SIZES, **own, **overrides})


def build(
    folder: Path,
    family: str,
    dtype: torch.dtype = torch.float32,
    shard: str = "5GB",
    seed: int = 3,
    **overrides: object,
) -> PreTrainedModel:
    """A model of random weights, biases and norms included, saved at `folder`."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_of(family, **overrides), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(
                torch.randn_like(parameter) * 0.25 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
            )
    model = model.to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def tokens(length: int = 24) -> torch.Tensor:
    """Two sequences, longer than every window in use."""
    return torch.randint(0, SIZES["vocab_size"], (2, length), generator=torch.Generator().manual_seed(11))


def auto_config(folder: Path) -> dict[str, object]:
    """What transformers makes of a folder's config, without names, versions and what has no effect."""
    held = AutoConfig.from_pretrained(folder).to_dict()
    inert = {"transformers_version", "_name_or_path", "dtype", "architectures"}
    if "head_dim" in held and held["head_dim"] == held["hidden_size"] / held["num_attention_heads"]:
        inert.add("head_dim")  # some classes know the key and others only what it would be
    if held.get("layer_types") is not None:
        inert.add("max_window_layers")  # only a rule for the layer types
    if held.get("use_sliding_window") is False:
        inert.add("sliding_window")
    if "decoder_sparse_step" in held:  # three ways to say which layers have experts
        dense, step = held.pop("mlp_only_layers"), held.pop("decoder_sparse_step")
        held["sparse_layers"] = [n for n in range(held["num_hidden_layers"]) if n not in dense and (n + 1) % step == 0]
    return {key: value for key, value in held.items() if key not in inert}
