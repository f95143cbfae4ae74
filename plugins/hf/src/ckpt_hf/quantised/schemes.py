"""The arithmetic of each scheme: codes and scales in, float32 weights out.

A weight is the float32 product of the value of its code and its scale, as every tool forms it; what is rounded, is so afterwards and once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckpt_core.sdk import FormatError, Refusal, dtypes, lazy, schema


@schema.dataclass(frozen=True, slots=True)
class Scaled:
    """Codes of one byte, each times the scale of its block: `block` is how many rows and how many columns share a scale, 0 is all of them.

    The last block of an axis may be partial. `dtype` is that of the codes.
    """

    dtype: dtypes.DType
    block: tuple[int, int]

    def decode(self, stored: Sequence[np.ndarray], first: int, rows: int) -> np.ndarray:
        codes, scales = stored
        height, width = self.block
        numbers = dtypes.decode(codes, self.dtype, _numbers(codes.shape))
        return multiplied(numbers, scales, width, height, first)


@schema.dataclass(frozen=True, slots=True)
class Blocks(Scaled):
    """E4M3 codes of whole blocks, as transformers quantises them (`Fp8Quantize`, 5.24): a block's largest value becomes 448."""

    def encode(self, values: np.ndarray, first: int) -> Sequence[np.ndarray]:
        height, width = self.block
        rows, columns = values.shape
        grid = (rows // height, columns // width)
        bands = values.reshape(grid[0], height, columns)
        extremes = np.maximum(bands.max(axis=1), -bands.min(axis=1))
        largest = extremes.reshape(*grid, width).max(axis=2)
        if not np.isfinite(largest).all():
            raise Refusal("it has values that are no numbers", fix="FP8 has no infinity: leave out -o quantise")
        # In the order of transformers, where a number over a tensor is the number times its reciprocal (torch, `__rtruediv__`).
        one = np.float32(1)
        times = np.where(largest > 0, one / np.where(largest > 0, largest, one) * _LARGEST, one)
        within = np.multiply(bands, np.repeat(times, width, axis=1)[:, None], out=_numbers(bands.shape))
        codes = np.empty(values.shape, np.uint8)
        dtypes.E4M3.narrow(within, codes)  # at most 448 and what a product is rounded by
        return codes, one / times


@schema.dataclass(frozen=True, slots=True)
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
        numbers = _numbers((rows, self.columns))
        if not self.packed:
            np.copyto(numbers, codes)
            return self._scaled(numbers, scales, others)
        shape, *others = others
        if shape.tolist() != [[self.rows, self.columns]]:
            expected = f"{[self.rows, self.columns]}, by the scales and the codes"
            raise FormatError("weight_shape lies", found=f"{shape[0].tolist()}", expected=expected)
        np.copyto(numbers, unpacked(codes, self.bits, self.columns))
        if not others:
            numbers -= np.float32(1 << self.bits - 1)
            return multiplied(numbers, scales, self.group)
        start, count = (first % _TOGETHER, rows) if self.channel else (0, 1)
        words = np.ascontiguousarray(others[0].T)
        return self._scaled(numbers, scales, [unpacked(words, self.bits, start + count).T[start:]])

    def _scaled(self, numbers: np.ndarray, scales: np.ndarray, zeros: Sequence[np.ndarray]) -> np.ndarray:
        for one in zeros:
            numbers -= spread(one.astype(np.float32), self.group, numbers.shape[1])
        return multiplied(numbers, scales, self.group)


_TOGETHER = 32
"""Elements after which packed words of any number of bits begin anew."""


def unpacked(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` elements of each row of words (int32, [rows, words]) as uint8."""
    raw = words.view(np.uint8).reshape(len(words), -1)
    if bits == 8:
        return raw[:, :count]
    if bits == 4:
        both = raw.astype("<u2")
        both |= both << 4
        both &= 0x0F0F
        return both.view(np.uint8)[:, :count]
    single = np.unpackbits(raw, axis=1, count=count * bits, bitorder="little").reshape(len(raw), count, bits)
    return np.packbits(single, axis=2, bitorder="little")[..., 0]


@schema.dataclass(frozen=True, slots=True)
class FourBit:
    """Codes of E2M1, two in a byte, the low one first, each times the scale of `group` columns. There may be a scale of those scales, which
    they are multiplied by, or divided by (`divided`: compressed-tensors keeps the reciprocal of what ModelOpt does)."""

    group: int
    divided: bool = False

    def decode(self, stored: Sequence[np.ndarray], first: int, rows: int) -> np.ndarray:
        codes, scales, *whole = stored
        both = codes.astype("<u2")
        both |= both << 4
        both <<= 4
        both &= 0xF0F0
        numbers = _numbers((rows, 2 * codes.shape[1]))
        dtypes.E2M1.widen(both.view(np.uint8), numbers)
        # The scales are put together first, and then multiplied: in another order other float32 numbers come out.
        for one in whole:
            if self.divided and not one.all():
                raise FormatError(
                    "a global scale is zero, and scales are divided by it", expected="448 * 6 / the largest weight"
                )
            scales = scales / one if self.divided else scales * one
        return multiplied(numbers, scales, self.group)


_LARGEST = np.float32(448)


def multiplied(values: np.ndarray, scales: np.ndarray, width: int, height: int = 1, first: int = 0) -> np.ndarray:
    """`values` [rows, columns], multiplied in place by scales that blocks of `height` rows and `width` columns share; 0 is all of them.

    `first` is the row of their matrix that the values begin with: the first block may begin before it.
    """
    factors = spread(scales, width, values.shape[1])
    if height <= 1:
        values *= factors
        return values
    stop = height - first % height
    for factor in factors:
        part = values[max(0, stop - height) : stop]
        part *= factor
        stop += height
    return values


def spread(shared: np.ndarray, width: int, columns: int) -> np.ndarray:
    """What `width` columns share, [rows, blocks], for each of the columns, [rows, columns]; [rows, 1] where all of them share it."""
    if not width or shared.shape[1] == 1:
        return shared
    return np.repeat(shared, width, axis=1)[:, :columns]


def _numbers(shape: Sequence[int]) -> np.ndarray:
    """This thread's buffer for the numbers that are computed."""
    return lazy.scratch("numbers", shape, dtypes.FP32.numpy)
