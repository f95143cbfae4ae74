"""The config.json files of published models: every key as published, sizes shrunk and lists cut.

What a version of transformers writes beside the keys of the class is in `COMMON_4`, `COMMON_2` (2019) and `COMMON_5`.
"""

from __future__ import annotations

Config = dict[str, object]

# fmt: off
_LLAMA: Config = {
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 96,
    "max_position_embeddings": 128, "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 61,
}
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64, "rope_type": "llama3"}


def _llama(**more: object) -> Config:
    return _LLAMA | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | more


def _but(config: Config, *keys: str) -> Config:
    return {key: value for key, value in config.items() if key not in keys}


def _qwen(kind: str, name: str, **more: object) -> Config:
    return _LLAMA | {
        "architectures": [name], "model_type": kind, "attention_dropout": 0.0, "max_window_layers": 2, "rope_theta": 1000000.0,
        "sliding_window": 128, "use_sliding_window": False,
    } | more


_MOE: Config = {
    "decoder_sparse_step": 1, "moe_intermediate_size": 24, "norm_topk_prob": True, "num_experts_per_tok": 2, "output_router_logits": False,
    "router_aux_loss_coef": 0.001, "num_experts": 5,
}
_PHI3: Config = {
    "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "attention_bias": False, "attention_dropout": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    "original_max_position_embeddings": 128, "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047, "pad_token_id": 3,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
}
_LONGROPE = {"long_factor": [1.0] * 6, "short_factor": [1.0] * 6, "type": "longrope"}  # of 12 elements of 16: partial_rotary_factor 0.75
_STARCODER2: Config = _but(_LLAMA, "rms_norm_eps", "tie_word_embeddings") | {
    "architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2", "attention_dropout": 0.1, "embedding_dropout": 0.1, "residual_dropout": 0.1,
    "hidden_act": "gelu_pytorch_tanh", "mlp_type": "default", "norm_epsilon": 1e-05, "rope_theta": 999999.4420358813, "sliding_window": 4096,
    "use_bias": True,
}
_DEEPSEEK: Config = {
    "attention_bias": False, "attention_dropout": 0.0, "aux_loss_alpha": 0.001, "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 96, "kv_lora_rank": 20,
    "max_position_embeddings": 128, "moe_intermediate_size": 24, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 4, "n_shared_experts": 2,
    "norm_topk_prob": False, "num_attention_heads": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 4,
    "pretraining_tp": 1, "q_lora_rank": None, "qk_nope_head_dim": 14, "qk_rope_head_dim": 10, "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707, "original_max_position_embeddings": 16, "type": "yarn"},
    "routed_scaling_factor": 1.0, "scoring_func": "softmax", "seq_aux": True, "tie_word_embeddings": False, "topk_group": 1, "topk_method": "greedy",
    "torch_dtype": "bfloat16", "transformers_version": "4.33.1", "use_cache": True, "v_head_dim": 18, "vocab_size": 61,
}


def _deepseek(version: str, **more: object) -> Config:
    code = {"AutoConfig": f"configuration_deepseek.Deepseek{version}Config", "AutoModelForCausalLM": f"modeling_deepseek.Deepseek{version}ForCausalLM"}
    return _DEEPSEEK | {"architectures": [f"Deepseek{version}ForCausalLM"], "model_type": f"deepseek_{version.lower()}", "auto_map": code} | more


_GPT2: Config = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50, "embd_pdrop": 0.1, "eos_token_id": 50,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 128, "n_embd": 64, "n_head": 4, "n_layer": 2,
    "n_positions": 128, "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True, "vocab_size": 61,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}
_T5: Config = {
    "architectures": ["T5ForConditionalGeneration"], "d_ff": 96, "d_kv": 16, "d_model": 64, "decoder_start_token_id": 0, "dropout_rate": 0.1,
    "eos_token_id": 1, "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06,
    "model_type": "t5", "n_positions": 512, "num_decoder_layers": 2, "num_heads": 4, "num_layers": 2, "output_past": True, "pad_token_id": 0,
    "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32, "tie_word_embeddings": False,
    "transformers_version": "4.23.1", "use_cache": True, "vocab_size": 61,
}
_VIT: Config = {
    "attention_probs_dropout_prob": 0.0, "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "hidden_size": 64, "image_size": 32,
    "initializer_range": 0.02, "intermediate_size": 96, "layer_norm_eps": 1e-12, "model_type": "vit", "num_attention_heads": 4, "num_channels": 3,
    "num_hidden_layers": 2, "patch_size": 16, "qkv_bias": True, "transformers_version": "4.13.0.dev0",
}

PUBLISHED: dict[str, Config] = {
    "decapoda-research/llama-7b-hf": _but(_llama(), "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings") | {
        "architectures": ["LLaMAForCausalLM"], "max_sequence_length": 2048, "pad_token_id": -1, "bos_token_id": 0, "eos_token_id": 1},
    "huggyllama/llama-7b": _but(_llama(max_sequence_length=128, pad_token_id=0, torch_dtype="float16"), "num_key_value_heads"),
    "meta-llama/Llama-2-7b-hf": _llama(_name_or_path="meta-llama/Llama-2-7b-hf", pretraining_tp=1, rope_scaling=None),
    "meta-llama/Meta-Llama-3-8B": _llama(attention_bias=False, attention_dropout=0.0, pretraining_tp=1, rope_scaling=None, rope_theta=500000.0),
    "meta-llama/Llama-3.1-8B-Instruct": _llama(
        attention_bias=False, attention_dropout=0.0, mlp_bias=False, pretraining_tp=1, rope_scaling=_LLAMA3, rope_theta=500000.0, eos_token_id=[2, 3, 4]),
    "meta-llama/Llama-3.2-1B": _llama(
        attention_bias=False, attention_dropout=0.0, head_dim=16, mlp_bias=False, pretraining_tp=1, rope_scaling=_LLAMA3 | {"factor": 32.0},
        rope_theta=500000.0, tie_word_embeddings=True),
    "deepseek-ai/deepseek-coder-1.3b-instruct": _llama(rope_scaling={"factor": 4.0, "type": "linear"}, rope_theta=100000, attention_bias=False, pretraining_tp=1),
    "HuggingFaceTB/SmolLM2-135M": _llama(is_llama_config=True, rope_interleaved=False, rope_scaling=None, rope_theta=100000, attention_bias=False,
                                         mlp_bias=False, attention_dropout=0.0, pretraining_tp=1, tie_word_embeddings=True),
    "mistralai/Mistral-7B-v0.1": _LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "rope_theta": 10000.0, "sliding_window": 4096},
    "mistralai/Mistral-Nemo-Base-2407": _LLAMA | {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "attention_dropout": 0.0, "head_dim": 24, "rope_theta": 1000000.0, "sliding_window": None},
    "mistralai/Mixtral-8x7B-v0.1": _LLAMA | {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "attention_dropout": 0.0, "num_experts_per_tok": 2, "num_local_experts": 4,
        "output_router_logits": False, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None},
    "Qwen/Qwen2-7B-Instruct": _qwen("qwen2", "Qwen2ForCausalLM"),
    "Qwen/Qwen2.5-7B": _qwen("qwen2", "Qwen2ForCausalLM", use_mrope=False),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": _qwen("qwen2", "Qwen2ForCausalLM", use_mrope=False, rope_theta=10000, sliding_window=4096),
    "Qwen2.5-1.5B, saved again by transformers 5": _but(_qwen("qwen2", "Qwen2ForCausalLM"), "rope_theta", "torch_dtype") | {
        "use_mrope": False, "layer_types": ["full_attention"] * 2, "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "sliding_window": None, "transformers_version": "5.17.0", "pad_token_id": None, "dtype": "bfloat16"},
    "jinaai/jina-code-embeddings": _qwen("qwen2", "Qwen2ForCausalLM", is_causal=True, use_mrope=False),
    "Qwen/Qwen1.5-MoE-A2.7B": _qwen("qwen2_moe", "Qwen2MoeForCausalLM", **_MOE | {"norm_topk_prob": False}, shared_expert_intermediate_size=40),
    "Qwen/Qwen3-0.6B": _qwen("qwen3", "Qwen3ForCausalLM", attention_bias=False, head_dim=24, rope_scaling=None, sliding_window=None, tie_word_embeddings=True),
    "Qwen/Qwen3-30B-A3B": _qwen("qwen3_moe", "Qwen3MoeForCausalLM", **_MOE, attention_bias=False, head_dim=24, mlp_only_layers=[], rope_scaling=None,
                                sliding_window=None),
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": _qwen("qwen3_moe", "Qwen3MoeForCausalLM", **_MOE, head_dim=24, mlp_only_layers=[], qkv_bias=False,
                                                 rope_scaling=None, shared_expert_intermediate_size=0, sliding_window=None, use_qk_norm=True),
    "HuggingFaceTB/SmolLM3-3B": _LLAMA | {
        "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": None,
        "layer_types": ["full_attention"] * 2, "max_window_layers": 28, "mlp_bias": False, "no_rope_layer_interval": 4, "no_rope_layers": [1, 0],
        "pad_token_id": 3, "pretraining_tp": 2, "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None, "use_sliding_window": False},
    "bigcode/starcoder2-3b": _STARCODER2,
    "bigcode/starcoder2-15b": _STARCODER2 | {"norm_type": "layer_norm", "rms_norm_eps": 1e-05},
    "google/gemma-2b": _LLAMA | {
        "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "attention_bias": False, "attention_dropout": 0.0, "head_dim": 24, "hidden_act": "gelu",
        "hidden_activation": None, "num_key_value_heads": 1, "pad_token_id": 0, "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": True},
    "google/gemma-2-9b": _LLAMA | {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 24, "hidden_act": "gelu_pytorch_tanh", "pad_token_id": 0,
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 24, "rope_theta": 10000.0, "sliding_window": 32, "sliding_window_size": 32,
        "tie_word_embeddings": True},
    "microsoft/Phi-3-mini-4k-instruct": _LLAMA | _PHI3,
    "microsoft/Phi-3.5-mini-instruct": _LLAMA | _PHI3 | {
        "original_max_position_embeddings": 32, "rope_scaling": {"long_factor": [1.0] * 8, "short_factor": [1.0] * 8, "type": "longrope"}, "sliding_window": 262144},
    "microsoft/phi-4": _but(_LLAMA | _PHI3, "auto_map") | {"sliding_window": None, "rope_theta": 250000},
    "microsoft/Phi-4-mini-instruct": _LLAMA | _PHI3 | {
        "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False, "original_max_position_embeddings": 32,
        "partial_rotary_factor": 0.75, "rope_scaling": _LONGROPE, "sliding_window": 262144, "tie_word_embeddings": True},
    "allenai/OLMo-2-1124-7B": _LLAMA | {
        "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "attention_bias": False, "attention_dropout": 0.0, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 500000, "pad_token_id": 3},
    "nvidia/Minitron-4B-Base": _but(_LLAMA, "rms_norm_eps") | {
        "architectures": ["NemotronForCausalLM"], "model_type": "nemotron", "hidden_act": "relu2", "norm_eps": 1e-05, "partial_rotary_factor": 0.5,
        "rope_theta": 10000},
    "deepseek-ai/DeepSeek-V2-Lite": _deepseek("V2"),
    "deepseek-ai/DeepSeek-V2": _deepseek("V2", q_lora_rank=28, n_group=2, topk_group=1, topk_method="group_limited_greedy", routed_scaling_factor=16.0),
    "deepseek-ai/DeepSeek-V3, dequantised": _but(_deepseek(
        "V3", q_lora_rank=28, n_group=2, topk_group=1, topk_method="noaux_tc", scoring_func="sigmoid", norm_topk_prob=True, routed_scaling_factor=2.5,
        num_nextn_predict_layers=1, n_shared_experts=1), "aux_loss_alpha", "seq_aux"),
    "moonshotai/Moonlight-16B-A3B": _but(_deepseek(
        "V3", topk_method="noaux_tc", scoring_func="sigmoid", norm_topk_prob=True, routed_scaling_factor=2.446, num_nextn_predict_layers=0,
        rope_theta=50000.0), "rope_scaling"),
    "tiiuae/falcon-7b": {
        "alibi": False, "apply_residual_connection_post_layernorm": False, "architectures": ["FalconForCausalLM"], "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_falcon.FalconConfig", "AutoModelForCausalLM": "modeling_falcon.FalconForCausalLM"}, "bias": False,
        "bos_token_id": 11, "eos_token_id": 11, "hidden_dropout": 0.0, "hidden_size": 64, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
        "model_type": "falcon", "multi_query": True, "new_decoder_architecture": False, "num_attention_heads": 4, "num_hidden_layers": 2,
        "parallel_attn": True, "torch_dtype": "bfloat16", "transformers_version": "4.27.4", "use_cache": True, "vocab_size": 61},
    "openai-community/gpt2": _GPT2,
    "openai-community/gpt2-medium": _GPT2 | {"n_special": 0, "predict_special_tokens": True},
    "openai-community/gpt2-xl": _GPT2 | {"output_past": True},
    "distilbert/distilgpt2": _GPT2 | {"_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}},
    "EleutherAI/pythia-70m": {
        "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu", "hidden_size": 64, "initializer_range": 0.02,
        "intermediate_size": 96, "layer_norm_eps": 1e-05, "max_position_embeddings": 128, "model_type": "gpt_neox", "num_attention_heads": 4,
        "num_hidden_layers": 2, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16",
        "transformers_version": "4.24.0", "use_cache": True, "use_parallel_residual": True, "vocab_size": 61},
    "EleutherAI/gpt-neox-20b": {
        "architectures": ["GPTNeoXForCausalLM"], "attention_probs_dropout_prob": 0, "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu_fast",
        "hidden_dropout_prob": 0, "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 96, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 128, "model_type": "gpt_neox", "num_attention_heads": 4, "num_hidden_layers": 2, "rotary_emb_base": 10000,
        "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.19.0.dev0", "use_cache": True,
        "vocab_size": 61},
    "bigscience/bloom": {
        "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0, "architectures": ["BloomForCausalLM"], "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "unk_token_id": 0, "hidden_dropout": 0.0,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True, "model_type": "bloom", "n_embed": 64, "n_inner": None,
        "n_layer": 2, "num_attention_heads": 4, "offset_alibi": 100, "pretraining_tp": 4, "seq_length": 2048, "skip_bias_add": True,
        "skip_bias_add_qkv": False, "slow_but_exact": False, "transformers_version": "4.21.0", "use_cache": True, "vocab_size": 61},
    "google-t5/t5-base": _but(_T5, "num_decoder_layers", "relative_attention_max_distance", "tie_word_embeddings", "transformers_version") | {
        "feed_forward_proj": "relu", "task_specific_params": {"summarization": {"num_beams": 4}}},
    "google-t5/t5-11b": _but(_T5, "num_decoder_layers", "feed_forward_proj", "tie_word_embeddings") | {"architectures": ["T5WithLMHeadModel"]},
    "google/flan-t5-large": _T5 | {"classifier_dropout": 0.0, "dense_act_fn": "gelu_new", "is_gated_act": True},
    "google/umt5-small": _T5 | {
        "architectures": ["UMT5ForConditionalGeneration"], "model_type": "umt5", "classifier_dropout": 0.0, "dense_act_fn": "gelu_new", "is_gated_act": True,
        "scalable_attention": True, "tokenizer_class": "T5Tokenizer", "transformers_version": "4.31.0.dev0"},
    "google/mt5-small": _T5 | {"architectures": ["MT5ForConditionalGeneration"], "model_type": "mt5", "tokenizer_class": "T5Tokenizer"},
    "facebook/blenderbot-400M-distill": {
        "activation_dropout": 0.0, "activation_function": "gelu", "add_bias_logits": False, "add_final_layer_norm": True,
        "architectures": ["BlenderbotForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 1, "classif_dropout": 0.0,
        "classifier_dropout": 0.0, "d_model": 64, "decoder_attention_heads": 4, "decoder_ffn_dim": 96, "decoder_layerdrop": 0.0, "decoder_layers": 2,
        "decoder_start_token_id": 1, "do_blenderbot_90_layernorm": True, "dropout": 0.1, "encoder_attention_heads": 4, "encoder_ffn_dim": 96,
        "encoder_layerdrop": 0.0, "encoder_layers": 2, "encoder_no_repeat_ngram_size": 3, "eos_token_id": 2, "extra_layer_norm": False,
        "extra_pos_embeddings": 0, "force_bos_token_to_be_generated": False, "forced_eos_token_id": 2, "gradient_checkpointing": False,
        "id2label": {"0": "LABEL_0"}, "init_std": 0.02, "is_encoder_decoder": True, "label2id": {"LABEL_0": 0}, "layernorm_variant": "prelayernorm",
        "length_penalty": 0.65, "max_length": 60, "max_position_embeddings": 128, "min_length": 20, "model_type": "blenderbot",
        "no_repeat_ngram_size": 3, "normalize_before": True, "normalize_embedding": False, "num_beams": 10, "num_hidden_layers": 2, "pad_token_id": 0,
        "save_step": 2, "scale_embedding": True, "static_position_embeddings": False, "transformers_version": "4.15.0.dev0", "unk_token_id": 3,
        "use_cache": True, "variant": "prelayernorm", "vocab_size": 61},
    "google/vit-base-patch16-224": _VIT | {"architectures": ["ViTForImageClassification"], "encoder_stride": 16, "id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}},
    "google/vit-base-patch16-224-in21k": _VIT | {"architectures": ["ViTModel"]},
}

# What transformers wrote into every config: 2.x, the 4.x that saved all defaults, and 5.x.
COMMON_2: Config = {
    "_num_labels": 2, "finetuning_task": None, "is_decoder": False, "num_labels": 2, "output_attentions": False, "output_hidden_states": False,
    "output_past": True, "pruned_heads": {}, "torchscript": False, "use_bfloat16": False, "xla_device": None,
}
COMMON_4: Config = {
    "_name_or_path": "", "add_cross_attention": False, "bad_words_ids": None, "begin_suppress_tokens": None, "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None, "diversity_penalty": 0.0, "do_sample": False, "early_stopping": False, "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None, "finetuning_task": None, "forced_bos_token_id": None, "is_decoder": False, "length_penalty": 1.0,
    "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1,
    "output_attentions": False, "output_hidden_states": False, "output_scores": False, "prefix": None, "problem_type": None, "pruned_heads": {},
    "remove_invalid_values": False, "repetition_penalty": 1.0, "return_dict": True, "return_dict_in_generate": False, "sep_token_id": None,
    "suppress_tokens": None, "temperature": 1.0, "tf_legacy_loss": False, "tie_encoder_decoder": False, "top_k": 50, "top_p": 1.0, "torchscript": False,
    "typical_p": 1.0, "use_bfloat16": False,
}
COMMON_5: Config = {
    "_name_or_path": "", "architectures": None, "chunk_size_feed_forward": 0, "dtype": "bfloat16", "output_attentions": False,
    "output_hidden_states": False, "problem_type": None, "return_dict": True, "transformers_version": "5.1.0",
}

# Keys that change nothing at the value that files have, another value, and the families that refuse it.
SENSITIVE: list[tuple[str, str, object]] = [
    (model, key, value)
    for models, changes in {
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen3-0.6B", "meta-llama/Llama-3.1-8B-Instruct", "bigcode/starcoder2-15b", "microsoft/Phi-4-mini-instruct", "openai-community/gpt2",
         "bigscience/bloom", "EleutherAI/pythia-70m", "tiiuae/falcon-7b"): {
            "use_mrope": True, "lm_head_bias": True, "is_causal": False, "is_decoder": True},
        ("meta-llama/Llama-2-7b-hf", "huggyllama/llama-7b", "Qwen/Qwen2.5-7B"): {"max_sequence_length": 999, "seq_length": 999, "bias": True},
        ("mistralai/Mistral-7B-v0.1", "microsoft/Phi-4-mini-instruct", "mistralai/Mixtral-8x7B-v0.1"): {"attention_bias": True, "mlp_bias": True},
        ("Qwen/Qwen3-0.6B", "allenai/OLMo-2-1124-7B", "google/gemma-2-9b", "google/gemma-2b", "Qwen/Qwen2.5-7B"): {"mlp_bias": True},
        ("Qwen/Qwen2.5-7B",): {"rotary_emb_base": 123},
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct",): {"use_qk_norm": False, "shared_expert_intermediate_size": 40, "qkv_bias": True},
        ("microsoft/Phi-4-mini-instruct",): {"full_attn_mod": 2, "interpolate_factor": 4},
        ("bigcode/starcoder2-15b",): {
            "mlp_type": "gated", "norm_type": "rms_norm", "scale_attn_weights": False, "layer_norm_epsilon": 0.5, "activation_function": "relu"},
        ("google/gemma-2-9b",): {"sliding_window_size": 7},
        ("openai-community/gpt2",): {"n_ctx": 7},
        ("HuggingFaceTB/SmolLM2-135M",): {"rope_interleaved": True},
        ("deepseek-ai/DeepSeek-V2-Lite",): {"attention_bias": True, "scoring_func": "sigmoid", "norm_topk_prob": True, "moe_layer_freq": 2},
        ("deepseek-ai/DeepSeek-V3, dequantised",): {"scoring_func": "softmax", "topk_method": "greedy", "moe_layer_freq": 2},
        ("tiiuae/falcon-7b",): {"alibi": True, "apply_residual_connection_post_layernorm": True, "ff_factor": 3},
        ("bigscience/bloom",): {"n_inner": 7},
    }.items()
    for model in models
    for key, value in changes.items()
]
# fmt: on
