"""Quantised tensors: none is made."""

from ..anything import classes


class QuantizedTensor:
    pass


__getattr__ = classes()
