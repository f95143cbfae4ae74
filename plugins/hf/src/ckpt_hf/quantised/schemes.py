"""The arithmetic of each scheme: codes and scales in, float32 weights out.

A weight is the float32 product of the value of its code and its scale, as every tool forms it; what is rounded, is so afterwards and once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ckpt_core.sdk import Refusal, dtypes, lazy


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


@dataclass(frozen=True, slots=True)
class Blocks(Scaled):
    """E4M3 codes of whole blocks, as transformers quantises them (`Fp8Quantize`, 5.24): a block's largest value becomes 448."""

    def encode(self, values: np.ndarray, first: int) -> Sequence[np.ndarray]:
        height, width = self.block
        rows, columns = values.shape
        if not np.isfinite(values).all():
            raise Refusal("it has values that are no numbers", fix="FP8 has no infinity: leave out -o quantise")
        blocks = values.reshape(rows // height, height, columns // width, width)
        largest = np.abs(blocks).max(axis=(1, 3))
        # In the order of transformers, where a number over a tensor is the number times its reciprocal (torch, `__rtruediv__`).
        one = np.float32(1)
        times = np.where(largest > 0, one / np.where(largest > 0, largest, one) * _LARGEST, one)
        codes = to_e4m3(blocks * times[:, None, :, None]).reshape(rows, columns)
        return codes, one / times


_LARGEST = np.float32(448)
_SMALLEST_NORMAL = np.float32(2.0**-6)


def to_e4m3(values: np.ndarray) -> np.ndarray:
    """Float32 numbers as E4M3 codes, rounded to nearest even; what is beyond 448 becomes 448, as torch 2.13 has it."""
    clipped = np.ascontiguousarray(np.clip(values, -_LARGEST, _LARGEST), dtype=np.float32)
    bits = clipped.view(np.uint32)
    sign = (bits >> 24) & 0x80
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - ((127 - 7) << 3)
    size = np.abs(clipped)
    small = np.rint(size * np.float32(2.0**9)).astype(
        np.uint32
    )  # subnormals count in steps of 2**-9, and 8 is the first normal
    return (np.where(size < _SMALLEST_NORMAL, small, normal) | sign).astype(np.uint8)


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
