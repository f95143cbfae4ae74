"""The keys of a new `model_config.yaml`: those of NeMo's megatron_vit_classification_config.yaml (1.23), of which its code needs most.

What describes the model is overwritten. Training keys have the defaults of that file.
"""

from __future__ import annotations

from typing import Any

from ckpt_nemo.vit.weights import CONVOLUTION, LINEAR

TARGET = "nemo.collections.vision.models.megatron_vit_classification_models.MegatronVitClassificationModel"
# The first version whose model has such a layer for patches, beside v1.19.0_mm.
VERSIONS = {LINEAR: "1.23.0", CONVOLUTION: "2.0.0"}

# fmt: off
TEMPLATE: dict[str, Any] = {
    "precision": 32, "micro_batch_size": 256, "global_batch_size": 4096, "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1, "virtual_pipeline_model_parallel_size": None, "restore_from_path": None,
    "vision_pretraining_type": "classify", "num_classes": None, "patch_dim": None, "img_h": None, "img_w": None,
    "classes_fraction": 1.0, "data_per_class_fraction": 1.0, "num_channels": None, "drop_path_rate": 0.0,
    "class_token_length": None, "finetune": None, "encoder_seq_length": None, "max_position_embeddings": None,
    "num_layers": None, "hidden_size": None, "ffn_hidden_size": None, "num_attention_heads": None,
    "init_method_std": 0.02, "use_scaled_init_method": True, "hidden_dropout": 0.0, "attention_dropout": 0.0,
    "kv_channels": None, "apply_query_key_layer_scaling": False, "normalization": "layernorm", "layernorm_epsilon": 1e-5,
    "do_layer_norm_weight_decay": False, "pre_process": True, "post_process": True, "persist_layer_norm": True,
    "native_amp_init_scale": 4294967296, "native_amp_growth_interval": 1000, "hysteresis": 2,
    "fp32_residual_connection": False, "fp16_lm_cross_entropy": False, "megatron_amp_O2": False,
    "grad_allreduce_chunk_size_mb": 125, "grad_div_ar_fusion": True, "masked_softmax_fusion": True,
    "bias_dropout_add_fusion": False, "seed": 1234, "resume_from_checkpoint": None, "use_cpu_initialization": False,
    "onnx_safe": False, "apex_transformer_log_level": 30, "gradient_as_bucket_view": True,
    "gradient_accumulation_fusion": False, "openai_gelu": False, "bias_activation_fusion": False, "megatron_legacy": False,
    "activations_checkpoint_granularity": None, "activations_checkpoint_method": None,
    "activations_checkpoint_num_layers": None, "sequence_parallel": False,
    "data": {
        "data_path": None, "num_workers": 2, "dataloader_type": "cyclic", "validation_drop_last": True, "data_sharding": False,
    },
    "nsys_profile": {"enabled": False, "start_step": 10, "end_step": 10, "ranks": [0], "gen_shape": False},
    "optim": {
        "name": "fused_adam", "lr": 0.0005, "weight_decay": 0.1, "betas": [0.9, 0.999],
        "sched": {"name": "CosineAnnealing", "warmup_steps": 10000, "constant_steps": 0, "min_lr": 1e-5},
    },
}
# fmt: on
