"""The feed-forward block, dense or a mixture of experts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch.nn import functional

from ckpt_core.architecture import Activation, Mlp, Router
from ckpt_core.reference.weights import Weights

ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    Activation.SILU: functional.silu,
    Activation.GELU_ERF: functional.gelu,
    Activation.GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
    Activation.GELU_QUICK: lambda x: x * torch.sigmoid(1.702 * x),
    Activation.RELU: functional.relu,
    Activation.RELU_SQUARED: lambda x: functional.relu(x).square(),
}


def feed_forward(weights: Weights, name: str, mlp: Mlp, x: torch.Tensor) -> torch.Tensor:
    """The block's output for `x` [batch, position, h], normed already."""
    if mlp.moe is None:
        return _dense(weights, name, mlp, x) * mlp.out_scale
    flat = x.flatten(0, -2)
    chosen, shares = route(weights, name, mlp.moe.router, flat)
    read = flat if mlp.moe.latent is None else weights.product(flat, f"{name}.latent_in.weight")
    y = torch.zeros_like(read)
    for expert in torch.unique(chosen).tolist():  # an expert that no token chose is not read
        token, slot = (chosen == expert).nonzero(as_tuple=True)
        share, inner = shares[token, slot, None], read[token]
        if mlp.moe.router.on_input:
            y[token] += _dense(weights, f"{name}.experts", mlp, share * inner, expert)
        else:
            y[token] += share * _dense(weights, f"{name}.experts", mlp, inner, expert)
    if mlp.moe.latent is not None:
        y = weights.product(y, f"{name}.latent_out.weight")
    if mlp.moe.shared is not None:
        shared = _dense(weights, f"{name}.shared", mlp, flat)
        if mlp.moe.shared.gate:
            shared = shared * torch.sigmoid(weights.linear(flat, f"{name}.shared_gate"))
        y = y + shared
    return y.reshape(x.shape) * mlp.out_scale


def _xielu(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    a, b, slope, edge = (weights.vector(f"{name}.xielu_{part}.weight") for part in ("a", "b", "slope", "edge"))
    below = (torch.expm1(torch.minimum(x, edge)) - x) * (slope + functional.softplus(b))
    return torch.where(x > 0, functional.softplus(a) * x * x, below) + slope * x


def _dense(weights: Weights, name: str, mlp: Mlp, x: torch.Tensor, expert: int | None = None) -> torch.Tensor:
    learned = mlp.activation is Activation.XIELU
    act = functools.partial(_xielu, weights, name) if learned else ACTIVATIONS[mlp.activation]
    up = weights.linear(x, f"{name}.up", expert)
    if not mlp.gated:
        return weights.linear(act(up), f"{name}.down", expert)
    gate = weights.linear(x, f"{name}.gate", expert) * mlp.gate_scale
    if mlp.clamp is not None:
        gate, up = gate.clamp(max=mlp.clamp), up.clamp(-mlp.clamp, mlp.clamp)
    return weights.linear(act(gate) * (up + mlp.up_offset), f"{name}.down", expert)


def route(weights: Weights, name: str, router: Router, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts chosen for each row of `x`, and their shares: both [row, top_k]."""
    logits = weights.linear(x, f"{name}.router")
    if router.margin is not None:
        chosen, shares = _one_by_one(logits, router.top_k, 2 * router.margin)
        return chosen, shares * router.scale
    scores = torch.softmax(logits, -1) if router.score == "softmax" else torch.sigmoid(logits)
    ranking = scores
    if router.correction_bias:
        ranking = ranking + weights.vector(f"{name}.router.correction_bias")
    if router.groups is not None and router.group_top_k is not None:
        grouped = ranking.unflatten(-1, (router.groups, -1))
        best = grouped.topk(2, -1).values.sum(-1) if router.group_score == "top2" else grouped.amax(-1)
        eligible = torch.zeros_like(best, dtype=torch.bool).scatter(-1, best.topk(router.group_top_k, -1).indices, True)
        ranking = grouped.masked_fill(~eligible[..., None], -math.inf).flatten(-2)
    chosen = ranking.topk(router.top_k, -1).indices
    shares = scores.gather(-1, chosen)
    if router.normalise:
        shares = shares / shares.sum(-1, keepdim=True)
    return chosen, shares * router.scale


def _one_by_one(logits: torch.Tensor, count: int, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` experts for each row, and the share of each among those near it that were not chosen before it."""
    chosen, shares, left = [], [], logits
    for _ in range(count):
        best, expert = left.max(-1, keepdim=True)
        far = (best - logits) / logits.abs().clamp(min=best) > margin
        shares.append(torch.softmax(left.masked_fill(far, -math.inf), -1).gather(-1, expert))
        chosen.append(expert)
        left = left.scatter(-1, expert, -math.inf)
    return torch.cat(chosen, -1), torch.cat(shares, -1)
