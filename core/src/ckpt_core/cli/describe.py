"""An architecture in words: one short line per part of the model, and nothing of it left out."""

from __future__ import annotations

from collections import Counter

from ckpt_core.architecture import Architecture, Facts, PerLayer, Pooling, facts_of
from ckpt_core.architecture.facts import default_of

_EVERYWHERE = (("vision.", "vision "), ("", ""), ("encoder.", "encoder "), ("decoder.", "decoder "))


def describe(architecture: Architecture) -> list[tuple[str, str]]:
    """(label, sentence) pairs. A fact that no sentence tells and that is not at its default comes last, by its path."""
    words = _Words(facts_of(architecture))
    kind = words.take("kind")
    rows = [
        ("model", f"{kind}, hidden {words.take('hidden')}"),
        ("tokens", _tokens(words)),
        ("patches", _patches(words)),
        ("vision", _vision(words)),
        ("vision out", _projector(words, "vision.projector")),
        ("vision taps", _taps(words)),
    ]
    for prefix, label in _EVERYWHERE:
        if f"{prefix}layers" in words.left:
            rows += [(f"{label}{name}", text) for name, text in _stack(words, prefix)]
    rows += [("head", _head(words)), ("classifier", _classifier(words)), ("also", "; ".join(words.rest()))]
    return [(label, text) for label, text in rows if text]


class _Words:
    """Facts that are crossed out as they are told."""

    def __init__(self, facts: Facts) -> None:
        self.left = dict(facts)

    def take(self, path: str) -> object:
        return self.left.pop(path, None)

    def has(self, path: str) -> bool:
        return any(key == path or key.startswith(f"{path}.") for key in self.left)

    def tell(self, path: str, template: str, always: bool = False) -> list[str]:
        """`template` filled with a value, unless it is absent or (without `always`) at its default."""
        if path not in self.left:
            return []
        value, where = self.take(path), self.take(f"{path}?")
        if not always and not isinstance(value, PerLayer) and value == default_of(path):
            return []
        if isinstance(value, PerLayer) and set(value) <= {True, False, None}:
            return [template.format("") + in_layers(value)]
        text = template.format("" if value is True else value_text(value))
        return [text + (in_layers(where) if isinstance(where, PerLayer) else "")]

    def norm(self, path: str, name: str) -> list[str]:
        """A norm in words: `pre-norm rms eps 1e-05`."""
        if not self.has(path):
            return []
        where = self.take(f"{path}?")
        parts = [name, *self.tell(f"{path}.kind", "{}", always=True), *self.tell(f"{path}.eps", "eps {}", always=True)]
        if self.left.get(f"{path}.weight") is False:
            parts.append("without weight")
        if not isinstance(self.left.get(f"{path}.weight"), PerLayer):
            self.take(f"{path}.weight")
        parts += self.tell(f"{path}.bias", "with bias{}") + self.tell(f"{path}.zero_centred", "zero-centred{}")
        return [" ".join(parts) + (in_layers(where) if isinstance(where, PerLayer) else "")]

    def rest(self) -> list[str]:
        """What was not told."""
        found = []
        for path, value in self.left.items():
            if path.endswith("?"):
                found.append(f"{path.removesuffix('?')}{in_layers(value)}")
            elif isinstance(value, PerLayer) or value != default_of(path):
                found.append(f"{path} {value_text(value)}")
        return found


def value_text(value: object) -> str:
    """A value, or the values of the layers with how often each occurs."""
    if isinstance(value, PerLayer):
        counts = Counter("none" if item is None else value_text(item) for item in value)
        return ", ".join(f"{text} x{count}" for text, count in counts.items())
    if isinstance(value, tuple):
        return (
            f"[{value_text(value[0])} ... {value_text(value[-1])}] ({len(value)})"
            if len(value) > 4
            else str(list(value))
        )
    return f"{value:g}" if isinstance(value, float) else str(value)


def in_layers(where: PerLayer) -> str:
    """Which layers have something: ` in layers 0, 2, 4`, or how many of them."""
    chosen = [index for index, present in enumerate(where) if present]
    if len(chosen) <= 6:
        return f" in layer{'' if len(chosen) == 1 else 's'} {', '.join(map(str, chosen))}"
    return f" in {len(chosen)} of {len(where)} layers"


def _tokens(words: _Words) -> str:
    if not words.has("tokens"):
        return ""
    vocabulary, padded = words.take("tokens.vocabulary"), words.take("tokens.padded_vocabulary")
    parts = [f"vocabulary {vocabulary:,}" + (f" padded to {padded:,}" if padded != vocabulary else "")]
    return ", ".join([*parts, *words.tell("tokens.scale", "embedding x {}"), *words.norm("tokens.norm", "then norm")])


def _patches(words: _Words) -> str:
    if not words.has("patches"):
        return ""
    height, width, patch, channels = (
        words.take(f"patches.{name}") for name in ("height", "width", "patch", "channels")
    )
    said = f"images {height}x{width} of {channels} channels in {patch}x{patch} patches"
    tokens = words.take("patches.class_tokens")
    return f"{said}, after {tokens} class token{'' if tokens == 1 else 's'}"


def _vision(words: _Words) -> str:
    if not words.has("vision"):
        return ""
    patch, channels, frames = (words.take(f"vision.{name}") for name in ("patch", "channels", "frames"))
    parts = [f"hidden {words.take('vision.hidden')}", f"{patch}x{patch} patches of {channels} channels"]
    parts[-1] += f" over {frames} frames" if frames != 1 else ""
    parts += words.norm("vision.norm", "norm of patches") + words.tell("vision.cubic", "bicubic positions{}")
    parts += words.tell("vision.bias", "with bias{}") + words.tell("vision.image", "images of {0}x{0}")
    parts += words.tell("vision.token", "in place of token {}", always=True)
    parts += words.tell("vision.video_token", "and {} of videos", always=True)
    return ", ".join([*parts, *words.tell("vision.both_ways", "seen both ways{}")])


def _projector(words: _Words, path: str) -> str:
    if not words.has(path):
        return ""
    merge = words.take(f"{path}.merge")
    parts = [f"{'the mean of ' * bool(words.take(f'{path}.mean'))}{merge}x{merge} patches"]
    after = words.take(f"{path}.norm_merged")
    parts += words.norm(f"{path}.norm", "norm of all together" if after else "norm of each")
    parts += words.tell(f"{path}.folded", "folded to {}", always=True)
    parts += words.tell(f"{path}.fold_bias", "with a bias of it{}")
    parts += words.norm(f"{path}.refined", "gelu of a norm of a matrix")
    parts += words.tell(f"{path}.gated", "gated{}")
    parts += words.tell(f"{path}.activation", "{}", always=True) + words.tell(f"{path}.ffn", "width {}", always=True)
    return ", ".join([*parts, *words.tell(f"{path}.bias", "with bias{}")])


def _taps(words: _Words) -> str:
    if not words.has("vision.tapped"):
        return ""
    after = words.tell("vision.taps", "after layers {}", always=True)
    return ", ".join([*after, _projector(words, "vision.tapped")])


def _stack(words: _Words, prefix: str) -> list[tuple[str, str]]:
    count, causal = words.take(f"{prefix}layers"), words.take(f"{prefix}causal")
    head = [f"{count}", "causal" if causal else "bidirectional"]
    head += words.tell(f"{prefix}parallel", "attention and mlp in parallel{}") + words.tell(
        f"{prefix}shared_norm", "one norm for both{}"
    )
    head += words.tell(f"{prefix}residual_from_norm", "residual from the norm{}")
    head += words.tell(f"{prefix}layer_scale", "layer scale{}")
    head += words.tell(f"{prefix}residual_scale", "blocks x {}")
    rows = [("layers", ", ".join(head))]
    rows += [
        (label, _attention(words, f"{prefix}{path}"))
        for path, label in (("attention", "attention"), ("cross_attention", "cross"))
    ]
    rows.append(("latent", _latent(words, f"{prefix}latent_attention")))
    rows.append(("delta net", _delta(words, f"{prefix}delta")))
    rows.append(("mamba", _mamba(words, f"{prefix}mamba")))
    rows.append(("positions", _positions(words, prefix)))
    rows.append(("mlp", _mlp(words, f"{prefix}mlp")))
    norms = [
        *words.norm(f"{prefix}input_norm", "input"),
        *words.norm(f"{prefix}attention.norm", "attention"),
        *words.norm(f"{prefix}attention.out_norm", "attention output"),
        *words.norm(f"{prefix}latent_attention.norm", "attention"),
        *words.norm(f"{prefix}delta.norm", "delta net"),
        *words.norm(f"{prefix}mamba.norm", "mamba"),
        *words.norm(f"{prefix}cross_attention.norm", "cross attention"),
        *words.norm(f"{prefix}mlp.norm", "mlp"),
        *words.norm(f"{prefix}mlp.out_norm", "mlp output"),
        *words.norm(f"{prefix}final_norm", "final"),
    ]
    rows.append(("norms", ", ".join(norms)))
    rows.append(("predictors", _predictors(words, f"{prefix}predictors")))
    return rows


def _predictors(words: _Words, path: str) -> str:
    if not words.has(path):
        return ""
    count = words.take(f"{path}.count")
    built = "built as the last one is" if count == 1 else "each built as the last one is"
    norms = [*words.norm(f"{path}.embed_norm", "embedding"), *words.norm(f"{path}.hidden_norm", "hidden")]
    parts = [f"{count} more layer{'' if count == 1 else 's'}, {built}", *norms]
    return ", ".join([*parts, *words.norm(f"{path}.out_norm", "output")])


def _attention(words: _Words, path: str) -> str:
    if not words.has(path):
        return ""
    heads, groups, width = (words.take(f"{path}.{name}") for name in ("heads", "groups", "head_dim"))
    parts = [f"{value_text(heads)} heads of {value_text(width)}"]
    where = words.take(f"{path}?")
    parts[0] += in_layers(where) if isinstance(where, PerLayer) else ""
    if groups != heads:
        parts.append(f"{value_text(groups)} key-value heads")
    parts += words.tell(f"{path}.scale", "scale {}")
    parts += words.norm(f"{path}.qk_norm", "q/k norm")
    parts += words.tell(f"{path}.qk_norm_whole", "over all heads at once{}")
    parts += words.tell(f"{path}.qk_norm_after_rotary", "after rotation{}")
    parts += words.tell(f"{path}.window", "window {}")
    parts += words.tell(f"{path}.chunk", "chunks of {}")
    parts += _temperature(words, f"{path}.temperature")
    parts += words.tell(f"{path}.softcap", "softcap {}")
    parts += words.tell(f"{path}.sinks", "sinks{}")
    parts += words.tell(f"{path}.head_scale", "head scale{}")
    parts += words.tell(f"{path}.out_gate", "gated output{}")
    parts += words.tell(f"{path}.in_scale", "input x {}")
    parts += words.tell(f"{path}.out_scale", "output x {}")
    biases = [name for name in ("q", "k", "v", "out") if words.left.get(f"{path}.{name}_bias") is True]
    for name in biases:
        words.take(f"{path}.{name}_bias")
    if biases:
        parts.append(f"bias on {', '.join(biases)}")
    return ", ".join(parts)


def _temperature(words: _Words, path: str) -> list[str]:
    where = words.take(f"{path}?")
    parts = words.tell(f"{path}.interval", "queries grow every {} positions", always=True)
    if parts and isinstance(where, PerLayer):
        parts[0] += in_layers(where)
    parts += words.tell(f"{path}.scale", "by {} of the logarithm", always=True)
    return parts + words.tell(f"{path}.shift", "{} further on")


def _latent(words: _Words, path: str) -> str:
    if not words.has(path):
        return ""
    heads, latent, nope, rope, value = (
        words.take(f"{path}.{name}") for name in ("heads", "kv_rank", "nope_dim", "rope_dim", "value_dim")
    )
    parts = [
        f"{value_text(heads)} heads of {value_text(nope)} + {value_text(rope)} rotated, values of {value_text(value)}"
    ]
    parts.append(f"key-value latent {value_text(latent)}")
    parts += words.tell(f"{path}.q_rank", "query latent {}")
    parts += words.tell(f"{path}.scale", "scale {}")
    parts += words.tell(f"{path}.bias", "bias{}")
    parts += _indexer(words, f"{path}.indexer")
    parts += words.tell(f"{path}.index_from_before", "positions that the indexer below chose{}")
    return ", ".join(
        [*parts, *words.norm(f"{path}.kv_norm", "latent norm"), *words.norm(f"{path}.q_norm", "query latent norm")]
    )


def _indexer(words: _Words, path: str) -> list[str]:
    if not words.has(path):
        return []
    where = words.take(f"{path}?")
    heads, width, count = (value_text(words.take(f"{path}.{name}")) for name in ("heads", "head_dim", "top_k"))
    said = f"an indexer of {heads} heads of {width} chooses {count} positions"
    return [said + (in_layers(where) if isinstance(where, PerLayer) else ""), *words.norm(f"{path}.norm", "its norm")]


def _delta(words: _Words, path: str) -> str:
    if not words.has(path):
        return ""
    where = words.take(f"{path}?")
    keys, key, values, value = (
        value_text(words.take(f"{path}.{name}")) for name in ("key_heads", "key_dim", "value_heads", "value_dim")
    )
    parts = [f"{keys} key heads of {key}, {values} value heads of {value}"]
    parts[0] += in_layers(where) if isinstance(where, PerLayer) else ""
    parts += words.tell(f"{path}.conv", "convolution over {} positions")
    parts += words.tell(f"{path}.beta_scale", "beta x {}")
    parts += words.tell(f"{path}.decay_rank", "a decay per channel through a latent of {}")
    parts += words.tell(f"{path}.gate_rank", "gate through a latent of {}")
    parts += words.tell(f"{path}.sigmoid_gate", "sigmoid gate{}")
    return ", ".join([*parts, *words.norm(f"{path}.head_norm", "head norm")])


def _mamba(words: _Words, path: str) -> str:
    if not words.has(path):
        return ""
    where = words.take(f"{path}?")
    heads, width, groups, state = (
        value_text(words.take(f"{path}.{name}")) for name in ("heads", "head_dim", "groups", "state")
    )
    parts = [f"{heads} heads of {width}, states of {state} in {groups} group{'' if groups == '1' else 's'}"]
    parts[0] += in_layers(where) if isinstance(where, PerLayer) else ""
    parts += words.tell(f"{path}.conv", "convolution over {} positions")
    parts += words.tell(f"{path}.conv_bias", "bias on convolutions{}")
    parts += words.tell(f"{path}.bias", "bias on projections{}")
    parts += words.tell(f"{path}.in_scale", "input x {}")
    parts += words.tell(f"{path}.scales", "z, x, b, c and dt x {}")
    parts += words.tell(f"{path}.out_scale", "output x {}")
    parts += words.norm(f"{path}.gated_norm", "gated norm")
    parts += words.tell(f"{path}.norm_before_gate", "before the gate{}")
    return ", ".join([*parts, *words.tell(f"{path}.norm_groups", "in {} parts")])


def _positions(words: _Words, prefix: str) -> str:
    parts = words.tell(f"{prefix}positions.count", "{} learned", always=True)
    parts += words.tell(f"{prefix}positions.offset", "offset {}")
    for block in ("attention", "latent_attention"):
        path = f"{prefix}{block}"
        where = words.take(f"{path}.rotary?")
        rotary = words.tell(f"{path}.rotary.theta", "rotary theta {}", always=True)
        rotary += words.tell(f"{path}.rotary.fraction", "on {} of every head")
        rotary += words.tell(f"{path}.rotary.axial", "by row and column{}")
        rotary += words.tell(f"{path}.rotary.sections", "by time, row and column {}", always=True)
        rotary += words.tell(f"{path}.rotary.interleaved", "interleaved{}")
        rotary += words.tell(f"{path}.rotary.scaling.kind", "{} scaling", always=True)
        scaling = [key for key in words.left if key.startswith(f"{path}.rotary.scaling.") and not key.endswith("?")]
        rotary += [
            part for key in scaling for part in words.tell(key, f"{key.rpartition('.')[2].replace('_', ' ')} {{}}")
        ]
        if rotary and isinstance(where, PerLayer):
            rotary[0] += in_layers(where)
        parts += rotary + words.tell(f"{path}.alibi", "alibi{}")
    for path in (f"{prefix}relative_bias", f"{prefix}attention.relative_bias", f"{prefix}cross_relative_bias"):
        across = " across" * path.endswith("cross_relative_bias")
        parts += words.tell(f"{path}.buckets", f"relative bias{across} in {{}} buckets", always=True)
        parts += words.tell(f"{path}.max_distance", "up to {}", always=True)
        if isinstance(words.left.get(f"{path}.bidirectional"), bool):
            parts.append("both ways" if words.take(f"{path}.bidirectional") else "backwards")
    for block in ("attention", "cross_attention"):
        parts += words.tell(f"{prefix}{block}.relative_bias_scale", "times {}")
    return ", ".join(parts)


def _mlp(words: _Words, path: str) -> str:
    where = words.take(f"{path}?")
    gated, activation = words.take(f"{path}.gated"), words.take(f"{path}.activation")
    named = f"gated ({value_text(gated)}) " if isinstance(gated, PerLayer) else "gated " * bool(gated)
    parts = [f"{named}{value_text(activation)}", *words.tell(f"{path}.ffn", "width {}")]
    parts[0] += in_layers(where) if isinstance(where, PerLayer) else ""
    if words.has(f"{path}.moe"):
        where = words.take(f"{path}.moe?")
        count, width, chosen = (
            value_text(words.take(f"{path}.moe.{name}")) for name in ("experts", "ffn", "router.top_k")
        )
        expert = f"{count} experts of width {width}, {chosen} per token"
        parts.append(expert + (in_layers(where) if isinstance(where, PerLayer) else ""))
        parts += words.tell(f"{path}.moe.latent", "behind a latent of {}")
        parts += words.tell(f"{path}.moe.router.score", "{} router", always=True)
        parts += words.tell(f"{path}.moe.router.normalise", "normalised{}")
        parts += words.tell(f"{path}.moe.router.margin", "chosen one by one, shares within a margin of {}")
        parts += words.tell(f"{path}.moe.router.on_input", "shares on the input of experts{}")
        parts += words.tell(f"{path}.moe.shared.ffn", "shared expert of width {}")
        parts += words.tell(f"{path}.moe.shared.gate", "gated{}")
    parts += words.tell(f"{path}.clamp", "clamped at {}")
    parts += words.tell(f"{path}.gate_scale", "gate x {}")
    parts += words.tell(f"{path}.out_scale", "output x {}")
    parts += words.tell(f"{path}.up_offset", "up + {}")
    parts += words.tell(f"{path}.up_bias", "bias on up{}")
    parts += words.tell(f"{path}.down_bias", "bias on down{}")
    return ", ".join(parts)


def _head(words: _Words) -> str:
    if not words.has("head"):
        return ""
    tied = "tied to the embedding" if words.take("head.tied") else "a matrix of its own"
    rest = _transform(words, "head.transform")
    rest += words.tell("head.bias", "bias{}")
    rest += words.tell("head.scale", "logits x {}")
    rest += words.tell("head.softcap", "softcap {}")
    return ", ".join([tied, *rest])


def _transform(words: _Words, path: str) -> list[str]:
    """A dense layer, an activation and a norm, which stand before a matrix."""
    if not words.has(path):
        return []
    dense = words.tell(f"{path}.activation", "before it dense and {}", always=True)
    return [*dense, *words.norm(f"{path}.norm", "norm")]


_POOLED = {
    Pooling.LAST: "of the last position",
    Pooling.MEAN: "of the mean of all positions",
    Pooling.EACH: "of each position",
    Pooling.SPAN: "that choose a position each",
}


def _classifier(words: _Words) -> str:
    if not words.has("classifier"):
        return ""
    if not words.has("classifier.classes"):
        return ", ".join(
            ["none, the pooled sequence is the output", *words.tell("classifier.hidden", "dense and tanh{}")]
        )
    pooling = words.take("classifier.pooling")
    pooled = [_POOLED[pooling]] if isinstance(pooling, Pooling) and pooling in _POOLED else []
    return ", ".join(
        [
            f"{words.take('classifier.classes')} classes",
            *pooled,
            *_transform(words, "classifier.transform"),
            *words.tell("classifier.padding", "padding is token {}", always=True),
            *words.tell("classifier.hidden", "dense and tanh before{}"),
        ]
    )
