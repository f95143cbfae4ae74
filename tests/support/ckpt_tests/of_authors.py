"""Small models of classes that transformers runs with the code beside their files: made of the modules of its Llama, which compute the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

SIZES = {"vocab_size": 61, "hidden_size": 48, "num_attention_heads": 6, "rms_norm_eps": 1e-5, "rope_theta": 5000.0}
TOKENS = torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(2))

_LLADA = {
    "model.embed_tokens": "model.transformer.wte", "model.norm": "model.transformer.ln_f", "lm_head": "model.transformer.ff_out",
    "model.layers": "model.transformer.blocks", "input_layernorm": "attn_norm", "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj", "self_attn.k_proj": "k_proj", "self_attn.v_proj": "v_proj", "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj", "mlp.up_proj": "up_proj", "mlp.down_proj": "ff_out",
}  # fmt: skip
# The config of LLaDA-8B-Base, but for its sizes.
_LLADA_CONFIG = {
    "activation_type": "silu", "alibi": False, "alibi_bias_max": 8.0, "architectures": ["LLaDAModelLM"], "attention_dropout": 0.0,
    "attention_layer_norm": False, "attention_layer_norm_with_affine": True, "bias_for_layer_norm": False, "block_group_size": 1,
    "block_type": "llama", "embedding_dropout": 0.0, "flash_attention": False, "include_bias": False, "include_qkv_bias": False,
    "init_cutoff_factor": None, "init_device": "meta", "init_fn": "mitchell", "init_std": 0.02, "input_emb_norm": False,
    "layer_norm_type": "rms", "layer_norm_with_affine": True, "mask_token_id": 60, "mlp_ratio": 4, "model_type": "llada",
    "multi_query_attention": None, "precision": "amp_bf16", "residual_dropout": 0.0, "rope": True, "rope_full_precision": True,
    "scale_logits": False, "use_cache": False, "weight_tying": False,
}  # fmt: skip
DECILM_LAYERS = ((2, 256), (None, 512), (6, None), (2, 256))
"""The groups of each layer's attention and the width of its MLP, None where there is no such block."""


def _randomised(*modules: torch.nn.Module) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in (each for module in modules for each in module.parameters()):
            parameter.copy_(0.15 * torch.randn_like(parameter) + (parameter.dim() == 1))


def _config(**sizes: int) -> LlamaConfig:
    return LlamaConfig(**SIZES, max_position_embeddings=64, attn_implementation="eager", **sizes)


def _save(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, object]) -> None:
    folder.mkdir(parents=True)
    kept = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def llada(folder: Path) -> torch.Tensor:
    """A LLaDA of three layers in `folder`; its logits for TOKENS, all of which every position sees."""
    model = LlamaForCausalLM(_config(intermediate_size=80, num_hidden_layers=3, num_key_value_heads=2)).eval()
    _randomised(model)
    tensors = dict(model.state_dict())
    for theirs, own in _LLADA.items():
        tensors = {name.replace(theirs, own): tensor for name, tensor in tensors.items()}
    sizes = {
        "d_model": 48,
        "embedding_size": 61,
        "max_sequence_length": 64,
        "mlp_hidden_size": 80,
        "n_heads": 6,
        "n_kv_heads": 2,
        "n_layers": 3,
    }
    said = {key: SIZES[key] for key in ("vocab_size", "rms_norm_eps", "rope_theta")}
    _save(folder, tensors, {**_LLADA_CONFIG, **sizes, **said})
    with torch.no_grad():
        return model(TOKENS, attention_mask=torch.zeros(2, 1, 20, 20)).logits


def decilm(folder: Path) -> torch.Tensor:
    """A Llama-Nemotron of the layers above in `folder`; its logits for TOKENS."""
    layers = [
        LlamaDecoderLayer(
            _config(num_hidden_layers=4, num_key_value_heads=groups or 6, intermediate_size=width or 8), index
        )
        for index, (groups, width) in enumerate(DECILM_LAYERS)
    ]
    rotary = LlamaRotaryEmbedding(_config(num_hidden_layers=4))
    embedding, norm = torch.nn.Embedding(61, 48), torch.nn.RMSNorm(48, 1e-5)
    head = torch.nn.Linear(48, 61, bias=False)
    _randomised(*layers, embedding, norm, head)
    hidden = embedding(TOKENS)
    mask = torch.full((20, 20), float("-inf")).triu(1)[None, None]
    tensors = {
        "model.embed_tokens.weight": embedding.weight,
        "model.norm.weight": norm.weight,
        "lm_head.weight": head.weight,
    }
    for index, (layer, sizes) in enumerate(zip(layers, DECILM_LAYERS, strict=True)):
        for size, begins in zip(sizes, (("self_attn.", "input_"), ("mlp.", "post_")), strict=True):
            kept = layer.state_dict() if size is not None else {}
            tensors |= {f"model.layers.{index}.{name}": one for name, one in kept.items() if name.startswith(begins)}
        if sizes[0] is not None:
            places = rotary(hidden, torch.arange(20)[None])
            hidden = hidden + layer.self_attn(layer.input_layernorm(hidden), places, mask)[0]
        if sizes[1] is not None:
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    blocks = [
        {
            "attention": {
                "n_heads_in_group": groups and 6 // groups,
                "no_op": groups is None,
                "replace_with_linear": False,
                "sparsify": None,
            },
            "ffn": {
                "ffn_mult": width and 3 * width / 96,
                "no_op": width is None,
                "replace_with_linear": False,
                "sparsify": None,
            },
        }
        for groups, width in DECILM_LAYERS
    ]
    config = {
        **SIZES, "architectures": ["DeciLMForCausalLM"], "model_type": "nemotron-nas", "block_configs": blocks, "num_hidden_layers": 4,
        "num_key_value_heads": None, "intermediate_size": None, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "max_position_embeddings": 64, "rope_scaling": None, "tie_word_embeddings": False,
    }  # fmt: skip
    _save(folder, tensors, config)
    return head(norm(hidden)).detach()


MADE: dict[str, Callable[[Path], torch.Tensor]] = {"llada": llada, "nemotron-nas": decilm}
"""By model_type: what makes a folder, and gives the logits for TOKENS."""
