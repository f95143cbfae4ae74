"""A model of any architecture with random weights, in memory, for the reference forward."""

from __future__ import annotations

from ckpt_core.architecture import Architecture, parameters
from ckpt_core.storage.dtypes import FP32
from ckpt_core.testing.examples import calm_numbers, drawn


class RandomModel(dict):
    """Canonical arrays by name: what a name holds depends on it and its shape alone, so models that share them agree."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__({name: drawn(one, FP32, calm_numbers) for name, one in parameters(architecture).items()})
        self.architecture = architecture
