"""The gated delta net: a state per value head, which every position decays, corrects and reads. Activations are [batch, position, h]."""

from __future__ import annotations

import torch
from torch.nn import functional

from ckpt_core.architecture import DeltaNet
from ckpt_core.reference.convolution import convolved
from ckpt_core.reference.weights import Weights

_LENGTH_EPS = 1e-6  # beneath the root of a head's length, in every implementation of it


def mix_by_delta(
    weights: Weights, name: str, delta: DeltaNet, x: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """The block's output for `x`, normed already; where `mask` [batch, position] is false, nothing enters the state."""
    if mask is not None:
        x = x * mask[..., None]
    keys, values, repeats = delta.key_heads, delta.value_heads, delta.value_heads // delta.key_heads
    q, k, v = (convolved(weights, f"{name}.{part}", delta.conv, x) for part in ("q", "k", "v"))
    q, k = (_unit(part.unflatten(-1, (keys, -1))).repeat_interleave(repeats, 2) for part in (q, k))
    v, z = v.unflatten(-1, (values, -1)), weights.linear(x, f"{name}.z").unflatten(-1, (values, -1))
    beta = delta.beta_scale * torch.sigmoid(weights.linear(x, f"{name}.b"))
    step = functional.softplus(weights.linear(x, f"{name}.a") + weights.vector(f"{name}.dt_bias.weight").flatten())
    decay = torch.exp(-weights.vector(f"{name}.a_log.weight").flatten().exp() * step)
    y = weights.norm(recurred(q * delta.key_dim**-0.5, k, v, beta, decay), f"{name}.head_norm", delta.head_norm)
    gated = (y * functional.silu(z)).unflatten(2, (keys, repeats))
    return weights.linear(gated, f"{name}.out", contracted=3)


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _LENGTH_EPS)


def recurred(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, beta: torch.Tensor, decay: torch.Tensor
) -> torch.Tensor:
    """The outputs [batch, position, head, dv] of the delta rule, one position after the other.

    q, k [batch, position, head, dk]; v [batch, position, head, dv]; beta, decay [batch, position, head].
    """
    state = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1])  # [batch, head, dk, dv]
    outputs = []
    for position in range(q.shape[1]):
        state = state * decay[:, position, :, None, None]
        known = (state * k[:, position, :, :, None]).sum(-2)
        correction = (v[:, position] - known) * beta[:, position, :, None]
        state = state + k[:, position, :, :, None] * correction[:, :, None]
        outputs.append((state * q[:, position, :, :, None]).sum(-2))
    return torch.stack(outputs, 1)
