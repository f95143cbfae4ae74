"""Rotary positions: frequencies, their stretching, and the rotation of (j, j + half) pairs.

The stretchings are those of transformers' `rope_type`s (modeling_rope_utils.py, 5.23), where their papers are cited.
"""

from __future__ import annotations

import math

import torch

from ckpt_core.architecture import Rotary, RotaryKind, RotaryScaling


def rotate(x: torch.Tensor, rotary: Rotary, positions: int, places: torch.Tensor | None = None) -> torch.Tensor:
    """`x` [..., position, d] with its first `fraction` of d rotated.

    `places` [coordinate, batch or 1, position] are the coordinates of positions that have more than one, for angles that turn by them;
    `x` is then [batch, ..., position, d].
    """
    width = int(x.shape[-1] * rotary.fraction)
    halved = rotary.axial and not rotary.interleaved
    frequencies, factor = _frequencies(rotary, width // 2 if halved else width, positions)
    if places is None or (rotary.sections is None and not rotary.axial):
        angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    else:
        angles = _by_coordinate(rotary, places[..., None].float() * frequencies)
        angles = angles.reshape(len(angles), *[1] * (x.dim() - 3), *angles.shape[1:])
    cos, sin = factor * angles.cos(), factor * angles.sin()
    first, second = x[..., : width // 2], x[..., width // 2 : width]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, x[..., width:]], dim=-1)


def _by_coordinate(rotary: Rotary, angles: torch.Tensor) -> torch.Tensor:
    """The angle of each pair [batch, position, pair], of those by every coordinate [coordinate, batch, position, pair]."""
    if rotary.axial and rotary.interleaved:
        rows, columns = angles
        return torch.cat([rows[..., 0::2], columns[..., 1::2]], -1)
    if rotary.axial:
        return torch.cat([*angles], -1)
    assert rotary.sections is not None  # rotate
    chosen = torch.arange(3).repeat_interleave(torch.tensor(rotary.sections))
    if rotary.interleaved:
        pairs = torch.arange(len(chosen))
        lasting = pairs // 3 < torch.tensor(rotary.sections)[pairs % 3]
        chosen = torch.where(lasting, pairs % 3, 0)
    return angles.gather(0, chosen.expand(1, *angles.shape[1:]))[0]


def _frequencies(rotary: Rotary, width: int, positions: int) -> tuple[torch.Tensor, float]:
    """Radians per position of each pair, and the factor on cos and sin."""
    exponents = torch.arange(0, width, 2, dtype=torch.int64).float() / width
    plain = 1.0 / rotary.theta**exponents
    scaling = rotary.scaling
    if scaling is None:
        return plain, 1.0
    factor = 1.0 if scaling.factor is None else scaling.factor
    match scaling.kind:
        case RotaryKind.LINEAR | RotaryKind.PROPORTIONAL:
            return plain / factor, 1.0
        case RotaryKind.DYNAMIC:
            trained = scaling.max_positions or positions
            stretch = factor * max(positions, trained) / trained - (factor - 1)
            return 1.0 / (rotary.theta * stretch ** (width / (width - 2))) ** exponents, 1.0
        case RotaryKind.LLAMA3:
            return _llama3(plain, scaling, factor), 1.0
        case RotaryKind.YARN:
            return _yarn(plain, rotary.theta, scaling, factor, width)
        case RotaryKind.LONGROPE:
            return _longrope(plain, scaling, factor, positions)


def _llama3(plain: torch.Tensor, scaling: RotaryScaling, factor: float) -> torch.Tensor:
    """Slow pairs are stretched, fast ones are not, those between are mixed."""
    original, low, high = scaling.original_positions, scaling.low_frequency_factor, scaling.high_frequency_factor
    assert original is not None and low is not None and high is not None  # SCALING_FIELDS
    turns = original * plain / (2 * math.pi)  # over the original context
    mixed = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - mixed) * plain / factor + mixed * plain


def _yarn(
    plain: torch.Tensor, theta: float, scaling: RotaryScaling, factor: float, width: int
) -> tuple[torch.Tensor, float]:
    original = scaling.original_positions
    assert original is not None  # SCALING_FIELDS

    def pair_with(turns: float) -> float:
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with(scaling.beta_fast or 32), pair_with(scaling.beta_slow or 1)
    if scaling.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = (torch.arange(width // 2, dtype=torch.float32) - low) / (high - low or 0.001)
    kept = 1 - ramp.clamp(0, 1)
    return plain / factor * (1 - kept) + plain * kept, _yarn_attention_factor(scaling, factor)


def _yarn_attention_factor(scaling: RotaryScaling, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return mscale(1.0)


def _longrope(plain: torch.Tensor, scaling: RotaryScaling, factor: float, positions: int) -> tuple[torch.Tensor, float]:
    original = scaling.original_positions
    assert original is not None  # SCALING_FIELDS
    stretch = scaling.long_factors if positions > original else scaling.short_factors
    attention = scaling.attention_factor
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return plain / torch.tensor(stretch), attention
