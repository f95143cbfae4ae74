"""The modules under another name."""

from . import DotProductAttention, GroupedLinear, LayerNorm, LayerNormLinear, Linear, RMSNorm

__all__ = ["DotProductAttention", "GroupedLinear", "LayerNorm", "LayerNormLinear", "Linear", "RMSNorm"]
