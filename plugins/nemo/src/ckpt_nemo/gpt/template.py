"""The keys of a new `model_config.yaml`: those of NeMo's megatron_gpt_config.yaml (1.23), of which its code needs most.

What describes the model is overwritten. Training keys have the defaults of that file, but for `use_flash_attention`: true
raises an ImportError where flash-attn is absent, and false is the default of the code.
"""

from __future__ import annotations

from typing import Any

TARGET = "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel"

# fmt: off
TEMPLATE: dict[str, Any] = {
    "mcore_gpt": False, "micro_batch_size": 4, "global_batch_size": 8, "rampup_batch_size": None,
    "tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, "virtual_pipeline_model_parallel_size": None,
    "encoder_seq_length": None, "max_position_embeddings": None, "num_layers": None, "hidden_size": None,
    "ffn_hidden_size": None, "num_attention_heads": None, "init_method_std": 0.02, "use_scaled_init_method": True,
    "hidden_dropout": 0.0, "attention_dropout": 0.0, "ffn_dropout": 0.0, "kv_channels": None,
    "apply_query_key_layer_scaling": False, "normalization": "layernorm", "layernorm_epsilon": 1e-5,
    "do_layer_norm_weight_decay": False, "make_vocab_size_divisible_by": 128, "pre_process": True, "post_process": True,
    "persist_layer_norm": True, "bias": True, "activation": "gelu", "headscale": False, "transformer_block_type": "pre_ln",
    "openai_gelu": False, "normalize_attention_scores": True, "position_embedding_type": "learned_absolute",
    "rotary_percentage": 1.0, "attention_type": "multihead", "share_embeddings_and_output_weights": True,
    "overlap_p2p_comm": False, "batch_p2p_comm": True, "seq_len_interpolation_factor": None, "num_query_groups": None,
    "tokenizer": None, "native_amp_init_scale": 4294967296, "native_amp_growth_interval": 1000, "hysteresis": 2,
    "fp32_residual_connection": False, "fp16_lm_cross_entropy": False, "megatron_amp_O2": False,
    "grad_allreduce_chunk_size_mb": 125, "grad_div_ar_fusion": True, "gradient_accumulation_fusion": False,
    "bias_activation_fusion": False, "bias_dropout_add_fusion": False, "masked_softmax_fusion": True,
    "get_attention_mask_from_fusion": True, "seed": 1234, "resume_from_checkpoint": None, "use_cpu_initialization": False,
    "onnx_safe": False, "apex_transformer_log_level": 30, "gradient_as_bucket_view": True, "sync_batch_comm": False,
    "nccl_communicator_config_path": None, "fsdp": False, "fsdp_sharding_strategy": "full", "fsdp_grad_reduce_dtype": "fp32",
    "fsdp_sharded_checkpoint": False, "activations_checkpoint_granularity": None, "activations_checkpoint_method": None,
    "activations_checkpoint_num_layers": None, "num_micro_batches_with_partial_activation_checkpoints": None,
    "activations_checkpoint_layers_per_pipeline": None, "sequence_parallel": False, "transformer_engine": False,
    "fp8": False, "fp8_e4m3": False, "fp8_hybrid": True, "fp8_margin": 0, "fp8_interval": 1, "fp8_amax_history_len": 1024,
    "fp8_amax_compute_algo": "max", "reduce_amax": True, "use_emha": False, "ub_tp_comm_overlap": False,
    "ub_tp_comm_overlap_cfg": None, "use_flash_attention": False, "cpu_offloading": False, "cpu_offloading_num_layers": 0,
    "cpu_offloading_activations": True, "cpu_offloading_weights": True, "sharp": False, "enable_megatron_timers": False,
    "megatron_timer_kwargs": {"log_every_n_steps": 10, "log_mode": "minmax", "barrier": False},
    "data": {
        "data_prefix": None, "index_mapping_dir": None, "data_impl": "mmap", "splits_string": "900,50,50", "seq_length": None,
        "skip_warmup": True, "num_workers": 2, "dataloader_type": "single", "reset_position_ids": False,
        "reset_attention_mask": False, "eod_mask_loss": False, "validation_drop_last": True,
        "no_seqlen_plus_one_input_tokens": False, "pad_samples_to_global_batch_size": False, "shuffle_documents": True,
        "exchange_indices_distributed": False, "mock_dataset": False,
    },
    "nsys_profile": {"enabled": False, "start_step": 10, "end_step": 10, "ranks": [0], "gen_shape": False},
    "optim": {
        "name": "fused_adam", "lr": 0.0002, "weight_decay": 0.01, "betas": [0.9, 0.98],
        "sched": {"name": "CosineAnnealing", "warmup_steps": 500, "constant_steps": 0, "min_lr": 2e-5},
    },
    "gc_interval": 0, "apply_rope_fusion": False, "precision": 32,
}
# fmt: on
