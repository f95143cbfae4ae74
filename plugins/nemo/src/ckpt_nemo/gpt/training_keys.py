"""Keys of `model_config.yaml` that tell how to train or to run a model, and change none of its outputs.

They are those of NeMo's megatron_gpt_config.yaml (1.16 to 2.0) and of configs that its own converters write.
"""

from __future__ import annotations

from ckpt_core.sdk import ignore

# fmt: off
TRAINING = [
    *ignore("micro_batch_size", "global_batch_size", "rampup_batch_size", "data", "optim", "seed",
            "resume_from_checkpoint", "restore_from_path", "restore_from_ckpt", "reset_lr", "reset_lr_steps", "validation_param_sync_overlap",
            "with_fp32_embedding_grads", "skip_fp8_attention_checkpoint_load", "gc_interval", "gc_in_validation",
            "nsys_profile", "memory_profile", "enable_megatron_timers", "megatron_timer_kwargs", "mcore_logging_level",
            "inference", "log_train_loss", "log_token_counts", "skip_train", "use_loss_mask", "report_validation_metrics",
            "answer_only_loss", "hf_data", "peft", "lora_tuning", "wandb", "exp_manager", "early_stopping", "chat",
            why="training"),
    *ignore("init_method_std", "use_scaled_init_method", "embedding_init_method_std", "do_layer_norm_weight_decay",
            "hidden_dropout", "attention_dropout", "ffn_dropout", "embedding_dropout_prob",
            why="initial values, and regularisation in training"),
    *ignore("native_amp_init_scale", "native_amp_growth_interval", "hysteresis", "fp32_residual_connection", "precision",
            "fp16_lm_cross_entropy", "grad_allreduce_chunk_size_mb", "grad_div_ar_fusion", "async_grad_allreduce",
            "use_cpu_initialization", "fp16", "bf16", "params_dtype", "autocast_dtype", "enable_autocast",
            "fp16_enabled", "attention_softmax_in_fp32", "fp32_grad_accum", "contiguous_grad_bucket", "perform_initialization",
            "grad_clip_pl_default", "low_precision_wgrad",
            why="precision of the arithmetic"),
    *ignore("gradient_accumulation_fusion", "bias_dropout_add_fusion", "bias_dropout_fusion", "masked_softmax_fusion",
            "get_attention_mask_from_fusion", "persist_layer_norm", "apply_rope_fusion", "use_flash_attention", "flash_attention",
            "use_emha", "memory_efficient_layer_norm", "cross_entropy_loss_fusion", "attention_backend", "deterministic_mode",
            "apply_query_key_layer_scaling", "apex_transformer_log_level", "gradient_as_bucket_view", "cudnn_enabled",
            "enable_cuda_graph", "use_te_rng_tracker", "cuda_graph", "cuda_graph_use_single_mempool", "fused_single_qkv_rope",
            why="another way to compute the same"),
    *ignore("sync_batch_comm", "overlap_p2p_comm", "batch_p2p_comm", "batch_p2p_sync", "nccl_communicator_config_path",
            "sharp", "use_sharp", "fsdp", "fsdp_sharding_strategy", "fsdp_grad_reduce_dtype", "fsdp_sharded_checkpoint",
            "fsdp_use_orig_params", "sequence_parallel", "ub_tp_comm_overlap", "ub_tp_comm_overlap_cfg",
            "ub_tp_comm_bootstrap_backend", "tp_comm_overlap", "ddp_bucket_size", "defer_embedding_wgrad_compute",
            "wgrad_deferral_limit", "context_parallel_size", "cp_comm_type", "align_grad_reduce", "align_param_gather",
            "pipeline_model_parallel_comm_backend", "use_tp_pp_dp_mapping", "num_distributed_optimizer_instances",
            "distributed_timeout_minutes", "tp_only_amax_red", "deallocate_pipeline_outputs", "hierarchical_context_parallel_sizes",
            "activations_checkpoint_granularity", "activations_checkpoint_method", "activations_checkpoint_num_layers",
            "activations_checkpoint_layers_per_pipeline", "activations_checkpoint_recurrent",
            "num_micro_batches_with_partial_activation_checkpoints", "cpu_offloading", "cpu_offloading_num_layers",
            "cpu_offloading_activations", "cpu_offloading_weights", "recompute_granularity", "recompute_method",
            "recompute_num_layers", "distribute_saved_activations",
            why="communication and memory"),
    *ignore("dist_ckpt_format", "dist_ckpt_load_on_device", "dist_ckpt_parallel_save", "dist_ckpt_parallel_save_within_dp",
            "dist_ckpt_parallel_load", "dist_ckpt_torch_dist_multiproc", "dist_ckpt_assume_constant_structure",
            "dist_ckpt_parallel_dist_opt", "dist_ckpt_load_strictness", "dist_ckpt_load_workers", "dist_ckpt_save_workers",
            "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size",
            "expert_model_parallel_size", "expert_tensor_parallel_size", "pipeline_model_parallel_split_rank",
            why="how the weights are stored: read with the files"),
    *ignore("fp8", "fp8_e4m3", "fp8_hybrid", "fp8_margin", "fp8_interval", "fp8_amax_history_len", "fp8_amax_compute_algo",
            "reduce_amax", "fp8_wgrad", "fp8_dot_product_attention", "fp8_multi_head_attention", "use_transformer_engine_op_fuser",
            why="the weights are stored in a wider dtype beside fp8 scales"),
    *ignore("tokenizer", "make_vocab_size_divisible_by", "override_vocab_size", "pre_process", "post_process",
            "add_position_embedding", "sentencepiece_legacy", "hf_tokenizer",
            why="read with the tokenizer and the files"),
    *ignore("target", "nemo_version", "mcore_gpt", "transformer_engine", "megatron_legacy", "megatron_amp_O2",
            "model_type", "_target_", "mcore_model_config", "use_mcore_dist_optim", "distributed_fused_adam",
            why="which code reads the names of the tensors"),
    *ignore("moe_aux_loss_coeff", "moe_z_loss_coeff", "moe_router_load_balancing_type", "moe_grouped_gemm",
            "moe_token_dispatcher_type", "moe_per_layer_logging", "moe_permute_fusion", "moe_extended_tp", "moe_shared_expert_overlap",
            "moe_router_dtype", "moe_layer_recompute", "moe_input_jitter_eps",
            why="training of experts"),
]
# fmt: on
