"""Checkpoints of the example models in the `ir` format, and the values of their tensors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping

from ckpt_core import numpy as np
from ckpt_core.architecture import Architecture, Parameter, dumps, parameters
from ckpt_core.architecture.examples import ABSENT, changed, example, example_architectures
from ckpt_core.ir.places import ARCHITECTURE, INDEX, NOTES
from ckpt_core.storage import safetensors
from ckpt_core.storage.dtypes import DType, dtype_named, encode

__all__ = [
    "ABSENT", "Values", "any_bits", "calm_numbers", "changed", "drawn", "example", "example_architectures", "small_numbers",
    "write_ir",
]  # fmt: skip

Values = Callable[[np.random.Generator, Parameter, DType], np.ndarray]


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
