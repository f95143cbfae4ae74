"""A whole model, one block at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

import torch
from torch.nn import functional

from ckpt_core.architecture import (
    Architecture,
    Attention,
    Classifier,
    DeltaNet,
    LatentAttention,
    Layer,
    Mamba,
    Mlp,
    Pooling,
    Positions,
    Stack,
    Tokens,
    Transform,
    Vision,
)
from ckpt_core.errors import CkptError
from ckpt_core.lean import dataclass
from ckpt_core.opened import OpenCheckpoint
from ckpt_core.reference.attention import attend, attend_latent, relative_bias
from ckpt_core.reference.delta import mix_by_delta
from ckpt_core.reference.mamba import mix_by_mamba
from ckpt_core.reference.mlp import ACTIVATIONS, feed_forward
from ckpt_core.reference.vision import images_in, patches_of, placed, places_of, projected
from ckpt_core.reference.weights import DEFAULT_BLOCK, Arithmetic, Weights


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a model reads.

    `tokens` [batch, position] of the decoder, or of an encoder alone; `source` [batch, position] the tokens of an
    encoder before a decoder; `pixels` [batch, channel, y, x]. The masks are True (or 1) where a token is real.
    The `pixels` of a language model that sees are [image, channel, y, x], or [image, channel, frame, y, x]: all images that stand
    in `tokens`, row after row. Without them it reads a text.
    `types` [batch, position] are those of `tokens`, for a model that has such; without them every token is of the first.
    """

    tokens: torch.Tensor | None = None
    source: torch.Tensor | None = None
    pixels: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    source_mask: torch.Tensor | None = None
    types: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """The residual stream [batch, position, h] after a part of the model, or, last, its `logits`."""

    name: str
    values: torch.Tensor


@torch.no_grad()
def forward(
    model: OpenCheckpoint, inputs: Inputs, block: int = DEFAULT_BLOCK, arithmetic: Arithmetic = Arithmetic()
) -> Iterator[Step]:
    """Run a model, yielding after every block; the last step holds the logits (or, of a model without a head, its output).

    `block` bounds the bytes of weights held at a time. Raises `CkptError` where the inputs are not those of the model.
    """
    architecture, weights = model.architecture, Weights(model, block, arithmetic)
    memory, memory_mask = None, inputs.source_mask
    x = torch.empty(0)
    for prefix, stack in architecture.stacks.items():
        crossed = prefix == "encoder."
        x = _embedded(weights, architecture, inputs, crossed)
        seen = None
        if architecture.vision is not None and inputs.pixels is not None:
            seen = yield from _looked(weights, architecture.vision, inputs)
            x = seen.among(x)
        yield Step(f"{prefix}embedding", x)
        mask = inputs.source_mask if crossed else inputs.mask
        tokens = inputs.source if crossed else inputs.tokens
        for step in _stack(weights, prefix, stack, x, tokens, mask, memory, memory_mask, seen):
            yield step
            x = step.values
        memory = x
        if stack.predictors is not None:
            yield from _predicted(weights, architecture, prefix, stack, x, inputs, seen)
    if architecture.classifier is not None:
        classes = _classes(weights, architecture.classifier, x, inputs.tokens, inputs.mask)
        yield Step("classifier.logits" if architecture.head else "logits", classes)
    if architecture.head is not None or architecture.classifier is None:
        yield Step("logits", _logits(weights, architecture, x))


def _embedded(weights: Weights, architecture: Architecture, inputs: Inputs, source: bool) -> torch.Tensor:
    if architecture.patches is not None:
        if inputs.pixels is None:
            raise CkptError("this model reads images", fix="give pixels")
        patch = architecture.patches.patch
        squares = functional.unfold(inputs.pixels.float(), patch, stride=patch).transpose(1, 2)
        x = weights.linear(squares.unflatten(-1, (-1, patch, patch)), "embedding.patches", contracted=3)
        if not architecture.patches.class_tokens:
            return x
        return torch.cat([weights.vector("embedding.class_tokens.weight").expand(len(x), -1, -1), x], 1)
    tokens = inputs.source if source else inputs.tokens
    if tokens is None or architecture.tokens is None:
        raise CkptError("this model reads tokens", fix="give source tokens" if source else "give tokens")
    return _embedding(weights, architecture.tokens, tokens, None if source else inputs.types)


def _embedding(weights: Weights, known: Tokens, tokens: torch.Tensor, types: torch.Tensor | None) -> torch.Tensor:
    x = weights.rows("embedding.tokens.weight", tokens) * known.scale
    if known.types:
        x = x + weights.rows("embedding.types.weight", torch.zeros_like(tokens) if types is None else types)
    return weights.norm(x, "embedding.norm", known.norm)


@dataclass(frozen=True)
class _Seen:
    """What is seen in a text: the `embeddings` [token, h] of its images, what the `taps` add to the residual stream, [token, h] each,
    which image a token stands for, [batch, position] or -1, and the `places` [coordinate, batch, position].
    """

    embeddings: torch.Tensor
    taps: Sequence[torch.Tensor]
    images: torch.Tensor
    places: torch.Tensor
    both_ways: bool

    def among(self, x: torch.Tensor) -> torch.Tensor:
        """The embeddings of a text [batch, position, h] with those of its images."""
        return x.masked_scatter((self.images >= 0)[..., None], self.embeddings)

    def tapped(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        """What comes out of a layer of the language model, with what the tap of this number adds to it."""
        if layer >= len(self.taps):
            return x
        return x + torch.zeros_like(x).masked_scatter((self.images >= 0)[..., None], self.taps[layer])

    def allowed(self, allowed: torch.Tensor) -> torch.Tensor:
        """What a position may see, and with it, where images are seen both ways, the whole of its image."""
        same = (self.images[:, :, None] == self.images[:, None]) & (self.images >= 0)[:, None]
        return allowed | same if self.both_ways else allowed


def _looked(weights: Weights, vision: Vision, inputs: Inputs) -> Generator[Step, None, _Seen]:
    """The tower on all images; what it says is where the text says that they are. Raises `CkptError` where the text has other images."""
    assert inputs.pixels is not None and inputs.tokens is not None  # _embedded
    x, rows, columns = patches_of(weights, vision, inputs.pixels)
    yield Step("vision.embedding", x)
    stack, said = replace(vision.stack, positions=None), {}
    for step in _stack(weights, "vision.", stack, x, None, None, None, None, places=places_of(rows, columns)):
        yield step
        said[step.name.removeprefix("vision.").rpartition(".")[0]] = step.values
        x = step.values
    embeddings = projected(weights, "vision.projector", vision.projector, x, rows, columns)
    yield Step("vision.projector", embeddings)
    taps = [
        projected(weights, "vision.taps", vision.tapped, said[f"layers.{layer}"], rows, columns, tap).flatten(0, 1)
        for tap, layer in enumerate(vision.taps)
        if vision.tapped is not None
    ]
    layers = len(embeddings) // len(inputs.pixels)
    images = images_in(vision, inputs.tokens, layers * embeddings.shape[1])
    if int((images >= 0).sum()) != len(embeddings) * embeddings.shape[1]:
        raise CkptError(
            "the text has another number of tokens for images than the images have",
            found=f"{int((images >= 0).sum())} tokens",
            expected=f"{len(embeddings) * embeddings.shape[1]} of {len(inputs.pixels)} images",
        )
    side = vision.projector.merge
    places = placed(images, layers, rows // side, columns // side)
    return _Seen(embeddings.flatten(0, 1), taps, images, places, vision.both_ways)


def _stack(
    weights: Weights,
    prefix: str,
    stack: Stack,
    x: torch.Tensor,
    tokens: torch.Tensor | None,
    mask: torch.Tensor | None,
    memory: torch.Tensor | None,
    memory_mask: torch.Tensor | None,
    seen: _Seen | None = None,
    places: torch.Tensor | None = None,
) -> Iterator[Step]:
    count = x.shape[1]
    if stack.positions is not None:
        x = x + weights.vector(f"{prefix}positions.weight")[_rows(stack.positions, count, tokens)]
    x = weights.norm(x, f"{prefix}input_norm", stack.input_norm)
    allowed = _allowed(stack, count, mask)
    context = _Context(allowed if seen is None else seen.allowed(allowed), mask, memory, memory_mask, not stack.causal)
    context.places = places if seen is None else seen.places
    if stack.relative_bias is not None:
        table = f"{prefix}relative_bias.weight"
        context.bias = relative_bias(weights, table, stack.relative_bias, count, count)
    if stack.cross_relative_bias is not None and memory is not None:
        table = f"{prefix}cross_relative_bias.weight"
        context.cross_bias = relative_bias(weights, table, stack.cross_relative_bias, count, memory.shape[1])
    for index, layer in enumerate(stack.layers):
        name = f"{prefix}layers.{index}"
        for part, values in _layer(weights, name, layer, x, context):
            yield Step(f"{name}.{part}", values)
        x = values if seen is None else seen.tapped(values, index)
    yield Step(f"{prefix}final_norm", weights.norm(x, f"{prefix}final_norm", stack.final_norm))


def _rows(positions: Positions, count: int, tokens: torch.Tensor | None) -> torch.Tensor:
    """The row of the table for each position: [position], or [batch, position] where padding is not counted."""
    if positions.padding is None or tokens is None:
        return torch.arange(positions.offset, positions.offset + count)
    counted = tokens != positions.padding
    return counted.cumsum(-1) * counted + positions.offset - 1


def _allowed(stack: Stack, count: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Which of `count` positions each of them may see, [batch or 1, position, position]."""
    allowed = torch.ones(1, count, count, dtype=torch.bool)
    allowed = allowed.tril() if stack.causal else allowed
    return allowed if mask is None else allowed & mask.bool()[:, None]


def _predicted(
    weights: Weights,
    architecture: Architecture,
    prefix: str,
    stack: Stack,
    f: torch.Tensor,
    inputs: Inputs,
    seen: _Seen | None,
) -> Iterator[Step]:
    """The layers that predict further tokens, from `f`, what the stack ends in. The logits of predictor k are those of all
    positions but the last k + 1, after which there is no token that it could read.
    """
    predictors, known, tokens = stack.predictors, architecture.tokens, inputs.tokens
    assert predictors is not None and known is not None and tokens is not None  # validate()
    count = tokens.shape[1]
    allowed = _allowed(stack, count, inputs.mask)
    context = _Context(allowed if seen is None else seen.allowed(allowed), inputs.mask, None, None, not stack.causal)
    context.places = None if seen is None else seen.places
    embedded = _embedding(weights, known, tokens, None)
    embedded = embedded if seen is None else seen.among(embedded)
    for index in range(predictors.count):
        name = f"{prefix}predictors.{index}"
        # Zeros stand where there is no token: no earlier position sees them.
        embedded = functional.pad(embedded[:, 1:], (0, 0, 0, 1))
        e = weights.norm(embedded, f"{name}.embed_norm", predictors.embed_norm)
        f = weights.norm(f, f"{name}.hidden_norm", predictors.hidden_norm)
        x = weights.product(e, f"{name}.embed.weight") + weights.product(f, f"{name}.hidden.weight")
        yield Step(f"{name}.merged", x)
        for part, values in _layer(weights, f"{name}.layer", stack.layers[-1], x, context):
            yield Step(f"{name}.layer.{part}", values)
        f = weights.norm(values, f"{name}.out_norm", predictors.out_norm)
        yield Step(f"{name}.logits", _logits(weights, architecture, f[:, : max(0, count - index - 1)]))


@dataclass(slots=True)
class _Context:
    """What all layers of a stack share: what a position may see, which are real, and the biases that depend on distance alone.

    `ahead`: positions see what comes after them, too. `places` are the coordinates of positions that have several.
    `chosen` is what the last indexer so far let each position see.
    """

    allowed: torch.Tensor
    mask: torch.Tensor | None
    memory: torch.Tensor | None
    memory_mask: torch.Tensor | None
    ahead: bool
    places: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    cross_bias: torch.Tensor | None = None
    chosen: torch.Tensor | None = None


def _layer(
    weights: Weights, name: str, layer: Layer, x: torch.Tensor, context: _Context
) -> Iterator[tuple[str, torch.Tensor]]:
    after = layer.norm_after_sum
    if layer.mixers:
        mixer, block = layer.mixers[0]
        normed = weights.norm(x, f"{name}.{mixer}.norm", block.norm)
        y = _mixed(weights, f"{name}.{mixer}", block, normed, context)
        y = y if after else weights.norm(y, f"{name}.{mixer}.out_norm", block.out_norm)
        for beside, other in layer.mixers[1:]:
            z = _mixed(weights, f"{name}.{beside}", other, normed, context)
            y = y + weights.norm(z, f"{name}.{beside}.out_norm", other.out_norm)
        y = y * weights.vector(f"{name}.{mixer}.layer_scale.weight") if layer.layer_scale else y
        residual = normed if layer.residual_from_norm else x
        if layer.parallel and layer.mlp is not None:
            inner = normed if layer.shared_norm else weights.norm(x, f"{name}.mlp.norm", layer.mlp.norm)
            fed = _fed(weights, f"{name}.mlp", layer, layer.mlp, inner)
            yield f"{mixer} and mlp", residual + layer.residual_scale * (y + fed)
            return
        x = residual + layer.residual_scale * y
        x = weights.norm(x, f"{name}.{mixer}.out_norm", block.out_norm) if after else x
        yield mixer, x
    if layer.cross_attention is not None:
        crossed = f"{name}.cross_attention"
        x = x + layer.residual_scale * _crossed(weights, crossed, layer.cross_attention, x, context, after)
        x = weights.norm(x, f"{crossed}.out_norm", layer.cross_attention.out_norm) if after else x
        yield "cross_attention", x
    if layer.mlp is not None:
        normed = weights.norm(x, f"{name}.mlp.norm", layer.mlp.norm)
        residual = normed if layer.residual_from_norm else x
        x = residual + layer.residual_scale * _fed(weights, f"{name}.mlp", layer, layer.mlp, normed)
        yield "mlp", weights.norm(x, f"{name}.mlp.out_norm", layer.mlp.out_norm) if after else x


def _mixed(
    weights: Weights,
    name: str,
    block: Attention | LatentAttention | DeltaNet | Mamba,
    x: torch.Tensor,
    context: _Context,
) -> torch.Tensor:
    """What a block that mixes positions makes of `x`, normed already."""
    match block:
        case DeltaNet():
            return mix_by_delta(weights, name, block, x, context.mask)
        case Mamba():
            return mix_by_mamba(weights, name, block, x, context.mask)
        case LatentAttention():
            y, context.chosen = attend_latent(weights, name, block, x, context.allowed, context.chosen)
            return y
        case Attention():
            return attend(weights, name, block, x, x, context.allowed, context.bias, context.places, context.ahead)


def _crossed(
    weights: Weights, name: str, attention: Attention, x: torch.Tensor, context: _Context, norm_after_sum: bool
) -> torch.Tensor:
    memory = context.memory
    assert memory is not None  # validate()
    seen = torch.ones(memory.shape[:2]) if context.memory_mask is None else context.memory_mask
    allowed = seen.bool()[:, None].expand(-1, x.shape[1], -1)
    normed = weights.norm(x, f"{name}.norm", attention.norm)
    y = attend(weights, name, attention, normed, memory, allowed, context.cross_bias)
    return y if norm_after_sum else weights.norm(y, f"{name}.out_norm", attention.out_norm)


def _fed(weights: Weights, name: str, layer: Layer, mlp: Mlp, x: torch.Tensor) -> torch.Tensor:
    y = feed_forward(weights, name, mlp, x)
    y = y if layer.norm_after_sum else weights.norm(y, f"{name}.out_norm", mlp.out_norm)
    return y * weights.vector(f"{name}.layer_scale.weight") if layer.layer_scale else y


def _logits(weights: Weights, architecture: Architecture, x: torch.Tensor) -> torch.Tensor:
    head = architecture.head
    if head is None:
        return x
    if head.transform is not None:
        x = _transformed(weights, "head", head.transform, x)
    logits = weights.product(x, "embedding.tokens.weight" if head.tied else "head.weight") * head.scale
    if head.bias:
        logits = logits + weights.vector("head.bias")
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def _transformed(weights: Weights, name: str, transform: Transform, x: torch.Tensor) -> torch.Tensor:
    x = ACTIVATIONS[transform.activation](weights.linear(x, f"{name}.dense"))
    return weights.norm(x, f"{name}.norm", transform.norm)


def _classes(
    weights: Weights, classifier: Classifier, x: torch.Tensor, tokens: torch.Tensor | None, mask: torch.Tensor | None
) -> torch.Tensor:
    """The logits of a classifier, [batch, k], [batch, position, k] for each position, or [batch, (k position)] of spans."""
    pooled = _pooled(classifier, x, tokens, mask)
    if classifier.hidden:
        pooled = torch.tanh(weights.linear(pooled, "classifier.dense"))
    if classifier.transform is not None:
        pooled = _transformed(weights, "classifier", classifier.transform, pooled)
    logits = pooled if classifier.classes is None else weights.linear(pooled, "classifier")
    return logits.transpose(1, 2).flatten(1) if classifier.pooling is Pooling.SPAN else logits


def _pooled(
    classifier: Classifier, x: torch.Tensor, tokens: torch.Tensor | None, mask: torch.Tensor | None
) -> torch.Tensor:
    """What a classifier reads: [batch, h], or `x` itself where every position has logits of its own."""
    match classifier.pooling:
        case Pooling.FIRST:
            return x[:, 0]
        case Pooling.EACH | Pooling.SPAN:
            return x
        case Pooling.MEAN:
            real = torch.ones(x.shape[:2]) if mask is None else mask.float()
            return (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        case Pooling.LAST:
            if classifier.padding is None or tokens is None:
                return x[:, -1]
            counted = (tokens != classifier.padding) * torch.arange(tokens.shape[-1])
            return x[torch.arange(len(x)), counted.argmax(-1)]
