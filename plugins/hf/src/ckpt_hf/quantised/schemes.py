"""The arithmetic of each scheme: codes and scales in, float32 weights out.

A weight is the float32 product of the value of its code and its scale, as every tool forms it; what is rounded, is so afterwards and once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ckpt_core.sdk import FormatError, Refusal, dtypes, lazy


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
        blocks = values.reshape(rows // height, height, columns // width, width)
        largest = np.maximum(blocks.max(axis=(1, 3)), -blocks.min(axis=(1, 3)))
        if not np.isfinite(largest).all():
            raise Refusal("it has values that are no numbers", fix="FP8 has no infinity: leave out -o quantise")
        # In the order of transformers, where a number over a tensor is the number times its reciprocal (torch, `__rtruediv__`).
        one = np.float32(1)
        times = np.where(largest > 0, one / np.where(largest > 0, largest, one) * _LARGEST, one)
        codes = to_e4m3(blocks * times[:, None, :, None]).reshape(rows, columns)
        return codes, one / times


@dataclass(frozen=True, slots=True)
class Integers:
    """Codes that are whole numbers, (code - zero point) * scale. They have `bits` bits each, in words that hold the elements of a row one
    after the other from the least significant bit on, without gaps; or they are int8, where `packed` is false.

    `group` is how many columns share a scale, 0 is all; `channel`: each row has scales of its own. Packed codes count from the least
    number (offset binary), as packed zero points do, whose words hold the elements of a column. Behind the scales of packed codes a
    tensor says `rows` and `columns` again.
    """

    bits: int
    packed: bool
    rows: int
    columns: int
    group: int
    channel: bool

    def decode(self, stored: Sequence[np.ndarray], first: int, rows: int) -> np.ndarray:
        codes, scales, *others = stored
        if not self.packed:
            return self._scaled(codes.astype(np.float32), scales, others)
        shape, *others = others
        if shape.tolist() != [[self.rows, self.columns]]:
            expected = f"{[self.rows, self.columns]}, by the scales and the codes"
            raise FormatError("weight_shape lies", found=f"{shape[0].tolist()}", expected=expected)
        values = unpacked(codes, self.bits, self.columns).astype(np.float32)
        if not others:
            values -= np.float32(1 << self.bits - 1)
            return multiplied(values, scales, self.group)
        start, count = (first % _TOGETHER, rows) if self.channel else (0, 1)
        words = np.ascontiguousarray(others[0].T)
        return self._scaled(values, scales, [unpacked(words, self.bits, start + count).T[start:]])

    def _scaled(self, values: np.ndarray, scales: np.ndarray, zeros: Sequence[np.ndarray]) -> np.ndarray:
        for one in zeros:
            values = shifted(values, one.astype(np.float32), self.group)
        return multiplied(values, scales, self.group)


_TOGETHER = 32
"""Elements after which packed words of any number of bits begin anew."""


def unpacked(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` elements of each row of words (int32, [rows, words]) as uint8."""
    raw = words.view(np.uint8).reshape(len(words), -1)
    if bits == 8:
        return raw[:, :count]
    if bits == 4:
        both = np.empty((*raw.shape, 2), np.uint8)
        np.bitwise_and(raw, 15, out=both[..., 0])
        np.right_shift(raw, 4, out=both[..., 1])
        return both.reshape(len(raw), -1)[:, :count]
    single = np.unpackbits(raw, axis=1, count=count * bits, bitorder="little").reshape(len(raw), count, bits)
    return np.packbits(single, axis=2, bitorder="little")[..., 0]


def shifted(values: np.ndarray, zeros: np.ndarray, width: int) -> np.ndarray:
    """`values` [rows, columns] less the zero points of their groups, in place: [rows or 1, groups] of `width` columns, 0 is all."""
    if not width or zeros.shape[1] == 1:
        values -= zeros
        return values
    blocks = values.reshape(len(values), -1, width)
    blocks -= zeros[..., None]
    return values


@dataclass(frozen=True, slots=True)
class FourBit:
    """Codes of E2M1, two in a byte, the low one first, each times the scale of `group` columns. There may be a scale of those scales, which
    they are multiplied by, or divided by (`divided`: compressed-tensors keeps the reciprocal of what ModelOpt does)."""

    group: int
    divided: bool = False

    def decode(self, stored: Sequence[np.ndarray], first: int, rows: int) -> np.ndarray:
        codes, scales, *whole = stored
        values = np.take(_PAIRS, codes, axis=0).reshape(rows, -1)
        # The scales are put together first, and then multiplied: in another order other float32 numbers come out.
        for one in whole:
            if self.divided and not one.all():
                raise FormatError(
                    "a global scale is zero, and scales are divided by it", expected="448 * 6 / the largest weight"
                )
            scales = scales / one if self.divided else scales * one
        return multiplied(values, scales, self.group)


_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_PAIRS = np.stack([_E2M1[np.arange(256) & 15], _E2M1[np.arange(256) >> 4]], axis=1)
"""The two numbers in each byte."""

_LARGEST = np.float32(448)
_SMALLEST_NORMAL = np.float32(2.0**-6)


def to_e4m3(values: np.ndarray) -> np.ndarray:
    """Float32 numbers as E4M3 codes, rounded to nearest even; what is beyond 448 becomes 448, as torch 2.13 has it.

    Four of the upper 16 bits of a number are rounded away, so that of the lower ones it only counts whether any is set.
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    upper = bits >> 16
    upper |= (bits & 0xFFFF) != 0
    return np.take(_codes_of_halves(), upper)


@functools.cache
def _codes_of_halves() -> np.ndarray:
    """The E4M3 code of each float32 number whose lower 16 bits are zero."""
    values = np.nan_to_num((np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32))
    clipped = np.clip(values, -_LARGEST, _LARGEST)
    bits = clipped.view(np.uint32)
    sign, magnitude = (bits >> 24) & 0x80, bits & 0x7FFFFFFF
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
