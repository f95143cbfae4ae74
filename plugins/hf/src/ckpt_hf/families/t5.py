"""T5 and its kin: T5, FLAN, UL2, mT5 (one relative bias per stack), and UMT5 (one in every layer).

Scores are not divided by anything, and the bias of a position depends on its bucket of distance. What differs between
the classes, and between versions 4 and 5 of transformers, is what becomes of the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
    drop,
    fact_is,
    ignore,
    key,
    key_is,
    layouts,
    ledgers,
    note,
    rewrites,
    row,
    same_as,
    values,
)
from ckpt_hf.common import GENERIC, SCALED_AND_CENTRED, Family, Same, norms, transformers_version
from ckpt_hf.weights import LM_HEAD

STACKS = ("encoder", "decoder")
BLOCKS = ("encoder.attention", "decoder.attention", "decoder.cross_attention")
MLPS = ("encoder.mlp", "decoder.mlp")
NORMS = tuple(f"{path}.norm" for path in (*BLOCKS, *MLPS)) + tuple(f"{stack}.final_norm" for stack in STACKS)

# The part of feed_forward_proj after "gated-"; the first name of a function is written. T5Config reads "gated-gelu" as
# "gated-gelu_new", the tanh form, and a plain "gelu" as the erf form.
_GATED: dict[str, Activation] = {
    "gelu": Activation.GELU_TANH, "gelu_new": Activation.GELU_TANH, "gelu_pytorch_tanh": Activation.GELU_TANH, "gelu_fast": Activation.GELU_TANH,
    "gelu_python": Activation.GELU_ERF, "silu": Activation.SILU, "swish": Activation.SILU, "relu": Activation.RELU,
    "quick_gelu": Activation.GELU_QUICK, "relu2": Activation.RELU_SQUARED,
}  # fmt: skip
_PLAIN: dict[str, Activation] = {
    "relu": Activation.RELU, "gelu": Activation.GELU_ERF, **{name: kind for name, kind in _GATED.items() if name != "gelu"}
}  # fmt: skip


_HEAD, _EMBEDDING = "lm_head.weight", "shared.weight"
_FEED_FORWARD = ("feed_forward_proj", "dense_act_fn", "is_gated_act")


def _feed_forward(default: str) -> configs.Entry:
    """`feed_forward_proj`, and the two keys that newer files derive from it, which then decide."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        said = config.get("feed_forward_proj", default)
        first, dash, last = said.partition("-")
        gated = bool(dash)
        name = last if gated else first
        if (gated and first != "gated") or name not in (_GATED if gated else _PLAIN):
            known = ", ".join([*_PLAIN, *(f"gated-{name}" for name in _GATED)])
            raise CkptError("key 'feed_forward_proj' has an unknown value", found=repr(said)[:60], expected=known)
        spelt = "gelu_new" if said == "gated-gelu" else name
        derived = {"dense_act_fn": spelt, "is_gated_act": gated}
        for setting, value in derived.items():
            if config.get(setting, value) != value:
                raise CkptError(
                    f"keys 'feed_forward_proj' and {setting!r} disagree",
                    found=f"{said!r} and {config[setting]!r}",
                    expected=repr(value),
                )
        for mlp in MLPS:
            facts[f"{mlp}.gated"] = gated
            facts[f"{mlp}.activation"] = (_GATED if gated else _PLAIN)[name]

    return decided(
        _FEED_FORWARD,
        [f"{mlp}.{fact}" for mlp in MLPS for fact in ("gated", "activation")],
        read=read,
        values={"feed_forward_proj": [*_PLAIN, *(f"gated-{name}" for name in _GATED)]},
        why="the function of the MLP, with gated- before it where it has a gate; dense_act_fn and is_gated_act must agree with it",
    )


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    return values.checked(key, config.get(key, default), values.flag)


def _version(config: Mapping[str, Any], why: str) -> tuple[int, int]:
    """The version of transformers that wrote a config whose meaning depends on it."""
    version = transformers_version(config)
    if version is None:
        raise CkptError(
            f"{why}, and this config does not say which version wrote it",
            found=f"tie_word_embeddings = {config.get('tie_word_embeddings')}, no transformers_version",
            fix="add the transformers_version that the model was trained or saved with",
        )
    return version


def _head(
    scale: Callable[[Mapping[str, Any], bool], float],
    written: Sequence[tuple[object, ...]],
    *,
    keys: tuple[str, ...] = ("tie_word_embeddings",),
    read_only: tuple[str, ...] = (),
    why: str,
) -> configs.Entry:
    """The head: tied or not, and the factor of the logits, which depends on that (`scale`) and on the class.

    `keys` are written as one of `written`, which every version of transformers that reads the file computes alike.
    """

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        tied = _flag(config, "tie_word_embeddings", True)
        facts["head.tied"] = tied
        facts["head.scale"] = scale(config, tied)

    return decided(
        [*keys, *read_only],
        ["head.tied", "head.scale"],
        read=read,
        values={keys: written},
        uses=["d_model", "transformers_version"],
        tolerance=1e-9,
        why=why,
    )


def _root(config: Mapping[str, Any]) -> float:
    return values.checked("d_model", config.get("d_model", 512), values.whole) ** -0.5


def _t5_scale(config: Mapping[str, Any], tied: bool) -> float:
    """Version 5 ties every head and keeps what the file said about it as `scale_decoder_outputs`."""
    return _root(config) if _flag(config, "scale_decoder_outputs", tied) else 1.0


def _mt5_scale(config: Mapping[str, Any], tied: bool) -> float:
    """Version 4 scales what a tied head gets; version 5 never does, and ties unless the file has a head."""
    if not tied:
        return 1.0
    version = _version(config, "versions 4 and 5 of transformers scale a tied head differently")
    return _root(config) if version < (5, 0) else 1.0


def _umt5_scale(config: Mapping[str, Any], tied: bool) -> float:
    """Version 4 scales what a tied head gets; 5.0 to 5.23 scale always; 5.24 is as T5 (configuration_umt5.py)."""
    known = transformers_version(config)
    if known is not None and known >= (5, 24):
        return _t5_scale(config, tied)
    if tied:
        return _root(config)
    version = known or _version(config, "versions 4 and 5 of transformers scale a head of its own differently")
    return 1.0 if version < (5, 0) else _root(config)


def _own_is_either(tied: bool, factor: float, root: float) -> bool:
    """UMT5 has a head of its own scaled or not, as its version and `scale_decoder_outputs` say."""
    return _close(factor, root) or (not tied and factor == 1)


def _close(one: float, two: float) -> bool:
    return math.isclose(one, two, rel_tol=1e-9)


def stored_head(config: Mapping[str, Any], names: Collection[str], same: Same) -> Mapping[str, Any]:
    """Version 5 writes `tie_word_embeddings: true` whatever the head; a head of its own is known by its tensor.

    It loads such a tensor, and ties it only where it equals the embedding (modeling_utils.py, `tie_weights`). A state dict in memory
    always has one.
    """
    head = next((name for name in sorted(names) if f".{name}".endswith(f".{_HEAD}")), None)
    if head is None or (transformers_version(config) or (0, 0)) < (5, 0):
        return config
    said = config.get("tie_word_embeddings") is not False
    tied = said and same(head, head.removesuffix(_HEAD) + _EMBEDDING)
    return {**config, "scale_decoder_outputs": config.get("scale_decoder_outputs", said), "tie_word_embeddings": tied}


# fmt: off
_COMMON = Config("", GENERIC).replace("",
    fact_is("kind", "encoder-decoder"),
    key_is("is_encoder_decoder", True, or_absent=True),
    fact_is("encoder.causal", False),
    fact_is("decoder.causal", True),
    key("d_model", "hidden"),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    key("num_layers", "encoder.layers"),
    key("num_decoder_layers", "decoder.layers", default=same_as("num_layers")),
    key("num_heads", *(f"{block}.{fact}" for block in BLOCKS for fact in ("heads", "groups"))),
    key("d_kv", *(f"{block}.head_dim" for block in BLOCKS), default=64),
    key("d_ff", *(f"{mlp}.ffn" for mlp in MLPS)),
    key("layer_norm_epsilon", *(f"{norm}.eps" for norm in NORMS), default=1e-6),
    norms("rms", *NORMS),
    [fact_is(f"{block}.scale", 1.0) for block in BLOCKS],
    note("n_positions", "max_positions"),
    note("bos_token_id", "bos"),
    note("decoder_start_token_id", "decoder_start", null=True),
    ignore("max_position_embeddings", "output_past", "scalable_attention", why="read by no version of the class"),
    ignore("dropout_rate", "classifier_dropout", "initializer_factor", why="training only"),
    without=["initializer_range", "attention_dropout", "max_position_embeddings"],
)


def _relative_bias(where: str) -> list[Any]:
    """The keys of the bias tables, which lie at `where` in each stack."""
    paths = [f"{stack}.{where}" for stack in STACKS]
    return [
        key("relative_attention_num_buckets", *(f"{path}.buckets" for path in paths), default=32),
        key("relative_attention_max_distance", *(f"{path}.max_distance" for path in paths), default=128),
        fact_is(f"encoder.{where}.bidirectional", True),
        fact_is(f"decoder.{where}.bidirectional", False),
    ]


T5 = _COMMON.replace("T5ForConditionalGeneration",
    _relative_bias("relative_bias"),
    _feed_forward("relu"),
    _head(_t5_scale, [(True,), (False,)], read_only=("scale_decoder_outputs",),
          why="a tied head gets the outputs times d_model ** -0.5, a head of its own gets them as they are"),
)

MT5 = T5.replace("MT5ForConditionalGeneration",
    _feed_forward("gated-gelu"),
    # a tied head is read by the version that wrote the file, and is not written: version 4 scales what it gets, version 5 does not
    _head(_mt5_scale, [(False,)], why="a head of its own, whose logits are not scaled, is what every version computes"),
    ignore("scale_decoder_outputs", why="a key of T5Config"),
)

UMT5 = MT5.replace("UMT5ForConditionalGeneration",
    _relative_bias("attention.relative_bias"),
    # versions disagree about a head of its own: the config says which one it is written for
    _head(_umt5_scale, [(True, configs.LEFT_OUT, configs.LEFT_OUT), (False, "5.24.0", False), (False, "5.0.0", True)],
          keys=("tie_word_embeddings", "transformers_version", "scale_decoder_outputs"),
          why="a tied head is scaled by d_model ** -0.5, a head of its own is or is not, as version and scale_decoder_outputs say"),
    without=[f"{stack}.relative_bias.bidirectional" for stack in STACKS],
)

MODEL = Table(rows=[
    row("shared.weight",                      "v h",       "embedding.tokens.weight"),
    row("encoder.embed_tokens.weight",        "v h",       "embedding.tokens.weight", copy=True),
    row("decoder.embed_tokens.weight",        "v h",       "embedding.tokens.weight", copy=True),
    row("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "b (g r)", "encoder.relative_bias.weight"),
    row("encoder.final_layer_norm.weight",    "h",         "encoder.final_norm.weight"),
    row("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "b (g r)", "decoder.relative_bias.weight"),
    row("decoder.final_layer_norm.weight",    "h",         "decoder.final_norm.weight"),
    *LM_HEAD,
])

# Of files converted before transformers 4.0.
LEFTOVERS = Table(rows=[
    drop("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", why="read by no version of the class"),
])

_SELF = [
    row("layer.0.layer_norm.weight",          "h",         "attention.norm.weight"),
    row("layer.0.SelfAttention.q.weight",     "(g r d) h", "attention.q.weight"),
    row("layer.0.SelfAttention.k.weight",     "(g d) h",   "attention.k.weight"),
    row("layer.0.SelfAttention.v.weight",     "(g d) h",   "attention.v.weight"),
    row("layer.0.SelfAttention.o.weight",     "h (g r d)", "attention.out.weight"),
    row("layer.0.SelfAttention.relative_attention_bias.weight", "b (g r)", "attention.relative_bias.weight"),
]

ENCODER = Table("encoder.block.{l}", to="encoder.layers.{l}", rows=[
    *_SELF,
    row("layer.1.layer_norm.weight",          "h",         "mlp.norm.weight"),
    row("layer.1.DenseReluDense.wi_0.weight", "f h",       "mlp.gate.weight"),
    row("layer.1.DenseReluDense.wi_1.weight", "f h",       "mlp.up.weight", when="mlp.gated"),
    row("layer.1.DenseReluDense.wi.weight",   "f h",       "mlp.up.weight", when="!mlp.gated"),
    row("layer.1.DenseReluDense.wo.weight",   "h f",       "mlp.down.weight"),
])

DECODER = Table("decoder.block.{l}", to="decoder.layers.{l}", rows=[
    *_SELF,
    row("layer.1.layer_norm.weight",          "h",         "cross_attention.norm.weight"),
    row("layer.1.EncDecAttention.q.weight",   "(g r d) h", "cross_attention.q.weight"),
    row("layer.1.EncDecAttention.k.weight",   "(g d) h",   "cross_attention.k.weight"),
    row("layer.1.EncDecAttention.v.weight",   "(g d) h",   "cross_attention.v.weight"),
    row("layer.1.EncDecAttention.o.weight",   "h (g r d)", "cross_attention.out.weight"),
    row("layer.2.layer_norm.weight",          "h",         "mlp.norm.weight"),
    row("layer.2.DenseReluDense.wi_0.weight", "f h",       "mlp.gate.weight"),
    row("layer.2.DenseReluDense.wi_1.weight", "f h",       "mlp.up.weight", when="mlp.gated"),
    row("layer.2.DenseReluDense.wi.weight",   "f h",       "mlp.up.weight", when="!mlp.gated"),
    row("layer.2.DenseReluDense.wo.weight",   "h f",       "mlp.down.weight"),
])

TABLES = layouts.Tables([MODEL, ENCODER, DECODER])
# fmt: on


def _plain(model: rewrites.Rewritable) -> rewrites.Rewritable:
    """What every class of the kin needs: unscaled scores, no head scale, no biases."""
    if len(model.architecture.stacks) < 2:
        return model  # none of the kin anyway
    return rewrites.without_zero_biases(
        rewrites.plain_relu(rewrites.folded_head_scale(rewrites.folded_attention_scale(model, 1.0)))
    )


def _as_t5(model: rewrites.Rewritable) -> rewrites.Rewritable:
    model = _plain(model)
    head = model.architecture.head
    if head is None or (head.tied and _close(head.scale, model.architecture.hidden**-0.5)):
        return model
    return rewrites.untied_head(
        rewrites.folded_logit_scale(model)
    )  # both versions of transformers leave a head of its own unscaled


def _as_mt5(model: rewrites.Rewritable) -> rewrites.Rewritable:
    return rewrites.untied_head(rewrites.folded_logit_scale(_plain(model)))


def _as_umt5(model: rewrites.Rewritable) -> rewrites.Rewritable:
    model, root = rewrites.own_relative_bias(_plain(model)), model.architecture.hidden**-0.5
    head = model.architecture.head
    if head is not None and _own_is_either(head.tied, head.scale, root):
        return model
    return rewrites.normed_logit_scale(model, root)


def _umt5_losses(architecture: Architecture) -> Iterator[ledgers.Loss]:
    if architecture.head is not None and not architecture.head.tied:
        scaled = architecture.head.scale != 1
        yield ledgers.Loss(
            "assumed",
            "transformers 5" if scaled else "transformers 4, or 5.24 and later",
            f"the logits of a UMT5 with a head of its own are {'not scaled by version 4' if scaled else 'scaled by versions 5.0 to 5.23'}",
        )


FAMILIES = [
    Family(
        "t5",
        T5,
        TABLES,
        rewrites=(*SCALED_AND_CENTRED, _as_t5),
        leftovers=LEFTOVERS,
        as_stored=stored_head,
        other_names=("T5WithLMHeadModel",),
        heads=(),
    ),
    Family(
        "umt5",
        UMT5,
        TABLES,
        rewrites=(*SCALED_AND_CENTRED, _as_umt5),
        leftovers=LEFTOVERS,
        as_stored=stored_head,
        losses=_umt5_losses,
        heads=(),
    ),
    Family(
        "mt5",
        MT5,
        TABLES,
        leftovers=LEFTOVERS,
        rewrites=(*SCALED_AND_CENTRED, _as_mt5),
        as_stored=stored_head,
        heads=(),
    ),
]
