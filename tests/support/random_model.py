"""A model of any architecture with random weights, in memory, for the reference forward."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from ckpt_core.architecture import Architecture, Parameter, parameters


class RandomModel(dict):
    """Canonical arrays by name: what a name holds depends on it and its shape alone, so models that share them agree."""

    def __init__(self, architecture: Architecture, changes: Mapping[str, np.ndarray] | None = None) -> None:
        super().__init__({name: values(parameter) for name, parameter in parameters(architecture).items()})
        self.update(changes or {})
        self.architecture = architecture


def values(parameter: Parameter) -> np.ndarray:
    """Numbers of the size that trained weights have, norms near one."""
    seed = int.from_bytes(hashlib.sha256(f"{parameter.name} {parameter.true_shape}".encode()).digest()[:8], "little")
    drawn = np.random.default_rng(seed).standard_normal(parameter.true_shape).astype(np.float32)
    drawn = 1 + 0.5 * drawn if "norm" in parameter.name else 0.06 * drawn
    padding = [(0, whole - true) for whole, true in zip(parameter.shape, parameter.true_shape, strict=True)]
    return np.pad(drawn, padding)
