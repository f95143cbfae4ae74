"""Attention, computed as it is written down."""

from __future__ import annotations

import math

import torch
from torch.nn import Module

from ..stateful import Stateful
from ..version import VERSION


class DotProductAttention(Stateful if VERSION >= (1, 8) else Module):
    def __init__(
        self,
        num_attention_heads,
        kv_channels,
        num_gqa_groups=None,
        attention_dropout=0.0,
        attn_mask_type="causal",
        softmax_scale=None,
        window_size=None,
        softmax_type="vanilla",
        **_,
    ):
        super().__init__()
        k_channels = kv_channels[0] if isinstance(kv_channels, tuple) else kv_channels
        self.scale = softmax_scale if softmax_scale is not None else 1 / math.sqrt(k_channels)
        self.attn_mask_type, self.window_size = attn_mask_type, window_size
        if softmax_type != "vanilla":
            raise NotImplementedError("attention sinks in the stand-in")

    def forward(self, query, key, value, attention_mask=None, attn_mask_type=None, window_size=None, **_):
        kind = attn_mask_type or self.attn_mask_type
        window = window_size or self.window_size
        repeat = query.shape[2] // key.shape[2]
        q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        scores = torch.matmul(q.float(), k.float().transpose(-1, -2)) * self.scale
        rows = torch.arange(scores.shape[-2])[:, None] + scores.shape[-1] - scores.shape[-2]
        columns = torch.arange(scores.shape[-1])[None]
        masked = torch.zeros(scores.shape[-2:], dtype=torch.bool)
        if "causal" in kind:
            masked = masked | (columns > rows)
        elif attention_mask is not None and kind in ("arbitrary", "padding"):
            masked = masked | attention_mask
        if window is not None and window[0] >= 0:
            masked = masked | (columns < rows - window[0])
        probabilities = scores.masked_fill(masked, float("-inf")).softmax(-1).to(v.dtype)
        out = torch.matmul(probabilities, v).permute(2, 0, 1, 3)
        return out.reshape(*out.shape[:2], -1).contiguous()
