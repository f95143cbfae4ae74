"""The gated delta net, and Kimi's with a decay for each row: a state per value head, which every position decays, corrects and reads. Activations are [batch, position, h]."""

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
    v, z = (part.unflatten(-1, (values, -1)) for part in (v, _projected(weights, name, "z", x, delta.gate_rank)))
    beta = delta.beta_scale * torch.sigmoid(weights.linear(x, f"{name}.b"))
    a = _projected(weights, name, "a", x, delta.decay_rank) + weights.vector(f"{name}.dt_bias.weight").flatten()
    rate = weights.vector(f"{name}.a_log.weight").flatten().exp()
    decay = torch.exp(-rate[:, None] * functional.softplus(a).unflatten(-1, (values, -1)))
    y = weights.norm(recurred(q * delta.key_dim**-0.5, k, v, beta, decay), f"{name}.head_norm", delta.head_norm)
    gate = torch.sigmoid(z) if delta.sigmoid_gate else functional.silu(z)
    gated = (y * gate).unflatten(2, (keys, repeats))
    return weights.linear(gated, f"{name}.out", contracted=3)


def _projected(weights: Weights, name: str, part: str, x: torch.Tensor, rank: int | None) -> torch.Tensor:
    """A projection of `x`, through a latent where it has a rank."""
    return weights.linear(x if rank is None else weights.linear(x, f"{name}.{part}_down"), f"{name}.{part}")


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _LENGTH_EPS)


def recurred(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, beta: torch.Tensor, decay: torch.Tensor
) -> torch.Tensor:
    """The outputs [batch, position, head, dv] of the delta rule, one position after the other.

    q, k [batch, position, head, dk]; v [batch, position, head, dv]; beta [batch, position, head]; decay [batch, position, head, dk or 1].
    """
    state = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1])  # [batch, head, dk, dv]
    outputs = []
    for position in range(q.shape[1]):
        state = state * decay[:, position, :, :, None]
        known = (state * k[:, position, :, :, None]).sum(-2)
        correction = (v[:, position] - known) * beta[:, position, :, None]
        state = state + k[:, position, :, :, None] * correction[:, :, None]
        outputs.append((state * q[:, position, :, :, None]).sum(-2))
    return torch.stack(outputs, 1)
