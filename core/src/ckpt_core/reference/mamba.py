"""The Mamba-2 block: a state per head, which every position decays, adds to and reads. Activations are [batch, position, h]."""

from __future__ import annotations

import torch
from torch.nn import functional

from ckpt_core.architecture import Mamba
from ckpt_core.reference.convolution import convolved
from ckpt_core.reference.weights import Weights


def mix_by_mamba(weights: Weights, name: str, mamba: Mamba, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The block's output for `x`, normed already; where `mask` [batch, position] is false, nothing enters the state."""
    real = None if mask is None else mask[..., None]
    x = (x if real is None else x * real) * mamba.in_scale
    per_group = mamba.heads // mamba.groups
    scales = dict(zip(("z", "x", "b", "c", "dt"), mamba.scales or (1.0,) * 5, strict=True))
    gate = functional.silu(weights.linear(x, f"{name}.z") * scales["z"])
    # a convolution with a bias says something of positions that are not real, too
    parts = (convolved(weights, f"{name}.{part}", mamba.conv, x, scales[part]) for part in ("x", "b", "c"))
    read, b, c = (part if real is None else part * real for part in parts)
    dt = weights.linear(x, f"{name}.dt") * scales["dt"]
    step = functional.softplus(dt + weights.vector(f"{name}.dt_bias.weight").flatten())
    decay = torch.exp(-weights.vector(f"{name}.a_log.weight").flatten().exp() * step)
    b, c = (part.unflatten(-1, (mamba.groups, -1)).repeat_interleave(per_group, 2) for part in (b, c))
    read = read.unflatten(-1, (mamba.heads, -1))
    skipped = weights.vector(f"{name}.skip.weight").flatten()[:, None] * read
    y = (scanned(read * step[..., None], b, c, decay) + skipped).flatten(2)
    y = y if mamba.norm_before_gate else y * gate
    y = weights.norm(y, f"{name}.gated_norm", mamba.gated_norm, parts=mamba.norm_groups)
    y = y * gate if mamba.norm_before_gate else y
    shaped = y.unflatten(-1, (mamba.groups, per_group, mamba.head_dim))
    return weights.linear(shaped, f"{name}.out", contracted=3) * mamba.out_scale


def scanned(x: torch.Tensor, b: torch.Tensor, c: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """The outputs [batch, position, head, d] of the state space, one position after the other.

    x [batch, position, head, d], multiplied by the step already; b, c [batch, position, head, n]; decay [batch, position, head].
    """
    state = x.new_zeros(*x.shape[:1], *x.shape[2:], b.shape[-1])  # [batch, head, d, n]
    outputs = []
    for position in range(x.shape[1]):
        state = state * decay[:, position, :, None, None]
        state = state + x[:, position, :, :, None] * b[:, position, :, None]
        outputs.append((state * c[:, position, :, None]).sum(-1))
    return torch.stack(outputs, 1)
