"""What the config of a NeMo T5 or UL2 model says: a section for the encoder, one for the decoder, and the head.

Read with the defaults of the code (NeMo r1.16, token_level_encoder_decoder.py), which are not those of the YAML files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    Activation,
    CkptError,
    Config,
    Facts,
    configs,
    decided,
    derived,
    fact_is,
    ignore,
    key,
    key_is,
    note,
    schema,
    values,
)
from ckpt_nemo.gpt.config import TRAINING
from ckpt_nemo.values import Values, flag, whole

LEFT_OUT, value_of = configs.LEFT_OUT, configs.value_of
SECTIONS = ("encoder", "decoder")
BLOCKS = {"encoder": ["encoder.attention"], "decoder": ["decoder.attention", "decoder.cross_attention"]}

_KINDS = {
    "rmsnorm": {"kind": "rms", "bias": False, "zero_centred": False},
    "layernorm": {"kind": "layer", "bias": True, "zero_centred": False},
    "layernorm1p": {"kind": "layer", "bias": True, "zero_centred": True},
}
_GELU = ("gelu", "geglu")
_OTHERS = {"reglu": Activation.RELU, "swiglu": Activation.SILU}


def sections(config: Values) -> dict[str, Any]:
    """The config as flat keys, `encoder.num_layers`. Before NeMo 1.11 there are no sections: both stacks are alike."""
    if all(isinstance(config.get(section), Mapping) for section in SECTIONS):
        top = {key: value for key, value in config.items() if key not in SECTIONS}
        parts = {section: config[section] for section in SECTIONS}
    else:
        top = dict(config)
        parts = {section: {**config, "arch": config.get(f"{section}_arch", "transformer")} for section in SECTIONS}
        top["tokens_head_bias"] = top.get("share_decoder_tokens_head_embeddings") is not False
    return top | {f"{section}.{key}": value for section in SECTIONS for key, value in parts[section].items()}


def nested(flat: Values, base: Values) -> dict[str, Any]:
    """Flat keys entered into a config with sections; everything else in `base` stays."""
    config = {
        name: dict(value) if name in SECTIONS and isinstance(value, Mapping) else value for name, value in base.items()
    }
    for name, value in flat.items():
        section, dot, rest = name.partition(".")
        if dot:
            config.setdefault(section, {})[rest] = value
        else:
            config[name] = value
    return config


# --- both stacks together --------------------------------------------------------------------------------------------


def _hidden() -> configs.Entry:
    keys = tuple(f"{section}.hidden_size" for section in SECTIONS)

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        found = [whole(config, key) for key in keys]
        if found[0] != found[1]:
            raise CkptError(
                "the stacks have different widths, which NeMo refuses too",
                found=f"{keys[0]} = {found[0]}, {keys[1]} = {found[1]}",
            )
        facts["hidden"] = found[0]

    said = (value_of("hidden"), value_of("hidden"))
    return decided(keys, ["hidden"], read=read, values={keys: [said]}, why="one width for both stacks")


def _position_count() -> configs.Entry:
    """One number for the learned positions of both stacks; with relative positions it is a note."""
    kinds = {section: f"{section}.position_embedding_type" for section in SECTIONS}
    counts = [f"{section}.positions.count" for section in SECTIONS]

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        for section, kind in kinds.items():
            if config.get(kind, "learned_absolute") == "learned_absolute":
                facts[f"{section}.positions.count"] = whole(config, "max_position_embeddings")

    return decided(
        ["max_position_embeddings"],
        counts,
        read=read,
        values={"max_position_embeddings": [LEFT_OUT, *map(value_of, counts)]},
        uses=list(kinds.values()),
        why="one number of learned positions, for each stack that has such, which then has no relative ones",
    )


# --- one stack -------------------------------------------------------------------------------------------------------


def _norms(section: str) -> configs.Entry:
    """`normalization` and its epsilon. `layernorm1p` stores gamma - 1."""
    kind_key, eps_key = f"{section}.normalization", f"{section}.layernorm_epsilon"
    norms = [*(f"{block}.norm" for block in BLOCKS[section]), f"{section}.mlp.norm", f"{section}.final_norm"]

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        kind = config.get(kind_key, "layernorm")
        if kind not in _KINDS:
            raise CkptError(f"key {kind_key!r} has an unknown value", found=repr(kind)[:60], expected=", ".join(_KINDS))
        eps = float(values.checked(eps_key, config.get(eps_key, 1e-5), values.number))
        for norm in norms:
            facts.update({f"{norm}.{name}": value for name, value in {**_KINDS[kind], "eps": eps}.items()})

    return decided(
        [kind_key, eps_key],
        [f"{norm}.*" for norm in norms],
        read=read,
        values={kind_key: [*_KINDS], eps_key: [value_of(f"{norms[0]}.eps")]},
        why="all norms of a stack are of one kind, with one epsilon, and a LayerNorm has a bias",
    )


def _positions(section: str) -> configs.Entry:
    """A table of relative biases for the whole stack, or one of learned positions."""
    kind, buckets, distance, self_only = (
        f"{section}.{name}"
        for name in (
            "position_embedding_type",
            "relative_attention_num_buckets",
            "relative_attention_max_distance",
            "relative_position_bias_self_attention_only",
        )
    )
    own, crossing, decodes = f"{section}.relative_bias", "decoder.cross_relative_bias", section == "decoder"

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        said = config.get(kind, "learned_absolute")
        if said == "relative":
            # distances count both ways in the encoder and across, and backwards in the decoder
            tables = {own: not decodes}
            if decodes and not flag(config, self_only, True):
                tables[crossing] = True
            for table, both_ways in tables.items():
                facts[f"{table}.buckets"], facts[f"{table}.max_distance"] = (
                    whole(config, buckets, 32),
                    whole(config, distance, 128),
                )
                facts[f"{table}.bidirectional"] = both_ways
        elif said != "learned_absolute":
            raise CkptError(
                f"{kind}: {said!r} is not supported", found=f"{kind}: {said!r}", expected="relative, learned_absolute"
            )

    sizes = (value_of(f"{own}.buckets"), value_of(f"{own}.max_distance"))
    return decided(
        [kind, buckets, distance, self_only],
        [f"{own}.*", *([f"{crossing}.*"] if decodes else [])],
        read=read,
        values={
            kind: ["relative", "learned_absolute"],
            self_only: [True, False] if decodes else [True],
            (buckets, distance): [sizes, (LEFT_OUT, LEFT_OUT)],
        },
        why="one table of relative biases for a whole stack, and one of the same size across; without them positions are learned",
    )


def _scores(section: str) -> configs.Entry:
    """The factors of scores and of the relative bias in layer L (from 1):

        normalize   query_key_layer_scaling    scores
        True        False                      q.k / sqrt(kv_channels) + bias
        True        True                       q.k / sqrt(kv_channels) + L bias
        False       False                      q.k + bias
        False       True                       L (q.k + bias)

    NeMo divides q.k by L, adds the bias, and multiplies the sum by L; the code's default for both keys is True.
    """
    normalise, by_layer = f"{section}.normalize_attention_scores", f"{section}.apply_query_key_layer_scaling"
    count, blocks = f"{section}.num_layers", BLOCKS[section]
    tables = dict(zip(blocks, (f"{section}.relative_bias", f"{section}.cross_relative_bias"), strict=False))

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        layers = values.checked(count, config.get(count), values.layers)
        normalises, numbers = flag(config, normalise, True), flag(config, by_layer, True)
        numbered = schema.PerLayer(float(index + 1) for index in range(layers))
        for block in blocks:
            if not normalises:
                facts[f"{block}.scale"] = numbered if numbers else 1.0
            if numbers and facts.present(tables[block]):
                facts[f"{block}.relative_bias_scale"] = numbered

    paths = [f"{block}.{name}" for block in blocks for name in ("scale", "relative_bias_scale")]
    return decided(
        [normalise, by_layer],
        [*paths, *(f"{path}?" for path in paths)],
        read=read,
        values={(normalise, by_layer): [(True, False), (False, False), (True, True), (False, True)]},
        uses=[count, *(f"{table}.*" for table in tables.values())],
        why="scores are divided by the root of kv_channels or not; the relative bias, or undivided scores too, are multiplied by the number of the layer or not",
    )


def _activation(section: str) -> configs.Entry:
    """The function of the MLP. `activation` alone does not say it (ParallelMLP, r1.16):

    1. `bias_activation_fusion` (once bias_gelu_fusion): the fused kernel computes the tanh form of GELU.
    2. `openai_gelu`: the tanh form, whatever `activation` names. A model that NVIDIA's script made of a gated-silu one has it.
    3. gelu, geglu: the erf form. `onnx_safe` puts another GELU in place of what remains.
    """
    key, openai, fusion, old_fusion, onnx, bias = (
        f"{section}.{name}"
        for name in ("activation", "openai_gelu", "bias_activation_fusion", "bias_gelu_fusion", "onnx_safe", "bias")
    )
    gated, function = f"{section}.mlp.gated", f"{section}.mlp.activation"

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        name = config.get(key, "gelu")
        if name not in (*_GELU, *_OTHERS):
            raise CkptError(
                f"key {key!r} has an unknown value", found=repr(name)[:60], expected=", ".join((*_GELU, *_OTHERS))
            )
        biased = flag(config, bias, True)
        fused = flag(config, old_fusion if old_fusion in config and fusion not in config else fusion, biased)
        if fused and (name in _OTHERS or not biased) and (fusion in config or old_fusion in config):
            raise CkptError(
                f"{fusion} needs biases and a GELU: NeMo does not build such a model",
                found=f"{key}: {name}, {bias}: {biased}",
            )
        facts[gated] = name != "gelu"
        if flag(config, openai) or (fused and name in _GELU):
            facts[function] = Activation.GELU_TANH
        elif name in _GELU:
            facts[function] = Activation.GELU_ERF
        elif flag(config, onnx):
            raise CkptError(
                f"{onnx}: true puts an approximate GELU in place of {name}", found=f"{key}: {name}", expected="false"
            )
        else:
            facts[function] = _OTHERS[name]

    return decided(
        [key, openai, fusion, old_fusion, onnx],
        [gated, function],
        read=read,
        values={key: [*_GELU, *_OTHERS], openai: [False, True], fusion: [False], onnx: [False]},
        uses=[bias],
        why="the tanh form of GELU is a fused kernel or openai_gelu, whatever activation says",
    )


def _stack(section: str) -> list[configs.Entry | list[Any]]:
    blocks, mlp = BLOCKS[section], f"{section}.mlp"
    biases = [f"{block}.{part}_bias" for block in blocks for part in ("q", "k", "v", "out")]
    biases += [f"{mlp}.up_bias", f"{mlp}.down_bias"]
    heads, hidden = f"{section}.num_attention_heads", f"{section}.hidden_size"
    own: list[Any] = [
        fact_is(f"{section}.causal", section == "decoder"),
        key(f"{section}.num_layers", f"{section}.layers"),
        key(heads, *(f"{block}.{name}" for block in blocks for name in ("heads", "groups"))),
        derived(f"{section}.kv_channels", [f"{block}.head_dim" for block in blocks], f"{hidden} / {heads}"),
        key(f"{section}.ffn_hidden_size", f"{mlp}.ffn"),
        key(f"{section}.bias", *biases, default=True),
        key(f"{section}.headscale", *(f"{block}.head_scale" for block in blocks), default=False),
        _norms(section),
        _positions(section),
        _scores(section),
        _activation(section),
        key_is(
            f"{section}.arch",
            "transformer",
            None,
            or_absent=True,
            why="a perceiver attends from latent vectors, which no other format has",
        ),
        key_is(
            f"{section}.transformer_block_type",
            "pre_ln",
            None,
            or_absent=True,
            why="normformer has further norms, post_ln no norm at the end",
        ),
        key_is(
            f"{section}.num_moe_experts",
            1,
            None,
            or_absent=True,
            why="its experts are weighted by a sigmoid of the router (SwitchMLP)",
        ),
        key_is(
            f"{section}.window_size",
            None,
            or_absent=True,
            why="windows came with NeMo 1.21, for models with flash attention",
            written=False,
        ),
        key_is(
            f"{section}.rotary_percentage",
            1.0,
            None,
            or_absent=True,
            why="rotary positions are not supported",
            written=False,
        ),
    ]
    own += ignore(f"{section}.megatron_legacy", why="how q, k and v lie in the fused tensors: read with them")
    own += ignore(
        *(f"{section}.{name}" for name in ("hidden_steps", "num_self_attention_per_cross_attention")),
        why="a perceiver's",
    )
    own += ignore(
        *(
            f"{section}.{name}"
            for name in ("moe_frequency", "moe_dropout", "use_flash_attention", "normalize_attention_scores_in_fp32")
        ),
        why="how to train, or without effect in such a model",
    )
    return own


_STACKS = [entry for section in SECTIONS for entry in _stack(section)]
_KNOWN = {key for entry in Config("", _STACKS).entries for key in entry.keys}
_FLAT = sorted({key.partition(".")[2] for key in _KNOWN})
_TRAINING = [entry.key for entry in TRAINING]

# fmt: off
T5 = Config("MegatronT5Model", [
    # of a config without sections, or that NeMo wrote both ways: what counts are the sections, which have the same keys
    ignore(*_TRAINING, *(key for key in _FLAT if key not in _TRAINING), "hidden_size", "encoder_arch", "decoder_arch",
           why="how to train; or a copy of what a section says"),
    [entry for section in SECTIONS for entry in ignore(
        *(f"{section}.{key}" for key in dict.fromkeys((*_TRAINING, "tokenizer", "seq_length", "max_position_embeddings", "encoder_arch",
          "decoder_arch", "share_token_embeddings", "share_decoder_tokens_head_embeddings", "tokens_head_bias", "pre_process", "post_process",
          "library", "hiddens", "embedding_dropout", "embedding_init_method_std", "label_smoothing")) if f"{section}.{key}" not in _KNOWN),
        why="how to train; or a copy of what stands beside the sections")],
    ignore("embedding_dropout", "label_smoothing", "library", "with_distributed_adam", "task_templates",
           why="how to train"),
    ignore("seq_length", why="the length of training samples"),
    ignore("share_token_embeddings", why="the tables of both stacks are read, and have to be equal"),
    fact_is("kind", "encoder-decoder"),
    _hidden(),
    # NeMo computes the rows of the embedding from the tokenizer
    configs.elsewhere("tokens.vocabulary", "tokens.padded_vocabulary", why="the rows of the embedding in the files"),
    note("max_position_embeddings", "max_positions", default=512, gives_way=True),
    _position_count(),
    *_STACKS,
    key("share_decoder_tokens_head_embeddings", "head.tied", default=True),
    key("tokens_head_bias", "head.bias", default=True),
    key_is("hiddens", None, or_absent=True, why="transformations between encoder and decoder", written=False),
])
# fmt: on
