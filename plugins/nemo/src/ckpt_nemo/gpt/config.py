"""What `model_config.yaml` says about a GPT model.

Two tables, because the same key means different things to the code before Megatron-Core ("legacy") and with it.
The keys in `TRAINING` are those of NeMo's megatron_gpt_config.yaml (1.16 to 2.0) and of configs that its own converters
write: they tell how to train or to run a model, and change none of its outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    Activation,
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
    values,
)
from ckpt_megatron.sdk import EXPERT_FACTS, ROUTER_KEYS, learned_or_rotary, read_experts, write_experts
from ckpt_nemo.activation import GELUS, WRITTEN, named_activation
from ckpt_nemo.values import Values, flag, given, is_since

LEFT_OUT, value_of = configs.LEFT_OUT, configs.value_of
# What `nemo_version` a config has, the writer of the format says, not its table: a key that only some versions read is
# written for one that does.
_READS_ALL = {"nemo_version": "2.0"}


def _off(*keys: str) -> list[configs.Entry]:
    """Keys under which NeMo computes something that is not supported, unless they are false, null or absent."""
    return [_at(key, False, 0, written=False) for key in keys]


def _at(key: str, *values: object, written: bool = True) -> configs.Entry:
    """A key under which NeMo computes something that is not supported, unless it has one of `values`, is null or absent."""
    return key_is(key, *values, None, or_absent=True, written=written)


# --- attention and biases --------------------------------------------------------------------------------------------


def _legacy_groups() -> configs.Entry:
    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        groups, heads = config.get("num_query_groups"), config["num_attention_heads"]
        if groups not in (None, heads):
            raise CkptError(
                "models before Megatron-Core have as many groups as heads", found=f"num_query_groups = {groups}"
            )
        facts["attention.groups"] = heads

    return decided(
        ["num_query_groups"],
        ["attention.groups"],
        read=read,
        values={"num_query_groups": [None]},
        uses=["num_attention_heads"],
        why="as many groups as heads before Megatron-Core; with -o names=mcore there may be fewer",
    )


def _window() -> configs.Entry:
    """TransformerEngine counts the positions before the query."""

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        size = config.get("window_size")
        if size is None or size[0] < 0:
            return
        if len(size) != 2 or size[1] != 0:
            raise CkptError("key 'window_size' looks ahead", found=str(size), expected="[w - 1, 0]")
        facts["attention.window"] = size[0] + 1

    return decided(
        ["window_size"],
        ["attention.window"],
        read=read,
        values={"window_size": [LEFT_OUT, value_of("attention.window", by=lambda window: [window - 1, 0])]},
        why="[w - 1, 0] for a window of w positions, the query included; in all layers or none",
    )


_LINEAR = ("attention.out_bias", "mlp.up_bias", "mlp.down_bias")
_INPUTS = ("attention.q_bias", "attention.k_bias", "attention.v_bias")


def _biases() -> configs.Entry:
    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        bias = flag(config, "bias", True)
        facts.update(dict.fromkeys(_LINEAR, bias))
        facts.update(dict.fromkeys(_INPUTS, bias or flag(config, "qkv_bias")))

    return decided(
        ["bias", "qkv_bias"],
        [*_LINEAR, *_INPUTS],
        read=read,
        values={("bias", "qkv_bias"): [(False, LEFT_OUT), (True, LEFT_OUT), (False, True)]},
        why="bias is one flag for all linear layers, and qkv_bias one for q, k and v",
    )


# --- the MLP ---------------------------------------------------------------------------------------------------------


def _legacy_activation() -> configs.Entry:
    """ParallelMLP (mlp.py): the fused kernels are tanh; else openai_gelu takes the place of any activation."""

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        name, gated, activation = named_activation(config)
        fused = flag(config, "bias_activation_fusion", flag(config, "bias_gelu_fusion", True))
        if fused and flag(config, "bias", True):
            if name not in GELUS:
                raise CkptError(
                    f"with bias_activation_fusion no {name} is applied",
                    found=f"activation = {config.get('activation')}, bias_activation_fusion = {fused}",
                    expected="bias_activation_fusion = False",
                )
            activation = Activation.GELU_TANH
        elif flag(config, "openai_gelu"):
            activation = Activation.GELU_TANH
        elif flag(config, "onnx_safe") and name not in GELUS:
            raise CkptError(
                "with onnx_safe an approximate GELU takes the place of the activation",
                found=f"activation = {config['activation']}",
            )
        facts["mlp.gated"], facts["mlp.activation"] = gated, activation

    return decided(
        ["activation", "openai_gelu", "bias_activation_fusion", "bias_gelu_fusion", "onnx_safe"],
        ["mlp.activation", "mlp.gated"],
        read=read,
        values={
            "activation": WRITTEN,
            "openai_gelu": [False, True],
            "bias_activation_fusion": [False],
            "onnx_safe": [False],
        },
        uses=["bias"],
        why="the kernels fused with a bias compute the tanh form of GELU, and without them openai_gelu does, whatever activation says",
    )


def _mcore_activation() -> configs.Entry:
    """Megatron-Core's MLP: its fused GELU needs a bias, and is tanh. openai_gelu is read since NeMo 2.0."""

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        name, gated, activation = named_activation(config)
        fused = flag(config, "bias_activation_fusion", True)
        if flag(config, "openai_gelu") and is_since(config, (2, 0), "openai_gelu"):
            activation = Activation.GELU_TANH
        elif name in GELUS:
            if fused and gated:
                raise CkptError(
                    "which GELU a fused geglu computes depends on the version of Megatron-Core",
                    found="bias_activation_fusion = True",
                    expected="bias_activation_fusion = False, or openai_gelu = True",
                )
            fused_gelu = fused and flag(config, "bias", True)
            activation = Activation.GELU_TANH if fused_gelu else Activation.GELU_ERF
        facts["mlp.gated"], facts["mlp.activation"] = gated, activation

    # The first flag gives the tanh form in all versions, but needs a bias; the second one is read since 2.0.
    flags = ("bias_activation_fusion", "openai_gelu")
    return decided(
        ["activation", *flags],
        ["mlp.activation", "mlp.gated"],
        read=read,
        values={"activation": WRITTEN, flags: [(False, False), (True, False), (False, True)]},
        uses=["bias"],
        assuming=_READS_ALL,
        why="a GELU fused with a bias is the tanh form, and so is any activation with openai_gelu since NeMo 2.0",
    )


_WIDTHS = (
    "ffn_hidden_size",
    "num_moe_experts",
    "moe_layer_freq",
    "moe_ffn_hidden_size",
    "moe_shared_expert_intermediate_size",
    "moe_shared_expert_gate",
)


def _widths() -> configs.Custom:
    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        width, experts = config["ffn_hidden_size"], config.get("num_moe_experts")
        if experts is None:
            facts["mlp.ffn"] = width
        else:
            read_experts(config, facts, notes, experts, width)

    def write(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
        config["ffn_hidden_size"] = configs.uniform(facts, "mlp.ffn")
        if facts.present("mlp.moe") is not False:
            if configs.uniform(
                facts, "mlp.moe.router.bias"
            ):  # since core 0.14, and no release with these models had it
                raise Refusal("no router has a bias", found="mlp.moe.router.bias = True")
            config["num_moe_experts"] = configs.uniform(facts, "mlp.moe.experts")
            write_experts(facts, notes, config)

    return custom(
        [*_WIDTHS, *ROUTER_KEYS],
        ["mlp.ffn", "mlp.ffn?", *EXPERT_FACTS],
        read=read,
        write=write,
        uses=["num_layers", "mlp.up_bias"],
        why="which layers have experts decides what the widths mean; the keys are Megatron's arguments, but for num_moe_experts",
    )


# --- norms -----------------------------------------------------------------------------------------------------------

_NORMS = ("attention.norm", "mlp.norm", "final_norm")
_KINDS = {
    "layernorm": ("layer", False),
    "layernorm1p": ("layer", True),  # the stored weight is gamma - 1
    "rmsnorm": ("rms", False),
    "low_precision_layernorm": ("layer", False),
}


def _norms(*inner: str) -> configs.Entry:
    """Norms before attention, before the MLP and at the end; with qk_layernorm, on queries and keys too (`inner`)."""

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        name = str(given(config, "normalization", "layernorm")).lower()
        if name not in _KINDS:
            found = repr(config["normalization"])
            raise CkptError("key 'normalization' has an unknown value", found=found, expected=", ".join(_KINDS))
        kind, centred = _KINDS[name]
        centred = centred or (bool(inner) and flag(config, "layernorm_zero_centered_gamma"))
        for norm in (*_NORMS, *(inner if inner and flag(config, "qk_layernorm") else ())):
            facts[f"{norm}.kind"], facts[f"{norm}.bias"] = kind, kind == "layer"
            facts[f"{norm}.eps"] = float(given(config, "layernorm_epsilon", 1e-5))
            facts[f"{norm}.zero_centred"] = centred

    names = ("layernorm", "layernorm1p", "rmsnorm")
    keys: tuple[str, ...] = ("normalization", "layernorm_epsilon")
    rows: list[tuple[object, ...]] = [(name, value_of("attention.norm.eps")) for name in names]
    more: dict[str, list[Any]] = {}
    if inner:
        keys = (*keys, "layernorm_zero_centered_gamma")
        rows = [*((*row, LEFT_OUT) for row in rows), (*rows[-1], True)]
        more = {"qk_layernorm": [LEFT_OUT, True]}
    return decided(
        [*keys, *more],
        [f"{norm}.*" for norm in (*_NORMS, *inner)],
        read=read,
        values={keys: rows, **more},
        why="all norms of a model are of one kind, with one epsilon, and a LayerNorm has a bias"
        + ("" if inner else "; with -o names=mcore an RMSNorm may be zero-centred"),
    )


# --- positions -------------------------------------------------------------------------------------------------------

_POSITIONS = 2048
_POSITION_KEYS = ("position_embedding_type", "max_position_embeddings", "encoder_seq_length")


def _positions(count: str) -> configs.Custom:
    """Learned, rotary or none; `count` is the key that says how many learned positions there are."""

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        kind = given(config, "position_embedding_type", "learned_absolute")
        longest = given(config, "max_position_embeddings", config.get("encoder_seq_length"))
        if longest is not None:
            notes["max_positions"] = longest
        if config.get("encoder_seq_length") not in (None, longest):
            notes["sequence_length"] = config["encoder_seq_length"]
        if kind == "learned_absolute":
            facts["positions.count"] = given(config, count, longest)
        elif kind not in ("rope", "none"):
            raise CkptError(
                "key 'position_embedding_type' has a value that is not supported",
                found=repr(kind),
                expected="learned_absolute, rope or none",
            )

    def write(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
        learned, theta = learned_or_rotary(facts, "attention")
        kind = "learned_absolute" if learned is not None else "none" if theta is None else "rope"
        config["position_embedding_type"] = kind
        config["max_position_embeddings"] = learned or notes.get("max_positions") or _POSITIONS
        config["encoder_seq_length"] = notes.get("sequence_length") or config["max_position_embeddings"]
        if learned is not None:
            config[count] = learned

    return custom(
        _POSITION_KEYS,
        ["positions.count"],
        read=read,
        write=write,
        uses=["attention.rotary.*"],
        why=f"without learned positions both lengths are notes; where they are learned, {count} is their number",
    )


# rotary_pos_embedding.py of Megatron-Core, _apply_scaling: constants of the code
_LLAMA3 = {"factor": 8.0, "low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "original_positions": 8192}
_ROTARY = "attention.rotary"


def _rotary(*scaled: str) -> configs.Entry:
    """Rotary positions; `scaled` is the key of Llama 3.1's scaling, which only Megatron-Core has."""

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        if given(config, "position_embedding_type", "learned_absolute") != "rope":
            return
        facts[f"{_ROTARY}.theta"] = _theta(config)
        facts[f"{_ROTARY}.fraction"] = float(given(config, "rotary_percentage", 1.0))
        interpolation = config.get("seq_len_interpolation_factor")
        scaling: dict[str, object] = {}
        if any(flag(config, key) for key in scaled):
            scaling = {"kind": schema.RotaryKind.LLAMA3, **_LLAMA3}
        if interpolation not in (None, 1, 1.0):
            if scaling:
                found = f"seq_len_interpolation_factor = {interpolation}"
                raise CkptError("positions are both interpolated and scaled", found=found)
            scaling = {"kind": schema.RotaryKind.LINEAR, "factor": float(interpolation)}
        facts.update({f"{_ROTARY}.scaling.{name}": said for name, said in scaling.items()})

    built_in = ", ".join(f"{name} {value:g}" for name, value in _LLAMA3.items())
    return decided(
        ["rotary_percentage", "rotary_base", "seq_len_interpolation_factor", *scaled],
        [f"{_ROTARY}.*", f"{_ROTARY}?"],
        read=read,
        values={
            "rotary_percentage": [value_of(f"{_ROTARY}.fraction"), 1.0],
            "seq_len_interpolation_factor": [None, value_of(f"{_ROTARY}.scaling.factor")],
            "rotary_base": [LEFT_OUT, value_of(f"{_ROTARY}.theta", by=_whole_if_it_is)],
            **{key: [LEFT_OUT, True] for key in scaled},
        },
        uses=["position_embedding_type"],
        assuming=_READS_ALL,
        why="all layers have rotary positions or none has; seq_len_interpolation_factor scales them"
        + "".join(f", and so does {key}, whose numbers are built in: {built_in}" for key in scaled),
    )


def _theta(config: Values) -> float:
    base = float(given(config, "rotary_base", 10000.0))
    if base != 10000.0 and not is_since(config, (1, 22), "rotary_base"):
        raise CkptError(
            "NeMo ignores rotary_base before 1.22",
            found=f"rotary_base = {base:g}, nemo_version = {config['nemo_version']}",
            fix="say which version trained the model: -o nemo_version=1.22 (or later), or remove the key",
        )
    return base


def _whole_if_it_is(base: float) -> float:
    return int(base) if base == int(base) else base


def _embedding_scale() -> configs.Entry:
    """Gemma's embeddings: EmbeddingScalingMixin multiplies what the embedding gives, positions included."""

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        if not flag(config, "apply_embedding_scaling"):
            return
        if given(config, "position_embedding_type", "learned_absolute") == "learned_absolute":
            raise CkptError(
                "apply_embedding_scaling multiplies learned positions too; that is not supported",
                found="apply_embedding_scaling = True",
            )
        facts["tokens.scale"] = float(config["hidden_size"]) ** 0.5

    return decided(
        ["apply_embedding_scaling"],
        ["tokens.scale"],
        read=read,
        values={"apply_embedding_scaling": [LEFT_OUT, True]},
        uses=["hidden_size", "position_embedding_type"],
        tolerance=1e-9,
        why="embeddings are multiplied by the root of the hidden size, without learned positions, or not at all",
    )


# fmt: off
def _read_scores(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """With apply_query_key_layer_scaling scores are divided by the layer's number and multiplied by it again. Before
    Megatron-Core they are not divided where nothing is divided, and only multiplied (transformer.py, CoreAttention)."""
    if values.checked("normalize_attention_scores", config.get("normalize_attention_scores", True), values.flag):
        return
    if config.get("apply_query_key_layer_scaling"):
        raise CkptError(
            "key 'apply_query_key_layer_scaling' multiplies scores by the number of the layer where 'normalize_attention_scores' is false",
            found="true",
            expected="false",
        )
    facts["attention.scale"] = 1.0


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

TRAINING_KEYS = frozenset(entry.key for entry in TRAINING)

_COMMON: list[configs.Entry | list[Any]] = [
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    key("num_layers", "layers"),
    key("hidden_size", "hidden"),
    key("num_attention_heads", "attention.heads"),
    derived("kv_channels", "attention.head_dim", "hidden_size / num_attention_heads", rounding="floor", type=None),  # as Megatron rounds
    key("share_embeddings_and_output_weights", "head.tied", default=True),
    _embedding_scale(),
    configs.elsewhere("tokens.vocabulary", "tokens.padded_vocabulary", why="the rows of the embedding, which follow from the tokenizer"),
    note("bos_token_id", "bos"),
    note("eos_token_id", "eos"),
    note("pad_token_id", "pad"),
    _at("transformer_block_type", "pre_ln"),
    _at("attention_type", "multihead"),
    _at("headscale", False, 0),
    *_off("fp8_params", "use_kerple", "multi_query_attention", "parallel_attention", "new_decoder_architecture",
          "normformer", "num_attention_heads_alibi", "drop_layers", "hyena"),
    *TRAINING,
]

LEGACY = Config("NeMo's GPT before Megatron-Core", [
    *_COMMON,
    key("ffn_hidden_size", "mlp.ffn"),
    _legacy_groups(),
    decided(["normalize_attention_scores"], ["attention.scale"], read=_read_scores, uses=["apply_query_key_layer_scaling"],
            values={"normalize_attention_scores": [True, False]},
            why="scores are divided by the root of the head dim, or not at all"),
    key("bias", *_LINEAR, *_INPUTS, default=True, type=values.flag),
    _legacy_activation(),
    _norms(),
    _positions("max_position_embeddings"),
    _rotary(),
    *_off("qkv_bias", "qk_layernorm", "layernorm_zero_centered_gamma", "window_size", "rotary_interleaved",
          "scale_positional_embedding"),
    *ignore("name", "mcore_customization_config", why="read with mcore_gpt alone"),
    _at("num_moe_experts", 1, False, written=False),
])

MCORE = Config("NeMo's MCoreGPTModel", [
    *_COMMON,
    key("num_query_groups", "attention.groups", default=same_as("num_attention_heads")),
    _at("normalize_attention_scores", True, 1),
    _window(),
    _biases(),
    _mcore_activation(),
    _widths(),
    _norms("attention.qk_norm"),
    _positions("encoder_seq_length"),
    _rotary("scale_positional_embedding"),
    _at("name", "", "te_gpt", False, written=False),                  # which layers there are: get_specs
    _at("mcore_customization_config", {}, False, written=False),
    note("rotary_interleaved", "interleaved"),
    *ignore("onnx_safe", why="read by the code before Megatron-Core alone"),
    *_off("softmax_scale", "qk_l2_norm", "window_attn_skip_freq", "multi_latent_attention", "attention_output_gate",
          "heterogeneous_block_specs", "apply_residual_connection_post_layernorm", "gated_linear_unit",
          "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "use_post_attention_norm",
          "moe_apply_probs_on_input", "moe_expert_capacity_factor", "moe_token_dropping", "no_rope_freq"),
])
# fmt: on
