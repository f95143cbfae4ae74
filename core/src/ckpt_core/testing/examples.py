"""Small models whose axes all have different sizes, and checkpoints of them in the `ir` format.

Equal sizes hide errors: a transposed square matrix still has the right shape. So hidden, heads, groups, head dim,
rotary halves, ffn, experts, vocabulary and layers differ pairwise here, and the shared ones divide by 1, 2 and 4.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping

import numpy as np

from ckpt_core.architecture import (
    Activation,
    Architecture,
    Facts,
    Parameter,
    PerLayer,
    architecture_of,
    dumps,
    parameters,
)
from ckpt_core.ir.files import ARCHITECTURE, INDEX, NOTES
from ckpt_core.storage import safetensors
from ckpt_core.storage.dtypes import DType, dtype_named, encode

ABSENT = object()
"""As the new value of a fact: the thing does not exist."""

Values = Callable[[np.random.Generator, Parameter, DType], np.ndarray]


def _norms(kind: str, eps: float, *names: str) -> dict[str, object]:
    return {f"{name}.{field}": value for name in names for field, value in (("kind", kind), ("eps", eps))}


_PRE_NORMS = ("attention.norm", "mlp.norm", "final_norm")

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

_CHANGES: dict[str, dict[str, object]] = {
    "llama": {},
    "llama-padded": {"tokens.vocabulary": 205},
    "llama-tied": {"head.tied": True},
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
    "t5": _T5,
    "t5-crossed": {
        **_T5,
        "decoder.cross_relative_bias.buckets": 26,
        "decoder.cross_relative_bias.max_distance": 48,
        "decoder.cross_relative_bias.bidirectional": True,
    },
    "vit": _VIT,
    "vit-pooled": {**_VIT, "classifier.classes": ABSENT},
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


def any_bits(generator: np.random.Generator, parameter: Parameter, dtype: DType) -> np.ndarray:
    """Raw values of every kind a checkpoint may hold: ordinary ones, negative zero, denormals, infinities and NaN."""
    raw = encode(generator.standard_normal(parameter.shape, dtype=np.float32), dtype)
    special = encode(np.array([-0.0, 1e-40, np.inf, -np.inf, np.nan], np.float32), dtype)
    flat = raw.reshape(-1)
    if flat.size > 8 * special.size:
        flat[1 : 1 + special.size] = special
    return raw


def small_numbers(generator: np.random.Generator, parameter: Parameter, dtype: DType) -> np.ndarray:
    """Multiples of 1/8 between -4 and 4, on which sums and scalings by powers of two are exact."""
    return encode(generator.integers(-32, 33, parameter.shape).astype(np.float32) / 8, dtype)


def calm_numbers(generator: np.random.Generator, parameter: Parameter, dtype: DType) -> np.ndarray:
    """Numbers of the size that trained weights have, the weights of norms near one: what they compute is neither flat nor wild."""
    normal = generator.standard_normal(parameter.shape, dtype=np.float32)
    return encode(1 + 0.5 * normal if parameter.name.endswith("norm.weight") else 0.06 * normal, dtype)


def drawn(parameter: Parameter, dtype: DType, values: Values, seed: int = 0) -> np.ndarray:
    """Raw values that depend on a parameter's name and true shape alone, so models that share a parameter agree in it."""
    text = f"{seed} {parameter.name} {parameter.true_shape}"
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))
    raw = values(generator, parameter, dtype)
    if parameter.true_rows is not None:
        raw[parameter.true_rows :] = 0
    return raw


def write_ir(
    folder: str | os.PathLike,
    architecture: Architecture,
    *,
    dtype: str = "fp32",
    seed: int = 0,
    values: Values = any_bits,
    notes: Mapping[str, object] | None = None,
    sidecars: Mapping[str, bytes] | None = None,
    sparse: bool = False,
) -> str:
    """Write a checkpoint in the `ir` format without the engine; `sparse`: headers alone, over a file of holes."""
    folder = os.fspath(folder)
    os.makedirs(folder, exist_ok=True)
    kind, known = dtype_named(dtype), parameters(architecture)
    plan = safetensors.plan_file({name: (kind, parameter.shape) for name, parameter in known.items()}, {})
    name = "tensors-00001-of-00001.safetensors"
    with open(os.path.join(folder, name), "wb") as file:
        file.write(plan.header)
        file.truncate(plan.size)
        for parameter in () if sparse else known.values():
            file.seek(plan.offsets[parameter.name])
            file.write(np.ascontiguousarray(drawn(parameter, kind, values, seed)).tobytes())
    documents = {
        ARCHITECTURE: dumps(architecture),
        INDEX: json.dumps(dict.fromkeys(known, name)),
        NOTES: json.dumps(dict(notes or {})),
    }
    files = {path: text.encode() for path, text in documents.items()} | {
        f"sidecars/{p}": data for p, data in (sidecars or {}).items()
    }
    for path, data in files.items():
        target = os.path.join(folder, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(data)
    return folder
