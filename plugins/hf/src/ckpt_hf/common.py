"""What the config tables of all families share: keys that every class carries, codecs, and patterns over layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import field as member
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import (
    Activation,
    Architecture,
    CkptError,
    Config,
    Facts,
    Table,
    configs,
    decided,
    derived,
    fact_is,
    ignore,
    key,
    key_is,
    layouts,
    ledgers,
    note,
    one_of,
    rewrites,
    rules,
    same_as,
    schema,
    values,
)
from ckpt_hf.heads import ALL, Head, unsaid_of_vocabulary

TableSet = tuple[Table, ...]
"""The tables of one way to make all choices."""
Same = Callable[[str, str], bool]
"""Whether the tensors of two names hold the same elements; not where one of them is missing."""


def none_same(one: str, other: str) -> bool:
    """What is known of tensors that nobody has looked at: that each may be one of its own."""
    return False


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


def activation(*preferred: str, **meant: Activation) -> configs.Codec:
    """The activations, written under the names that a family's own files use; `meant` are names that it takes for another function."""
    return one_of({name: _ACTIVATIONS[name] for name in preferred} | _ACTIVATIONS | meant)


NORMS = ("attention.norm", "mlp.norm", "final_norm")
QKV_BIASES = tuple(f"attention.{part}_bias" for part in "qkv")
ATTENTION_BIASES = (*QKV_BIASES, "attention.out_bias")
MLP_BIASES = ("mlp.up_bias", "mlp.down_bias")

# fmt: off
GENERIC: list[Any] = [
    ignore("architectures", "model_type", "auto_map", why="they choose the class before this table is read (ckpt_hf.classes)"),
    ignore("_name_or_path", "_model_name_or_path", "model_name", "transformers_version", "_commit_hash", "transformers.js_config",
           "unsloth_version", "unsloth_fixed", "is_llama_config", "is_qwen2_config", why="names, not meaning"),
    # nanotron's own converters leave this key in HF configs; HF rotates halves whatever it says
    key_is("rope_interleaved", False, or_absent=True, written=False),
    configs.implied("torch_dtype", "dtype", why="every tensor knows its own dtype"),
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


Rewrite = Callable[[rewrites.Rewritable], rewrites.Rewritable]


def centred(model: rewrites.Rewritable) -> rewrites.Rewritable:
    """Scores at the usual scale, and norms whose weights are not stored around zero."""
    return rewrites.uncentred_norms(rewrites.folded_attention_scale(model))


def with_out_bias(model: rewrites.Rewritable) -> rewrites.Rewritable:
    """A bias on the output of attention where the queries have one: zeros, for a class that has all four biases or none."""
    folded = rewrites.folded_attention_scale(model)
    biased = rewrites.map_layers(
        folded.architecture,
        lambda layer: (
            replace(layer, attention=replace(layer.attention, out_bias=layer.attention.q_bias))
            if layer.attention
            else layer
        ),
    )
    if biased == folded.architecture or not schema.parameters(biased).keys() >= folded.tensors.keys():
        return model
    return rewrites.zero_biases(folded, biased)


# What a class without a key for the scale of scores, or for norms around zero, asks for; and one whose biases are all or none.
SCALED_AND_CENTRED: tuple[Rewrite, ...] = (rewrites.folded_attention_scale, centred)
ALL_BIASES_OR_NONE: tuple[Rewrite, ...] = (rewrites.folded_attention_scale, with_out_bias, centred)


# How the classes with a head over the vocabulary are called, after the name of the family.
_LANGUAGE_MODEL = ("ForCausalLM", "LMHeadModel", "ForMaskedLM")


@schema.dataclass(frozen=True)
class Family:
    """A transformers model class: its `model_type`, its config table and its tensor tables.

    The choice `names` of the tables is found by the names of tensors, and its default is written. `arrangement` names a
    choice that is also a config key: it changes how tensors are arranged, and not what they compute. `leftovers` drops what
    such files hold besides the model; `{layers}` stands for the number of layers.
    `rewrites` say with weights what the class cannot say, the least change first; `as_stored` is the config as the tensors beside
    it say it, by their names and by which of them are the same; and `losses` are what the written class leaves open. `loads_copies`: transformers expects the
    duplicates of a parameter in the files, as it does not tie them itself. `other_names`: what old files call the class.
    `heads` are the other heads for which transformers has a class of this decoder; `head` is the one of this class, and `like` the name of
    the class with a head over the vocabulary, where this is one of those. `plain` is the config in the keys of its table, of one that says
    it otherwise, as old files do. `by_shapes` are the choices that the shapes of the stored tensors make. `padding` is the class's own id of
    padding, for configs that say none. `noted` are notes by which transformers alone computes: a receipt keeps them where a format has no word
    for them.
    """

    model_type: str
    config: Config
    tables: layouts.Tables
    constraint: Callable[[Architecture], str | None] = lambda architecture: None
    arrangement: str = ""
    leftovers: Table = member(default_factory=Table)
    rewrites: Sequence[Rewrite] = SCALED_AND_CENTRED
    as_stored: Callable[[Mapping[str, Any], Collection[str], Same], Mapping[str, Any]] = lambda config, names, same: (
        config
    )
    losses: Callable[[Architecture], Iterable[ledgers.Loss]] = lambda architecture: ()
    loads_copies: Callable[[Architecture], bool] = lambda architecture: False
    other_names: tuple[str, ...] = ()
    heads: tuple[Head, ...] = ALL
    head: Head | None = None
    like: str = ""
    plain: Callable[[dict[str, Any], str], dict[str, Any]] = lambda config, file: config
    by_shapes: Callable[[Architecture, Mapping[str, tuple[int, ...]]], layouts.Chosen] = lambda architecture, shapes: {}
    padding: int | None = None
    noted: tuple[str, ...] = ()

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

    def with_head(self, head: Head) -> Family:
        """The class of this decoder with `head` in place of one over the vocabulary."""
        ending = next(end for end in _LANGUAGE_MODEL if self.class_name.endswith(end))
        # the decoder of a model that also sees is called so by transformers: Gemma3TextModel
        text = "Text" if self.model_type.endswith("_text") else ""
        called = self.class_name.removesuffix(ending) + text + head.ending
        lines = head.lines(self.padding)
        notes, gone = ([], []) if head.beside else unsaid_of_vocabulary(self.config)
        # a key that says a head over the vocabulary may say that of the class, too (ModernBERT)
        said = {name for line in lines for one in (line if isinstance(line, list) else [line]) for name in one.keys}
        notes = [one for one in notes if not said & {*one.keys}]
        prefix = next(table.native for table in self.tables if "{l}" in table.native).partition(".")[0] + "."
        name = (lambda native: native.removeprefix(prefix)) if head.bare else (lambda native: native)
        return replace(
            self,
            config=self.config.replace(called, *notes, *lines, without=gone),
            tables=self.tables.beside(*head.tables).renamed(name),
            leftovers=self.leftovers.renamed(name),
            as_stored=head.as_stored or self.as_stored,
            other_names=(),
            heads=(),
            head=head,
            like=self.class_name,
        )

    def spellings(self, arrangement: Mapping[str, layouts.Value]) -> list[TableSet]:
        """The tables of an arrangement, one set for each value of the choice `names`; the one that is written first."""
        return [self.tables.under(choices) for choices in self.choices(arrangement)]

    def choices(self, arrangement: Mapping[str, layouts.Value]) -> list[layouts.Chosen]:
        """The choices of each of the `spellings`."""
        return list(self.tables.combinations({**self._usual, **arrangement}))

    @property
    def _usual(self) -> dict[str, layouts.Value]:
        return {self.arrangement: self.tables.chosen()[self.arrangement]} if self.arrangement else {}


# Of the decoders that attend to what is before them. Embedding models set it to false, and then attend both ways (gte-Qwen2).
CAUSAL = key_is("is_causal", True, or_absent=True, written=False)


# The keys of the first classes for heads that are not read (GPT-2, and what grew out of it).
SUMMARY = ignore("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
    why="heads of other classes")  # fmt: skip


def unbiased(*keys: str) -> list[configs.Entry]:
    """Biases that a class never has and has no key for; published files say so nevertheless."""
    return [key_is(key, False, or_absent=True, written=False) for key in keys]


def alias(key: str, own: str) -> configs.Entry:
    """A second name of the key `own`, which the class does not read: it must say the same, where both are there."""
    return configs.repeats(key, own, written=False)


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


def head_dim(default: int | None = None) -> configs.Entry:
    """Left out it is `default`, or else hidden size / heads, which null always means; transformers rounds down."""
    return derived(
        "head_dim", "attention.head_dim", "hidden_size / num_attention_heads", rounding="floor", default=default
    )


def usual_head_dim() -> configs.Entry:
    """hidden size / heads, of classes that size other things by it: a `head_dim` in the config may only repeat it."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
        if type(hidden) is not int or type(heads) is not int or heads < 1:
            return  # their own lines say what is wrong
        if hidden % heads or config.get("head_dim") not in (None, hidden // heads):
            raise CkptError(
                "key 'head_dim' is not hidden_size / num_attention_heads, as this class has it",
                found=f"head_dim = {config.get('head_dim')}, {hidden} / {heads}",
            )
        facts["attention.head_dim"] = hidden // heads

    return decided(
        ["head_dim"],
        ["attention.head_dim"],
        read=read,
        values={"head_dim": [configs.value_of("attention.head_dim")]},
        uses=["hidden_size", "num_attention_heads"],
        why="always hidden_size / num_attention_heads, which must be a whole number",
    )


def divides(architecture: Architecture) -> str | None:
    """transformers 5 rejects it (`validate_architecture` of the class), even with head_dim given."""
    layer = architecture.decoder.layers[0] if architecture.decoder else None
    attention = layer and (layer.attention or layer.latent_attention)
    if attention and architecture.hidden % attention.heads:
        return f"transformers requires hidden_size={architecture.hidden} to be a multiple of num_attention_heads={attention.heads}"
    return None


Rule = Callable[[int, Mapping[str, Any]], bool]

WINDOWED = configs.layers_of("attention.window", rules.each(having="sliding_attention", lacking="full_attention"))


def _first_that_slides(windowed: tuple[bool, ...]) -> int:
    return windowed.index(True) if any(windowed) else len(windowed)


def windows(
    slides: Rule, *, default: int | None = None, by_count: bool = False, uses: Iterable[str] = ()
) -> configs.Entry:
    """Which layers see a window only: `layer_types` where given, else the rule of the family's config class.

    `default` is the class's window. `by_count`: the class knows `max_window_layers` too. `uses` are further keys that `slides` looks at.
    """

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        present = given_windows(config, facts["layers"])
        window = config.get("sliding_window", default)
        used = values.checked("use_sliding_window", config.get("use_sliding_window", False), values.flag)
        if used and window is not None:
            enter_windows(
                facts, window, present or schema.PerLayer(slides(index, config) for index in range(facts["layers"]))
            )

    keys: tuple[str, ...] = ("use_sliding_window", "sliding_window", "layer_types")
    some: tuple[object, ...] = (True, configs.value_of("attention.window"), WINDOWED)
    none: tuple[object, ...] = (False, None, WINDOWED)
    if by_count:
        # transformers before 4.52 has no layer_types: there the layers from max_window_layers on slide.
        keys = (*keys, "max_window_layers")
        some = (*some, configs.layers_of("attention.window", _first_that_slides))
        none = (*none, configs.value_of("layers"))
    return decided(
        keys,
        ["attention.window", "attention.window?"],
        read=read,
        values={keys: [some, none]},
        uses=["layers", *uses],
        why="use_sliding_window says whether any layer has a window, layer_types which; without it the class has a rule",
    )


def given_windows(config: Mapping[str, Any], layers: int) -> schema.PerLayer | None:
    """Which layers have a window by `layer_types`; None without that key."""
    return given_layers("layer_types", config, layers, having="sliding_attention", lacking="full_attention")


SPARSE = configs.layers_of("mlp.moe", rules.each(having="sparse", lacking="dense"))


def sparse_layers(config: Mapping[str, Any], layers: int, dense: int = 1) -> schema.PerLayer:
    """Which layers have experts by `mlp_layer_types`; all but the first `dense` without that key. `CkptError` if none has."""
    sparse = given_layers("mlp_layer_types", config, layers, having="sparse", lacking="dense")
    sparse = sparse or schema.PerLayer(index >= dense for index in range(layers))
    if not any(sparse):
        raise CkptError("key 'mlp_layer_types' has no layer with experts", found=f"{layers} dense layers")
    return sparse


def layers_with_experts(dense: int, *, counted: str = "") -> configs.Entry:
    """`mlp_layer_types`; without it all layers but the first `dense` have experts. `counted`: a key that says how many these are."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        first = values.checked(counted, config.get(counted, dense), values.count) if counted else dense
        sparse = sparse_layers(config, facts["layers"], first)
        if not all(sparse):
            facts["mlp.moe?"] = sparse

    usual = "all but the first do" if dense else "all do"
    return decided(
        ["mlp_layer_types", *([counted] if counted else [])],
        ["mlp.moe?"],
        read=read,
        values={"mlp_layer_types": [SPARSE]},
        uses=["layers", "mlp.moe.*"],
        why="mlp_layer_types says which layers have experts; without it "
        + (f"all but the first do, as many as {counted} says" if counted else usual),
    )


def given_layers(
    key: str, config: Mapping[str, Any], layers: int, *, having: str, lacking: str
) -> schema.PerLayer | None:
    """Which layers are of the kind `having` in a list of kinds, one for each layer; None without that key."""
    kinds = config.get(key)
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (having, lacking) for kind in kinds):
        raise CkptError(f"key {key!r} is not one known kind per layer", found=str(kinds)[:80])
    return schema.PerLayer(kind == having for kind in kinds)


def alternating_windows(default: int, *, period: int = 2, period_key: str = "") -> configs.Entry:
    """The layers of `layer_types` see a window; without it all but every `period`-th do (Gemma 2 and 3, OLMo 3, Cohere 2).

    `default` is the class's window. `period_key`: the class reads the period from this key, where there is no `layer_types`.
    """

    def slides(index: int, layers: int, config: Mapping[str, Any]) -> bool:
        given = config.get(period_key) if period_key else None
        every = period if given is None else values.checked(period_key, given, values.whole)
        return (index + 1) % every != 0

    usual = "every second one, the first among them" if period == 2 else f"all but every {period}-th layer"
    return typed_windows(
        default,
        slides,
        usual + (f", or every n-th by {period_key}" if period_key else ""),
        keys=[period_key] if period_key else [],
    )


def typed_windows(
    default: int, slides: Callable[[int, int, Mapping[str, Any]], bool], usual: str, *, keys: Sequence[str] = ()
) -> configs.Entry:
    """The layers of `layer_types` see a window; without it those do that the class chooses, which `slides` says and `usual` puts in words.

    `slides` gets the index of a layer, the number of layers and the config, of which it may look at `keys`. `default` is the
    class's window.
    """

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        layers = facts["layers"]
        present = given_windows(config, layers)
        if present is None:
            present = schema.PerLayer(slides(index, layers, config) for index in range(layers))
        window = config.get("sliding_window", default)
        enter_windows(facts, window, present)

    return decided(
        ["sliding_window", "layer_types", *keys],
        ["attention.window", "attention.window?"],
        read=read,
        # the class builds the mask of windows even where no layer uses it, and needs a size for it
        values={
            ("sliding_window", "layer_types"): [
                (configs.value_of("attention.window"), WINDOWED),
                (default, WINDOWED),
            ]
        },
        uses=["layers"],
        why=f"layer_types says which layers have a window; without it {usual}",
    )


def qk_norm(name: str, *, default: bool, **norm: object) -> configs.Entry:
    """Whether q and k have norms, of the epsilon of all others; `default` where the key is left out. `norm` is of which kind they are."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        if values.checked(name, config.get(name, default), values.flag):
            said = {"eps": facts["final_norm.eps"], **norm}
            facts.update({f"attention.qk_norm.{fact}": value for fact, value in said.items()})

    return decided(
        [name],
        ["attention.qk_norm.*"],
        read=read,
        uses=["final_norm.eps"],
        values={name: [False, True]},
        why="whether q and k have norms, of the epsilon of all others",
    )


def rotated_with_window() -> configs.Entry:
    """The layers with a window rotate, and no others."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        windowed = facts.present("attention.window")
        if windowed is not True:
            facts["attention.rotary?"] = windowed or schema.PerLayer([False] * facts["layers"])

    return decided(
        [],
        ["attention.rotary?"],
        read=read,
        values={},
        uses=["layers", "attention.window", "attention.rotary.*"],
        why="the layers with a window rotate, and no others",
    )


def scaled_embedding(name: str, width: str, *, default: bool) -> configs.Entry:
    """Whether the embedding is multiplied by the square root of its width, which the key `width` says."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        scaled = config.get(name, default)
        if values.checked(name, default if scaled is None else scaled, values.flag):
            facts["tokens.scale"] = config[width] ** 0.5

    return decided(
        [name],
        ["tokens.scale"],
        read=read,
        values={name: (False, True)},
        uses=[width],
        tolerance=1e-6,  # frameworks round the root to their own precision
        why=f"whether the embedding is multiplied by the square root of {width}",
    )


def enter_windows(facts: Facts, window: object, present: schema.PerLayer) -> None:
    """Enter the window of the layers in `present`. `CkptError` where some layer has one and there is no size for it."""
    if any(present):
        if window is None:
            raise CkptError(
                "key 'sliding_window' is null, and transformers then builds no mask",
                fix="say in layer_types that no layer slides",
            )
        facts["attention.window"] = window
        if not all(present):
            facts["attention.window?"] = present


def dense_width() -> configs.Entry:
    """The width of the layers without experts. A width that no layer has is kept as a note: transformers wants the key."""
    return configs.in_other_layers(
        "intermediate_size",
        "mlp.ffn",
        than="mlp.moe",
        unused="unused_ffn",
        fallback="mlp.moe.ffn",
        type=values.whole,
    )


def code_of_its_author(other: str) -> Callable[[Architecture], Iterable[ledgers.Loss]]:
    """The losses of a family whose `model_type` transformers does not have; `other` is one that it has, and that is the same model."""
    why = f"transformers has no such type: load it with the code of its author, or write it with -o hf_class={other}"
    return lambda architecture: [ledgers.Loss("assumed", "model_type", why)]
