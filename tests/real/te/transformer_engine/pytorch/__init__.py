"""What te.pytorch has, as plain torch. Any other name with a capital letter is a class that refuses to be made."""

from __future__ import annotations

import contextlib

from torch.nn import Module

from .attention import DotProductAttention
from .linear import GroupedLinear, LayerNormLinear, Linear
from .norms import LayerNorm, RMSNorm


def fp8_autocast(*args, **kwargs):
    """Nothing runs in fp8."""
    return contextlib.nullcontext()


def __getattr__(name):
    if name[:1].isupper() and name not in ("Fp8Padding", "Fp8Unpadding"):
        return type(name, (Module,), {"__init__": _absent})
    raise AttributeError(name)


def _absent(self, *args, **kwargs):
    raise NotImplementedError(f"{type(self).__name__} in the TransformerEngine stand-in")


from . import attention, distributed, fp8, module, ops  # noqa: E402  the frameworks expect them to be imported

__all__ = [
    "DotProductAttention",
    "GroupedLinear",
    "LayerNorm",
    "LayerNormLinear",
    "Linear",
    "RMSNorm",
    "attention",
    "distributed",
    "fp8",
    "fp8_autocast",
    "module",
    "ops",
]
