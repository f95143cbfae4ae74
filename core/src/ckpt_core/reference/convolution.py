"""The short causal convolutions of blocks that keep a state."""

from __future__ import annotations

import torch
from torch.nn import functional

from ckpt_core.reference.weights import Weights


def convolved(weights: Weights, name: str, taps: int, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """The projection `name` of `x` [batch, position, h], times `scale`; each of its channels is then a weighted sum of its last `taps`
    positions (and a bias, where there is one), and goes through SiLU.
    """
    filters = weights.vector(f"{name}_conv.weight").reshape(-1, 1, taps)
    bias = weights.vector(f"{name}_conv.bias").reshape(-1) if f"{name}_conv.bias" in weights else None
    channels = functional.pad((weights.linear(x, name) * scale).transpose(1, 2), (taps - 1, 0))
    return functional.silu(functional.conv1d(channels, filters, bias, groups=len(filters))).transpose(1, 2)
