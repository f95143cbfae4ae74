"""Models that differ from a given one in a single fact: what a format must express exactly, or refuse by name."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from ckpt_core.architecture import (
    Activation,
    Architecture,
    Facts,
    Layer,
    PerLayer,
    Pooling,
    RotaryKind,
    Stack,
    architecture_of,
    facts_of,
)
from ckpt_core.architecture.serial import field_types, optional_of
from ckpt_core.errors import CkptError
from ckpt_core.lean import dataclass
from ckpt_core.testing.examples import ABSENT, changed

_UNTELLING = {"bias", "eps", "kind", "norm", "scale", "weight", "heads", "groups", "gate"}


@dataclass(frozen=True)
class Variation:
    """A model that differs by `fact` (a path, or `path=value` where one path has several values).

    `inert`: no output shows it, so that two models that differ by it compute the same.
    """

    fact: str
    architecture: Architecture
    paths: tuple[str, ...]
    inert: bool = False

    def named_in(self, message: str) -> bool:
        """Whether an error message names what varies: the path, a thing it belongs to, or the field's own name."""
        return any(word in message for path in self.paths for word in _names(path.removesuffix("?")))


def _names(path: str) -> Iterator[str]:
    parts = path.split(".")
    yield path
    yield from (".".join(parts[:length]) for length in range(2, len(parts)))
    if parts[-1] not in _UNTELLING:
        yield parts[-1]


def _norm(path: str) -> dict[str, object]:
    return {f"{path}.kind": "rms", f"{path}.eps": 1e-4}


# What a projector may fold to, with what that allows.
_FOLDS: Mapping[str, Callable[[str], dict[str, object]]] = {
    "folded": lambda path: {},
    "fold_bias": lambda path: {f"{path}.fold_bias": True},
    "refined": lambda path: _norm(f"{path}.refined"),
}


def _transform(path: str) -> dict[str, object]:
    return {f"{path}.activation": Activation.GELU_ERF, **_norm(f"{path}.norm")}


def _scaling(kind: RotaryKind, **fields: object) -> dict[str, object]:
    return {f"attention.rotary.scaling.{name}": value for name, value in {"kind": kind, **fields}.items()}


def _each_layer(count: int, present: bool) -> PerLayer:
    """A pattern that no rule of "every n-th" says: layers 0 and 1 of each three."""
    return PerLayer((index % 3 != 2) == present for index in range(count))


def _inert(base: Facts) -> set[str]:
    """What no output shows: rows that are not tokens, and what a lone stack is called, which is not what it does."""
    # Without angles, a bias of the keys adds the same to all scores of a query.
    turned = "attention.rotary.theta" in base or "attention.qk_norm.kind" in base or base.get("attention.sinks")
    return {"tokens.padded_vocabulary", "kind", *(() if turned else ("attention.k_bias",))}


def _turned(sections: object) -> object:
    return tuple(reversed(sections)) if isinstance(sections, tuple) else None


_MOE = {"mlp.ffn": ABSENT, "mlp.ffn?": ABSENT, "mlp.moe.experts": 10, "mlp.moe.ffn": 20, "mlp.moe.router.top_k": 3}
_DELTA_SIZES = {"key_heads": 2, "value_heads": 4, "key_dim": 6, "value_dim": 10, "conv": 3}
_MAMBA_SIZES = {"heads": 4, "head_dim": 6, "groups": 2, "state": 10, "conv": 3}
_INDEXER_SIZES = {"heads": 6, "head_dim": 22, "top_k": 9}
_YARN = _scaling(RotaryKind.YARN, factor=4.0, original_positions=32)


def _table(facts: Facts) -> dict[str, dict[str, object]]:
    """The changes by name; the first path of each is what varies."""
    count = facts["layers"]
    pairs = int(facts.get("attention.head_dim", 2) * facts.get("attention.rotary.fraction", 1.0)) // 2
    moe = {} if "mlp.moe.experts" in facts else _MOE
    eps = {f"{norm}.eps" for norm in ("attention.norm", "mlp.norm", "final_norm")} & facts.keys()
    return {
        "layers": {"layers": count + 1},
        # most frameworks have no head dim apart from hidden / heads
        "hidden": {"hidden": 2 * facts["hidden"], "attention.head_dim": 2 * facts.get("attention.head_dim", 1)},
        "attention.heads": {"attention.heads": 2 * facts.get("attention.heads", 1), "hidden": 2 * facts["hidden"]},
        "causal": {"causal": not facts.get("causal")},
        "kind": {"kind": "encoder" if facts["kind"] == "decoder" else "decoder"},
        "tokens.vocabulary": {
            "tokens.vocabulary": facts.get("tokens.vocabulary", 9) + 8,
            "tokens.padded_vocabulary": facts.get("tokens.padded_vocabulary", 9) + 8,
        },
        "tokens.padded_vocabulary": {"tokens.padded_vocabulary": facts.get("tokens.padded_vocabulary", 9) + 8},
        "tokens.scale": {"tokens.scale": 11.5},
        "tokens.norm": _norm("tokens.norm"),
        "tokens.types": {"tokens.types": 3},
        "positions": {"positions.count": 40},
        "positions.offset": {"positions.offset": 2, "positions.count": 40},
        "positions.padding": {"positions.padding": 1, "positions.offset": 2, "positions.count": 80},
        "input_norm": _norm("input_norm"),
        "final_norm": {"final_norm": ABSENT},
        "relative_bias": {
            "relative_bias.buckets": 26,
            "relative_bias.max_distance": 64,
            "relative_bias.bidirectional": False,
        },
        "head": {"head": ABSENT},
        "head.tied": {"head.tied": not facts.get("head.tied")},
        "head.bias": {"head.bias": True},
        "head.scale": {"head.scale": 0.5},
        "head.softcap": {"head.softcap": 30.0},
        "head.transform": _transform("head.transform"),
        "head.transform.bias": {"head.transform.bias": not facts.get("head.transform.bias", True)},
        "patches.bias": {"patches.bias": not facts.get("patches.bias")},
        "patches.class_tokens": {
            "patches.class_tokens": facts.get("patches.class_tokens", 1) + 2,
            "positions.count": facts.get("positions.count", 1) + 2,
        },
        "classifier": {"classifier.classes": 17},
        "classifier.hidden": {"classifier.hidden": not facts.get("classifier.hidden")},
        "classifier.transform": {"classifier.hidden": False, **_transform("classifier.transform")},
        "classifier.bias": {"classifier.bias": not facts.get("classifier.bias", True), "classifier.classes": 17},
        **{
            f"classifier.pooling={pooling}": {"classifier.pooling": pooling, "classifier.classes": 17}
            for pooling in Pooling
        },
        "eps": {"attention.norm.eps": 3e-4} | dict.fromkeys(eps, 3e-4),
        "attention.norm.eps": {"attention.norm.eps": 3e-4},
        "mlp.norm.eps": {"mlp.norm.eps": 3e-4},
        "final_norm.eps": {"final_norm.eps": 3e-4},
        "attention.norm.kind": {"attention.norm.kind": "layer" if facts.get("attention.norm.kind") == "rms" else "rms"},
        "attention.norm.bias": {"attention.norm.bias": not facts.get("attention.norm.bias")},
        "attention.norm.zero_centred": {"attention.norm.zero_centred": True},
        "final_norm.weight": {"final_norm.weight": False},
        "attention.norm": {"attention.norm": ABSENT},
        "attention.out_norm": _norm("attention.out_norm"),
        "attention.groups": {"attention.groups": 2 * facts.get("attention.groups", 1)},
        "attention.head_dim": {"attention.head_dim": facts.get("attention.head_dim", 2) + 4},
        "attention.scale": {"attention.scale": 0.0625},
        # no factor of a projection outlasts a norm
        "attention.scale, normed": {"attention.scale": 0.0625, **_norm("attention.qk_norm")},
        **{
            f"attention.{part}_bias": {f"attention.{part}_bias": not facts.get(f"attention.{part}_bias")}
            for part in ("q", "k", "v", "out")
        },
        "attention.qkv_bias": {f"attention.{part}_bias": not facts.get("attention.q_bias") for part in ("q", "k", "v")},
        "attention.bias": {
            f"attention.{part}_bias": not facts.get("attention.q_bias") for part in ("q", "k", "v", "out")
        },
        "attention.qk_norm": _norm("attention.qk_norm"),
        "attention.qk_norm_whole": {"attention.qk_norm_whole": True, **_norm("attention.qk_norm")},
        "attention.qk_norm_after_rotary": {"attention.qk_norm_after_rotary": True, **_norm("attention.qk_norm")},
        "attention.rotary": {"attention.rotary": ABSENT},
        "attention.rotary?": {"attention.rotary?": _each_layer(count, True)},
        "attention.rotary? every third": {
            "attention.rotary?": PerLayer((index + 1) % 3 != 0 for index in range(count))
        },
        "attention.rotary.theta": {"attention.rotary.theta": 54321.0},
        "attention.rotary.fraction": {"attention.rotary.fraction": 0.56},
        "attention.rotary.scaling=linear": _scaling(RotaryKind.LINEAR, factor=2.5),
        "attention.rotary.scaling=dynamic": _scaling(RotaryKind.DYNAMIC, factor=2.5, max_positions=48),
        "attention.rotary.scaling=yarn": _YARN,
        "attention.rotary.scaling=yarn, all": _YARN
        | _scaling(
            RotaryKind.YARN,
            attention_factor=1.2,
            beta_fast=30.0,
            beta_slow=2.0,
            mscale=0.7,
            mscale_all_dim=0.8,
            truncate=False,
        ),
        "attention.rotary.scaling=llama3": _scaling(
            RotaryKind.LLAMA3, factor=8.0, original_positions=32, low_frequency_factor=1.5, high_frequency_factor=4.5
        ),
        "attention.rotary.scaling=longrope": _scaling(
            RotaryKind.LONGROPE,
            original_positions=32,
            short_factors=(1.25,) * pairs,
            long_factors=(2.5,) * pairs,
            factor=4.0,
        ),
        "attention.rotary.scaling=proportional": _scaling(RotaryKind.PROPORTIONAL, factor=2.0),
        "attention.alibi": {"attention.alibi": True, "attention.rotary": ABSENT},
        "attention.relative_bias": {
            f"attention.relative_bias.{name}": value
            for name, value in (("buckets", 26), ("max_distance", 64), ("bidirectional", False))
        },
        "attention.relative_bias_scale": {"attention.relative_bias_scale": 0.5},
        "attention.window": {"attention.window": 16},
        "attention.window?": {"attention.window": 16, "attention.window?": _each_layer(count, False)},
        "attention.chunk": {"attention.chunk": 16},
        "attention.chunk?": {"attention.chunk": 16, "attention.chunk?": _each_layer(count, False)},
        "attention.temperature": {"attention.temperature.interval": 5, "attention.temperature.scale": 0.75},
        "attention.temperature.shift": {
            "attention.temperature.shift": 2,
            "attention.temperature.interval": 5,
            "attention.temperature.scale": 0.75,
        },
        "attention.softcap": {"attention.softcap": 50.0},
        "attention.sinks": {"attention.sinks": True},
        "attention.head_scale": {"attention.head_scale": True},
        "attention.out_gate": {"attention.out_gate": True},
        "latent_attention.rotary": {"latent_attention.rotary": ABSENT},
        "latent_attention.indexer": {
            **{f"latent_attention.indexer.{name}": size for name, size in _INDEXER_SIZES.items()},
            **_norm("latent_attention.indexer.norm"),
        },
        **{
            f"latent_attention.indexer.{name}": {f"latent_attention.indexer.{name}": size + 2}
            for name, size in _INDEXER_SIZES.items()
        },
        "latent_attention.indexer.norm.kind": {"latent_attention.indexer.norm.kind": "rms"},
        "latent_attention.index_from_before": {"latent_attention.index_from_before": ABSENT},
        "delta?": {
            "delta?": _each_layer(count, False),
            "attention?": _each_layer(count, True),
            **{f"delta.{name}": size for name, size in _DELTA_SIZES.items()},
            **_norm("delta.norm"),
            **_norm("delta.head_norm"),
        },
        **{f"delta.{name}": {f"delta.{name}": 2 * size} for name, size in _DELTA_SIZES.items()},
        "delta.beta_scale": {"delta.beta_scale": 2.0},
        "delta.decay_rank": {"delta.decay_rank": 7},
        "delta.gate_rank": {"delta.gate_rank": 7},
        "delta.sigmoid_gate": {"delta.sigmoid_gate": not facts.get("delta.sigmoid_gate")},
        "delta.norm": {"delta.norm": ABSENT},
        "delta.head_norm.eps": {"delta.head_norm.eps": 3e-4},
        "delta.out_norm": _norm("delta.out_norm"),
        "mamba?": {
            "mamba?": _each_layer(count, False),
            "attention?": _each_layer(count, True),
            **{f"mamba.{name}": size for name, size in _MAMBA_SIZES.items()},
            **_norm("mamba.norm"),
            **_norm("mamba.gated_norm"),
        },
        **{f"mamba.{name}": {f"mamba.{name}": 4 * size} for name, size in _MAMBA_SIZES.items()},
        "mamba.norm": {"mamba.norm": ABSENT},
        "mamba.gated_norm": {"mamba.gated_norm": ABSENT},
        "mamba.gated_norm.eps": {"mamba.gated_norm.eps": 3e-4},
        "mamba.norm_groups": {"mamba.norm_groups": 2},
        "mamba.conv_bias": {"mamba.conv_bias": not facts.get("mamba.conv_bias")},
        "mamba.bias": {"mamba.bias": True},
        "mamba.out_norm": _norm("mamba.out_norm"),
        "mamba.norm_before_gate": {"mamba.norm_before_gate": not facts.get("mamba.norm_before_gate")},
        "mamba.scales": {"mamba.scales": (1.5, 0.5, 1.25, 0.75, 2.0)},
        "mamba beside attention": {
            **{f"mamba.{name}": size for name, size in _MAMBA_SIZES.items()},
            **_norm("mamba.gated_norm"),
        },
        **{
            f"{block}.{name}": {f"{block}.{name}": 0.5}
            for block in ("attention", "mamba", "mlp")
            for name in ("in_scale", "gate_scale", "out_scale")
        },
        "mlp?": {"mlp?": _each_layer(count, True)},
        "mlp.ffn": {"mlp.ffn": 2 * facts.get("mlp.ffn", 28)},
        "mlp.ffn, by layer": {"mlp.ffn": PerLayer(56 if index else 28 for index in range(count))},
        **{f"mlp.activation={kind}": {"mlp.activation": kind} for kind in Activation},
        "mlp.gated": {"mlp.gated": not facts.get("mlp.gated")},
        "mlp.up_bias": {"mlp.up_bias": not facts.get("mlp.up_bias")},
        "mlp.down_bias": {"mlp.down_bias": not facts.get("mlp.down_bias")},
        "mlp.bias": {"mlp.up_bias": not facts.get("mlp.up_bias"), "mlp.down_bias": not facts.get("mlp.down_bias")},
        "mlp.clamp": {"mlp.clamp": 0.25, "mlp.gated": True},
        "mlp.up_offset": {"mlp.up_offset": 0.75, "mlp.gated": True},
        "mlp.out_norm": _norm("mlp.out_norm"),
        "mlp.moe": {"mlp.moe": None, **_MOE},
        "mlp.moe?": {
            "mlp.moe?": _each_layer(count, True),
            "mlp.ffn?": _each_layer(count, False),
            **_MOE,
            "mlp.ffn": 56,
        },
        "mlp.moe.experts": {**moe, "mlp.moe.experts": 14},
        "mlp.moe.ffn": {**moe, "mlp.moe.ffn": 44},
        "mlp.moe.latent": {**moe, "mlp.moe.latent": 52},
        "mlp.moe.router.normalise": {"mlp.moe.router.normalise": not facts.get("mlp.moe.router.normalise"), **moe},
        "mlp.moe.router.score": {"mlp.moe.router.score": "sigmoid", **moe},
        "mlp.moe.router.scale": {"mlp.moe.router.scale": 2.5, **moe},
        "mlp.moe.router.bias": {"mlp.moe.router.bias": True, **moe},
        "mlp.moe.router.correction_bias": {"mlp.moe.router.correction_bias": True, **moe},
        "mlp.moe.router.groups": {
            "mlp.moe.router.groups": 5,
            "mlp.moe.router.group_top_k": 2,
            "mlp.moe.router.group_score": "top2",
            **moe,
        },
        "mlp.moe.router.margin": {"mlp.moe.router.margin": 0.5, "mlp.moe.router.normalise": False, **moe},
        "mlp.moe.router.on_input": {"mlp.moe.router.on_input": True, **moe},
        "mlp.moe.router.top_k": {
            "mlp.moe.router.top_k": 4,
            **{path: value for path, value in moe.items() if not path.endswith("top_k")},
        },
        "mlp.moe.shared": {"mlp.moe.shared.ffn": 32, **moe},
        "mlp.moe.shared.gate": {
            "mlp.moe.shared.gate": not facts.get("mlp.moe.shared.gate"),
            "mlp.moe.shared.ffn": 28,
            **moe,
        },
        "parallel": {"parallel": True},
        "shared_norm": {"shared_norm": True, "parallel": True, "mlp.norm": ABSENT},
        "residual_from_norm": {"residual_from_norm": True},
        "layer_scale": {"layer_scale": True},
        "residual_scale": {"residual_scale": 0.25},
        "predictors": {"predictors.count": 1, **_norm("predictors.embed_norm"), **_norm("predictors.hidden_norm")},
        "predictors.embed_norm.kind": {"predictors.embed_norm.kind": "layer"},
        "predictors.hidden_norm.eps": {"predictors.hidden_norm.eps": 3e-4},
        "predictors.out_norm": {"predictors.out_norm": ABSENT},
        "vision": {
            "vision": ABSENT,
            "attention.rotary.sections": ABSENT,
            "attention.rotary.interleaved": ABSENT,
        },
        "attention.rotary.sections": {"attention.rotary.sections": _turned(facts.get("attention.rotary.sections"))},
        "attention.rotary.interleaved": {"attention.rotary.interleaved": not facts.get("attention.rotary.interleaved")},
        "vision.layers": {"vision.layers": facts.get("vision.layers", 1) + 1},
        "vision.hidden": {"vision.hidden": 2 * facts.get("vision.hidden", 1)},
        "vision.patch": {"vision.patch": facts.get("vision.patch", 4) // 2},
        "vision.channels": {"vision.channels": 4},
        "vision.frames": {"vision.frames": facts.get("vision.frames", 1) + 1},
        "vision.bias": {"vision.bias": not facts.get("vision.bias")},
        "vision.image": {"vision.image": facts.get("vision.image") and 2 * facts["vision.image"]},
        "vision.token": {"vision.token": facts.get("vision.token", 1) - 1},
        "vision.video_token": {"vision.video_token": facts.get("vision.video_token", 1) + 1},
        "vision.both_ways": {"vision.both_ways": not facts.get("vision.both_ways")},
        "vision.taps": {"vision.taps": (1, 2)},
        "vision.tapped": {"vision.tapped": ABSENT, "vision.taps": ABSENT},
        "vision.positions": {"vision.positions": ABSENT},
        "vision.positions.count": {"vision.positions.count": 16},
        "vision.final_norm": _norm("vision.final_norm"),
        "vision.attention.rotary": {"vision.attention.rotary": ABSENT},
        "vision.attention.rotary.interleaved": {
            "vision.attention.rotary.interleaved": not facts.get("vision.attention.rotary.interleaved")
        },
        "vision.attention.chunk": {"vision.attention.chunk": 2},
        "vision.mlp.ffn": {"vision.mlp.ffn": 44},
        **{
            f"vision.{name}.{field}": {f"vision.{name}.{field}": not facts.get(f"vision.{name}.{field}")}
            for name in ("projector", "tapped")
            for field in ("norm_merged", "mean", "bias")
        },
        "vision.projector.norm": {"vision.projector.norm": ABSENT},
        "vision.norm": _norm("vision.norm"),
        "vision.cubic": {"vision.cubic": not facts.get("vision.cubic")},
        **{
            f"vision.{name}.{field}": {f"vision.{name}.folded": 52, **changes(f"vision.{name}")}
            for name in ("projector", "tapped")
            for field, changes in _FOLDS.items()
        },
        **{
            f"vision.{name}.gated": {f"vision.{name}.gated": not facts.get(f"vision.{name}.gated")}
            for name in ("projector", "tapped")
        },
        "vision.projector.merge": {"vision.projector.merge": 1, "vision.tapped.merge": 1},
        "vision.projector.ffn": {"vision.projector.ffn": 28, "vision.projector.activation": Activation.SILU},
        "norm_after_sum": {"norm_after_sum": True, **_norm("attention.out_norm"), **_norm("mlp.out_norm")},
    }


@functools.cache
def variations(base: Architecture) -> Mapping[str, Variation]:
    """Every one-fact variation of `base` that is a valid model, by name."""
    facts, found = facts_of(base), {}
    inert = _inert(facts)
    for name, changes in _table(facts).items():
        paths = tuple(changes)
        values = {path: value for path, value in changes.items() if value is not None}
        try:
            varied = architecture_of(changed(facts, values), name)
        except CkptError:
            continue  # the base lacks what this would vary
        if varied != base:
            found[name] = Variation(name, varied, (*paths, name.partition("=")[0].partition(" ")[0]), name in inert)
    return MappingProxyType(found)


def names_a_fact(message: str) -> bool:
    """Whether an error message names any fact of the schema by its path."""
    return not _all_paths().isdisjoint(re.findall(r"[a-z_]+(?:\.[a-z_]+)+", message))


@functools.cache
def _all_paths() -> frozenset[str]:
    return frozenset(path for root in (Architecture, Stack, Layer) for path in _paths_below(root, "")) | {
        f"vision.{path}" for root in (Stack, Layer) for path in _paths_below(root, "")
    }


def _paths_below(cls: type, prefix: str) -> Iterator[str]:
    for name, annotation in field_types(cls).items():
        inner, _ = optional_of(annotation)
        yield f"{prefix}{name}"
        if isinstance(inner, type) and dataclasses.is_dataclass(inner) and inner is not Stack:
            yield from _paths_below(inner, f"{prefix}{name}.")
