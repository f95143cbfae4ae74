"""The keys of a new config: those of NeMo's megatron_t5_config.yaml and its base config (r1.16), which its code needs.

What describes the model is overwritten; training keys have the defaults of those files.
"""

from __future__ import annotations

from typing import Any

TARGET = "nemo.collections.nlp.models.language_modeling.megatron_t5_model.MegatronT5Model"
VERSION = "1.16.0"

# fmt: off
SECTION: dict[str, Any] = {
    "init_method_std": 0.02, "hidden_dropout": 0.1, "attention_dropout": 0.1, "ffn_dropout": 0.0,
    "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "persist_layer_norm": True,
    "grad_div_ar_fusion": True, "masked_softmax_fusion": True, "bias_dropout_add_fusion": False, "hidden_steps": 32,
    "num_self_attention_per_cross_attention": 1, "fp32_residual_connection": False, "activations_checkpoint_method": None,
    "activations_checkpoint_num_layers": 1, "activations_checkpoint_granularity": None, "moe_frequency": 1, "moe_dropout": 0.0,
}

TEMPLATE: dict[str, Any] = {
    "micro_batch_size": 4, "global_batch_size": 8, "tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1,
    "resume_from_checkpoint": None, "pipeline_model_parallel_split_rank": 0, "make_vocab_size_divisible_by": 128,
    "megatron_amp_O2": False, "grad_allreduce_chunk_size_mb": 125, "grad_div_ar_fusion": True, "gradient_as_bucket_view": True,
    "seq_length": 512, "max_position_embeddings": 512,
    "tokenizer": None, "embedding_init_method_std": 0.02, "embedding_dropout": 0.1, "share_token_embeddings": True,
    "native_amp_init_scale": 4294967296, "native_amp_growth_interval": 1000, "fp16_lm_cross_entropy": False, "seed": 1234,
    "use_cpu_initialization": False, "apex_transformer_log_level": 30,
    "data": {
        "data_prefix": None, "index_mapping_dir": None, "data_impl": "mmap", "splits_string": "949,45,5", "seq_length": 512,
        "seq_length_dec": 128, "skip_warmup": True, "num_workers": 0, "dataloader_type": "single", "masked_lm_prob": 0.15,
        "dataset_type": "t5", "short_seq_prob": 0.0, "max_ngram_size": 10, "mean_ngram_size": None, "geometric_dist": True,
        "permutation": False, "whole_word_masking": True, "favor_longer_ngrams": False, "respect_document_boundaries": True,
    },
    "optim": {
        "name": "fused_adam", "lr": 0.0001, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01,
        "sched": {"name": "WarmupAnnealing", "min_lr": 0.00001, "last_epoch": -1, "warmup_ratio": 0.01},
    },
    "precision": 32,
    "encoder": SECTION, "decoder": SECTION,
}

# How files of T5 are tokenised: the sentinels follow the pieces, the last one first.
SENTINELS_OF_T5 = {
    "num_sentinel_tokens": 100, "sentencepiece_legacy": True, "add_sentinel_tokens_in_reverse_order": True,
    "add_sentinel_tokens_first": True,
}
# fmt: on
