"""The frequencies of rotary positions, which some of Megatron's relatives store as a buffer of the model."""

from __future__ import annotations

import numpy as np

from ckpt_core.sdk import schema


def inverse_frequencies(attention: schema.Attention) -> np.ndarray | None:
    """base ** (-2 i / d) in float32, d being the rotated part of the head dim; None without rotary positions."""
    if attention.rotary is None:
        return None
    width = int(attention.head_dim * attention.rotary.fraction)
    exponents = np.arange(0, width, 2).astype(np.float32) / np.float32(width)
    # A power in float64, rounded once: what float32 libraries differ by is not a part of the format.
    return np.float32(1.0) / (attention.rotary.theta ** exponents.astype(np.float64)).astype(np.float32)
