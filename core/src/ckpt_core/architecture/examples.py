"""Small models whose axes all have different sizes, one of every kind that the schema knows.

Equal sizes hide errors: a transposed square matrix still has the right shape. So hidden, heads, groups, head dim,
rotary halves, ffn, experts, vocabulary and layers differ pairwise here, and the shared ones divide by 1, 2 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_core.architecture.facts import Facts, PerLayer, architecture_of
from ckpt_core.architecture.schema import Activation, Architecture, Pooling

ABSENT = object()
"""As the new value of a fact: the thing does not exist."""


def _norms(kind: str, eps: float, *names: str) -> dict[str, object]:
    return {f"{name}.{field}": value for name in names for field, value in (("kind", kind), ("eps", eps))}


_PRE_NORMS = ("attention.norm", "mlp.norm", "final_norm")
_BERT_NORMS = ("input_norm", "attention.out_norm", "mlp.out_norm", "head.transform.norm")

_LLAMA: dict[str, object] = {
    "kind": "decoder",
    "causal": True,
    "layers": 6,
    "hidden": 132,
    "tokens.vocabulary": 212,
    "tokens.padded_vocabulary": 212,
    "attention.heads": 12,
    "attention.groups": 4,
    "attention.head_dim": 18,
    "attention.rotary.theta": 10000.0,
    "mlp.ffn": 56,
    "mlp.activation": Activation.SILU,
    "mlp.gated": True,
    **_norms("rms", 1e-5, *_PRE_NORMS),
    "head.tied": False,
}

_LAYER_NORMS = {**_norms("layer", 1e-5, *_PRE_NORMS), **{f"{name}.bias": True for name in _PRE_NORMS}}
_BIASES = {f"attention.{part}_bias": True for part in ("q", "k", "v", "out")} | {
    "mlp.up_bias": True,
    "mlp.down_bias": True,
}
_PLAIN_GELU = {"mlp.gated": False, "mlp.activation": Activation.GELU_TANH}

_GPT2: dict[str, object] = {
    "attention.rotary": ABSENT,
    "attention.groups": 12,
    "positions.count": 40,
    "head.tied": True,
    **_LAYER_NORMS,
    **_BIASES,
    **_PLAIN_GELU,
}

_MOE: dict[str, object] = {
    "mlp.ffn": ABSENT,
    "mlp.moe.experts": 10,
    "mlp.moe.ffn": 20,
    "mlp.moe.router.top_k": 3,
    "mlp.moe.shared.ffn": 28,
    "mlp.moe.shared.gate": True,
}

_LATENT: dict[str, object] = {
    "attention": ABSENT,
    "latent_attention.heads": 4,
    "latent_attention.kv_rank": 24,
    "latent_attention.q_rank": 44,
    "latent_attention.nope_dim": 14,
    "latent_attention.rope_dim": 10,
    "latent_attention.value_dim": 16,
    "latent_attention.rotary.theta": 10000.0,
    **_norms("rms", 1e-6, "latent_attention.norm", "latent_attention.q_norm", "latent_attention.kv_norm"),
}

_INDEXED: dict[str, object] = {
    **_LATENT,
    "latent_attention.indexer.heads": 6,
    "latent_attention.indexer.head_dim": 22,
    "latent_attention.indexer.top_k": 9,
    "latent_attention.indexer?": PerLayer((True, True, False, True, True, False)),
    "latent_attention.index_from_before": PerLayer((False, False, True, False, False, True)),
    **_norms("layer", 1e-6, "latent_attention.indexer.norm"),
    "latent_attention.indexer.norm.bias": True,
}

_DELTA_NET: dict[str, object] = {
    "delta.key_heads": 4,
    "delta.value_heads": 8,
    "delta.key_dim": 14,
    "delta.value_dim": 10,
    "delta.conv": 3,
    **_norms("rms", 1e-6, "delta.norm", "delta.head_norm"),
}

_DELTA: dict[str, object] = {
    **_DELTA_NET,
    "delta?": PerLayer((True, True, False, True, True, False)),
    "attention?": PerLayer((False, False, True, False, False, True)),
    "attention.out_gate": True,
    "attention.rotary.fraction": 0.56,
    **_norms("rms", 1e-6, *_PRE_NORMS, "attention.qk_norm"),
    **{f"{name}.zero_centred": True for name in (*_PRE_NORMS, "attention.qk_norm", "delta.norm")},
}

_MAMBA_NETS: dict[str, object] = {
    "mamba.heads": 8,
    "mamba.head_dim": 14,
    "mamba.groups": 4,
    "mamba.state": 10,
    "mamba.conv": 3,
    "mamba.conv_bias": True,
    "mamba.norm_groups": 4,
    **_norms("rms", 1e-5, "mamba.norm", "mamba.gated_norm"),
}

_MAMBA: dict[str, object] = {
    **_MAMBA_NETS,
    "mamba?": PerLayer((True, True, False, True, True, False)),
    "attention?": PerLayer((False, False, True, False, False, True)),
}

# Falcon-H1's: a Mamba-2 block beside attention in every layer, and a number for almost every projection.
_SIDE_BY_SIDE: dict[str, object] = {
    **{path: value for path, value in _MAMBA_NETS.items() if not path.startswith("mamba.norm.")},
    "mamba.norm_before_gate": True,
    "mamba.in_scale": 0.75,
    "mamba.scales": (0.5, 1.25, 0.75, 1.5, 0.625),
    "mamba.out_scale": 0.375,
    "attention.in_scale": 1.25,
    "attention.out_scale": 0.875,
    "mlp.gate_scale": 0.75,
    "mlp.out_scale": 0.625,
}

# Layers of one block: Mamba-2, MLP, attention, Mamba-2, mixture, attention.
_ONE_BLOCK: dict[str, object] = {
    **_MOE,
    **_MAMBA_NETS,
    "mamba?": PerLayer((True, False, False, True, False, False)),
    "attention?": PerLayer((False, False, True, False, False, True)),
    "attention.rotary": ABSENT,
    "mlp?": PerLayer((False, True, False, False, True, False)),
    "mlp.ffn": 56,
    "mlp.ffn?": PerLayer((False, True, False, False, False, False)),
    "mlp.moe?": PerLayer((False, False, False, False, True, False)),
    "mlp.moe.latent": 44,
    "mlp.gated": False,
    "mlp.activation": Activation.RELU_SQUARED,
}

# Kimi's: a decay for every channel, beside latent attention that does not rotate.
_DELTA_BY_CHANNEL: dict[str, object] = {
    **_LATENT,
    **_DELTA_NET,
    "latent_attention.rotary": ABSENT,
    "delta?": PerLayer((True, True, False, True, True, False)),
    "latent_attention?": PerLayer((False, False, True, False, False, True)),
    "delta.decay_rank": 9,
    "delta.gate_rank": 11,
    "delta.sigmoid_gate": True,
}

_GEMMA: dict[str, object] = {
    **{f"{name}.zero_centred": True for name in (*_PRE_NORMS, "attention.out_norm", "mlp.out_norm")},
    **_norms("rms", 1e-6, "attention.out_norm", "mlp.out_norm"),
    **_norms("rms", 1e-6, "attention.qk_norm"),
    "attention.softcap": 50.0,
    "attention.scale": 0.0625,
    "attention.window": 16,
    "attention.window?": PerLayer((True, False, True, False, True, False)),
    "head.softcap": 30.0,
    "head.tied": True,
    "tokens.scale": 11.5,
}

_T5_STACK: dict[str, object] = {
    **{path: value for path, value in _LLAMA.items() if path.startswith(("attention", "mlp", "final_norm"))},
    "attention.groups": 12,
    "attention.rotary.theta": ABSENT,
    "relative_bias.buckets": 26,
    "relative_bias.max_distance": 64,
}

_T5: dict[str, object] = {
    **dict.fromkeys(("attention", "mlp", "final_norm", "layers", "causal"), ABSENT),
    "kind": "encoder-decoder",
    **{f"encoder.{path}": value for path, value in _T5_STACK.items()},
    **{f"decoder.{path}": value for path, value in _T5_STACK.items()},
    **{f"decoder.cross_{path}": value for path, value in _T5_STACK.items() if path.startswith("attention")},
    "encoder.layers": 3,
    "decoder.layers": 5,
    "encoder.causal": False,
    "decoder.causal": True,
    "encoder.relative_bias.bidirectional": True,
    "decoder.relative_bias.bidirectional": False,
}

_BERT: dict[str, object] = {
    **{path: value for path, value in _GPT2.items() if not path.startswith(_PRE_NORMS)},
    **dict.fromkeys(_PRE_NORMS, ABSENT),
    "kind": "encoder",
    "causal": False,
    "norm_after_sum": True,
    **_norms("layer", 1e-5, *_BERT_NORMS),
    **{f"{name}.bias": True for name in _BERT_NORMS},
    "tokens.types": 2,
    "head.bias": True,
    "head.transform.activation": Activation.GELU_ERF,
}

_VIT: dict[str, object] = {
    **{path: value for path, value in _GPT2.items() if path != "head.tied"},
    "kind": "encoder",
    "causal": False,
    "tokens": ABSENT,
    "head": ABSENT,
    "patches.height": 24,
    "patches.width": 32,
    "patches.patch": 8,
    "patches.channels": 3,
    "positions.count": 13,
    "classifier.classes": 17,
    "classifier.hidden": True,
}

_TOWER: dict[str, object] = {
    "vision.hidden": 80,
    "vision.patch": 4,
    "vision.channels": 3,
    "vision.frames": 2,
    "vision.bias": True,
    "vision.token": 200,
    "vision.video_token": 201,
    "vision.layers": 3,
    "vision.causal": False,
    "vision.positions.count": 25,
    "vision.attention.heads": 4,
    "vision.attention.groups": 4,
    "vision.attention.head_dim": 20,
    "vision.attention.rotary.theta": 10000.0,
    "vision.attention.rotary.axial": True,
    "vision.mlp.ffn": 36,
    "vision.projector.merge": 2,
    "vision.projector.ffn": 320,
    "vision.projector.activation": Activation.GELU_ERF,
    "vision.projector.bias": True,
    **{f"vision.{path}": value for path, value in (_BIASES | _PLAIN_GELU).items()},
    **_norms("layer", 1e-6, *(f"vision.{norm}" for norm in ("attention.norm", "mlp.norm", "projector.norm"))),
    **{f"vision.{norm}.bias": True for norm in ("attention.norm", "mlp.norm", "projector.norm")},
}

# Qwen3-VL's: positions that are stretched, and layers of the tower that are tapped.
_SEEING: dict[str, object] = {
    **_TOWER,
    **_norms("rms", 1e-5, "attention.qk_norm"),
    "attention.rotary.sections": (4, 3, 2),
    "attention.rotary.interleaved": True,
    "vision.taps": (0, 2),
    **{
        f"vision.tapped.{field}": _TOWER[f"vision.projector.{field}"]
        for field in ("merge", "ffn", "activation", "bias")
    },
    **_norms("layer", 1e-6, "vision.tapped.norm"),
    "vision.tapped.norm.bias": True,
    "vision.tapped.norm_merged": True,
}

# Qwen2.5-VL's: most layers of the tower see squares of patches. Heads fill the width.
_SEEING_SQUARES: dict[str, object] = {
    "hidden": 216,
    **{path: value for path, value in _TOWER.items() if not path.endswith("norm.bias") and path != "vision.bias"},
    **{f"attention.{part}_bias": True for part in ("q", "k", "v")},
    **_norms("rms", 1e-6, *(f"vision.{norm}" for norm in ("attention.norm", "mlp.norm", "projector.norm"))),
    "attention.rotary.sections": (4, 3, 2),
    "vision.positions.count": ABSENT,
    "vision.attention.chunk": 4,
    "vision.attention.chunk?": PerLayer((True, False, True)),
    "vision.mlp.gated": True,
    "vision.mlp.activation": Activation.SILU,
}

# Gemma 3's: images of one size, of which every token sees all others.
_SEEING_WHOLE: dict[str, object] = {
    **_GEMMA,
    **_TOWER,
    **_norms("rms", 1e-6, *_PRE_NORMS),
    "attention.qk_norm.zero_centred": True,
    "attention.softcap": ABSENT,
    "head.softcap": ABSENT,
    "tokens.scale": 132**0.5,
    **{
        f"vision.{path}": ABSENT
        for path in ("frames", "video_token", "attention.rotary.theta", "attention.rotary.axial")
    },
    **{f"vision.projector.{field}": ABSENT for field in ("ffn", "activation", "bias", "norm.bias")},
    **_norms("rms", 1e-6, "vision.projector.norm"),
    **_norms("layer", 1e-6, "vision.final_norm"),
    "vision.final_norm.bias": True,
    "vision.projector.norm.zero_centred": True,
    "vision.projector.norm_merged": True,
    "vision.projector.mean": True,
    "vision.image": 24,
    "vision.positions.count": 36,
    "vision.both_ways": True,
}

_CHANGES: dict[str, dict[str, object]] = {
    "llama": {},
    "llama-padded": {"tokens.vocabulary": 205},
    "llama-tied": {"head.tied": True},
    "llama-headless": {"head": ABSENT},
    "llama-scored": {
        "head": ABSENT,
        "classifier.classes": 17,
        "classifier.bias": False,
        "classifier.pooling": Pooling.LAST,
        "classifier.padding": 3,
    },
    "llama-tagged": {"head": ABSENT, "classifier.classes": 17, "classifier.pooling": Pooling.EACH},
    "qwen": {"attention.q_bias": True, "attention.k_bias": True, "attention.v_bias": True},
    "gpt2": _GPT2,
    "bloom": {
        **_GPT2,
        "positions.count": ABSENT,
        "attention.alibi": True,
        "tokens.norm.kind": "layer",
        "tokens.norm.eps": 1e-5,
        "tokens.norm.bias": True,
    },
    "neox": {
        **_LAYER_NORMS,
        **_BIASES,
        **_PLAIN_GELU,
        "attention.groups": 12,
        "attention.rotary.fraction": 0.56,
        "parallel": True,
    },
    "xielu": {"mlp.gated": False, "mlp.activation": Activation.XIELU},
    "starcoder2": {**_LAYER_NORMS, **_BIASES, **_PLAIN_GELU, "attention.window": 16, "head.tied": True},
    "smollm3": {"head.tied": True, "attention.rotary?": PerLayer((True, True, False, True, True, False))},
    "gemma": _GEMMA,
    "moe": _MOE,
    "moe-mixed": {
        **_MOE,
        "mlp.ffn": 56,
        "mlp.moe?": PerLayer((False, True, True, False, True, True)),
        "mlp.ffn?": PerLayer((True, False, False, True, False, False)),
    },
    "latent": _LATENT,
    "latent-indexed": _INDEXED,
    "delta": _DELTA,
    "mamba": _MAMBA,
    "side-by-side": _SIDE_BY_SIDE,
    "one-block": _ONE_BLOCK,
    "delta-by-channel": _DELTA_BY_CHANNEL,
    "predicting": {
        "predictors.count": 2,
        **_norms("rms", 1e-5, *(f"predictors.{part}_norm" for part in ("embed", "hidden", "out"))),
    },
    "t5": _T5,
    "t5-crossed": {
        **_T5,
        "decoder.cross_relative_bias.buckets": 26,
        "decoder.cross_relative_bias.max_distance": 48,
        "decoder.cross_relative_bias.bidirectional": True,
    },
    "bert": _BERT,
    "vit": _VIT,
    "vit-pooled": {**_VIT, "classifier.classes": ABSENT},
    "seeing": _SEEING,
    "seeing-squares": _SEEING_SQUARES,
    "seeing-whole": _SEEING_WHOLE,
}


def example(name: str, **changes: object) -> Architecture:
    """The example `name` (see `example_architectures`), with facts changed: `example("llama", hidden=216)`.

    A fact's path may be given with `__` for its dots: `attention__head_dim=20`. The value `ABSENT` removes what is at or below it.
    """
    given = {path.replace("__", "."): value for path, value in changes.items()}
    return architecture_of(changed(changed(Facts(_LLAMA), _CHANGES[name]), given), f"example {name}")


def example_architectures() -> dict[str, Architecture]:
    """One small model of every kind that the schema knows."""
    return {name: example(name) for name in _CHANGES}


def changed(facts: Facts, changes: Mapping[str, object]) -> Facts:
    """Facts with some values replaced; `ABSENT` removes a path and everything below it."""
    removed = [path for path, value in changes.items() if value is ABSENT]
    gone = {key for key in facts for path in removed if key == path or key.startswith((f"{path}.", f"{path}?"))}
    kept = {path: value for path, value in facts.items() if path not in gone}
    return Facts({**kept, **{path: value for path, value in changes.items() if value is not ABSENT}})
