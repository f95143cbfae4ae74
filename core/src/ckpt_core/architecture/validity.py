"""The sentences an architecture must not contradict, checked in one place, reported together."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

from ckpt_core.architecture.schema import (
    SCALING_FIELDS,
    Activation,
    Architecture,
    Attention,
    Classifier,
    DeltaNet,
    LatentAttention,
    Layer,
    Mamba,
    Mlp,
    Norm,
    Pooling,
    Projector,
    Rotary,
    Router,
    Stack,
    Temperature,
    Tokens,
    Transform,
    Vision,
)
from ckpt_core.errors import CkptError, Problems


def validate(architecture: Architecture, source: str = "architecture") -> Architecture:
    """Return `architecture`, or raise every contradiction found in it."""
    problems = Problems(f"{source} contradicts itself")
    for path, sentence in _contradictions(architecture):
        problems.add(CkptError(f"{path}: {sentence}", file=source))
    problems.raise_any()
    return architecture


def _contradictions(architecture: Architecture) -> Iterator[tuple[str, str]]:
    yield from _not_finite("", architecture)
    yield from _positive("hidden", architecture.hidden)
    if architecture.encoder is None and architecture.decoder is None:
        yield "stacks", "a model needs an encoder or a decoder"
    if (architecture.tokens is None) == (architecture.patches is None):
        yield "tokens", "a model reads either tokens or patches"
    if architecture.tokens is not None:
        yield from _positive("tokens.vocabulary", architecture.tokens.vocabulary)
        if architecture.tokens.padded_vocabulary < architecture.tokens.vocabulary:
            yield "tokens.padded_vocabulary", "fewer rows than tokens"
        if architecture.tokens.types < 0:
            yield "tokens.types", f"{architecture.tokens.types} is negative"
    if architecture.head is not None and architecture.tokens is None:
        yield "head", "a head over the vocabulary needs tokens"
    if architecture.head is not None and architecture.head.transform is not None:
        yield from _transform("head.transform", architecture.head.transform)
    if architecture.classifier is not None:
        yield from _classifier(architecture.classifier, architecture.tokens)
    if architecture.vision is not None:
        yield from _vision(architecture.vision, architecture)
    for prefix, stack in architecture.stacks.items():
        yield from _stack(prefix, stack, crossing=architecture.encoder is not None and stack is architecture.decoder)
        yield from _coordinates(prefix, stack, seeing=architecture.vision is not None)
        if stack.predictors is not None:
            yield from _predictors(f"{prefix}predictors", stack, architecture)


def _vision(vision: Vision, architecture: Architecture) -> Iterator[tuple[str, str]]:
    for name in ("hidden", "patch", "channels", "frames"):
        yield from _positive(f"vision.{name}", getattr(vision, name))
    if architecture.tokens is None or architecture.decoder is None or architecture.encoder is not None:
        yield "vision", "images stand between the tokens of a decoder, and this is not one by itself"
    if architecture.decoder is not None and architecture.decoder.positions is not None:
        yield "vision", "learned positions of a language model that sees have no meaning for images"
    if vision.image is not None and vision.image % (vision.patch * vision.projector.merge):
        yield "vision.image", f"{vision.image} is not a multiple of {vision.patch} x {vision.projector.merge} pixels"
    yield from _norm("vision.norm", vision.norm)
    if vision.cubic and vision.stack.positions is None:
        yield "vision.cubic", "there is no table that is stretched"
    yield from _projector("vision.projector", vision.projector)
    if (vision.tapped is None) != (not vision.taps):
        yield "vision.taps", "there are taps and what they pass, or neither"
    if vision.tapped is not None:
        yield from _projector("vision.tapped", vision.tapped)
        if vision.tapped.merge != vision.projector.merge:
            yield "vision.tapped.merge", f"{vision.tapped.merge} is not that of the projector, {vision.projector.merge}"
    layers, after = len(vision.stack.layers), len(architecture.decoder.layers) if architecture.decoder else 0
    if len(vision.taps) > after or any(not 0 <= tap < layers for tap in vision.taps):
        yield (
            "vision.taps",
            f"{list(vision.taps)} are not some of {layers} layers, or are more than the {after} layers below",
        )
    if list(vision.taps) != sorted(set(vision.taps)):
        yield "vision.taps", f"{list(vision.taps)} are not in the order of the layers"
    yield from _stack("vision.", vision.stack, crossing=False)
    positions = vision.stack.positions
    if positions is not None and math.isqrt(max(0, positions.count)) ** 2 != positions.count:
        yield "vision.positions.count", f"{positions.count} is not a square"
    if vision.stack.causal or vision.stack.predictors is not None:
        yield "vision.causal", "patches have no order"
    for index, layer in enumerate(vision.stack.layers):
        if layer.attention is None or layer.attention.window is not None:
            yield (
                f"vision.layers.{index}",
                "patches lie in rows and columns: attention without a window is what mixes them",
            )
        elif layer.attention.rotary is not None and not layer.attention.rotary.axial:
            yield f"vision.layers.{index}.attention.rotary.axial", "a patch has a row and a column"


def _projector(path: str, projector: Projector) -> Iterator[tuple[str, str]]:
    yield from _positive(f"{path}.merge", projector.merge)
    for width in ("ffn", "folded"):
        if getattr(projector, width) is not None:
            yield from _positive(f"{path}.{width}", getattr(projector, width))
    if projector.fold_bias and projector.folded is None:
        yield f"{path}.fold_bias", "there is no matrix that folds"
    if projector.refined is not None and projector.folded is None:
        yield f"{path}.refined", "it follows a matrix that folds"
    if projector.gated and projector.ffn is None:
        yield f"{path}.gated", "there is no width for a gate"
    yield from _norm(f"{path}.refined", projector.refined)
    if (projector.ffn is None) != (projector.activation is None):
        yield f"{path}.activation", "it stands between two matrices, and there are two where there is an ffn"
    yield from _norm(f"{path}.norm", projector.norm)


def _coordinates(prefix: str, stack: Stack, seeing: bool) -> Iterator[tuple[str, str]]:
    """What only positions with coordinates allow, in a stack of tokens."""
    for index, layer in enumerate(stack.layers):
        rotary = layer.attention.rotary if layer.attention else None
        if rotary is not None and rotary.axial:
            yield f"{prefix}layers.{index}.attention.rotary.axial", "a token has no row and no column alone"
        if rotary is not None and rotary.sections is not None and not seeing:
            yield (
                f"{prefix}layers.{index}.attention.rotary.sections",
                "the coordinates of a position are one, as nothing is seen",
            )
        latent = layer.latent_attention
        if latent is not None and latent.rotary is not None and (latent.rotary.sections or latent.rotary.axial):
            yield (
                f"{prefix}layers.{index}.latent_attention.rotary",
                "latent attention counts positions one after the other",
            )


def _predictors(path: str, stack: Stack, architecture: Architecture) -> Iterator[tuple[str, str]]:
    predictors = stack.predictors
    assert predictors is not None
    yield from _positive(f"{path}.count", predictors.count)
    if architecture.encoder is not None or not stack.causal:
        yield path, "only a causal decoder by itself predicts further tokens"
    if architecture.tokens is None or architecture.head is None:
        yield path, "they embed tokens, and their outputs are logits: they need tokens and a head"
    last = stack.layers[-1].latent_attention if stack.layers else None
    if last is not None and last.index_from_before:
        yield path, "they are built as the last layer, for which a layer below chooses positions"
    tables = [layer.attention and layer.attention.relative_bias for layer in stack.layers]
    if stack.positions is not None or stack.relative_bias is not None or any(tables):
        yield path, "learned positions or a relative bias have no meaning for the tokens that they read"
    for name in ("embed_norm", "hidden_norm", "out_norm"):
        yield from _norm(f"{path}.{name}", getattr(predictors, name))


def _classifier(classifier: Classifier, tokens: Tokens | None) -> Iterator[tuple[str, str]]:
    if classifier.classes is not None:
        yield from _positive("classifier.classes", classifier.classes)
    if classifier.transform is not None:
        yield from _transform("classifier.transform", classifier.transform)
    if classifier.transform is not None and classifier.hidden:
        yield "classifier.transform", "there is one dense layer before the classes, and classifier.hidden says another"
    if classifier.padding is None:
        return
    if classifier.pooling is not Pooling.LAST or tokens is None:
        yield "classifier.padding", "has a meaning only where the last token of a sequence is read"
    elif not 0 <= classifier.padding < tokens.vocabulary:
        yield "classifier.padding", f"{classifier.padding} is not one of {tokens.vocabulary} tokens"


def _transform(path: str, transform: Transform) -> Iterator[tuple[str, str]]:
    if transform.activation is Activation.XIELU:
        yield f"{path}.activation", "only an MLP has its numbers"
    yield from _norm(f"{path}.norm", transform.norm)


def _stack(prefix: str, stack: Stack, crossing: bool) -> Iterator[tuple[str, str]]:
    if not stack.layers:
        yield f"{prefix}layers", "a stack needs at least one layer"
    for first in stack.layers[:1]:
        for name, table, attention in (
            ("relative_bias", stack.relative_bias, first.attention),
            ("cross_relative_bias", stack.cross_relative_bias, first.cross_attention),
        ):
            if table is not None and attention is None:
                yield f"{prefix}{name}", "it has one value per head, and the first layer has no such attention"
    if stack.positions is not None and stack.positions.padding is not None and stack.positions.offset < 1:
        yield f"{prefix}positions.padding", "there is no row before the first position"
    for index, layer in enumerate(stack.layers):
        path = f"{prefix}layers.{index}"
        given = (layer.attention, layer.latent_attention, layer.delta, layer.mamba)
        mixers = [one for one in given if one is not None]
        if layer.attention is not None and layer.mamba is not None and len(mixers) == 2:
            yield from _side_by_side(path, layer)
        elif len(mixers) > 1:
            yield path, "a layer has either attention, or latent attention, or a delta net, or a Mamba-2 block"
        if not mixers and layer.mlp is None:
            yield path, "a layer has a block that mixes positions, or an MLP, or both"
        if (not mixers or layer.mlp is None) and (layer.parallel or layer.shared_norm):
            yield path, "a layer of one block has nothing in parallel"
        if layer.delta is not None:
            yield from _delta(f"{path}.delta", layer.delta, stack.causal)
        if layer.mamba is not None:
            yield from _mamba(f"{path}.mamba", layer.mamba, stack.causal)
        if layer.latent_attention is not None:
            yield from _latent(f"{path}.latent_attention", layer.latent_attention, stack.layers[:index])
        if layer.cross_attention is not None and not crossing:
            yield f"{path}.cross_attention", "there is no encoder to attend to"
        for name, attention in (("attention", layer.attention), ("cross_attention", layer.cross_attention)):
            if attention is not None:
                yield from _attention(f"{path}.{name}", attention)
        if layer.norm_after_sum and layer.parallel:
            yield f"{path}.norm_after_sum", "the blocks of a parallel layer share one sum"
        if layer.mlp is not None:
            yield from _mlp(f"{path}.mlp", layer.mlp)


def _side_by_side(path: str, layer: Layer) -> Iterator[tuple[str, str]]:
    if layer.mamba is not None and layer.mamba.norm is not None:
        yield f"{path}.mamba.norm", "beside attention it reads what the norm of the attention leaves"
    for name in ("layer_scale", "norm_after_sum"):
        if getattr(layer, name):
            yield (
                f"{path}.{name}",
                "attention and a Mamba-2 block beside it are added together, and have none of their own",
            )


def _attention(path: str, attention: Attention) -> Iterator[tuple[str, str]]:
    for name in ("heads", "groups", "head_dim"):
        yield from _positive(f"{path}.{name}", getattr(attention, name))
    if attention.groups > 0 and attention.heads % attention.groups:
        yield path, f"heads={attention.heads} is not a multiple of groups={attention.groups}"
    for name in ("window", "chunk"):
        if getattr(attention, name) is not None:
            yield from _positive(f"{path}.{name}", getattr(attention, name))
    if attention.temperature is not None:
        yield from _temperature(f"{path}.temperature", attention.temperature)
    if attention.rotary is not None:
        yield from _rotary(f"{path}.rotary", attention.rotary, attention.head_dim)
    for name in ("norm", "out_norm", "qk_norm"):
        yield from _norm(f"{path}.{name}", getattr(attention, name))


def _temperature(path: str, temperature: Temperature) -> Iterator[tuple[str, str]]:
    yield from _positive(f"{path}.interval", temperature.interval)
    if temperature.scale < 0 or temperature.shift < 0:
        yield path, f"scale={temperature.scale} and shift={temperature.shift} are not both 0 or more"


def _latent(path: str, latent: LatentAttention, before: tuple[Layer, ...]) -> Iterator[tuple[str, str]]:
    indexer = latent.indexer
    if latent.index_from_before:
        if indexer is not None:
            yield f"{path}.index_from_before", "it has an indexer of its own"
        if not any(layer.latent_attention and layer.latent_attention.indexer for layer in before):
            yield f"{path}.index_from_before", "no layer below has an indexer"
    if indexer is None:
        return
    for name in ("heads", "head_dim", "top_k"):
        yield from _positive(f"{path}.indexer.{name}", getattr(indexer, name))
    if latent.q_rank is None:
        yield f"{path}.indexer", "its queries come from a latent, and q_rank is None"
    if latent.rotary is not None and indexer.head_dim < latent.rope_dim:
        yield f"{path}.indexer.head_dim", f"{indexer.head_dim} is less than rope_dim={latent.rope_dim}"
    yield from _norm(f"{path}.indexer.norm", indexer.norm)


def _delta(path: str, delta: DeltaNet, causal: bool) -> Iterator[tuple[str, str]]:
    for name in ("key_heads", "value_heads", "key_dim", "value_dim", "conv"):
        yield from _positive(f"{path}.{name}", getattr(delta, name))
    for name in ("decay_rank", "gate_rank"):
        if getattr(delta, name) is not None:
            yield from _positive(f"{path}.{name}", getattr(delta, name))
    if delta.key_heads > 0 and delta.value_heads % delta.key_heads:
        yield path, f"value_heads={delta.value_heads} is not a multiple of key_heads={delta.key_heads}"
    if not causal:
        yield path, "its state comes from earlier positions alone, and the stack is not causal"
    for name in ("norm", "head_norm", "out_norm"):
        yield from _norm(f"{path}.{name}", getattr(delta, name))


def _mamba(path: str, mamba: Mamba, causal: bool) -> Iterator[tuple[str, str]]:
    for name in ("heads", "head_dim", "groups", "state", "conv", "norm_groups"):
        yield from _positive(f"{path}.{name}", getattr(mamba, name))
    if mamba.groups > 0 and mamba.heads % mamba.groups:
        yield path, f"heads={mamba.heads} is not a multiple of groups={mamba.groups}"
    if mamba.norm_groups > 0 and mamba.heads * mamba.head_dim % mamba.norm_groups:
        yield (
            f"{path}.norm_groups",
            f"{mamba.norm_groups} parts of {mamba.heads} x {mamba.head_dim} channels are not equal",
        )
    if mamba.scales is not None and len(mamba.scales) != 5:
        yield f"{path}.scales", f"{len(mamba.scales)} numbers for the projections z, x, b, c and dt"
    if not causal:
        yield path, "its state comes from earlier positions alone, and the stack is not causal"
    for name in ("norm", "gated_norm", "out_norm"):
        yield from _norm(f"{path}.{name}", getattr(mamba, name))


def _rotary(path: str, rotary: Rotary, head_dim: int) -> Iterator[tuple[str, str]]:
    if not rotary.theta > 0:
        yield f"{path}.theta", f"{rotary.theta} is not positive"
    width = rotary_width(rotary, head_dim) if 0 < rotary.fraction <= 1 else None
    if width is None or width % 2:
        yield f"{path}.fraction", f"{rotary.fraction} of head_dim={head_dim} is not an even number of elements"
    if rotary.axial and (width or 0) % 4:
        yield f"{path}.axial", f"{width} rotated elements are not an even number for rows and as many for columns"
    if rotary.axial and (rotary.sections is not None or rotary.scaling is not None):
        yield f"{path}.axial", "rows and columns share the pairs equally, and their angles are not stretched"
    if rotary.interleaved and rotary.sections is None and not rotary.axial:
        yield f"{path}.interleaved", "there are no sections, and no rows and columns"
    if rotary.sections is not None:
        pairs = (width or 0) // 2
        if len(rotary.sections) != 3 or any(one < 0 for one in rotary.sections) or sum(rotary.sections) != pairs:
            yield f"{path}.sections", f"{list(rotary.sections)} are not three parts of {pairs} rotated pairs"
    if rotary.scaling is not None:
        required, optional = SCALING_FIELDS[rotary.scaling.kind]
        given = {name for name in type(rotary.scaling).__slots__ if getattr(rotary.scaling, name) is not None} - {
            "kind"
        }
        for name in sorted(required - given):
            yield f"{path}.scaling.{name}", f"is needed by kind={rotary.scaling.kind}"
        for name in sorted(given - required - optional):
            yield f"{path}.scaling.{name}", f"has no meaning for kind={rotary.scaling.kind}"
        low, high = rotary.scaling.low_frequency_factor, rotary.scaling.high_frequency_factor
        if low is not None and high is not None and low > high:  # they are equal in Llama 4 Scout
            yield f"{path}.scaling.low_frequency_factor", f"{low} is above high_frequency_factor={high}"
        for name in ("short_factors", "long_factors"):
            factors = getattr(rotary.scaling, name)
            if factors is not None and width is not None and len(factors) != width // 2:
                yield f"{path}.scaling.{name}", f"{len(factors)} factors for {width // 2} rotated pairs"


def rotary_width(rotary: Rotary | None, head_dim: int) -> int:
    """How many elements of a head are rotated: the integer part of fraction * head_dim, as every framework takes it."""
    return 0 if rotary is None else int(head_dim * rotary.fraction)


def _mlp(path: str, mlp: Mlp) -> Iterator[tuple[str, str]]:
    if (mlp.ffn is None) == (mlp.moe is None):
        yield path, "an MLP is either dense (ffn) or a mixture (moe)"
    if mlp.ffn is not None:
        yield from _positive(f"{path}.ffn", mlp.ffn)
    if mlp.clamp is not None:
        yield from _positive(f"{path}.clamp", mlp.clamp)
    for name, said in (("clamp", mlp.clamp), ("up_offset", mlp.up_offset), ("gate_scale", mlp.gate_scale != 1.0)):
        if said and not mlp.gated:
            yield f"{path}.{name}", "an MLP without a gate has no such thing"
    if mlp.moe is not None and mlp.activation is Activation.XIELU:
        yield f"{path}.activation", "its numbers are those of a dense block"
    if mlp.moe is not None:
        for name in ("experts", "ffn"):
            yield from _positive(f"{path}.moe.{name}", getattr(mlp.moe, name))
        if mlp.moe.latent is not None:
            yield from _positive(f"{path}.moe.latent", mlp.moe.latent)
        if not 0 < mlp.moe.router.top_k <= mlp.moe.experts:
            yield f"{path}.moe.router.top_k", f"{mlp.moe.router.top_k} of {mlp.moe.experts} experts"
        if mlp.moe.router.score not in ("softmax", "sigmoid"):
            yield f"{path}.moe.router.score", f"{mlp.moe.router.score!r} is neither softmax nor sigmoid"
        if mlp.moe.router.margin is not None:
            yield from _margin(f"{path}.moe.router", mlp.moe.router)
    for name in ("norm", "out_norm"):
        yield from _norm(f"{path}.{name}", getattr(mlp, name))


def _margin(path: str, router: Router) -> Iterator[tuple[str, str]]:
    if router.margin is not None and router.margin < 0:
        yield f"{path}.margin", f"{router.margin} is negative"
    if router.score != "softmax" or router.normalise or router.correction_bias or router.groups is not None:
        yield f"{path}.margin", "its shares are softmaxes as they are, of experts that are chosen by their logits alone"


def _norm(path: str, norm: Norm | None) -> Iterator[tuple[str, str]]:
    if norm is None:
        return
    if norm.kind not in ("rms", "layer"):
        yield f"{path}.kind", f"{norm.kind!r} is neither rms nor layer"
    if not norm.eps >= 0:
        yield f"{path}.eps", f"{norm.eps} is negative"


def _not_finite(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, float):
        if not math.isfinite(value):
            yield path, f"{value} is not a number"
        return
    inner = (
        enumerate(value)
        if isinstance(value, tuple)
        else ((name, getattr(value, name)) for name in _names(value.__class__))
    )
    for name, each in inner:
        if type(each) not in _WHOLE:
            yield from _not_finite(f"{path}.{name}".lstrip("."), each)


_WHOLE = (type(None), bool, int, str)  # what most fields are, and is never a broken number


@functools.cache
def _names(cls: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls)) if dataclasses.is_dataclass(cls) else ()


def _positive(path: str, value: float) -> Iterator[tuple[str, str]]:
    if not value > 0:
        yield path, f"{value} is not positive"
