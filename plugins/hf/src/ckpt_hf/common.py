"""What the config tables of all families share: keys that every class carries, codecs, and patterns over layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from dataclasses import field as member
from typing import Any

from ckpt_core.sdk import (
    Activation,
    Architecture,
    CkptError,
    Config,
    Custom,
    Entry,
    Facts,
    Loss,
    PerLayer,
    Refusal,
    Table,
    configs,
    custom,
    fact_is,
    ignore,
    implied,
    key,
    key_is,
    layouts,
    note,
    one_of,
    rewrites,
    same_as,
    uniform,
)

TableSet = tuple[Table, ...]
"""The tables of one way to make all choices."""

# transformers' ACT2FN names; the first name of a function is the one we write. "gelu" is the erf form.
_ACTIVATIONS: dict[object, object] = {
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
ACTIVATION = one_of(_ACTIVATIONS)


def activation(*preferred: str) -> configs.Codec:
    """The activations, written under the names that a family's own files use."""
    return one_of({name: _ACTIVATIONS[name] for name in preferred} | _ACTIVATIONS)


NORMS = ("attention.norm", "mlp.norm", "final_norm")
ATTENTION_BIASES = tuple(f"attention.{part}_bias" for part in ("q", "k", "v", "out"))
MLP_BIASES = ("mlp.up_bias", "mlp.down_bias")

# fmt: off
GENERIC: list[Any] = [
    ignore("architectures", "model_type", "auto_map", why="they choose the class before this table is read (ckpt_hf.classes)"),
    ignore("_name_or_path", "_model_name_or_path", "model_name", "transformers_version", "_commit_hash", "transformers.js_config",
           "unsloth_version", "unsloth_fixed", "is_llama_config", "is_qwen2_config", why="names, not meaning"),
    # nanotron's own converters leave this key in HF configs; HF rotates halves whatever it says
    key_is("rope_interleaved", False, or_absent=True, written=False),
    implied("torch_dtype", "dtype", why="every tensor knows its own dtype"),
    ignore("use_cache", "output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "torchscript", "use_bfloat16",
           "_attn_implementation_autoset", "_attn_implementation", "attn_implementation", "attn_implementation_internal",
           "chunk_size_feed_forward", "use_flash_attn", "output_router_logits", "_experts_implementation", "gradient_checkpointing", "_flash_attn_2_enabled",
           "cache_implementation", "logits_to_keep", "num_logits_to_keep", "output_past", "xla_device", "use_flash_attention",
           why="how to run it, not what it computes"),
    ignore("task_specific_params", "prefix", "problem_type", "id2label", "label2id", "num_labels", "_num_labels", "finetuning_task",
           "tokenizer_class", "custom_pipelines", "max_new_tokens",
           "decoder_start_token_id", "sep_token_id", "unk_token_id", "cls_token_id", "mask_token_id", "forced_bos_token_id", "forced_eos_token_id", "pruned_heads",
           "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "exponential_decay_length_penalty", "cross_attention_hidden_size",
           "tf_legacy_loss", "remove_invalid_values", "encoder_no_repeat_ngram_size", "_diversity_penalty", why="generation or task defaults"),
    ignore("min_length", "max_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature",
           "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "num_return_sequences",
           "return_dict_in_generate", "output_scores", why="generation defaults of old transformers"),
    ignore("attention_dropout", "hidden_dropout", "residual_dropout", "embedding_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop",
           "router_aux_loss_coef", "router_jitter_noise", "neftune_noise_alpha", why="training only"),
    ignore("pretraining_tp", why="splits matrix products; the sum is the same"),
    key_is("is_decoder", False, or_absent=True, written=False),
    key_is("is_encoder_decoder", False, or_absent=True, written=False),
    key_is("add_cross_attention", False, or_absent=True, written=False),
    key_is("tie_encoder_decoder", False, or_absent=True, written=False),
    key_is("quantization_config", None, or_absent=True, written=False),
    # Keys of other classes, or of code beside the weights, that published files carry at the value that changes nothing.
    key_is("lm_head_bias", False, or_absent=True, written=False),
    key_is("use_mrope", False, or_absent=True, written=False),
    # Most classes have ids of their own for a missing key, which belong to the vocabulary of one published model.
    note("bos_token_id", "bos", null=True),
    note("eos_token_id", "eos", null=True),
    note("pad_token_id", "pad", null=True),
    note("max_position_embeddings", "max_positions", gives_way=True),
    note("initializer_range", "initializer_range"),
]
# fmt: on


@dataclass(frozen=True)
class Family:
    """A transformers model class: its `model_type`, its config table and its tensor tables.

    The choice `names` of the tables is found by the names of tensors, and its default is written. `arrangement` names a
    choice that is also a config key: it changes how tensors are arranged, and not what they compute. `leftovers` drops what
    such files hold besides the model; `{layers}` stands for the number of layers.
    `rewrite` folds into the weights what the class cannot say, `as_stored` is the config as the names of the tensors
    beside it say it, and `losses` are what the written class leaves open. `loads_copies`: transformers expects the
    duplicates of a parameter in the files, as it does not tie them itself. `other_names`: what old files call the class.
    """

    model_type: str
    config: Config
    tables: layouts.Tables
    constraint: Callable[[Architecture], str | None] = lambda architecture: None
    arrangement: str = ""
    leftovers: Table = member(default_factory=Table)
    rewrite: Callable[[rewrites.Rewritable], rewrites.Rewritable] | None = None
    as_stored: Callable[[Mapping[str, Any], Collection[str]], Mapping[str, Any]] = lambda config, names: config
    losses: Callable[[Architecture], Iterable[Loss]] = lambda architecture: ()
    loads_copies: Callable[[Architecture], bool] = lambda architecture: False
    other_names: tuple[str, ...] = ()

    @property
    def class_name(self) -> str:
        return self.config.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name that is written, and those that are read as it."""
        return (self.class_name, *self.other_names)

    def arranged_by(self, config: Mapping[str, Any]) -> dict[str, layouts.Value]:
        """The unusual arrangement that a config asks for, as the keys that say so."""
        value = config.get(self.arrangement)
        return {self.arrangement: value} if isinstance(value, bool) and value != self._usual[self.arrangement] else {}

    def spellings(self, arrangement: Mapping[str, layouts.Value]) -> list[TableSet]:
        """The tables of an arrangement, one set for each value of the choice `names`; the one that is written first."""
        return [self.tables.under(choices) for choices in self.tables.combinations({**self._usual, **arrangement})]

    @property
    def _usual(self) -> dict[str, layouts.Value]:
        return {self.arrangement: self.tables.chosen()[self.arrangement]} if self.arrangement else {}


# Of the decoders that attend to what is before them. Embedding models set it to false, and then attend both ways (gte-Qwen2).
CAUSAL = key_is("is_causal", True, or_absent=True, written=False)


def unbiased(*keys: str) -> list[Entry]:
    """Biases that a class never has and has no key for; published files say so nevertheless."""
    return [key_is(key, False, or_absent=True, written=False) for key in keys]


def alias(key: str, own: str) -> Custom:
    """A second name of the key `own`, which the class does not read: it must say the same, where both are there."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        if None not in (config.get(key), config.get(own)) and config[key] != config[own]:
            raise CkptError(
                f"keys {own!r} and {key!r} disagree",
                found=f"{str(config[own])[:40]} and {str(config[key])[:40]}",
                fix=f"the class reads {own}: if that is right, leave the other out with -o ignore_keys={key}",
            )

    return custom([key], [], read=read, write=lambda facts, notes, config: None)


def norms(kind: str, *paths: str, **facts: object) -> list[Any]:
    """Every norm at `paths` is of this kind, with these facts."""
    return [fact_is(f"{path}.{name}", value) for path in paths for name, value in {"kind": kind, **facts}.items()]


def groups(default: int) -> configs.Key:
    """Null means as many as heads, in every class; left out means a number of the class's own."""
    return key("num_key_value_heads", "attention.groups", default=default, null=same_as("num_attention_heads"))


def transformers_version(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """The major and minor version of transformers that wrote a config; None if it does not say.

    >>> transformers_version({"transformers_version": "5.24.0.dev0"}), transformers_version({})
    ((5, 24), None)
    """
    major, _, rest = str(config.get("transformers_version", "")).partition(".")
    minor = rest.partition(".")[0]
    return (int(major), int(minor) if minor.isdigit() else 0) if major.isdigit() else None


def positive(config: Mapping[str, Any], key: str, default: object = None) -> int:
    """A size; an error that names the key where it is none."""
    value = config.get(key, default)
    if type(value) is not int or not 0 < value < 1 << 40:
        raise CkptError(f"key {key!r} is not a positive whole number", found=repr(value)[:60])
    return value


def layer_count(config: Mapping[str, Any], key: str = "num_hidden_layers") -> int:
    count = config.get(key)
    if type(count) is not int or not 0 < count <= 100_000:
        raise CkptError(f"key {key!r} is not a number of layers", found=repr(count))
    return count


def head_dim(default: int | None = None) -> Custom:
    """The key `head_dim`; left out it is `default`, or else hidden size / heads, which null always means."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        given = config.get("head_dim", default)
        if given is not None:
            facts["attention.head_dim"] = given
        elif config.get("hidden_size") is not None and config.get("num_attention_heads") is not None:
            facts["attention.head_dim"] = positive(config, "hidden_size") // positive(config, "num_attention_heads")

    def write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        config["head_dim"] = uniform(facts, "attention.head_dim")

    return custom(["head_dim"], ["attention.head_dim"], read=read, write=write)


def derived_head_dim(hidden: str, heads: str) -> Custom:
    """No key says it: every head has hidden size / heads elements."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        if config.get(hidden) is None or config.get(heads) is None:
            return  # the keys' own lines say that they are missing
        size, count = positive(config, hidden), positive(config, heads)
        if size % count:
            raise CkptError(f"{hidden}={size} is not a multiple of {heads}={count}")
        facts["attention.head_dim"] = size // count

    def write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        width: Any = uniform(facts, "attention.head_dim")
        count = uniform(facts, "attention.heads")
        if width is None or count is None or width * count != facts["hidden"]:
            raise Refusal(
                f"a head has {hidden} / {heads} elements",
                found=f"attention.head_dim = {width} with {count} heads of {facts['hidden']}",
            )

    return custom([], ["attention.head_dim"], read=read, write=write)


def scaled_embedding() -> Custom:
    """No key says it: the embedding is multiplied by the square root of the hidden size (Gemma)."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        if config.get("hidden_size") is not None:
            facts["tokens.scale"] = positive(config, "hidden_size") ** 0.5

    def write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        # frameworks round the root to their own precision
        if not math.isclose(facts["tokens.scale"], facts["hidden"] ** 0.5, rel_tol=1e-6):
            raise Refusal(
                "the embedding is scaled by the square root of hidden_size",
                found=f"tokens.scale = {facts['tokens.scale']}",
            )

    return custom([], ["tokens.scale"], read=read, write=write)


def divides(architecture: Architecture) -> str | None:
    """transformers 5 rejects it (`validate_architecture` of the class), even with head_dim given."""
    layer = architecture.decoder.layers[0] if architecture.decoder else None
    attention = layer and (layer.attention or layer.latent_attention)
    if attention and architecture.hidden % attention.heads:
        return f"transformers requires hidden_size={architecture.hidden} to be a multiple of num_attention_heads={attention.heads}"
    return None


Rule = Callable[[int, Mapping[str, Any]], bool]


def windows(slides: Rule, *, default: int | None = None, by_count: bool = False) -> Custom:
    """Which layers see a window only: `layer_types` where given, else the rule of the family's config class.

    `default` is the class's window. `by_count`: the class knows `max_window_layers` too.
    """

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        present = _given_windows(config)
        window, used = config.get("sliding_window", default), config.get("use_sliding_window", False)
        if type(used) is not bool:
            raise CkptError("key 'use_sliding_window' is neither true nor false", found=repr(used)[:60])
        if used and window is not None:
            enter_windows(
                facts, window, present or PerLayer(slides(index, config) for index in range(layer_count(config)))
            )

    def write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        present = windowed_layers(facts)
        config["use_sliding_window"] = any(present)
        config["sliding_window"] = uniform(facts, "attention.window")
        config["layer_types"] = layer_types(present)
        if by_count:
            # transformers before 4.52 has no layer_types: there the layers from max_window_layers on slide.
            config["max_window_layers"] = present.index(True) if any(present) else facts["layers"]

    keys = ["use_sliding_window", "sliding_window", "layer_types", *(["max_window_layers"] if by_count else [])]
    return custom(keys, ["attention.window", "attention.window?"], read=read, write=write)


def _given_windows(config: Mapping[str, Any]) -> PerLayer | None:
    kinds = config.get("layer_types")
    if kinds is None:
        return None
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != layer_count(config) or any(kind not in known for kind in kinds):
        raise CkptError("key 'layer_types' is not one known kind per layer", found=str(kinds)[:80])
    return PerLayer(kind == "sliding_attention" for kind in kinds)


def alternating_windows(default: int) -> Custom:
    """The layers of `layer_types` see a window; without it every second one does, the first among them (Gemma 2)."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        present = _given_windows(config) or PerLayer(index % 2 == 0 for index in range(layer_count(config)))
        window = config.get("sliding_window", default)
        if window is None and any(present):
            raise CkptError(
                "key 'sliding_window' is null, and transformers then builds no mask",
                fix="say in layer_types that no layer slides",
            )
        enter_windows(facts, window, present)

    def write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        present = windowed_layers(facts)
        # the class builds the mask of windows even where no layer uses it, and needs a size for it
        config["sliding_window"] = uniform(facts, "attention.window") or default
        config["layer_types"] = layer_types(present)

    return custom(["sliding_window", "layer_types"], ["attention.window", "attention.window?"], read=read, write=write)


def enter_windows(facts: Facts, window: object, present: PerLayer) -> None:
    if any(present):
        facts["attention.window"] = window
        if not all(present):
            facts["attention.window?"] = present


def windowed_layers(facts: Facts) -> PerLayer:
    present = facts.present("attention.window")
    return present if isinstance(present, PerLayer) else PerLayer([present] * facts["layers"])


def layer_types(windowed: PerLayer) -> list[str]:
    return ["sliding_attention" if slides else "full_attention" for slides in windowed]


def enter_sparse_layers(facts: Facts, notes: dict[str, Any], width: object, sparse: PerLayer) -> None:
    """Which layers are mixtures; the others have `width`. A width that no layer has is kept as a note."""
    facts["layers"] = len(sparse)
    if all(sparse):
        if width is not None:
            notes["unused_ffn"] = positive({"intermediate_size": width}, "intermediate_size")
    else:
        facts["mlp.moe?"] = sparse
        facts["mlp.ffn"] = width
        facts["mlp.ffn?"] = PerLayer(not moe for moe in sparse)


def written_sparse_layers(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> PerLayer:
    """Enter the layers and the dense width; returns which layers are mixtures."""
    sparse = facts.present("mlp.moe")
    if sparse is False:
        raise Refusal("every layer of it is dense", found="mlp.moe absent")
    config["num_hidden_layers"] = facts["layers"]
    config["intermediate_size"] = uniform(facts, "mlp.ffn") or notes.get("unused_ffn") or uniform(facts, "mlp.moe.ffn")
    return sparse if isinstance(sparse, PerLayer) else PerLayer([True] * facts["layers"])
