"""What the args of a Megatron-DeepSpeed checkpoint mean (bigscience-workshop/Megatron-DeepSpeed, the code of BLOOM).

The args are the whole command line, some 200 attributes. Every one is named here: those that say what the model is,
those that would make it something we do not describe (`key_is`), and those that tell how to train it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    Activation,
    Architecture,
    CkptError,
    Config,
    Facts,
    Refusal,
    configs,
    custom,
    decided,
    derived,
    fact_is,
    ignore,
    key,
    key_is,
    note,
    same_as,
    schema,
    torch_files,
    values,
)

POSITIONS = "megatron.enums", "PositionEmbeddingType"
_ROTARY, _ABSOLUTE, _ALIBI = 1, 2, 3
_THETA = 10000.0  # rotary.py: no argument sets the base
_EMBEDDING_EPS = (
    1e-5  # language_model.py: LayerNorm(hidden_size), with the default of the class whatever layernorm_epsilon is
)
BLOCK_NORMS = ("attention.norm", "mlp.norm", "final_norm")
_BIASES = (*(f"attention.{part}_bias" for part in ("q", "k", "v", "out")), "mlp.up_bias", "mlp.down_bias")

# GLU_ACTIVATIONS of glu_activations.py; liglu has none at all, which the schema cannot say.
_GLU = {"swiglu": Activation.SILU, "geglu": Activation.GELU_ERF, "reglu": Activation.RELU}


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key)
    return value is not None and bool(values.checked(key, value, values.flag))


def _read_positions(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    given = config.get("position_embedding_type")
    kind = given.value if isinstance(given, torch_files.Opaque) and given.qualname == ".".join(POSITIONS) else given
    if kind == _ROTARY:
        facts["attention.rotary.theta"] = _THETA
    elif kind == _ABSOLUTE:
        facts["positions.count"] = values.checked(
            "max_position_embeddings", config.get("max_position_embeddings"), values.whole
        )
    elif kind == _ALIBI:
        facts["attention.alibi"] = True
    else:
        raise CkptError(
            "args.position_embedding_type has an unknown value",
            found=repr(given)[:80],
            expected="rotary (1), absolute (2) or alibi (3)",
        )


def _write_positions(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    rotary, alibi, count = (
        configs.uniform(facts, path) for path in ("attention.rotary.theta", "attention.alibi", "positions.count")
    )
    if [rotary is not None, bool(alibi), count is not None].count(True) != 1 or facts.present(
        "attention.rotary"
    ) not in (True, False):
        raise Refusal(
            "positions are rotary, absolute or alibi, one of them in every layer",
            found=f"attention.rotary.theta = {facts.get('attention.rotary.theta')}, positions.count = {count}, attention.alibi = {facts.get('attention.alibi')}",
        )
    if rotary not in (None, _THETA):
        raise Refusal(f"the rotary base is always {_THETA:g}", found=f"attention.rotary.theta = {rotary}")
    noted = notes.get("max_positions")
    length = noted if isinstance(noted, int) else 2048
    kind = _ABSOLUTE if count is not None else _ALIBI if alibi else _ROTARY
    config["position_embedding_type"] = torch_files.Opaque(*POSITIONS, args=(kind,))
    config["max_position_embeddings"] = None if kind == _ROTARY else count or length
    trained = min(count or length, length)
    config |= {"seq_length": notes.get("max_positions", trained), "encoder_seq_length": trained}


def _read_activation(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """ParallelMLP (transformer.py). The fused kernel, the default, computes the tanh form of GELU."""
    glu, fused, tanh, erf = (
        config.get("glu_activation"),
        *(_flag(config, key) for key in ("bias_gelu_fusion", "openai_gelu", "onnx_safe")),
    )
    facts["mlp.gated"] = glu is not None
    if glu is not None:
        if glu not in _GLU:
            raise CkptError(
                "args.glu_activation has a value that is not supported", found=repr(glu)[:60], expected=", ".join(_GLU)
            )
        if fused:
            raise CkptError("args.glu_activation and args.bias_gelu_fusion exclude each other", found=f"{glu} and true")
        facts["mlp.activation"] = _GLU[glu]
    else:
        facts["mlp.activation"] = Activation.GELU_TANH if fused or tanh else Activation.GELU_ERF
    if erf and (fused or tanh):
        notes["megatron_deepspeed.onnx_safe"] = True


def _read_embedding_norm(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    # The optimizer of bitsandbytes brings its own embedding, with a norm (layers.py).
    if _flag(config, "embed_layernorm") or _flag(config, "use_bnb_optimizer"):
        facts["tokens.norm.kind"], facts["tokens.norm.eps"], facts["tokens.norm.bias"] = "layer", _EMBEDDING_EPS, True


_ACTIVATION = ("glu_activation", "bias_gelu_fusion", "openai_gelu", "onnx_safe")
_ACTIVATIONS = [
    (None, False, False, None),
    (None, True, False, None),
    *((name, False, False, None) for name in _GLU),
]
_EMBEDDING_NORM = ("embed_layernorm", "use_bnb_optimizer")

# fmt: off
GPT = Config("GPTModelPipe", [
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    key("num_layers", "layers"),
    key("hidden_size", "hidden", type=values.whole),
    # every head has keys and values of its own
    key("num_attention_heads", "attention.heads", "attention.groups", type=values.whole),
    # arguments.py asserts that hidden_size is a multiple, where kv_channels is left out
    derived("kv_channels", "attention.head_dim", "hidden_size / num_attention_heads"),
    derived("ffn_hidden_size", "mlp.ffn", "4 * hidden_size"),
    *(fact_is(bias, True) for bias in _BIASES),
    key("padded_vocab_size", "tokens.padded_vocabulary"),
    # `checkpoint_info` beside the args says it, since 2022.
    key("original_vocab_size", "tokens.vocabulary", default=same_as("padded_vocab_size")),
    custom(["position_embedding_type", "max_position_embeddings", "seq_length", "encoder_seq_length"],
           ["attention.rotary.theta", "attention.rotary.fraction", "positions.count", "attention.alibi"], read=_read_positions, write=_write_positions, uses=["attention.rotary?"],
           why="the type is an enum of the framework; it decides which of the lengths are written, and the note of the longest sequence fills the others"),
    decided(_ACTIVATION, ["mlp.activation", "mlp.gated"], read=_read_activation, values={_ACTIVATION: _ACTIVATIONS},
            why="gelu_erf, or gelu_tanh by the fused kernel; gated: silu, gelu_erf, relu"),
    key("layernorm_epsilon", *(f"{norm}.eps" for norm in BLOCK_NORMS), default=1e-5),
    *(fact_is(f"{norm}.{name}", value) for norm in BLOCK_NORMS for name, value in (("kind", "layer"), ("bias", True))),
    decided(_EMBEDDING_NORM, ["tokens.norm.*"], read=_read_embedding_norm, values={_EMBEDDING_NORM: [(False, False), (True, False)]},
            why=f"the norm on the embedding is a LayerNorm with bias and an epsilon of {_EMBEDDING_EPS:g}"),
    key("apply_residual_connection_post_layernorm", "residual_from_norm", default=False),
    fact_is("head.tied", True),  # GPTModelPipe: there is no other head
    note("seq_length", "max_positions", gives_way=True),
    note("init_method_std", "initializer_range"),
    # The code asks its tokenizer for these; they are kept in the args for formats that have them in a config.
    note("bos_token_id", "bos"),
    note("eos_token_id", "eos"),
    note("pad_token_id", "pad"),
    key_is("pretrain_causal_attention", True, None, or_absent=True),
    key_is("sync_tp_duplicated_parameters", False, True, None, or_absent=True),  # ranks are averaged in every forward, and here if they differ
    key_is("decoder_seq_length", None, or_absent=True),
    ignore("apply_query_key_layer_scaling", why="divides scores by the layer's number and multiplies them back"),
    ignore("attention_softmax_in_fp32", "fp32_residual_connection", "masked_softmax_fusion", "bias_dropout_fusion", "memory_centric_tiled_linear", "tile_factor",
           "fp16", "bf16", "params_dtype", "use_cpu_initialization", "abort_on_unmet_fused_kernel_constraints", "inference",
           why="how to compute it, not what"),
    ignore("tensor_model_parallel_size", "pipeline_model_parallel_size", "data_parallel_size", "world_size", "rank", "local_rank", "make_vocab_size_divisible_by",
           "pad_vocab_size_to", "pp_partition_method", "num_layers_per_virtual_pipeline_stage", "virtual_pipeline_model_parallel_size",
           why="the parallel layout, read with the files"),
    ignore("deepspeed", "deepspeed_config", "deepscale", "deepscale_config", "deepspeed_mpi", "deepspeed_activation_checkpointing", "partition_activations",
           "contigious_checkpointing", "checkpoint_in_cpu", "synchronize_each_layer", "profile_backward", "zero_stage", "zero_reduce_scatter", "zero_contigious_gradients",
           "zero_reduce_bucket_size", "zero_allgather_bucket_size", "remote_device", "use_pin_memory", "scattered_embeddings", "split_transformers",
           "distributed_backend", "DDP_impl", "use_contiguous_buffers_in_ddp", "scatter_gather_tensors_in_pipeline", "lazy_mpu_init", "universal_checkpoint",
           "checkpoint_activations", "distribute_checkpointed_activations", "checkpoint_num_layers", "accumulate_allreduce_grads_in_fp32", "cpu_optimizer", "cpu_torch_adam",
           "no_pipeline_parallel", "create_moe_param_group", why="how ranks share the work"),
    ignore("attention_dropout", "hidden_dropout", "weight_decay", "clip_grad", "adam_beta1", "adam_beta2", "adam_eps", "sgd_momentum", "optimizer", "micro_batch_size",
           "global_batch_size", "rampup_batch_size", "train_iters", "train_samples", "train_tokens", "seed", "init_method_xavier_uniform", "lr", "lr_decay_style",
           "lr_decay_iters", "lr_decay_samples", "lr_decay_tokens", "lr_warmup_fraction", "lr_warmup_iters", "lr_warmup_samples", "min_lr", "override_lr_scheduler",
           "use_checkpoint_lr_scheduler", "loss_scale", "initial_loss_scale", "min_loss_scale", "loss_scale_window", "hysteresis", "fp16_lm_cross_entropy",
           "curriculum_learning", "curriculum_seqlen", "skip_train_iteration_range", "eval_only", "eval_iters", "eval_interval", "exit_interval", "exit_duration_in_mins",
           "kill_switch_path", "finetune", "iteration", "consumed_train_samples", "consumed_valid_samples", "consumed_train_tokens", "gigaflos_no_embeds",
           "do_train", "do_valid", "do_test", "eod_mask_loss", "loss_on_targets_only", "reweight_loss_based_on_position_frequency", "noise_density",
           "mean_noise_span_length", "reset_position_ids", "reset_attention_mask", why="how to train it"),
    ignore("save", "save_interval", "no_save_optim", "no_save_rng", "load", "no_load_optim", "no_load_rng", "log_level", "log_level_replica", "log_path", "log_interval",
           "log_params_norm", "log_num_zeros_in_grad", "log_timers_to_tensorboard", "log_batch_size_to_tensorboard", "log_learning_rate_to_tensorboard",
           "log_loss_scale_to_tensorboard", "log_validation_ppl_to_tensorboard", "tensorboard_dir", "tensorboard_log_interval", "tensorboard_queue_size",
           "codecarbon_dir", "adlr_autoresume", "adlr_autoresume_interval", why="files and logs"),
    ignore("data_path", "split", "data_impl", "dataloader_type", "mmap_warmup", "num_workers", "valid_num_workers", "sample_rate", "mask_prob", "short_seq_prob",
           *(f"{kind}_weighted_split_{part}" for kind in ("train", "valid", "test") for part in ("paths", "paths_path", "names", "weights", "splits")),
           "tokenizer_type", "tokenizer_name_or_path", "vocab_file", "merge_file", "vocab_extra_ids", why="data and tokenizer"),
    ignore("bert_binary_head", "bert_load", "biencoder_projection_dim", "biencoder_shared_query_context_model", "block_data_path", "embedding_path", "evidence_data_path",
           "ict_head_size", "ict_load", "indexer_batch_size", "indexer_log_interval", "query_in_block_prob", "retriever_report_topk_accuracies",
           "retriever_score_scaling", "retriever_seq_length", "titles_data_path", "use_one_sent_docs", "img_dim", "num_channels", "num_classes", "patch_dim",
           why="other models of the same code"),
])
# fmt: on


def read_args(args: Mapping[str, Any], file: str) -> tuple[Facts, dict[str, Any]]:
    """The facts and notes that args say; an arg that no line names is an error."""
    return GPT.read(args, file)


def decoder_of(architecture: Architecture) -> schema.Stack:
    """The stack of a model that GPTModelPipe could be; `Refusal` for one that has an encoder."""
    if architecture.decoder is None or architecture.encoder is not None:
        raise Refusal(
            "GPTModelPipe is a decoder", found="kind = encoder" + ("-decoder" if architecture.decoder else "")
        )
    return architecture.decoder


def tokens_of(architecture: Architecture) -> schema.Tokens:
    """The embedding; `Refusal` for a model that reads no tokens."""
    if architecture.tokens is None:
        raise Refusal("GPTModelPipe reads tokens", found="a model that reads something else")
    return architecture.tokens


def attention_of(decoder: schema.Stack) -> schema.Attention:
    """The attention of all layers; `Refusal` where it is of another kind."""
    attention = decoder.layers[0].attention
    if attention is None:
        raise Refusal("GPTModelPipe has plain attention alone", found="latent attention")
    return attention
