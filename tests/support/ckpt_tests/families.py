"""Tiny transformers models of every family: pairwise different sizes, and every number random."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from ckpt_tests import tiny

# heads 12 = groups 4 x 3 per group; hidden / heads = 8, and a head_dim that differs from it where the class has the key
SIZES = {
    "vocab_size": 61, "hidden_size": 96, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 12,
    "num_key_value_heads": 4, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_ALIKE = {key: value for key, value in SIZES.items() if key not in ("num_key_value_heads", "intermediate_size")}
_GPT2 = {
    "vocab_size": 61, "n_embd": 96, "n_inner": 56, "n_layer": 2, "n_head": 12, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_EXPERTS = {
    "moe_intermediate_size": 24, "n_routed_experts": 6, "n_shared_experts": 2, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
}  # fmt: skip
_LATENT = {
    **SIZES, "num_key_value_heads": 12, "kv_lora_rank": 20, "q_lora_rank": 28, "qk_nope_head_dim": 14, "qk_rope_head_dim": 10, "v_head_dim": 18,
    **_EXPERTS,
    "routed_scaling_factor": 1.75,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 30.0, "beta_slow": 2.0,
    "mscale": 0.7, "mscale_all_dim": 0.9,
}  # fmt: skip
YARN_PLAIN = {key: value for key, value in YARN.items() if not key.startswith("mscale")}
GROWING = {**YARN, "llama_4_scaling_beta": 0.5}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 5000.0, "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.25, 1.5], "long_factor": [2.0, 3.0, 4.0],
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model to build: its `model_type` and config; and a change of its written config that must move its logits."""

    model_type: str
    config: dict[str, object]
    ablation: dict[str, object] = field(default_factory=dict)


_EPS = {"rms_norm_eps": 0.5}
_LAYERS = ["linear_attention", "full_attention"]
_DELTA = {
    "head_dim": 16, "layer_types": _LAYERS, "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 9,
    "linear_value_head_dim": 11, "linear_conv_kernel_dim": 3,
}  # fmt: skip
_CHOSEN = {"num_experts_per_tok": 3, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 28}
_LOCAL = {"num_local_experts": 7, "num_experts_per_tok": 3}
_MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.2,
    "logits_scaling": 13.0,
}
_SINKING = {"sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"]}
# transformers cuts the steps of Nemotron-H's states below the first number, which is not what the model is
_MAMBA = {"time_step_min": 1e-9, "chunk_size": 64}
_MAMBA_KEYS = {"mamba_n_heads": 6, "mamba_d_head": 32, "mamba_d_state": 11, "mamba_d_conv": 3, "mamba_chunk_size": 64}
_LONG = {
    "rope_type": "longrope", "rope_theta": 5000.0, "original_max_position_embeddings": 64,
    "short_factor": [1.0, 1.25, 1.5, 1.75], "long_factor": [2.0, 3.0, 4.0, 5.0],
}  # fmt: skip
_FULL, _SLIDING = "full_attention", "sliding_attention"
_SCOUT = {
    "rope_type": "llama3", "rope_theta": 300.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0, "original_max_position_embeddings": 32,
}  # fmt: skip
_LLAMA4 = {
    **SIZES, "head_dim": 10, "num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 24, "intermediate_size_mlp": 56, "moe_layers": [1],
    "no_rope_layers": [0, 1], "attention_chunk_size": 13, "floor_scale": 9, "attn_scale": 0.5,
}  # fmt: skip
_INDEXED = {**_LATENT, "n_group": 2, "topk_group": 1, "index_topk": 5, "index_n_heads": 4, "index_head_dim": 22}
_KIMI_LINEAR = {
    **{key: value for key, value in SIZES.items() if key != "max_position_embeddings"},
    "num_key_value_heads": 12, "kv_lora_rank": 20, "qk_nope_head_dim": 14, "qk_rope_head_dim": 10, "v_head_dim": 18, "moe_intermediate_size": 24,
    "num_experts": 6, "num_shared_experts": 2, "num_experts_per_token": 2, "linear_head_dim": 8, "linear_num_heads": 5, "linear_conv_kernel_dim": 3,
    "layer_types": _LAYERS, "mlp_layer_types": ["sparse", "sparse"],
}  # fmt: skip
CASES = {
    "mixtral": Case(
        "mixtral",
        {**SIZES, "head_dim": 10, "num_local_experts": 7, "num_experts_per_tok": 3},
        {"num_experts_per_tok": 2},
    ),
    "qwen3": Case(
        "qwen3",
        {**SIZES, "head_dim": 10},
        {"rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "qwen3_moe": Case(
        "qwen3_moe",
        {
            **SIZES,
            "head_dim": 10,
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "decoder_sparse_step": 2,
        },
        {"norm_topk_prob": True},
    ),
    "gpt2": Case("gpt2", _GPT2, {"activation_function": "relu"}),
    "gpt2_scaled": Case(
        "gpt2",
        {**_GPT2, "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False},
        {"scale_attn_weights": True},
    ),
    "gemma": Case("gemma", {**SIZES, "head_dim": 10}, _EPS),
    "gemma2": Case(
        "gemma2",
        {
            **SIZES,
            "head_dim": 10,
            "query_pre_attn_scalar": 17,
            "sliding_window": 9,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.5,
        },
        {"attn_logit_softcapping": None},
    ),
    "nemotron": Case("nemotron", {**SIZES, "head_dim": 12}, {"norm_eps": 0.5}),
    "phi3": Case("phi3", {**SIZES, "sliding_window": 30}, {"sliding_window": 7}),
    "phi3_longrope": Case(
        "phi3",
        {**SIZES, "original_max_position_embeddings": 16, "rope_parameters": LONGROPE},
        {"max_position_embeddings": 1024},
    ),
    "olmo2": Case("olmo2", SIZES, _EPS),
    "deepseek_v2": Case(
        "deepseek_v2",
        {**_LATENT, "topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 1, "rope_parameters": YARN},
        {"topk_method": "greedy"},
    ),
    "deepseek_v2_lite": Case("deepseek_v2", {**_LATENT, "q_lora_rank": None}, {"routed_scaling_factor": 1.0}),
    "deepseek_v3": Case(
        "deepseek_v3", {**_LATENT, "n_group": 3, "topk_group": 1, "rope_parameters": YARN}, {"norm_topk_prob": False}
    ),
    "deepseek_v3_halves": Case(
        "deepseek_v3",
        {**_LATENT, "n_group": 1, "topk_group": 1, "q_lora_rank": None, "rope_interleave": False},
        {"rope_interleave": True},
    ),
    "bloom": Case(
        "bloom",
        {"vocab_size": 61, "hidden_size": 96, "n_layer": 2, "n_head": 12},
        {"apply_residual_connection_post_layernorm": True},
    ),
    "falcon": Case("falcon", {**_ALIKE, "ffn_hidden_size": 56}, {"activation": "relu"}),
    "falcon_per_head": Case(
        "falcon", {**_ALIKE, "ffn_hidden_size": 56, "multi_query": False, "bias": True}, {"layer_norm_epsilon": 0.5}
    ),
    "falcon_in_sequence": Case(
        "falcon", {**_ALIKE, "ffn_hidden_size": 56, "parallel_attn": False}, {"layer_norm_epsilon": 0.5}
    ),
    "falcon_new": Case(
        "falcon",
        {**_ALIKE, "ffn_hidden_size": 56, "new_decoder_architecture": True, "num_kv_heads": 4},
        {"activation": "relu"},
    ),
    "falcon_new_one_norm": Case(
        "falcon",
        {
            **_ALIKE,
            "new_decoder_architecture": True,
            "num_kv_heads": 4,
            "num_ln_in_parallel_attn": 1,
            "tie_word_embeddings": False,
        },
        {"activation": "relu"},
    ),
    "gpt_neox": Case(
        "gpt_neox", {**_ALIKE, "intermediate_size": 56, "rotary_pct": 0.5}, {"use_parallel_residual": False}
    ),
    "gpt_neox_in_sequence": Case(
        "gpt_neox",
        {**_ALIKE, "intermediate_size": 56, "use_parallel_residual": False, "attention_bias": False},
        {"hidden_act": "relu"},
    ),
    "gemma3": Case(
        "gemma3_text",
        {
            **SIZES,
            "head_dim": 10,
            "query_pre_attn_scalar": 17,
            "sliding_window": 9,
            "layer_types": [_FULL, _SLIDING],
            "rope_parameters": {
                _FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 3000.0},
                _SLIDING: {"rope_type": "default", "rope_theta": 70.0},
            },
        },
        {
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": theta}
                for kind, theta in ((_FULL, 3000.0), (_SLIDING, 70.0))
            },
            "rope_scaling": None,
        },
    ),
    "olmo3": Case(
        "olmo3",
        {
            **SIZES,
            "sliding_window": 9,
            "layer_types": [_FULL, _SLIDING],
            "rope_parameters": {_FULL: {**YARN_PLAIN, "rope_theta": 3000.0}, _SLIDING: {"rope_theta": 3000.0}},
        },
        {"layer_types": [_SLIDING, _FULL]},
    ),
    "olmoe": Case(
        "olmoe",
        {**_ALIKE, "num_key_value_heads": 4, "intermediate_size": 24, "num_experts": 7, "num_experts_per_tok": 3},
        {"norm_topk_prob": True},
    ),
    "glm": Case("glm", {**SIZES, "head_dim": 12}, _EPS),
    "glm4": Case("glm4", {**SIZES, "head_dim": 12}, _EPS),
    "glm4_moe": Case(
        "glm4_moe",
        {
            **SIZES,
            **_EXPERTS,
            "head_dim": 12,
            "attention_bias": True,
            "use_qk_norm": True,
            "n_group": 2,
            "topk_group": 1,
            "routed_scaling_factor": 1.75,
        },
        {"norm_topk_prob": False},
    ),
    "minimax_m2": Case(
        "minimax_m2",
        {
            **SIZES,
            "head_dim": 10,
            "intermediate_size": 24,
            "num_local_experts": 7,
            "num_experts_per_tok": 3,
            "rotary_dim": 6,
        },
        {"num_experts_per_tok": 2},
    ),
    "seed_oss": Case("seed_oss", {**SIZES, "head_dim": 10, "mlp_bias": True}, _EPS),
    "arcee": Case("arcee", {**SIZES, "head_dim": 10}, {"hidden_act": "relu"}),
    "internlm3": Case("internlm3", {**SIZES, "head_dim": 10, "attention_bias": True, "mlp_bias": True}, _EPS),
    "cohere": Case("cohere", {**SIZES, "head_dim": 10, "logit_scale": 0.5}, {"logit_scale": 1.0}),
    "cohere2": Case(
        "cohere2", {**SIZES, "sliding_window": 9, "layer_types": [_FULL, _SLIDING]}, {"layer_norm_eps": 0.5}
    ),
    "ernie4_5": Case("ernie4_5", {**SIZES, "head_dim": 16}, _EPS),
    "ernie4_5_moe": Case(
        "ernie4_5_moe",
        {**SIZES, "moe_num_experts": 7, "moe_k": 3, "moe_intermediate_size": 24, "moe_num_shared_experts": 2},
        {"moe_k": 2},
    ),
    "dots1": Case(
        "dots1",
        {
            **SIZES,
            **_EXPERTS,
            "head_dim": 10,
            "n_group": 2,
            "topk_group": 1,
            "norm_topk_prob": True,
            "sliding_window": 9,
            "layer_types": [_FULL, _SLIDING],
        },
        {"norm_topk_prob": False},
    ),
    "hy_v3": Case(
        "hy_v3",
        {
            **SIZES,
            "head_dim": 10,
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "num_shared_experts": 2,
        },
        {"router_scaling_factor": 1.0},
    ),
    "exaone4": Case(
        "exaone4",
        {**SIZES, "head_dim": 10, "sliding_window": 9, "layer_types": [_FULL, _SLIDING]},
        {"rms_norm_eps": 0.5},
    ),
    "stablelm": Case(
        "stablelm", {**SIZES, "use_qkv_bias": True, "partial_rotary_factor": 0.5}, {"layer_norm_eps": 0.5}
    ),
    "opt": Case("opt", {**_ALIKE, "ffn_dim": 56}, {"activation_function": "gelu"}),
    "glm4_moe_lite": Case(
        "glm4_moe_lite",
        {key: value for key, value in _LATENT.items() if key != "first_k_dense_replace"}
        | {"n_group": 2, "topk_group": 1},
        {"norm_topk_prob": False},
    ),
    "hunyuan": Case("hunyuan_v1_dense", {**SIZES, "head_dim": 10}, _EPS),
    "hunyuan_moe": Case(
        "hunyuan_v1_moe",
        {**SIZES, "head_dim": 10, "num_experts": 7, "moe_topk": 3, "intermediate_size": 24},
        {"moe_topk": 2},
    ),
    "qwen3_next": Case("qwen3_next", {**SIZES, **_DELTA, **_CHOSEN, "num_experts": 7}, _EPS),
    "qwen3_5": Case("qwen3_5_text", {**SIZES, **_DELTA, "attention_bias": True}, _EPS),
    "qwen3_5_moe": Case(
        "qwen3_5_moe_text",
        {key: value for key, value in SIZES.items() if key != "intermediate_size"}
        | {**_DELTA, **_CHOSEN, "num_experts": 7},
        {"num_experts_per_tok": 2},
    ),
    "ministral3": Case(
        "ministral3",
        {**SIZES, "head_dim": 10, "rope_parameters": GROWING},
        {"rope_scaling": None, "rope_parameters": {**GROWING, "llama_4_scaling_beta": 0.0}},
    ),
    "llama4": Case("llama4_text", _LLAMA4, {"attn_scale": 2.0}),
    "llama4_chunks": Case("llama4_text", {**_LLAMA4, "rope_parameters": _SCOUT}, {"attention_chunk_size": 7}),
    "deepseek_v32": Case("deepseek_v32", {**_INDEXED, "rope_parameters": YARN}, {"index_topk": 7}),
    "glm_moe_dsa": Case(
        "glm_moe_dsa",
        {**_INDEXED, "num_hidden_layers": 4, "indexer_types": ["full", "shared", "full", "shared"]},
        {"index_topk": 7},
    ),
    "kimi_linear": Case("kimi_linear", _KIMI_LINEAR, {"num_experts_per_token": 3}),
    "gpt_oss": Case(
        "gpt_oss",
        {
            **SIZES,
            "head_dim": 10,
            "num_local_experts": 7,
            "num_experts_per_tok": 3,
            "intermediate_size": 24,
            "sliding_window": 9,
            "rope_parameters": {**YARN_PLAIN, "truncate": False},
        },
        {"num_experts_per_tok": 2},
    ),
    "nemotron_h": Case(
        "nemotron_h",
        {
            **{key: value for key, value in SIZES.items() if key != "num_hidden_layers"},
            **_MAMBA,
            "layers_block_type": ["mamba", "moe", "attention", "mlp", "mamba"],
            "head_dim": 10,
            "mamba_num_heads": 6,
            "mamba_head_dim": 9,
            "n_groups": 2,
            "ssm_state_size": 11,
            "conv_kernel": 3,
            "n_routed_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 28,
            "moe_latent_size": 44,
            "n_group": 2,
        },
        {"routed_scaling_factor": 3.0},
    ),
    "granite": Case("granite", {**SIZES, **_MULTIPLIERS}, {"residual_multiplier": 1.0}),
    "phimoe": Case(
        "phimoe",
        {**SIZES, "num_local_experts": 7, "router_jitter_noise": 0.4, "attention_bias": True},
        {"router_jitter_noise": 0.01},
    ),
    "apertus": Case(
        "apertus",
        {**SIZES, "head_dim": 10, "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
        {"rms_norm_eps": 0.5},
    ),
    "olmo_hybrid": Case(
        "olmo_hybrid",
        {
            **SIZES,
            "layer_types": _LAYERS,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 6,
            "linear_key_head_dim": 9,
            "linear_value_head_dim": 3,
            "linear_conv_kernel_dim": 3,
        },
        {"linear_allow_neg_eigval": False},
    ),
    "bamba": Case(
        "bamba",
        {**SIZES, **_MAMBA_KEYS, "attn_layer_indices": [1], "mamba_n_groups": 2},
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
            "rope_theta": 500.0,
        },
    ),
    "falcon_h1": Case(
        "falcon_h1",
        {
            **SIZES,
            **_MAMBA_KEYS,
            "mamba_n_groups": 2,
            "mamba_d_head": 14,
            "mamba_d_ssm": 84,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "embedding_multiplier": 3.0,
            "lm_head_multiplier": 0.25,
            "attention_in_multiplier": 1.5,
            "attention_out_multiplier": 0.75,
            "ssm_in_multiplier": 1.25,
            "ssm_out_multiplier": 0.625,
            "key_multiplier": 0.375,
            "mlp_multipliers": [0.875, 0.5],
            "ssm_multipliers": [0.5, 1.25, 0.75, 1.5, 0.625],
        },
        {"mlp_multipliers": [0.5, 0.875]},
    ),
    "mamba2": Case(
        "mamba2",
        {
            "vocab_size": 61,
            "hidden_size": 96,
            "num_hidden_layers": 2,
            "num_heads": 6,
            "head_dim": 32,
            "state_size": 11,
            "conv_kernel": 3,
            "n_groups": 2,
            "chunk_size": 64,
        },
        {"layer_norm_epsilon": 0.5},
    ),
    "granite_hybrid": Case(
        "granitemoehybrid",
        {
            **SIZES,
            **_MULTIPLIERS,
            **_LOCAL,
            **_MAMBA_KEYS,
            "layer_types": ["mamba", "attention"],
            "intermediate_size": 24,
            "shared_intermediate_size": 28,
            "mamba_n_groups": 2,
        },
        {"attention_multiplier": 0.4},
    ),
    "granitemoe": Case(
        "granitemoe", {**SIZES, **_MULTIPLIERS, **_LOCAL, "intermediate_size": 24}, {"logits_scaling": 8.0}
    ),
    "granitemoeshared": Case(
        "granitemoeshared",
        {**SIZES, **_MULTIPLIERS, **_LOCAL, "intermediate_size": 24, "shared_intermediate_size": 28},
        {"attention_multiplier": 0.5},
    ),
    "hyperclovax": Case(
        "hyperclovax", {**SIZES, **_MULTIPLIERS, "head_dim": 10, "logits_scaling": 0.3}, {"residual_multiplier": 1.0}
    ),
    "granite_swa": Case(
        "granite_swa",
        {
            **SIZES,
            **_MULTIPLIERS,
            **_SINKING,
            "layer_rope_theta": [0, 300.0],
            "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
        },
        {"residual_multiplier": 1.0},
    ),
    "granitemoe_swa": Case(
        "granitemoe_swa",
        {**SIZES, **_MULTIPLIERS, **_LOCAL, **_SINKING, "intermediate_size": 24, "shared_intermediate_size": 28},
        {"sliding_window": 5},
    ),
    "exaone": Case("exaone", {**SIZES, "head_dim": 10}, _EPS),
    "iquestcoder": Case("iquestcoder", {**SIZES, "head_dim": 10}, _EPS),
    "ministral": Case(
        "ministral", {**SIZES, "head_dim": 10, "sliding_window": 9, "layer_types": [_FULL, _SLIDING]}, _EPS
    ),
    "cwm": Case("cwm", {**SIZES, "head_dim": 10, "sliding_window": 9}, _EPS),
    "vaultgemma": Case(
        "vaultgemma",
        {**SIZES, "head_dim": 10, "query_pre_attn_scalar": 17, "sliding_window": 9},
        {"final_logit_softcapping": 1.0},
    ),
    "youtu": Case(
        "youtu",
        {key: value for key, value in _LATENT.items() if key not in (*_EXPERTS, "routed_scaling_factor")}
        # transformers sets the row of padding to zero when it loads the class (modeling_youtu.py)
        | {"tie_word_embeddings": False, "pad_token_id": None},
        _EPS,
    ),
    "solar_open": Case(
        "solar_open",
        {**SIZES, **_EXPERTS, "head_dim": 12, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.75},
        {"norm_topk_prob": False},
    ),
    "exaone_moe": Case(
        "exaone_moe",
        {
            **SIZES,
            "moe_intermediate_size": 24,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "head_dim": 10,
            "num_experts": 6,
            "num_shared_experts": 2,
            "n_group": 2,
            "topk_group": 1,
            "sliding_window": 9,
            "layer_types": [_FULL, _SLIDING],
        },
        {"norm_topk_prob": False},
    ),
    "sarvam_moe": Case(
        "sarvam_moe",
        {**SIZES, **_EXPERTS, "head_dim": 12, "attention_bias": True, "n_group": 2, "topk_group": 1},
        {"norm_topk_prob": False},
    ),
    "sarvam_mla": Case(
        "sarvam_mla", {**_LATENT, "q_lora_rank": None, "n_group": 2, "topk_group": 1}, {"topk_group": 2}
    ),
    "jais2": Case("jais2", {**SIZES, "head_dim": 10}, {"layer_norm_eps": 0.5}),
    "olmo": Case("olmo", SIZES, {"hidden_act": "relu"}),
    "flex_olmo": Case("flex_olmo", {**SIZES, "num_experts": 7, "num_experts_per_tok": 3}, {"num_experts_per_tok": 2}),
    "helium": Case("helium", {**SIZES, "head_dim": 8, "attention_bias": True}, _EPS),
    "phi": Case("phi", SIZES, {"layer_norm_eps": 0.5}),
    "persimmon": Case("persimmon", {**_ALIKE, "intermediate_size": 56}, {"layer_norm_eps": 0.5}),
    "gptj": Case("gptj", {**_GPT2, "rotary_dim": 6}, {"layer_norm_epsilon": 0.5}),
    "gpt_neo": Case(
        "gpt_neo",
        {
            "vocab_size": 61,
            "hidden_size": 96,
            "intermediate_size": 56,
            "num_layers": 2,
            "num_heads": 12,
            "window_size": 9,
            "attention_types": [[["local", "global"], 1]],
            "max_position_embeddings": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        {"window_size": 5},
    ),
    "gpt_bigcode": Case("gpt_bigcode", _GPT2, {"activation_function": "relu"}),
    "mpt": Case(
        "mpt",
        {"vocab_size": 61, "d_model": 96, "n_heads": 12, "n_layers": 2, "max_seq_len": 64},
        {"layer_norm_epsilon": 0.5},
    ),
    "biogpt": Case("biogpt", {**_ALIKE, "intermediate_size": 56}, {"hidden_act": "relu"}),
    "afmoe": Case(
        "afmoe",
        {
            **SIZES,
            "head_dim": 10,
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "num_shared_experts": 2,
            "route_scale": 1.75,
            "mup_enabled": True,
            "sliding_window": 9,
            "layer_types": [_FULL, _SLIDING],
        },
        {"num_experts_per_tok": 2},
    ),
    "mellum": Case(
        "mellum",
        {
            **SIZES,
            "head_dim": 10,
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "mlp_layer_types": ["dense", "sparse"],
            "sliding_window": 9,
            "layer_types": [_FULL, _SLIDING],
            "rope_parameters": {
                _FULL: {**YARN_PLAIN, "rope_theta": 3000.0},
                _SLIDING: {"rope_type": "default", "rope_theta": 70.0},
            },
        },
        {"norm_topk_prob": False},
    ),
    "flint": Case(
        "flint",
        {
            **SIZES,
            "head_dim": 10,
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 28,
            "mlp_only_layers": [0],
            "sliding_window": 9,
            "layer_types": [_FULL, _SLIDING],
        },
        {"norm_topk_prob": False},
    ),
}

# Ling 2, whose class lies beside its files: Sarvam's mixtures under other keys.
_SARVAM = CASES["sarvam_moe"].config
LING: dict[str, object] = {
    **{key: value for key, value in _SARVAM.items() if key not in ("n_routed_experts", "n_shared_experts", "attention_bias")},
    "num_experts": 6, "num_shared_experts": 2, "use_qkv_bias": True, "partial_rotary_factor": 1.0, "rope_theta": 8000000.0,
    "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6, "model_type": "bailing_moe", "architectures": ["BailingMoeV2ForCausalLM"],
}  # fmt: skip


# What transformers saves under a name that published files, and ours, do not have.
SAVED = {
    "olmo_hybrid": {"model.layers.1.feedforward_layer_norm.weight": "model.layers.1.post_attention_layernorm.weight"}
}


def build(case: Case, folder: Path, **changes: object) -> PreTrainedModel:
    """A random model of a case, saved at `folder` by transformers."""
    config = CONFIG_MAPPING[case.model_type](**copy.deepcopy({**case.config, **changes}))  # it completes dicts in place
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    stored = model.state_dict()
    with torch.no_grad():
        for name, tensor in stored.items():
            gain = 1.0 if "norm" in name or "ln_" in name else 0.25
            tensor.copy_(torch.randn_like(tensor) * gain)
    model.tie_weights()
    model.save_pretrained(folder)
    return model


def made(name: str, folder: Path) -> PreTrainedModel:
    """A model of any family, of `CASES` or of `tiny`, with four layers, saved at `folder`."""
    return build(CASES[name], folder) if name in CASES else tiny.build(folder, name, num_hidden_layers=4)


def tokens() -> torch.Tensor:
    """Two sequences, longer than every window and every length trained for."""
    return torch.randint(0, SIZES["vocab_size"], (2, 44), generator=torch.Generator().manual_seed(11))


_LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0}
_THETA = {"rope_type": "default", "rope_theta": 300.0}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 300.0, "factor": 8.0, "low_freq_factor": 1.5, "high_freq_factor": 4.5, "original_max_position_embeddings": 32,
}  # fmt: skip
_COMMON: list[dict[str, object]] = [
    {"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh"}, {"hidden_act": "quick_gelu"}, {"rms_norm_eps": 0.25},
    {"rope_parameters": _THETA}, {"rope_parameters": _LINEAR}, {"rope_parameters": _LLAMA3}, {"rope_parameters": YARN},
    {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 300.0}, "max_position_embeddings": 16},
    {"attention_dropout": 0.5}, {"num_key_value_heads": 1},
]  # fmt: skip
_FEW: list[dict[str, object]] = [
    {"hidden_act": "gelu"},
    {"rms_norm_eps": 0.25},
    {"rope_parameters": _THETA},
    {"num_key_value_heads": 1},
]
_UNTIED, _TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
_BIASED: dict[str, object] = {"attention_bias": True}

# Config fields away from their defaults, case by case.
CHANGES: dict[str, list[dict[str, object]]] = {
    "mixtral": [*_FEW, _TIED, {"sliding_window": 7}, {"head_dim": None}, {"router_jitter_noise": 0.5}],
    "qwen3": [
        *_COMMON, _TIED, _BIASED, {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}, {"sliding_window": 7},
        {"use_sliding_window": True, "sliding_window": 7, "layer_types": [_SLIDING, _FULL]},
    ],
    "qwen3_moe": [
        *_FEW, _TIED, _BIASED, {"norm_topk_prob": True}, {"mlp_only_layers": [1], "decoder_sparse_step": 1}, {"decoder_sparse_step": 1},
        {"use_sliding_window": True, "sliding_window": 7}, {"mlp_only_layers": [0, 1]}, {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ],
    "gpt2": [
        {"activation_function": "gelu"}, {"activation_function": "relu"}, {"layer_norm_epsilon": 0.25}, {"scale_attn_weights": False}, {"n_inner": None},
        {"scale_attn_by_inverse_layer_idx": True}, _UNTIED, {"add_cross_attention": True}, {"reorder_and_upcast_attn": True}, {"n_positions": 50},
    ],
    "gemma": [*_FEW, _UNTIED, _BIASED, {"hidden_act": "gelu_python"}, {"hidden_act": "relu"}, {"use_bidirectional_attention": True}],
    "gemma2": [
        *(change for change in _COMMON if "hidden_act" not in change), _UNTIED, _BIASED, {"hidden_activation": "gelu"}, {"attn_logit_softcapping": None},
        {"final_logit_softcapping": None}, {"query_pre_attn_scalar": 10}, {"sliding_window": 5}, {"layer_types": [_FULL, _SLIDING]},
        {"layer_types": [_FULL, _FULL]}, {"use_bidirectional_attention": True},
    ],
    "nemotron": [
        *(change for change in _COMMON if "rms_norm_eps" not in change), {"norm_eps": 0.25}, _TIED, _BIASED, {"mlp_bias": True}, {"partial_rotary_factor": 1.0},
        {"partial_rotary_factor": 0.334}, {"head_dim": 16},
    ],
    "phi3": [
        {"hidden_act": "gelu"}, {"rms_norm_eps": 0.25}, {"rope_parameters": _THETA}, _TIED, {"sliding_window": None}, {"partial_rotary_factor": 0.75},
        {"resid_pdrop": 0.5}, {"num_key_value_heads": None},
    ],
    "phi3_longrope": [
        {"original_max_position_embeddings": 64}, {"original_max_position_embeddings": 16, "max_position_embeddings": 48},
        {"rope_parameters": LONGROPE | {"factor": 2.0}}, {"rope_parameters": LONGROPE | {"attention_factor": 1.5}},
    ],
    "olmo2": [*_FEW, _TIED, _BIASED],
    "deepseek_v2": [
        {"hidden_act": "gelu"}, {"rms_norm_eps": 0.25}, {"rope_parameters": _THETA}, {"rope_parameters": _LINEAR}, _TIED, _BIASED, {"mlp_bias": True},
        {"first_k_dense_replace": 0}, {"first_k_dense_replace": 2}, {"norm_topk_prob": True}, {"topk_group": 2}, {"n_shared_experts": 3},
        {"rope_parameters": YARN_PLAIN},
    ],
    "deepseek_v3": [
        {"hidden_act": "gelu"}, {"rms_norm_eps": 0.25}, {"rope_parameters": _THETA}, _TIED, _BIASED, {"first_k_dense_replace": 0}, {"norm_topk_prob": False},
        {"topk_group": 2}, {"n_group": 2}, {"n_group": 1, "topk_group": 1}, {"rope_interleave": False}, {"num_nextn_predict_layers": 3},
        {"routed_scaling_factor": 3.0}, {"q_lora_rank": None},
    ],
    "falcon": [
        {"activation": "gelu_pytorch_tanh"}, {"layer_norm_epsilon": 0.25}, {"alibi": True}, {"bias": True}, _UNTIED, {"rope_parameters": _THETA},
        {"rope_parameters": _LINEAR}, {"num_kv_heads": 4}, {"ffn_hidden_size": None}, {"multi_query": False, "parallel_attn": False},
        {"new_decoder_architecture": True, "num_kv_heads": 1}, {"new_decoder_architecture": True}, {"parallel_attn": False},
        {"new_decoder_architecture": True, "num_kv_heads": 1, "num_ln_in_parallel_attn": 1},
    ],
    "gpt_neox": [
        {"hidden_act": "gelu_new"}, {"layer_norm_eps": 0.25}, {"rotary_pct": 0.25}, {"rotary_pct": 1.0}, {"rotary_emb_base": 300.0}, _TIED,
        {"attention_bias": False}, {"use_parallel_residual": False}, {"rope_parameters": _LINEAR | {"partial_rotary_factor": 0.5}},
    ],
    "gemma3": [
        {"final_logit_softcapping": 2.0}, {"query_pre_attn_scalar": 10}, {"layer_types": [_SLIDING, _FULL]}, {"use_bidirectional_attention": True},
        {"attn_logit_softcapping": 2.0}, {"rope_parameters": {_FULL: _THETA, _SLIDING: _LINEAR}},
    ],
    "olmo3": [{"layer_types": [_FULL, _FULL]}, {"layer_types": [_SLIDING, _SLIDING]}, {"rope_parameters": {_FULL: _THETA, _SLIDING: {"rope_theta": 9.0}}}],
    "olmoe": [{"clip_qkv": 0.5}, {"norm_topk_prob": True}],
    "glm": [{"partial_rotary_factor": 1.0}, {"attention_bias": False}],
    "glm4_moe": [{"use_qk_norm": False}, {"n_group": 1}, {"attention_bias": False}, {"first_k_dense_replace": 0}],
    "minimax_m2": [{"rotary_dim": 10}, {"rotary_dim": None}],
    "seed_oss": [{"attention_out_bias": True, "attention_bias": False}],
    "cohere": [{"use_qk_norm": True}, {"attention_bias": True}],
    "cohere2": [{"layer_types": [_FULL, _FULL]}, {"layer_types": [_SLIDING, _SLIDING]}],
    "ernie4_5": [{"use_bias": True}],
    "ernie4_5_moe": [{"use_bias": True}, {"moe_layer_start_index": 0, "moe_layer_interval": 2}, {"moe_norm_min": 0.9}],
    "dots1": [{"sliding_window": None, "layer_types": None}, {"layer_types": None, "max_window_layers": 1}],
    "hy_v3": [{"mlp_layer_types": ["sparse", "dense"]}, {"mlp_bias": True}],
    "exaone4": [{"sliding_window": None, "layer_types": [_FULL, _FULL]}, {"layer_types": [_FULL, _FULL]}],
    "stablelm": [{"use_parallel_residual": True}, {"qk_layernorm": True}],
    "opt": [
        {"do_layer_norm_before": False}, {"word_embed_proj_dim": 48}, {"_remove_final_layer_norm": True}, {"layer_norm_elementwise_affine": False},
        {"enable_bias": False},
    ],
    "glm4_moe_lite": [{"mlp_layer_types": ["sparse", "dense"]}, {"rope_interleave": False}],
    "hunyuan": [{"rope_parameters": {"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0, "rope_theta": 300.0}}, {"attention_bias": True}],
    "hunyuan_moe": [{"moe_topk": [3, 3]}, {"moe_topk": [3, 2]}],
    "qwen3_next": [
        *_FEW, _TIED, _BIASED, {"norm_topk_prob": False}, {"layer_types": _LAYERS[::-1]}, {"layer_types": _LAYERS[1:] * 2},
        {"layer_types": _LAYERS[:1] * 2}, {"mlp_only_layers": [0]}, {"layer_types": None, "full_attention_interval": 2},
        {"rope_parameters": _THETA | {"partial_rotary_factor": 0.5}}, {"linear_conv_kernel_dim": 5},
    ],
    "qwen3_5": [*_FEW, _TIED, {"rope_parameters": _THETA | {"mrope_section": [1, 1, 0], "mrope_interleaved": True}}],
    "ministral3": [
        *_FEW, _TIED, _BIASED, {"sliding_window": 7}, {"rope_parameters": YARN}, {"rope_parameters": {**_LLAMA3, "llama_4_scaling_beta": 0.25}},
        {"rope_parameters": {**_THETA, "llama_4_scaling_beta": 0.25}}, {"rope_parameters": {**GROWING, "llama_4_scaling_beta": 0.0}},
    ],
    "llama4": [
        *_FEW, _TIED, _BIASED, {"attention_chunk_size": None}, {"layer_types": [_FULL, _FULL]}, {"layer_types": ["chunked_attention"] * 2},
        {"attn_temperature_tuning": False}, {"use_qk_norm": False}, {"moe_layers": None}, {"moe_layers": None, "interleave_moe_layer_step": 2},
        {"no_rope_layers": [1, 1]}, {"no_rope_layers": None, "no_rope_layer_interval": 1}, {"moe_layers": [0]}, {"moe_layers": []},
        {"num_experts_per_tok": 1},
    ],
    "deepseek_v32": [*_FEW, _TIED, _BIASED, {"mlp_layer_types": ["sparse", "dense"]}, {"n_group": 1, "topk_group": 1}, {"index_n_heads": 3}],
    "glm_moe_dsa": [
        _TIED, {"indexer_types": None}, {"indexer_types": None, "index_topk_freq": 2}, {"indexer_types": None, "index_topk_pattern": "FFSF"},
        {"rope_parameters": _THETA}, {"index_head_dim": 10}, {"index_topk": 100},
    ],
    "kimi_linear": [
        {"rms_norm_eps": 0.25}, _TIED, _BIASED, {"hidden_act": "gelu"}, {"q_lora_rank": 28}, {"moe_renormalize": False}, {"num_expert_group": 2},
        {"layer_types": _LAYERS[::-1]}, {"layer_types": _LAYERS[:1] * 2}, {"linear_conv_kernel_dim": 5}, {"mlp_layer_types": ["dense", "sparse"]},
    ],
    "gpt_oss": [{"swiglu_limit": 3.0}, {"swiglu_alpha": 1.5}, {"attention_bias": False}, {"layer_types": [_FULL, _SLIDING]}, {"hidden_act": "gelu"}],
    "granite": [*_FEW, _TIED, _BIASED, {"mlp_bias": True}, *({key: 1.0} for key in _MULTIPLIERS)],
    "granitemoe": [*_FEW, _TIED, _BIASED, {"num_experts_per_tok": 2}],
    "granitemoeshared": [_TIED, _BIASED, {"shared_intermediate_size": 0}],
    "ministral": [{"layer_types": None}, {"layer_types": [_FULL, _FULL]}],
    "cwm": [{"rope_parameters": _THETA}, {"layer_types": [_FULL, _FULL]}],
    "youtu": [{"rope_interleave": False}, {"q_lora_rank": None}],
    "exaone_moe": [{"mlp_layer_types": ["sparse", "dense"]}],
    "sarvam_moe": [{"use_qk_norm": False}],
    "olmo": [{"clip_qkv": 0.5}],
    "phi": [{"qk_layernorm": True}, {"rope_parameters": _THETA | {"partial_rotary_factor": 0.25}}],
    "persimmon": [{"qk_layernorm": False}],
    "gptj": [{"rotary_dim": 8}, {"n_inner": None}, _TIED],
    "gpt_neo": [{"attention_types": [[["global"], 2]]}, {"attention_types": [[["local"], 2]]}, {"intermediate_size": None}],
    "gpt_bigcode": [{"multi_query": False}, {"scale_attn_weights": False}],
    "mpt": [{"attn_config": {"softmax_scale": 0.3}}, {"attn_config": {"clip_qkv": 0.5}}, {"expansion_ratio": 2}],
    "biogpt": [{"scale_embedding": False}, {"layer_norm_eps": 0.5}],
    "afmoe": [{"mup_enabled": False}, {"num_dense_layers": 0}, {"layer_types": None, "global_attn_every_n_layers": 2}],
    "mellum": [{"layer_types": None}, {"mlp_layer_types": None}],
    "flint": [{"layer_types": [_FULL, _FULL]}, {"mlp_only_layers": []}],
    "phimoe": [
        {"attention_bias": False}, {"lm_head_bias": True}, {"num_experts_per_tok": 1}, _TIED, {"sliding_window": 7}, {"rms_norm_eps": 0.25},
        {"rope_parameters": {**_LONG, "short_mscale": 1.25, "long_mscale": 1.25}}, {"rope_parameters": {**_LONG, "short_mscale": 1.25, "long_mscale": 1.5}},
    ],
    "apertus": [{"attention_bias": True}, {"hidden_act": "relu2"}, _TIED, {"rms_norm_eps": 0.25}, {"rope_parameters": None}, {"num_key_value_heads": None}],
    "hyperclovax": [{"use_post_norm": False}, {"attention_multiplier": None}],
    "granite_swa": [{"layer_rope_theta": None}, {"layer_rope_theta": [300.0, 0]}, {"layer_types": None}],
    "granitemoe_swa": [{"shared_intermediate_size": 0}],
    "olmo_hybrid": [
         {"layer_types": None}, {"rope_parameters": {"rope_type": "default", "rope_theta": None}}, {"attention_bias": True},
        {"linear_allow_neg_eigval": False}, {"rms_norm_eps": 0.25}, _TIED, {"linear_num_value_heads": 2, "linear_value_head_dim": 9},
    ],
    "bamba": [
         {"attn_layer_indices": [0, 1]}, {"attn_layer_indices": [0]}, {"attention_bias": True}, {"mlp_bias": True}, {"mamba_proj_bias": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}}, _TIED, {"rms_norm_eps": 0.25}, {"num_key_value_heads": None},
    ],
    "falcon_h1": [
        *({name: 0.7} for name in ("attention_in_multiplier", "attention_out_multiplier", "ssm_in_multiplier", "ssm_out_multiplier", "key_multiplier")),
        {"ssm_multipliers": [0.5, 1.25, 0.75, 0.625, 1.5]}, {"ssm_multipliers": None, "mlp_multipliers": None}, {"mamba_rms_norm": False}, {"mamba_norm_before_gate": True},
        {"mamba_d_ssm": None, "mamba_d_head": "auto"}, {"projectors_bias": True}, {"mamba_proj_bias": True, "projectors_bias": True}, {"mamba_conv_bias": False},
        {"attention_bias": True, "mlp_bias": True}, _TIED, {"key_multiplier": 1.0}, {"hidden_act": "gelu"}, {"rms_norm_eps": 0.25},
    ],
    "mamba2": [
        {"use_bias": True}, {"use_conv_bias": False}, {"n_groups": 1}, _TIED, {"expand": 1, "head_dim": 16}, {"hidden_act": "gelu"}, {"time_step_limit": [0.01, 0.5]},
        {"layer_norm_epsilon": 0.25},
    ],
    "granite_hybrid": [
        {"num_local_experts": 0}, {"position_embedding_type": "rope"}, {"layer_types": ["attention"] * 2}, {"layer_types": ["mamba"] * 2}, {"mamba_conv_bias": False},
        {"mamba_proj_bias": True}, {"attention_bias": True}, {"rms_norm_eps": 0.25}, _TIED, {"num_key_value_heads": None}, {"hidden_act": "gelu"},
        {"mamba_expand": 1, "mamba_d_head": 16}, {"time_step_limit": [0.0, 0.5]}, {"layer_types": ["attention"] * 2, "position_embedding_type": "rope"},
    ],
    "nemotron_h": [
        {"layers_block_type": ["mlp", "mamba", "attention"]}, {"layers_block_type": ["moe", "attention", "mamba", "moe"]}, {"layers_block_type": ["mamba", "mlp"]},
        {"mlp_hidden_act": "silu"}, {"use_conv_bias": False}, {"use_bias": True}, {"moe_latent_size": None}, {"norm_topk_prob": False}, {"n_group": 1}, {"mlp_bias": True},
        {"attention_bias": True}, {"layer_norm_epsilon": 0.25}, _TIED, {"n_shared_experts": 2}, {"num_key_value_heads": 1}, {"mamba_hidden_act": "gelu"},
    ],
}  # fmt: skip
