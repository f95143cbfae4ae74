"""Attention: scores, what is added to them, the softmax, and the way out. Activations are [batch, position, h]."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ckpt_core.architecture import Attention, Indexer, LatentAttention, RelativeBias, Temperature
from ckpt_core.reference.rotary import rotate
from ckpt_core.reference.weights import Weights


def attend(
    weights: Weights,
    name: str,
    attention: Attention,
    x: torch.Tensor,
    memory: torch.Tensor,
    allowed: torch.Tensor,
    shared_bias: torch.Tensor | None = None,
    places: torch.Tensor | None = None,
    ahead: bool = True,
) -> torch.Tensor:
    """Queries from `x`, keys and values from `memory` (the same for self attention), both normed already.

    `allowed` [batch or 1, query, key] is what may be seen; `shared_bias` [g, r, query, key] that of the whole stack.
    `places` [coordinate, batch or 1, position] are positions that have more than one coordinate, those of patches a row and a column. A window bounds what a
    query sees before it and, with `ahead`, what it sees after it.
    """
    groups, per_group, width = attention.groups, attention.heads // attention.groups, attention.head_dim
    x, memory = x * attention.in_scale, memory * attention.in_scale
    q = weights.linear(x, f"{name}.q").unflatten(-1, (groups, per_group, width))
    k = weights.linear(memory, f"{name}.k").unflatten(-1, (groups, 1, width))
    v = weights.linear(memory, f"{name}.v").unflatten(-1, (groups, 1, width))
    if not attention.qk_norm_after_rotary:
        q, k = _normed(weights, name, attention, q, k)
    if attention.rotary is not None:
        q, k = (rotate(part.movedim(1, 3), attention.rotary, part.shape[1], places).movedim(3, 1) for part in (q, k))
    if attention.qk_norm_after_rotary:
        q, k = _normed(weights, name, attention, q, k)
    if attention.temperature is not None:
        q = q * _temperatures(attention.temperature, q.shape[1]).reshape(-1, 1, 1, 1)
    q, k, v = (part.permute(0, 2, 3, 1, 4) for part in (q, k, v))  # [batch, g, r or 1, position, d]
    scale = width**-0.5 if attention.scale is None else attention.scale
    scores = q @ k.transpose(-1, -2) * scale
    if attention.softcap is not None:
        scores = attention.softcap * torch.tanh(scores / attention.softcap)
    if attention.relative_bias is not None:
        shared_bias = relative_bias(
            weights, f"{name}.relative_bias.weight", attention.relative_bias, *scores.shape[-2:]
        )
    if shared_bias is not None:
        scores = scores + attention.relative_bias_scale * shared_bias
    if attention.alibi:
        slopes = alibi_slopes(attention.heads).reshape(groups, per_group, 1, 1)
        scores = scores + slopes * torch.arange(scores.shape[-1], dtype=torch.float32)
    if attention.window is not None:
        allowed = allowed & _within(attention.window, scores.shape[-2], scores.shape[-1], ahead)
    if attention.chunk is not None:
        counted = torch.arange(scores.shape[-1])[None]
        if places is not None and len(places) == 2:  # a patch has a row and a column
            counted = places[:, 0]
        allowed = allowed & _in_chunk(attention.chunk, counted)
    sinks = weights.vector(f"{name}.sinks.weight") if attention.sinks else None
    mixed = _softmax(scores, allowed, sinks) @ v
    if attention.head_scale:
        mixed = mixed * weights.vector(f"{name}.head_scale.weight").reshape(groups, per_group, 1, 1)
    mixed = mixed.permute(0, 3, 1, 2, 4)
    if attention.out_gate:
        mixed = mixed * torch.sigmoid(weights.linear(x, f"{name}.gate")).reshape(mixed.shape)
    return weights.linear(mixed, f"{name}.out", contracted=3) * attention.out_scale


def _normed(
    weights: Weights, name: str, attention: Attention, q: torch.Tensor, k: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [batch, position, g, r, d] and keys [batch, position, g, 1, d] as the norms of q and k leave them."""
    norm = attention.qk_norm
    if norm is None:
        return q, k
    if attention.qk_norm_whole:
        keys = weights.norm(k.squeeze(3), f"{name}.k_norm", norm, axes=2).unsqueeze(3)
        return weights.norm(q, f"{name}.q_norm", norm, axes=3), keys
    return weights.norm(q, f"{name}.q_norm", norm), weights.norm(k, f"{name}.k_norm", norm)


def attend_latent(
    weights: Weights,
    name: str,
    latent: LatentAttention,
    x: torch.Tensor,
    allowed: torch.Tensor,
    chosen: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Self attention through low-rank queries and one key-value latent per position (DeepSeek-V2, 2024).

    `chosen` [batch, query, key] is what the nearest indexer below chose; beside the output stands what the next layer is given as that.
    """
    source = x
    if latent.q_rank is not None:
        source = weights.norm(weights.linear(x, f"{name}.q_down"), f"{name}.q_norm", latent.q_norm)
    keys = weights.norm(weights.linear(x, f"{name}.kv_down"), f"{name}.kv_norm", latent.kv_norm)

    def heads(y: torch.Tensor, part: str, width: int) -> torch.Tensor:
        return weights.linear(y, f"{name}.{part}").unflatten(-1, (latent.heads, width)).transpose(1, 2)

    q_nope, q_rope = heads(source, "q_nope", latent.nope_dim), heads(source, "q_rope", latent.rope_dim)
    k_nope, v = heads(keys, "k_nope", latent.nope_dim), heads(keys, "v", latent.value_dim)
    k_rope = weights.linear(x, f"{name}.k_rope").unsqueeze(1)
    if latent.rotary is not None:
        q_rope, k_rope = (rotate(part, latent.rotary, x.shape[1]) for part in (q_rope, k_rope))
    if latent.indexer is not None:
        chosen = _chosen(weights, name, latent, latent.indexer, source, x, allowed)
    if chosen is not None and (latent.indexer is not None or latent.index_from_before):
        allowed = allowed & chosen
    scale = (latent.nope_dim + latent.rope_dim) ** -0.5 if latent.scale is None else latent.scale
    scores = (q_nope @ k_nope.transpose(-1, -2) + q_rope @ k_rope.transpose(-1, -2)) * scale
    mixed = _softmax(scores.unsqueeze(2), allowed).squeeze(2) @ v
    return weights.linear(mixed.transpose(1, 2), f"{name}.out", contracted=2), chosen


def _chosen(
    weights: Weights,
    name: str,
    latent: LatentAttention,
    indexer: Indexer,
    source: torch.Tensor,
    x: torch.Tensor,
    allowed: torch.Tensor,
) -> torch.Tensor:
    """The best `top_k` positions of each query [batch, query, key], by an indexer; `source` is the latent of the queries."""
    q = weights.linear(source, f"{name}.index_q").unflatten(-1, (indexer.heads, indexer.head_dim)).transpose(1, 2)
    k = weights.norm(weights.linear(x, f"{name}.index_k"), f"{name}.index_norm", indexer.norm).unsqueeze(1)
    if latent.rotary is not None:
        q, k = (
            torch.cat(
                [rotate(part[..., : latent.rope_dim], latent.rotary, x.shape[1]), part[..., latent.rope_dim :]], -1
            )
            for part in (q, k)
        )
    of_heads = torch.relu(q @ k.transpose(-1, -2)) * weights.linear(x, f"{name}.index_heads").transpose(1, 2)[..., None]
    scores = of_heads.sum(1).masked_fill(~allowed, -math.inf)
    best = scores.topk(min(indexer.top_k, scores.shape[-1]), -1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)


def _softmax(scores: torch.Tensor, allowed: torch.Tensor, sinks: torch.Tensor | None = None) -> torch.Tensor:
    """Softmax over the keys that `allowed` lets through; `sinks` [g, r] join the denominator. Scores are [b, g, r, q, k]."""
    scores = scores.masked_fill(~allowed[:, None, None], -math.inf)
    if sinks is None:
        return torch.softmax(scores, -1).nan_to_num(0.0)  # a query that may see nothing
    column = sinks[..., None, None].expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]


def _within(window: int, queries: int, keys: int, ahead: bool) -> torch.Tensor:
    """Positions less than `window` before a query, and with `ahead` as many after it; all after it without."""
    distance = torch.arange(queries)[:, None] - torch.arange(keys)[None]
    return ((distance.abs() if ahead else distance) < window)[None]


def _in_chunk(chunk: int, places: torch.Tensor) -> torch.Tensor:
    """Positions of the same chunk by every coordinate; `places` is [coordinate, position]."""
    numbers = places // chunk
    return (numbers[:, :, None] == numbers[:, None]).all(0)[None]


def _temperatures(temperature: Temperature, count: int) -> torch.Tensor:
    """The factor on the query of each position."""
    steps = (torch.arange(count) + temperature.shift) // temperature.interval
    return 1 + temperature.scale * torch.log1p(steps.float())


def relative_bias(weights: Weights, name: str, bias: RelativeBias, queries: int, keys: int) -> torch.Tensor:
    """The bias [g, r, query, key] of a table [b, g, r]."""
    distance = torch.arange(keys)[None] - torch.arange(queries)[:, None]
    return weights.vector(name)[_buckets(bias, distance)].permute(2, 3, 0, 1)


def _buckets(bias: RelativeBias, distance: torch.Tensor) -> torch.Tensor:
    """T5's buckets: one per distance up to half of them, then logarithmically wider ones (Raffel et al. 2020)."""
    count, first = bias.buckets, torch.zeros_like(distance)
    if bias.bidirectional:
        count //= 2
        first = (distance > 0).long() * count
        distance = distance.abs()
    else:
        distance = -distance.clamp(max=0)
    exact = count // 2
    far = exact + (
        torch.log(distance.clamp(min=1).float() / exact) / math.log(bias.max_distance / exact) * (count - exact)
    ).long().clamp(max=count - exact - 1)
    return first + torch.where(distance < exact, distance, far)


def alibi_slopes(heads: int) -> torch.Tensor:
    """The slope per head (Press et al. 2022): powers of 2**(-8/n); for other counts every second one of twice as many follows."""
    n = 2 ** math.floor(math.log2(heads))
    power: Callable[[int, int], float] = lambda index, of: 2.0 ** (-8.0 * index / of)  # noqa: E731
    slopes = [power(index, n) for index in range(1, n + 1)]
    slopes += [power(2 * index + 1, 2 * n) for index in range(heads - n)]
    return torch.tensor(slopes)
