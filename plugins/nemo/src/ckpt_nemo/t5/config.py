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
    Custom,
    Entry,
    Facts,
    PerLayer,
    Refusal,
    custom,
    fact_is,
    ignore,
    key,
    note,
    uniform,
)
from ckpt_nemo.gpt.config import TRAINING

Values = Mapping[str, Any]
SECTIONS = ("encoder", "decoder")
BLOCKS = {"encoder": ["encoder.attention"], "decoder": ["decoder.attention", "decoder.cross_attention"]}

_KINDS = {
    "rmsnorm": {"kind": "rms", "bias": False, "zero_centred": False},
    "layernorm": {"kind": "layer", "bias": True, "zero_centred": False},
    "layernorm1p": {"kind": "layer", "bias": True, "zero_centred": True},
}
_GELU = ("gelu", "geglu")
_MAX_LAYERS = 100_000
_OTHERS = {"reglu": Activation.RELU, "swiglu": Activation.SILU}


def flag(config: Values, key: str, default: bool) -> bool:
    """A key that is true or false; left out or null it is `default`."""
    value = config.get(key)
    if value is not None and type(value) is not bool:
        raise CkptError(f"key {key!r} is neither true nor false", found=repr(value)[:60])
    return default if value is None else value


def whole(config: Values, key: str, default: int | None = None, limit: int = 1 << 40) -> int:
    """A key that is a positive whole number below `limit`."""
    value = config.get(key, default)
    if type(value) is not int or not 0 < value < limit:
        raise CkptError(f"key {key!r} is not a positive whole number", found=repr(value)[:60])
    return value


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


def _hidden() -> Custom:
    keys = [f"{section}.hidden_size" for section in SECTIONS]

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        found = [whole(config, key) for key in keys]
        if found[0] != found[1]:
            raise CkptError(
                "the stacks have different widths, which NeMo refuses too",
                found=f"{keys[0]} = {found[0]}, {keys[1]} = {found[1]}",
            )
        facts["hidden"] = found[0]

    return custom(
        keys,
        ["hidden"],
        read=read,
        write=lambda facts, notes, config: config.update(dict.fromkeys(keys, facts["hidden"])),
    )


def _tokens() -> Custom:
    """No key says how many rows the embedding has: the files do, and NeMo computes it from the tokenizer."""
    claims = ["tokens.vocabulary", "tokens.padded_vocabulary"]
    return custom([], claims, read=lambda config, facts, notes: None, write=lambda facts, notes, config: None)


def refused(key: str, value: object, why: str, *, written: bool = True) -> Custom:
    """A key whose values other than `value` change what is computed in a way that no table here says."""

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        if config.get(key) not in (None, value):
            raise CkptError(
                f"{key}: {config[key]!r} is not supported: {why}", found=f"{key}: {config[key]!r}", expected=repr(value)
            )

    return custom(
        [key], [], read=read, write=lambda facts, notes, config: config.update({key: value} if written else {})
    )


# --- one stack -------------------------------------------------------------------------------------------------------


def _width(section: str) -> Custom:
    """`kv_channels`, the elements of a head; null means hidden size / heads."""
    key, heads, hidden = (f"{section}.{name}" for name in ("kv_channels", "num_attention_heads", "hidden_size"))
    paths = [f"{block}.head_dim" for block in BLOCKS[section]]

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        if config.get(key) is None and whole(config, hidden) % whole(config, heads):
            raise CkptError(
                f"{hidden}={config[hidden]} is not a multiple of {heads}={config[heads]}, and {key} is null"
            )
        width = whole(config, key) if config.get(key) is not None else whole(config, hidden) // whole(config, heads)
        facts.update(dict.fromkeys(paths, width))

    def write(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
        config[key] = _one_value(facts, paths, key)

    return custom([key], paths, read=read, write=write)


def _one_value(facts: Facts, paths: list[str], key: str) -> Any:
    found = {path: uniform(facts, path) for path in paths}
    if len(set(found.values())) > 1:
        raise Refusal(f"{key} is one value", found=", ".join(f"{path} = {value}" for path, value in found.items()))
    return found[paths[0]]


def _norms(section: str) -> Custom:
    """`normalization` and its epsilon. `layernorm1p` stores gamma - 1."""
    kind_key, eps_key = f"{section}.normalization", f"{section}.layernorm_epsilon"
    norms = [*(f"{block}.norm" for block in BLOCKS[section]), f"{section}.mlp.norm", f"{section}.final_norm"]

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        kind = config.get(kind_key, "layernorm")
        if kind not in _KINDS:
            raise CkptError(f"key {kind_key!r} has an unknown value", found=repr(kind)[:60], expected=", ".join(_KINDS))
        eps = config.get(eps_key, 1e-5)
        if isinstance(eps, bool) or not isinstance(eps, int | float):
            raise CkptError(f"key {eps_key!r} is not a number", found=repr(eps)[:60])
        for norm in norms:
            facts.update({f"{norm}.{name}": value for name, value in {**_KINDS[kind], "eps": float(eps)}.items()})

    def write(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
        said = {
            name: _one_value(facts, [f"{norm}.{name}" for norm in norms], kind_key)
            for name in ("kind", "bias", "zero_centred")
        }
        kind = next((kind for kind, values in _KINDS.items() if values == said), None)
        if kind is None or not all(facts.get(f"{norm}.weight") is True for norm in norms):
            raise Refusal(f"{kind_key} has no name for such norms", found=str(said), expected=", ".join(_KINDS))
        config[kind_key] = kind
        config[eps_key] = _one_value(facts, [f"{norm}.eps" for norm in norms], eps_key)

    return custom([kind_key, eps_key], [f"{norm}.*" for norm in norms], read=read, write=write)


def _positions(section: str) -> Custom:
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
    crossing = "decoder.cross_relative_bias"

    def table(config: Values, both_ways: bool) -> dict[str, object]:
        return {
            "buckets": whole(config, buckets, 32),
            "max_distance": whole(config, distance, 128),
            "bidirectional": both_ways,
        }

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        said = config.get(kind, "learned_absolute")
        if said == "relative":
            facts.update(
                {
                    f"{section}.relative_bias.{name}": value
                    for name, value in table(config, section == "encoder").items()
                }
            )
            if section == "decoder" and not flag(config, self_only, True):
                facts.update({f"{crossing}.{name}": value for name, value in table(config, True).items()})
        elif said != "learned_absolute":
            raise CkptError(
                f"{kind}: {said!r} is not supported", found=f"{kind}: {said!r}", expected="relative, learned_absolute"
            )

    def write(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
        relative, learned = facts.present(f"{section}.relative_bias"), facts.present(f"{section}.positions")
        if relative is learned or not isinstance(relative, bool):
            raise Refusal(
                f"{kind} is relative or learned_absolute", found=f"{section} with {'both' if relative else 'neither'}"
            )
        config[kind] = "relative" if relative else "learned_absolute"
        config[self_only] = section == "encoder" or not facts.present(crossing)
        if learned:
            return
        found = [facts[f"{path}.{name}"] for path in _tables_of(facts, section) for name in ("buckets", "max_distance")]
        if found[:2] != found[-2:]:
            raise Refusal(f"{buckets} and {distance} are those of both tables", found=str(found))
        config[buckets], config[distance] = found[:2]
        if (
            facts[f"{section}.relative_bias.bidirectional"] is not (section == "encoder")
            or facts.get(f"{crossing}.bidirectional", True) is not True
        ):
            raise Refusal(
                "distances count both ways in the encoder and across, and backwards in the decoder",
                found=f"{section}.relative_bias.bidirectional = {facts[f'{section}.relative_bias.bidirectional']}",
            )

    claims = [
        f"{section}.relative_bias.*",
        *([f"{crossing}.*"] if section == "decoder" else []),
    ]
    uses = [f"{section}.positions.*", "decoder.cross_relative_bias.*"]
    return custom([kind, buckets, distance, self_only], claims, read=read, write=write, uses=uses)


def _position_count() -> Custom:
    """One number for the learned positions of both stacks; with relative positions it is a note."""
    kinds = {section: f"{section}.position_embedding_type" for section in SECTIONS}

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        for section, kind in kinds.items():
            if config.get(kind, "learned_absolute") == "learned_absolute":
                facts[f"{section}.positions.count"] = whole(config, "max_position_embeddings")

    def write(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
        counts = {section: facts.get(f"{section}.positions.count") for section in SECTIONS}
        learned = {count for count in counts.values() if count is not None}
        if len(learned) > 1:
            found = ", ".join(f"{count} in the {section}" for section, count in counts.items())
            raise Refusal("max_position_embeddings is one number", found=found)
        if learned:
            config["max_position_embeddings"] = learned.pop()

    return custom(
        ["max_position_embeddings"],
        [f"{section}.positions.count" for section in SECTIONS],
        read=read,
        write=write,
        uses=list(kinds.values()),
        why="the number of learned positions, where a stack has such",
    )


def _tables_of(facts: Facts, section: str) -> list[str]:
    return [
        f"{section}.relative_bias",
        *(
            ["decoder.cross_relative_bias"]
            if section == "decoder" and facts.present("decoder.cross_relative_bias")
            else []
        ),
    ]


def _scores(section: str) -> Custom:
    """The factors of scores and of the relative bias in layer L (from 1):

        normalize   query_key_layer_scaling    scores
        True        False                      q.k / sqrt(kv_channels) + bias
        True        True                       q.k / sqrt(kv_channels) + L bias
        False       False                      q.k + bias
        False       True                       L (q.k + bias)

    NeMo divides q.k by L, adds the bias, and multiplies the sum by L; the code's default for both keys is True.
    """
    normalise, by_layer = f"{section}.normalize_attention_scores", f"{section}.apply_query_key_layer_scaling"
    blocks = BLOCKS[section]

    def entered(facts: Facts, layers: int, biased: list[str], normalises: bool, numbers: bool) -> None:
        per_layer = PerLayer(float(index + 1) for index in range(layers))
        for block in blocks:
            if not normalises:
                facts[f"{block}.scale"] = per_layer if numbers else 1.0
            if numbers and block in biased:
                facts[f"{block}.relative_bias_scale"] = per_layer

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        biased = [
            block
            for block, table in zip(blocks, ("relative_bias", "cross_relative_bias"), strict=False)
            if facts.present(f"{section}.{table}")
        ]
        entered(
            facts,
            whole(config, f"{section}.num_layers", limit=_MAX_LAYERS),
            biased,
            flag(config, normalise, True),
            flag(config, by_layer, True),
        )

    def write(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
        layers = facts[f"{section}.layers"]
        biased = [
            block
            for block, table in zip(blocks, ("relative_bias", "cross_relative_bias"), strict=False)
            if facts.present(f"{section}.{table}")
        ]
        for normalises, numbers in ((True, False), (False, False), (True, True), (False, True)):
            wanted = Facts()
            entered(wanted, layers, biased, normalises, numbers)
            if all(_spread(facts, path, layers) == _spread(wanted, path, layers) for path in paths):
                config[normalise], config[by_layer] = normalises, numbers
                return
        found = ", ".join(f"{path} = {facts[path]}" for path in paths if path in facts)
        raise Refusal(f"{normalise} and {by_layer} say four scalings of scores, and this is none of them", found=found)

    paths = [f"{block}.{name}" for block in blocks for name in ("scale", "relative_bias_scale")]
    return custom([normalise, by_layer], [*paths, *(f"{path}?" for path in paths)], read=read, write=write)


def _spread(facts: Facts, path: str, layers: int) -> list[object]:
    """A factor in every layer; a scale of None is the usual one."""
    default = None if path.endswith(".scale") else 1.0
    value = facts.get(path, default)
    present = facts.get(f"{path}?", PerLayer([True] * layers))
    return [
        (value[index] if isinstance(value, PerLayer) else value) if present[index] else default
        for index in range(layers)
    ]


def _activation(section: str) -> Custom:
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
        if flag(config, openai, False) or (fused and name in _GELU):
            facts[function] = Activation.GELU_TANH
        elif name in _GELU:
            facts[function] = Activation.GELU_ERF
        elif flag(config, onnx, False):
            raise CkptError(
                f"{onnx}: true puts an approximate GELU in place of {name}", found=f"{key}: {name}", expected="false"
            )
        else:
            facts[function] = _OTHERS[name]

    def write(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
        kind, is_gated = uniform(facts, function), uniform(facts, gated)
        tanh = kind == Activation.GELU_TANH
        name = ("geglu" if is_gated else "gelu") if tanh or kind == Activation.GELU_ERF else None
        if name is None and is_gated:
            name = next((name for name, other in _OTHERS.items() if other == kind), None)
        if name is None:
            raise Refusal(
                f"{key} has no name for this",
                found=f"{function} = {kind}, {gated} = {is_gated}",
                expected=", ".join((*_GELU, *_OTHERS)),
            )
        config |= {key: name, openai: tanh, fusion: False, onnx: False}

    return custom([key, openai, fusion, old_fusion, onnx], [gated, function], read=read, write=write)


def _stack(section: str) -> list[Entry | list[Any]]:
    blocks, mlp = BLOCKS[section], f"{section}.mlp"
    biases = [f"{block}.{part}_bias" for block in blocks for part in ("q", "k", "v", "out")] + [
        f"{mlp}.up_bias",
        f"{mlp}.down_bias",
    ]
    own: list[Any] = [
        fact_is(f"{section}.causal", section == "decoder"),
        key(f"{section}.num_layers", f"{section}.layers"),
        key(f"{section}.num_attention_heads", *(f"{block}.{name}" for block in blocks for name in ("heads", "groups"))),
        _width(section),
        key(f"{section}.ffn_hidden_size", f"{mlp}.ffn"),
        key(f"{section}.bias", *biases, default=True),
        key(f"{section}.headscale", *(f"{block}.head_scale" for block in blocks), default=False),
        _norms(section),
        _positions(section),
        _scores(section),
        _activation(section),
        refused(
            f"{section}.arch", "transformer", why="a perceiver attends from latent vectors, which no other format has"
        ),
        refused(
            f"{section}.transformer_block_type",
            "pre_ln",
            why="normformer has further norms, post_ln no norm at the end",
        ),
        refused(f"{section}.num_moe_experts", 1, why="its experts are weighted by a sigmoid of the router (SwitchMLP)"),
        refused(
            f"{section}.window_size",
            None,
            why="windows came with NeMo 1.21, for models with flash attention",
            written=False,
        ),
        refused(f"{section}.rotary_percentage", 1.0, why="rotary positions are not supported", written=False),
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
    _tokens(),
    note("max_position_embeddings", "max_positions", default=512, gives_way=True),
    _position_count(),
    *_STACKS,
    key("share_decoder_tokens_head_embeddings", "head.tied", default=True),
    key("tokens_head_bias", "head.bias", default=True),
    refused("hiddens", None, why="transformations between encoder and decoder", written=False),
])
# fmt: on
