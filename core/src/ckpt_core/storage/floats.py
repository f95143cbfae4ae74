"""Floats of 8 and 16 bits to float32 and back, by arithmetic on their bits.

NumPy casts a half and looks a table up one element after the other, and does whole vectors of integers and of float32 at a time. So
a float is widened by a shift of its bits to where float32 has them, which leaves its exponent too small by the difference of the two
biases, and a multiplication by that power of two, which makes its subnormals right as well.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_core import numpy as np
from ckpt_core.lean import dataclass
from ckpt_core.storage.scratch import scratch

BLOCK = 1 << 17
"""Elements to cast or to hash at a time: what they need on the way stays in the cache, and threads seldom wait for each other."""

_MAGNITUDE = 0x7FFFFFFF
_EXPONENT = 0x7F800000
_FRACTION_BITS, _BIAS = 23, 127  # of float32


@dataclass(frozen=True, slots=True)
class Narrow:
    """A float of `bits` bits, 8 or 16: sign, exponent less a `bias`, and `fraction` bits. From `special` on, its codes without their signs
    are no finite numbers."""

    bits: int
    fraction: int
    bias: int
    special: int

    def widen(self, raw: np.ndarray, out: np.ndarray) -> bool:
        """Fill `out` (float32, C-contiguous) with the numbers that codes are (raw elements, of its shape). Says whether any of them is
        special; these are not right in `out`."""
        signed = raw.view(f"i{self.bits // 8}")
        shift = _FRACTION_BITS - self.fraction
        mask = np.int32((-1 << 31) | ((1 << self.bits - 1) - 1) << shift)
        codes, numbers = signed.reshape(-1), out.reshape(-1)
        magnitude, special = codes.dtype.type((1 << self.bits - 1) - 1), False
        room = _room(codes.size, codes.dtype.type)
        for part in _blocks(codes.size):
            here = numbers[part]
            bits = here.view(np.int32)
            np.copyto(bits, codes[part])  # the sign goes up to the highest bit
            bits <<= shift
            bits &= mask
            here *= np.float32(2.0 ** (_BIAS - self.bias))
            magnitudes = np.bitwise_and(codes[part], magnitude, out=room[: here.size])
            special = special or int(magnitudes.max()) >= self.special
        return special

    def narrow(self, values: np.ndarray, out: np.ndarray) -> None:
        """Fill `out` (raw elements) with the codes of `values` (float32, of its shape), rounded to nearest, ties to even. Their magnitudes must
        round to numbers that the float has; both arrays are C-contiguous."""
        shift = _FRACTION_BITS - self.fraction
        least = _BIAS - self.bias + 1  # the exponent of the smallest normal number, which subnormals share
        bits, codes = values.reshape(-1).view(np.uint32), out.reshape(-1).view(f"u{self.bits // 8}")
        one, two, smallest = (scratch(f"narrow {name}", (min(BLOCK, bits.size),), bits.dtype) for name in range(3))
        smallest[...] = (
            least << _FRACTION_BITS
        )  # as an array: NumPy's maximum with a single number takes three times as long
        for part in _blocks(bits.size):
            here = bits[part]
            large, sums = one[: here.size], two[: here.size]
            # A power of two so large that its last bit is worth as much as that of the code: the sum is rounded to it, to even.
            np.bitwise_and(here, _EXPONENT, out=large)
            np.maximum(large, smallest[: here.size], out=large)
            large += shift << _FRACTION_BITS
            np.bitwise_and(here, _MAGNITUDE, out=sums)
            magnitudes = sums.view(np.float32)
            magnitudes += large.view(np.float32)
            sums -= large
            large >>= shift
            sums += large
            sums -= (least + shift) << self.fraction
            signs = np.right_shift(here, 32 - self.bits, out=large)
            signs &= 1 << self.bits - 1
            sums |= signs
            np.copyto(codes[part], sums, casting="unsafe")


E2M1 = Narrow(8, 5, 1, 0x80)
"""A float of four bits in the upper half of a byte; all its codes are numbers."""
E4M3 = Narrow(8, 3, 7, 0x7F)
"""E4M3FN: no infinity, and one NaN."""
E5M2 = Narrow(8, 2, 15, 0x7C)
HALF = Narrow(16, 10, 15, 0x7C00)


def widen_bf16(raw: np.ndarray, out: np.ndarray) -> None:
    """Fill `out` (float32) with the numbers that bf16 elements (uint16, of its shape) are."""
    bits = out.view(np.uint32)
    np.copyto(bits, raw)
    bits <<= 16


def narrow_bf16(values: np.ndarray, out: np.ndarray) -> None:
    """Fill `out` (uint16) with `values` (float32, of its shape) as bf16, rounded to nearest, ties to even; both are C-contiguous."""
    floats, codes = values.reshape(-1), out.reshape(-1)
    room = _room(floats.size, np.uint32)
    for part in _blocks(floats.size):
        here, bits = codes[part], floats[part].view(np.uint32)
        # To the half of the last bit that stays, less one, that bit itself is added: of what is halfway the odd ones go up.
        rounded = np.right_shift(bits, 16, out=room[: bits.size])
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        np.copyto(here, rounded, casting="unsafe")
        if np.isnan(floats[part].max()):
            # A NaN whose payload sits in the low half would become infinity: the quiet bit is set instead.
            nan = np.isnan(floats[part])
            here[nan] = (bits[nan] >> 16) | 0x40


def _room(size: int, dtype: type[np.generic]) -> np.ndarray:
    """A buffer of this thread for a block of so many elements."""
    return scratch(f"block of {dtype.__name__}", (min(BLOCK, size),), np.dtype(dtype))


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))
