"""Rotary positions."""

from __future__ import annotations

import torch


def apply_rotary_pos_emb(t, freqs, tensor_format="sbhd", interleaved=False, fused=True, **_):
    """Rotary positions of t [s, b, h, d] by freqs [s, 1, 1, d'] (angles, both halves)."""
    if tensor_format != "sbhd":
        raise NotImplementedError(tensor_format)
    angles = freqs[: t.shape[0]]
    turned, rest = t[..., : angles.shape[-1]].float(), t[..., angles.shape[-1] :]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        other = torch.stack((-b, a), -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        other = torch.cat((-b, a), -1)
    return torch.cat(((turned * angles.cos() + other * angles.sin()).to(t.dtype), rest), -1)
