"""LayerNorm and RMSNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn import Module, Parameter

from .version import VERSION

NORM_EXTRA = VERSION >= (2, 0)


def norm(x, weight, bias, eps, zero_centered, rms):
    weight = weight + 1 if zero_centered else weight
    if rms:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
        return (y * weight).to(x.dtype)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


class _Norm(Module):
    rms = False

    def __init__(
        self,
        hidden_size=None,
        eps=1e-5,
        sequence_parallel=False,
        params_dtype=None,
        zero_centered_gamma=False,
        device=None,
        normalized_shape=None,
        dtype=None,
        **_,
    ):
        super().__init__()
        size = hidden_size if hidden_size is not None else normalized_shape
        self.eps, self.zero_centered_gamma = eps, zero_centered_gamma
        make = torch.zeros if zero_centered_gamma else torch.ones
        self.weight = Parameter(make(size, dtype=params_dtype or dtype))
        self.weight.sequence_parallel = sequence_parallel
        if not self.rms:
            self.bias = Parameter(torch.zeros(size, dtype=params_dtype or dtype))
            self.bias.sequence_parallel = sequence_parallel

    if NORM_EXTRA:

        def get_extra_state(self):
            return torch.empty(0, dtype=torch.uint8)

        def set_extra_state(self, state):
            pass

    def forward(self, x):
        return norm(x, self.weight, getattr(self, "bias", None), self.eps, self.zero_centered_gamma, self.rms)


class LayerNorm(_Norm):
    pass


class RMSNorm(_Norm):
    rms = True
