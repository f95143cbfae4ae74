"""Small models that see, made by transformers with random weights: one of each class whose language model is taken out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from ckpt_tests.models import logits_of

_TEXT: dict[str, Any] = {"vocab_size": 160, "hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 2}
_TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
_TOWER: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
_TOWER |= {"image_size": 28, "patch_size": 7}
_QWEN: dict[str, Any] = {"depth": 1, "hidden_size": 32, "intermediate_size": 40, "num_heads": 2, "patch_size": 7}
_QWEN |= {"out_hidden_size": 48}
_EXPERTS: dict[str, Any] = {"moe_intermediate_size": 40, "num_experts": 6, "num_experts_per_tok": 2}
_DELTA: dict[str, Any] = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
_DELTA |= {"linear_value_head_dim": 12, "layer_types": ["linear_attention", "full_attention"]}
_DEEP = {**_QWEN, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}


def _rotary(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, **parameters}}


_TWO = {**_TEXT, **_rotary(mrope_section=[2, 2, 2])}
_THREE = {**_TEXT, "head_dim": 16, **_rotary(mrope_section=[4, 2, 2], mrope_interleaved=True)}
_FIVE = {**_TEXT, **_DELTA, "head_dim": 16}
_FIVE |= _rotary(partial_rotary_factor=0.5, mrope_section=[2, 1, 1], mrope_interleaved=True)
_SPARSE = {"moe_intermediate_size": 40, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
_SPARSE |= {"n_shared_experts": 1, "first_k_dense_replace": 1}
_LATENT = {"kv_lora_rank": 20, "q_lora_rank": 28, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
_LATENT |= {"num_key_value_heads": 4}
_SIGLIP = {"model_type": "siglip_vision_model", **_TOWER}
_CLIP = {"model_type": "clip_vision_model", **_TOWER}

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "text_config": _TWO,
        "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "patch_size": 7},
    },
    "qwen2_5_vl": {"text_config": _TWO, "vision_config": _QWEN},
    "qwen3_vl": {"text_config": _THREE, "vision_config": _DEEP},
    "qwen3_vl_moe": {"text_config": {**_THREE, **_EXPERTS}, "vision_config": _DEEP},
    "qwen3_5": {"text_config": _FIVE, "vision_config": {**_QWEN, "num_position_embeddings": 16}},
    "qwen3_5_moe": {
        "text_config": {**_FIVE, **_EXPERTS, "shared_expert_intermediate_size": 56},
        "vision_config": {**_QWEN, "num_position_embeddings": 16},
    },
    "gemma3": {
        "text_config": {
            "model_type": "gemma3_text",
            **_TEXT,
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "vision_config": _SIGLIP,
        "mm_tokens_per_image": 4,
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", **_TEXT, "head_dim": 16},
        "vision_config": {"model_type": "pixtral", **_TOWER},
    },
    "mistral3+ministral3": {
        "text_config": {
            "model_type": "ministral3",
            **_TEXT,
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
        "vision_config": {"model_type": "pixtral", **_TOWER},
    },
    "llama4": {
        "text_config": {
            **_TEXT,
            "intermediate_size_mlp": 96,
            "num_local_experts": 4,
            "head_dim": 16,
            "attention_chunk_size": 16,
            "no_rope_layers": [1, 0],
        },
        "vision_config": {
            **_TOWER,
            "projector_input_dim": 48,
            "projector_output_dim": 48,
            "vision_output_dim": 48,
        },
    },
    "llava": {"text_config": {"model_type": "llama", **_TEXT}, "vision_config": _CLIP},
    "llava_next": {"text_config": {"model_type": "mistral", **_TEXT}, "vision_config": _CLIP},
    "llava_onevision": {"text_config": {"model_type": "qwen2", **_TEXT}, "vision_config": _SIGLIP},
    "internvl": {
        "text_config": {"model_type": "qwen3", **_TEXT, "head_dim": 16},
        "vision_config": {**_TOWER, "image_size": [28, 28], "patch_size": [7, 7]},
    },
    "idefics3": {"text_config": {"model_type": "llama", **_TEXT}, "vision_config": _TOWER},
    "smolvlm": {"text_config": {"model_type": "llama", **_TEXT}, "vision_config": _TOWER},
    "exaone4_5": {
        "text_config": {
            "model_type": "exaone4",
            **_TEXT,
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "vision_config": {
            **_QWEN,
            "patch_size": 14,
            "depth": 2,
            "fullatt_block_indexes": [1],
            "num_key_value_heads": 1,
        },
    },
    "glm4v_moe": {
        "text_config": {
            **_TEXT,
            **_SPARSE,
            "head_dim": 16,
            **_rotary(partial_rotary_factor=0.5, mrope_section=[2, 1, 1]),
        },
        "vision_config": {**_QWEN, "image_size": 28, "num_hidden_layers": 1, "out_hidden_size": 48},
    },
    "kimi_k25": {
        "text_config": {"model_type": "deepseek_v3", **_TEXT, **_SPARSE, **_LATENT},
        "vision_config": {**_TOWER, "pos_emb_height": 4, "pos_emb_width": 4, "pos_emb_time": 2},
        "projection_hidden_size": 32,
        "image_token_id": 151,
        "video_token_id": 152,
    },
}
_ENCODER = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 40, "num_mel_bins": 8}
_ENCODER |= {"max_source_positions": 16, "n_window": 8}
_THINKER = {
    "audio_config": {**_ENCODER, "output_dim": 48},
    "audio_token_id": 150,
    "image_token_id": 151,
    "video_token_id": 152,
}
_TALKER = {
    "text_config": {**_TEXT, **_EXPERTS, "head_dim": 16},
    "code_predictor_config": {**_TEXT, "head_dim": 16, "num_code_groups": 2},
}
CONFIGS |= {
    "qwen2_audio": {
        "text_config": {"model_type": "qwen2", **_TEXT},
        "audio_config": _ENCODER,
        "audio_token_index": 150,
    },
    "qwen3_asr": {
        "text_config": {"model_type": "qwen3", **_TEXT, "head_dim": 16},
        "audio_config": {**_ENCODER, "output_dim": 48, "downsample_hidden_size": 8},
        "audio_token_id": 150,
    },
    "qwen2_5_omni": {
        "thinker_config": {"text_config": _TWO, "vision_config": _QWEN, **_THINKER},
        "enable_audio_output": False,
    },
    "qwen3_omni_moe": {
        "thinker_config": {
            "text_config": {**_THREE, **_EXPERTS},
            "vision_config": _DEEP,
            **_THINKER,
            "audio_config": {**_ENCODER, "output_dim": 48, "downsample_hidden_size": 8},
        },
        "enable_audio_output": False,
    },
}
"""The configs, by model_type, and by the language model behind a plus where a class has another besides."""


def made(name: str, class_name: str) -> transformers.PreTrainedModel:
    """The model of one of the `CONFIGS`, with every parameter away from where it begins."""
    torch.manual_seed(11)
    config = transformers.CONFIG_MAPPING[name.partition("+")[0]](**CONFIGS[name])
    model = getattr(transformers, class_name)(config).float().eval()
    with torch.no_grad():
        for _, tensor in sorted(model.state_dict(keep_vars=True).items()):
            if tensor.is_floating_point():
                noise = torch.randn_like(tensor)
                tensor.data.copy_(tensor + 0.2 * noise if tensor.dim() < 2 else 0.15 * noise)
    model.tie_weights()
    return model


def published(folder: Path, name: str) -> None:
    """The names of the Hub in a folder that transformers saved: version 5.24 gives Kimi's language model those of its tower."""
    path = folder / "model.safetensors"
    if name == "kimi_k25":
        stored = load_file(path)
        begins = ("language_model.model.blocks.", "language_model.model.layers.")
        save_file({key.replace(*begins): tensor for key, tensor in stored.items()}, path, {"format": "pt"})


def saw(folder: Path) -> transformers.PreTrainedModel:
    """The whole model in a folder, in float32, as transformers loads it for images and text."""
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    if name == "Qwen2_5OmniForConditionalGeneration":
        torch.save({}, folder / "spk_dict.pt")  # the voices of the part that speaks, for which the class asks
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()


def of_text(model: transformers.PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """The logits of a whole model on text alone."""
    # without an image Llama 4's class runs its language model, and then fails for want of an image (modeling_llama4.py, 5.24)
    runs = model.language_model if isinstance(model, transformers.Llama4ForConditionalGeneration) else model
    return logits_of(getattr(runs, "thinker", runs), tokens)
