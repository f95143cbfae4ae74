"""The arithmetic of each scheme: codes and scales in, float32 weights out.

A weight is the float32 product of the value of its code and its scale, as every tool forms it; what is rounded, is so afterwards and once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ckpt_core.sdk import dtypes, lazy


@dataclass(frozen=True, slots=True)
class Scaled:
    """Codes of one byte, each times the scale of its block: `block` is how many rows and how many columns share a scale, 0 is all of them.

    The last block of an axis may be partial. `dtype` is that of the codes.
    """

    dtype: dtypes.DType
    block: tuple[int, int]

    def decode(self, stored: Sequence[np.ndarray], first: int, rows: int) -> np.ndarray:
        codes, scales = stored
        values = dtypes.decode(codes, self.dtype)
        height, width = self.block
        if height:
            scales = lazy.shared_rows(scales, height, first, rows)
        return multiplied(values, scales, width)


def multiplied(values: np.ndarray, scales: np.ndarray, width: int) -> np.ndarray:
    """`values` [rows, columns], multiplied in place by scales [rows or 1, blocks], each of `width` columns; 0 is all columns."""
    if not width or scales.shape[1] == 1:
        values *= scales
        return values
    whole = values.shape[1] // width
    row, column = values.strides
    shape, strides = (values.shape[0], whole, width), (row, width * column, column)
    blocks = np.lib.stride_tricks.as_strided(values, shape, strides)
    blocks *= scales[:, :whole, None]
    values[:, whole * width :] *= scales[:, whole:]
    return values
