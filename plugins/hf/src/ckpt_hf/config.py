"""What the keys of an HF `config.json` mean, family by family.

A family is a table. Keys that every `PretrainedConfig` may carry are ignored here once, with the reason.
Defaults are those of the family's config class: old files leave out what was default when they were written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ckpt_core.architecture import Activation, Architecture, Facts, PerLayer
from ckpt_core.errors import CkptError, Refusal
from ckpt_core.layout import Config, Table, const, custom, field, fixed, ignore, note, one_of, same_as, uniform
from ckpt_hf import weights
from ckpt_hf.rotary import rotary_keys

# transformers' ACT2FN names; the first name of a function is the one we write. "gelu" is the erf form.
ACTIVATION = one_of(
    {
        "silu": Activation.SILU,
        "swish": Activation.SILU,
        "gelu": Activation.GELU_ERF,
        "gelu_python": Activation.GELU_ERF,
        "gelu_pytorch_tanh": Activation.GELU_TANH,
        "gelu_new": Activation.GELU_TANH,
        "gelu_fast": Activation.GELU_TANH,
        "quick_gelu": Activation.GELU_QUICK,
        "relu": Activation.RELU,
        "relu2": Activation.RELU_SQUARED,
    }
)

_NORMS = ("attention.norm", "mlp.norm", "final_norm")

# fmt: off
GENERIC = [
    ignore("architectures", "model_type", "_name_or_path", "_model_name_or_path", "model_name", "auto_map", "transformers_version",
           "_commit_hash", "transformers.js_config", "unsloth_version", "unsloth_fixed", "is_llama_config", "is_qwen2_config",
           why="names, not meaning"),
    # nanotron's own converters leave this key in HF configs; HF rotates halves whatever it says
    const("rope_interleaved", False, written=False),
    ignore("torch_dtype", "dtype", why="every tensor knows its own dtype"),
    ignore("use_cache", "output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "torchscript", "use_bfloat16",
           "_attn_implementation_autoset", "_attn_implementation", "attn_implementation", "attn_implementation_internal",
           "chunk_size_feed_forward", "use_flash_attn", "output_router_logits", "_experts_implementation", "gradient_checkpointing", "_flash_attn_2_enabled",
           why="how to run it, not what it computes"),
    ignore("task_specific_params", "prefix", "problem_type", "id2label", "label2id", "num_labels", "finetuning_task", "tokenizer_class",
           "decoder_start_token_id", "sep_token_id", "unk_token_id", "cls_token_id", "mask_token_id", "forced_bos_token_id", "forced_eos_token_id", "pruned_heads",
           "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "exponential_decay_length_penalty", "cross_attention_hidden_size",
           "tf_legacy_loss", "remove_invalid_values", "encoder_no_repeat_ngram_size", "_diversity_penalty", why="generation or task defaults"),
    ignore("min_length", "max_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature",
           "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "num_return_sequences",
           "return_dict_in_generate", "output_scores", why="generation defaults of old transformers"),
    ignore("attention_dropout", "hidden_dropout", "residual_dropout", "embedding_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop",
           "router_aux_loss_coef", "router_jitter_noise", why="training only"),
    ignore("pretraining_tp", why="splits matrix products; the sum is the same"),
    const("is_decoder", False, written=False),
    const("is_encoder_decoder", False, written=False),
    const("add_cross_attention", False, written=False),
    const("tie_encoder_decoder", False, written=False),
    const("quantization_config", None, written=False),
    note("bos_token_id", "bos"),
    note("eos_token_id", "eos"),
    note("pad_token_id", "pad"),
    note("max_position_embeddings", "max_positions"),
    note("initializer_range", "initializer_range"),
]

LLAMA = Config("LlamaForCausalLM", [
    *GENERIC,
    fixed("kind", "decoder"),
    fixed("causal", True),
    field("hidden_size", "hidden"),
    field("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    field("num_hidden_layers", "layers"),
    field("num_attention_heads", "attention.heads"),
    field("num_key_value_heads", "attention.groups", default=same_as("num_attention_heads")),
    field("intermediate_size", "mlp.ffn"),
    field("hidden_act", "mlp.activation", default="silu", via=ACTIVATION),
    field("rms_norm_eps", *(f"{norm}.eps" for norm in _NORMS), default=1e-6),
    *(fixed(f"{norm}.kind", "rms") for norm in _NORMS),
    fixed("mlp.gated", True),
    field("attention_bias", "attention.q_bias", "attention.k_bias", "attention.v_bias", "attention.out_bias", default=False),
    field("mlp_bias", "mlp.up_bias", "mlp.down_bias", default=False),
    field("tie_word_embeddings", "head.tied", default=False),
    rotary_keys(),
    custom(["head_dim"], ["attention.head_dim"],
           read=lambda config, facts, notes: _read_head_dim(config, facts),
           write=lambda facts, notes, config: config.update(head_dim=uniform(facts, "attention.head_dim"))),
])

MISTRAL = LLAMA.replace("MistralForCausalLM",
    field("sliding_window", "attention.window", default=None),
    without=["attention_bias", "mlp_bias"],
)

QWEN2 = LLAMA.replace("Qwen2ForCausalLM",
    *(fixed(f"attention.{part}_bias", True) for part in "qkv"),
    custom(["use_sliding_window", "sliding_window", "max_window_layers", "layer_types"], ["attention.window", "attention.window?"],
           read=lambda config, facts, notes: _read_windows(config, facts, _from_layer),
           write=lambda facts, notes, config: _write_windows(facts, config)),
    without=["attention_bias", "mlp_bias"],
)

QWEN2_MOE = QWEN2.replace("Qwen2MoeForCausalLM",
    field("num_experts", "mlp.moe.experts"),
    field("num_experts_per_tok", "mlp.moe.router.top_k"),
    field("moe_intermediate_size", "mlp.moe.ffn"),
    field("norm_topk_prob", "mlp.moe.router.normalise", default=False),
    fixed("mlp.moe.router.score", "softmax"),
    field("shared_expert_intermediate_size", "mlp.moe.shared.ffn"),
    fixed("mlp.moe.shared.gate", True),
    custom(["qkv_bias"], ["attention.q_bias", "attention.k_bias", "attention.v_bias"],
           read=lambda config, facts, notes: facts.update({f"attention.{part}_bias": config.get("qkv_bias", True) for part in "qkv"}),
           write=lambda facts, notes, config: _write_qkv_bias(facts, config)),
    custom(["intermediate_size", "decoder_sparse_step", "mlp_only_layers", "num_hidden_layers"],
           ["mlp.ffn", "mlp.ffn?", "mlp.moe?", "layers"],
           read=lambda config, facts, notes: _read_sparse_layers(config, facts, notes),
           write=lambda facts, notes, config: _write_sparse_layers(facts, notes, config)),
    custom(["use_sliding_window", "sliding_window", "max_window_layers", "layer_types"], ["attention.window", "attention.window?"],
           read=lambda config, facts, notes: _read_windows(config, facts, _every_other),
           write=lambda facts, notes, config: _write_windows(facts, config)),
)

SMOLLM3 = LLAMA.replace("SmolLM3ForCausalLM",
    rotary_keys(default_theta=2000000.0, always=False),
    field("tie_word_embeddings", "head.tied", default=True),
    custom(["no_rope_layers", "no_rope_layer_interval"], ["attention.rotary?"],
           read=lambda config, facts, notes: _read_rope_layers(config, facts),
           write=lambda facts, notes, config: _write_rope_layers(facts, config)),
    custom(["use_sliding_window", "sliding_window", "layer_types"], ["attention.window", "attention.window?"],
           read=lambda config, facts, notes: _read_windows(config, facts, _without_rope),
           write=lambda facts, notes, config: _write_window_layers(facts, config)),
)

STARCODER2 = LLAMA.replace("Starcoder2ForCausalLM",
    field("hidden_act", "mlp.activation", default="gelu_pytorch_tanh", via=ACTIVATION),
    field("norm_epsilon", *(f"{norm}.eps" for norm in _NORMS), default=1e-5),
    *(fixed(f"{norm}.kind", "layer") for norm in _NORMS),
    *(fixed(f"{norm}.bias", True) for norm in _NORMS),
    fixed("mlp.gated", False),
    field("use_bias", "attention.q_bias", "attention.k_bias", "attention.v_bias", "attention.out_bias", "mlp.up_bias", "mlp.down_bias",
          default=True),
    field("tie_word_embeddings", "head.tied", default=True),
    field("sliding_window", "attention.window", default=None),
    without=["rms_norm_eps", "attention_bias", "mlp_bias"],
)
# fmt: on


def _read_head_dim(config: Mapping[str, object], facts: Facts) -> None:
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if config.get("head_dim") is not None:
        facts["attention.head_dim"] = config["head_dim"]
    elif isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        facts["attention.head_dim"] = hidden // heads


def _layers(config: Mapping[str, object]) -> int:
    count = config.get("num_hidden_layers")
    if type(count) is not int or not 0 < count <= 100_000:
        raise CkptError("key 'num_hidden_layers' is not a number of layers", found=repr(count))
    return count


def _from_layer(index: int, config: Mapping[str, object]) -> bool:
    return index >= config.get("max_window_layers", 28)


def _every_other(index: int, config: Mapping[str, object]) -> bool:
    # Qwen2MoeConfig, transformers 5: every other layer, below max_window_layers
    return (index + 1) % 2 == 1 and index < config.get("max_window_layers", 28)


def _without_rope(index: int, config: Mapping[str, object]) -> bool:
    return not _rope_layers(config)[index]


def _read_windows(config: Mapping[str, object], facts: Facts, slides: Callable[[int, Mapping[str, object]], bool]) -> None:
    """Which layers see a window only: `layer_types` where given, else the rule of the family's config class."""
    window = config.get("sliding_window", 4096 if "max_window_layers" in config else None)
    if not config.get("use_sliding_window", False) or window is None:
        return
    kinds = config.get("layer_types")
    if kinds is not None:
        unknown = set(kinds) - {"full_attention", "sliding_attention"}
        if unknown or len(kinds) != _layers(config):
            raise CkptError("key 'layer_types' is not one known kind per layer", found=str(kinds)[:80])
        present = PerLayer(kind == "sliding_attention" for kind in kinds)
    else:
        present = PerLayer(slides(index, config) for index in range(_layers(config)))
    if any(present):
        facts["attention.window"] = window
        if not all(present):
            facts["attention.window?"] = present


def _write_windows(facts: Facts, config: dict[str, object]) -> None:
    present = _write_window_layers(facts, config)
    # transformers before 4.52 has no layer_types: there the layers from max_window_layers on slide.
    config["max_window_layers"] = present.index(True) if any(present) else facts["layers"]


def _write_window_layers(facts: Facts, config: dict[str, object]) -> PerLayer:
    present = facts.present("attention.window")
    present = present if isinstance(present, PerLayer) else PerLayer([present] * facts["layers"])
    window = uniform(facts, "attention.window")
    config["use_sliding_window"] = any(present)
    config["sliding_window"] = window
    config["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in present]
    return present


def _rope_layers(config: Mapping[str, object]) -> list[bool]:
    given, interval = config.get("no_rope_layers"), config.get("no_rope_layer_interval", 4)
    count = _layers(config)
    if given is None:
        return [(index + 1) % interval != 0 for index in range(count)]
    if len(given) < count:
        raise CkptError("key 'no_rope_layers' has fewer entries than layers", found=len(given), expected=count)
    return [bool(flag) for flag in given[:count]]


def _read_rope_layers(config: Mapping[str, object], facts: Facts) -> None:
    layers = _rope_layers(config)
    if not all(layers):
        facts["attention.rotary?"] = PerLayer(layers)


def _write_rope_layers(facts: Facts, config: dict[str, object]) -> None:
    present = facts.present("attention.rotary")
    layers = list(present) if isinstance(present, PerLayer) else [present] * facts["layers"]
    without = [index for index, rotated in enumerate(layers) if not rotated]
    config["no_rope_layers"] = [int(rotated) for rotated in layers]
    config["no_rope_layer_interval"] = without[0] + 1 if without else len(layers) + 1


def _write_qkv_bias(facts: Facts, config: dict[str, object]) -> None:
    biases = {uniform(facts, f"attention.{part}_bias") for part in "qkv"}
    if len(biases) > 1:
        raise Refusal("qkv_bias is one value for q, k and v", found=str(biases))
    config["qkv_bias"] = biases.pop()


def _read_sparse_layers(config: Mapping[str, object], facts: Facts, notes: dict[str, object]) -> None:
    count, step = _layers(config), config.get("decoder_sparse_step", 1)
    dense = set(config.get("mlp_only_layers") or [])
    sparse = PerLayer(index not in dense and config.get("num_experts", 0) > 0 and (index + 1) % step == 0 for index in range(count))
    facts["layers"] = count
    if all(sparse):
        notes["unused_ffn"] = config.get("intermediate_size")
    else:
        facts["mlp.moe?"] = sparse
        facts["mlp.ffn"] = config.get("intermediate_size")
        facts["mlp.ffn?"] = PerLayer(not moe for moe in sparse)


def _write_sparse_layers(facts: Facts, notes: Mapping[str, object], config: dict[str, object]) -> None:
    sparse = facts.present("mlp.moe")
    if sparse is False:
        raise Refusal("every layer of it is dense", found="mlp.moe absent")
    width = uniform(facts, "mlp.ffn") or notes.get("unused_ffn") or uniform(facts, "mlp.moe.ffn")
    config["num_hidden_layers"] = facts["layers"]
    config["intermediate_size"] = width
    config["decoder_sparse_step"] = 1
    config["mlp_only_layers"] = [] if sparse is True else [index for index, moe in enumerate(sparse) if not moe]


@dataclass(frozen=True)
class Family:
    """A transformers model class: its `model_type`, its config table, its tensor tables (the first is written)."""

    model_type: str
    config: Config
    tables: Sequence[tuple[Table, ...]]
    constraint: Callable[[Architecture], str | None] = lambda architecture: None

    @property
    def class_name(self) -> str:
        return self.config.name


def _divides(architecture: Architecture) -> str | None:
    """transformers 5's LlamaConfig.validate_architecture rejects it, even with head_dim given."""
    heads = architecture.decoder.layers[0].attention.heads if architecture.decoder and architecture.decoder.layers[0].attention else 1
    if architecture.hidden % heads:
        return f"transformers requires hidden_size={architecture.hidden} to be a multiple of num_attention_heads={heads}"
    return None


# The order is that of preference where several classes can hold a model exactly.
FAMILIES = [
    Family("llama", LLAMA, [weights.LLAMA], _divides),
    Family("mistral", MISTRAL, [weights.LLAMA]),
    Family("qwen2", QWEN2, [weights.LLAMA]),
    Family("smollm3", SMOLLM3, [weights.LLAMA]),
    Family("qwen2_moe", QWEN2_MOE, [weights.QWEN2_MOE, weights.QWEN2_MOE_FUSED]),
    Family("starcoder2", STARCODER2, [weights.STARCODER2]),
]
BY_TYPE = {family.model_type: family for family in FAMILIES}
