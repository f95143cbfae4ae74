"""The canonical parameters of an architecture: the completeness check.

`parameters(architecture)` lists exactly the tensors a model has, with named axes and sizes.
A reader must deliver each of them, a writer must place each of them, and nothing else exists.

Axis names are the field's own letters:

    v vocabulary   h hidden          g query groups   r query heads per group   d head dim
    f ffn          x experts         p positions      b distance buckets
    ql/kl query and key-value latents    dn/dr/dv unrotated, rotated and value dims of latent attention
    gi/di heads and head dim of an indexer
    t taps of a convolution      dk/dv key and value dims of a delta net (g key heads, r value heads per key head)
    al/zl its latents of decay and gate
    n state of a Mamba-2 block (g groups, r heads per group, d head dim)
    cls class tokens   y/z patch rows and columns   ch channels   k classes   i the output of a square matrix, or of one that folds   j of one that refines   s types of tokens
    fr frames of a patch   my/mz rows and columns of patches that are merged   w hidden of a language model that sees   tap taps of its tower

In a vision tower h is the hidden size of the tower.

Experts behind a latent projection have its size for h.

The head dim of rotated projections is refined: d = (c e) + o, where c = 2 halves of e rotated
pairs, and o what is left unrotated. A layout sentence may name the finer axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from ckpt_core.architecture.schema import (
    Activation,
    Architecture,
    Attention,
    Classifier,
    DeltaNet,
    Indexer,
    LatentAttention,
    Layer,
    Mamba,
    Mlp,
    Norm,
    Patches,
    Predictors,
    Projector,
    Stack,
    Tokens,
    Transform,
    Vision,
)
from ckpt_core.architecture.validity import rotary_width
from ckpt_core.lean import dataclass

Term = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """A named axis; `terms` refine it into a sum of products of finer axes, in canonical order."""

    name: str
    size: int
    terms: tuple[Term, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}={self.size}"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A canonical parameter. `true_rows`: how many rows of axis 0 are real when it is a padded vocabulary."""

    name: str
    axes: tuple[Axis, ...]
    true_rows: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def true_shape(self) -> tuple[int, ...]:
        """The shape without padding rows."""
        return self.shape if self.true_rows is None else (self.true_rows, *self.shape[1:])

    def __str__(self) -> str:
        return f"{self.name}: " + " ".join(map(str, self.axes))


def head_dim_axis(size: int, rotated: int, name: str = "d") -> Axis:
    """The head dim with its rotary refinement: `rotated` elements in two halves, the rest untouched."""
    return Axis(name, size, ((("c", 2), ("e", rotated // 2)), (("o", size - rotated),)))


def parameters(architecture: Architecture) -> dict[str, Parameter]:
    """Every parameter of the model by canonical name, in the order of the forward pass."""
    return {parameter.name: parameter for parameter in _enumerate(architecture)}


def _enumerate(architecture: Architecture) -> Iterator[Parameter]:
    hidden = Axis("h", architecture.hidden)
    tokens = architecture.tokens
    if tokens is not None:
        yield _per_token("embedding.tokens.weight", tokens, hidden)
        if tokens.types:
            yield Parameter("embedding.types.weight", (Axis("s", tokens.types), hidden))
        yield from _norm("embedding.norm", tokens.norm, hidden)
    if architecture.patches is not None:
        yield from _patches(architecture.patches, hidden)
    if architecture.vision is not None:
        yield from _vision(architecture.vision, Axis("w", hidden.size))
    for prefix, stack in architecture.stacks.items():
        yield from _stack(prefix, stack, hidden)
    if architecture.head is not None and tokens is not None:  # validate: no head without tokens
        if architecture.head.transform is not None:
            yield from _transform("head", architecture.head.transform, hidden)
        if not architecture.head.tied:
            yield _per_token("head.weight", tokens, hidden)
        if architecture.head.bias:
            yield _per_token("head.bias", tokens)
    if architecture.classifier is not None:
        yield from _classifier(architecture.classifier, hidden)


def _per_token(name: str, tokens: Tokens, *axes: Axis) -> Parameter:
    """A parameter with a row for every token; rows beyond the vocabulary are padding."""
    true_rows = tokens.vocabulary if tokens.vocabulary != tokens.padded_vocabulary else None
    return Parameter(name, (Axis("v", tokens.padded_vocabulary), *axes), true_rows)


def _patches(patches: Patches, hidden: Axis) -> Iterator[Parameter]:
    square = (Axis("ch", patches.channels), Axis("y", patches.patch), Axis("z", patches.patch))
    yield Parameter("embedding.patches.weight", (hidden, *square))
    if patches.bias:
        yield Parameter("embedding.patches.bias", (hidden,))
    if patches.class_tokens:
        yield Parameter("embedding.class_tokens.weight", (Axis("cls", patches.class_tokens), hidden))


def _vision(vision: Vision, width: Axis) -> Iterator[Parameter]:
    hidden, patch = Axis("h", vision.hidden), vision.patch
    frames = (Axis("fr", vision.frames),) if vision.frames > 1 else ()
    yield Parameter(
        "vision.patches.weight", (hidden, Axis("ch", vision.channels), *frames, Axis("y", patch), Axis("z", patch))
    )
    if vision.bias:
        yield Parameter("vision.patches.bias", (hidden,))
    yield from _norm("vision.norm", vision.norm, hidden)
    yield from _stack("vision.", vision.stack, hidden)
    yield from _projector("vision.projector", vision.projector, hidden, width)
    if vision.tapped is not None:
        for parameter in _projector("vision.taps", vision.tapped, hidden, width):
            yield replace(parameter, axes=(Axis("tap", len(vision.taps)), *parameter.axes))


def _projector(name: str, projector: Projector, hidden: Axis, width: Axis) -> Iterator[Parameter]:
    square = () if projector.mean else (Axis("my", projector.merge), Axis("mz", projector.merge))
    merged, between = (*square, hidden), Axis("f", projector.ffn or 0)
    yield from _norm(f"{name}.norm", projector.norm, *(merged if projector.norm_merged else (hidden,)))
    if projector.folded is not None:
        made = Axis("i", projector.folded)
        yield Parameter(f"{name}.fold.weight", (made, *merged))
        if projector.fold_bias:
            yield Parameter(f"{name}.fold.bias", (made,))
        merged = (made,)
    if projector.refined is not None:
        (made,) = merged  # validate()
        yield Parameter(f"{name}.refine.weight", (Axis("j", made.size), made))
        yield from _norm(f"{name}.refined", projector.refined, Axis("j", made.size))
        merged = (Axis("j", made.size),)
    if projector.ffn is not None:
        for part in ("gate", "up") if projector.gated else ("up",):
            yield Parameter(f"{name}.{part}.weight", (between, *merged))
            if projector.bias:
                yield Parameter(f"{name}.{part}.bias", (between,))
    yield Parameter(f"{name}.down.weight", (width, *(merged if projector.ffn is None else (between,))))
    if projector.bias:
        yield Parameter(f"{name}.down.bias", (width,))


def _transform(prefix: str, transform: Transform, hidden: Axis) -> Iterator[Parameter]:
    made = Axis("i", hidden.size)
    yield Parameter(f"{prefix}.dense.weight", (made, hidden))
    if transform.bias:
        yield Parameter(f"{prefix}.dense.bias", (made,))
    yield from _norm(f"{prefix}.norm", transform.norm, made)


def _classifier(classifier: Classifier, hidden: Axis) -> Iterator[Parameter]:
    if classifier.transform is not None:
        yield from _transform("classifier", classifier.transform, hidden)
    if classifier.hidden:
        yield Parameter("classifier.dense.weight", (Axis("i", hidden.size), hidden))
        yield Parameter("classifier.dense.bias", (Axis("i", hidden.size),))
    if classifier.classes is not None:
        yield Parameter("classifier.weight", (Axis("k", classifier.classes), hidden))
        if classifier.bias:
            yield Parameter("classifier.bias", (Axis("k", classifier.classes),))


def _stack(prefix: str, stack: Stack, hidden: Axis) -> Iterator[Parameter]:
    if stack.positions is not None:
        yield Parameter(f"{prefix}positions.weight", (Axis("p", stack.positions.count), hidden))
    yield from _norm(f"{prefix}input_norm", stack.input_norm, hidden)
    for name, table, attention in (
        ("relative_bias", stack.relative_bias, stack.layers[0].attention),
        ("cross_relative_bias", stack.cross_relative_bias, stack.layers[0].cross_attention),
    ):
        if table is not None:
            yield _relative_bias(f"{prefix}{name}.weight", table.buckets, attention)
    for index, layer in enumerate(stack.layers):
        yield from _layer(f"{prefix}layers.{index}.", layer, hidden)
    yield from _norm(f"{prefix}final_norm", stack.final_norm, hidden)
    if stack.predictors is not None:
        for index in range(stack.predictors.count):
            yield from _predictor(f"{prefix}predictors.{index}", stack.predictors, stack.layers[-1], hidden)


def _predictor(name: str, predictors: Predictors, layer: Layer, hidden: Axis) -> Iterator[Parameter]:
    for part, norm in (("embed", predictors.embed_norm), ("hidden", predictors.hidden_norm)):
        yield from _norm(f"{name}.{part}_norm", norm, hidden)
        yield Parameter(f"{name}.{part}.weight", (Axis("i", hidden.size), hidden))
    yield from _layer(f"{name}.layer.", layer, hidden)
    yield from _norm(f"{name}.out_norm", predictors.out_norm, hidden)


def _layer(prefix: str, layer: Layer, hidden: Axis) -> Iterator[Parameter]:
    if layer.attention is not None:
        yield from _attention(f"{prefix}attention", layer.attention, hidden)
    if layer.latent_attention is not None:
        yield from _latent_attention(f"{prefix}attention", layer.latent_attention, hidden)
    if layer.delta is not None:
        yield from _delta(f"{prefix}delta", layer.delta, hidden)
    if layer.mamba is not None:
        yield from _mamba(f"{prefix}mamba", layer.mamba, hidden)
    for name, _ in layer.mixers if layer.layer_scale else ():
        yield Parameter(f"{prefix}{name}.layer_scale.weight", (hidden,))
    if layer.cross_attention is not None:
        yield from _attention(f"{prefix}cross_attention", layer.cross_attention, hidden)
    if layer.mlp is not None:
        yield from _mlp(f"{prefix}mlp", layer.mlp, hidden)
        if layer.layer_scale:
            yield Parameter(f"{prefix}mlp.layer_scale.weight", (hidden,))


def _attention(name: str, attention: Attention, hidden: Axis) -> Iterator[Parameter]:
    groups = Axis("g", attention.groups)
    per_group = Axis("r", attention.heads // attention.groups)
    rotated = head_dim_axis(attention.head_dim, rotary_width(attention.rotary, attention.head_dim))
    plain = Axis("d", attention.head_dim)
    yield from _norm(f"{name}.norm", attention.norm, hidden)
    for part, axes, bias in (
        ("q", (groups, per_group, rotated), attention.q_bias),
        ("k", (groups, rotated), attention.k_bias),
        ("v", (groups, plain), attention.v_bias),
    ):
        yield Parameter(f"{name}.{part}.weight", (*axes, hidden))
        if bias:
            yield Parameter(f"{name}.{part}.bias", axes)
    if attention.qk_norm is not None:
        for part, whole in (("q", (groups, per_group, rotated)), ("k", (groups, rotated))):
            yield from _norm(
                f"{name}.{part}_norm", attention.qk_norm, *(whole if attention.qk_norm_whole else (rotated,))
            )
    if attention.relative_bias is not None:
        yield _relative_bias(f"{name}.relative_bias.weight", attention.relative_bias.buckets, attention)
    if attention.out_gate:
        yield Parameter(f"{name}.gate.weight", (groups, per_group, plain, hidden))
        if attention.q_bias:
            yield Parameter(f"{name}.gate.bias", (groups, per_group, plain))
    if attention.sinks:
        yield Parameter(f"{name}.sinks.weight", (groups, per_group))
    if attention.head_scale:
        yield Parameter(f"{name}.head_scale.weight", (groups, per_group))
    yield Parameter(f"{name}.out.weight", (hidden, groups, per_group, plain))
    if attention.out_bias:
        yield Parameter(f"{name}.out.bias", (hidden,))
    yield from _norm(f"{name}.out_norm", attention.out_norm, hidden)


def _relative_bias(name: str, buckets: int, attention: Attention | None) -> Parameter:
    assert attention is not None  # validate()
    heads = (Axis("g", attention.groups), Axis("r", attention.heads // attention.groups))
    return Parameter(name, (Axis("b", buckets), *heads))


def _latent_attention(name: str, latent: LatentAttention, hidden: Axis) -> Iterator[Parameter]:
    groups, nope, value = Axis("g", latent.heads), Axis("dn", latent.nope_dim), Axis("dv", latent.value_dim)
    rope = head_dim_axis(latent.rope_dim, latent.rope_dim if latent.rotary else 0, "dr")
    query, keys = Axis("ql", latent.q_rank or 0), Axis("kl", latent.kv_rank)
    yield from _norm(f"{name}.norm", latent.norm, hidden)
    source = hidden
    if latent.q_rank is not None:
        yield Parameter(f"{name}.q_down.weight", (query, hidden))
        yield from _norm(f"{name}.q_norm", latent.q_norm, query)
        source = query
    yield Parameter(f"{name}.q_nope.weight", (groups, nope, source))
    yield Parameter(f"{name}.q_rope.weight", (groups, rope, source))
    yield Parameter(f"{name}.kv_down.weight", (keys, hidden))
    yield Parameter(f"{name}.k_rope.weight", (rope, hidden))
    yield from _norm(f"{name}.kv_norm", latent.kv_norm, keys)
    yield Parameter(f"{name}.k_nope.weight", (groups, nope, keys))
    yield Parameter(f"{name}.v.weight", (groups, value, keys))
    if latent.indexer is not None:
        yield from _indexer(name, latent.indexer, latent.rope_dim if latent.rotary else 0, query, hidden)
    yield Parameter(f"{name}.out.weight", (hidden, groups, value))
    if latent.bias:
        yield Parameter(f"{name}.out.bias", (hidden,))
    yield from _norm(f"{name}.out_norm", latent.out_norm, hidden)


def _indexer(name: str, indexer: Indexer, rotated: int, query: Axis, hidden: Axis) -> Iterator[Parameter]:
    heads, width = Axis("gi", indexer.heads), head_dim_axis(indexer.head_dim, rotated, "di")
    yield Parameter(f"{name}.index_q.weight", (heads, width, query))
    yield Parameter(f"{name}.index_k.weight", (width, hidden))
    yield from _norm(f"{name}.index_norm", indexer.norm, width)
    yield Parameter(f"{name}.index_heads.weight", (heads, hidden))


def _delta(name: str, delta: DeltaNet, hidden: Axis) -> Iterator[Parameter]:
    keys, per_key = Axis("g", delta.key_heads), Axis("r", delta.value_heads // delta.key_heads)
    key, value, taps = Axis("dk", delta.key_dim), Axis("dv", delta.value_dim), Axis("t", delta.conv)
    yield from _norm(f"{name}.norm", delta.norm, hidden)
    projected = (("q", (keys, key)), ("k", (keys, key)), ("v", (keys, per_key, value)))
    decaying = (keys, per_key) if delta.decay_rank is None else (keys, per_key, key)
    latents = {
        "z": delta.gate_rank and Axis("zl", delta.gate_rank),
        "a": delta.decay_rank and Axis("al", delta.decay_rank),
    }
    for part, axes in (*projected, ("z", (keys, per_key, value)), ("b", (keys, per_key)), ("a", decaying)):
        latent = latents.get(part)
        if latent:
            yield Parameter(f"{name}.{part}_down.weight", (latent, hidden))
        yield Parameter(f"{name}.{part}.weight", (*axes, latent or hidden))
    for part, axes in projected:
        yield Parameter(f"{name}.{part}_conv.weight", (*axes, taps))
    yield Parameter(f"{name}.a_log.weight", (keys, per_key))
    yield Parameter(f"{name}.dt_bias.weight", decaying)
    yield from _norm(f"{name}.head_norm", delta.head_norm, value)
    yield Parameter(f"{name}.out.weight", (hidden, keys, per_key, value))
    yield from _norm(f"{name}.out_norm", delta.out_norm, hidden)


def _mamba(name: str, mamba: Mamba, hidden: Axis) -> Iterator[Parameter]:
    groups, per_group = Axis("g", mamba.groups), Axis("r", mamba.heads // mamba.groups)
    channels, state, taps = (
        (groups, per_group, Axis("d", mamba.head_dim)),
        Axis("n", mamba.state),
        Axis("t", mamba.conv),
    )
    yield from _norm(f"{name}.norm", mamba.norm, hidden)
    convolved = (("x", channels), ("b", (groups, state)), ("c", (groups, state)))
    for part, axes in (("z", channels), *convolved, ("dt", (groups, per_group))):
        yield Parameter(f"{name}.{part}.weight", (*axes, hidden))
        if mamba.bias:
            yield Parameter(f"{name}.{part}.bias", axes)
    for part, axes in convolved:
        yield Parameter(f"{name}.{part}_conv.weight", (*axes, taps))
        if mamba.conv_bias:
            yield Parameter(f"{name}.{part}_conv.bias", axes)
    for part in ("a_log", "dt_bias", "skip"):
        yield Parameter(f"{name}.{part}.weight", (groups, per_group))
    yield from _norm(f"{name}.gated_norm", mamba.gated_norm, *channels)
    yield Parameter(f"{name}.out.weight", (hidden, *channels))
    if mamba.bias:
        yield Parameter(f"{name}.out.bias", (hidden,))
    yield from _norm(f"{name}.out_norm", mamba.out_norm, hidden)


def _mlp(name: str, mlp: Mlp, hidden: Axis) -> Iterator[Parameter]:
    yield from _norm(f"{name}.norm", mlp.norm, hidden)
    if mlp.ffn is not None:
        yield from _feed_forward(name, mlp, mlp.ffn, hidden)
    if mlp.activation is Activation.XIELU:
        for part in ("a", "b", "slope", "edge"):
            yield Parameter(f"{name}.xielu_{part}.weight", ())
    if mlp.moe is not None:
        experts = Axis("x", mlp.moe.experts)
        yield Parameter(f"{name}.router.weight", (experts, hidden))
        if mlp.moe.router.bias:
            yield Parameter(f"{name}.router.bias", (experts,))
        if mlp.moe.router.correction_bias:
            yield Parameter(f"{name}.router.correction_bias", (experts,))
        read = hidden if mlp.moe.latent is None else replace(hidden, size=mlp.moe.latent)
        for parameter in _feed_forward(f"{name}.experts", mlp, mlp.moe.ffn, read):
            yield replace(parameter, axes=(experts, *parameter.axes))
        if mlp.moe.latent is not None:
            latent = Axis("m", mlp.moe.latent)
            yield Parameter(f"{name}.latent_in.weight", (latent, hidden))
            yield Parameter(f"{name}.latent_out.weight", (hidden, latent))
        if mlp.moe.shared is not None:
            yield from _feed_forward(f"{name}.shared", mlp, mlp.moe.shared.ffn, hidden)
            if mlp.moe.shared.gate:
                yield Parameter(f"{name}.shared_gate.weight", (hidden,))
    yield from _norm(f"{name}.out_norm", mlp.out_norm, hidden)


def _feed_forward(name: str, mlp: Mlp, width: int, hidden: Axis) -> Iterator[Parameter]:
    ffn = Axis("f", width)
    for part in ("gate", "up") if mlp.gated else ("up",):
        yield Parameter(f"{name}.{part}.weight", (ffn, hidden))
        if mlp.up_bias:
            yield Parameter(f"{name}.{part}.bias", (ffn,))
    yield Parameter(f"{name}.down.weight", (hidden, ffn))
    if mlp.down_bias:
        yield Parameter(f"{name}.down.bias", (hidden,))


def _norm(name: str, norm: Norm | None, *axes: Axis) -> Iterator[Parameter]:
    if norm is not None and norm.weight:
        yield Parameter(f"{name}.weight", axes)
    if norm is not None and norm.bias:
        yield Parameter(f"{name}.bias", axes)
