"""CRC-32 of data that arrives in pieces, in any order.

A CRC is linear over GF(2), but for the constants that it begins and ends with. Without them, as a plain `remainder`,
the pieces of a whole simply add up (xor), each moved to its place by the bytes behind it:

    whole = a + b
    crc32(whole) == of_remainder(shifted(remainder(a), len(b)) ^ remainder(b), len(whole))

zlib-ng computes a CRC at the speed of memory, the zlib of many systems at 1 GB/s; where there is no zlib-ng, zlib does.
"""

from __future__ import annotations

import zlib
from functools import cache
from typing import BinaryIO

try:
    from zlib_ng.zlib_ng import crc32, crc32_combine
except ImportError:
    crc32 = zlib.crc32

    def crc32_combine(crc1: int, crc2: int, crc2_length: int, /) -> int:
        """The CRC-32 of two byte strings in a row, from their CRCs and the length (bytes) of the second."""
        return _multiply(crc1, _power(crc2_length)) ^ crc2


_POLYNOMIAL = 0xEDB88320  # of zip, gzip and zlib; bit 31 is the coefficient of x**0
_ONE = 1 << 31
_ALL = 0xFFFFFFFF
_CHUNK = 1 << 20


def remainder(data: bytes | memoryview, before: int = 0) -> int:
    """The CRC-32 of `data` without its constants; that of zeros is 0. `before` is that of the bytes in front of `data`."""
    return crc32(data, before ^ _ALL) ^ _ALL


def shifted(part: int, count: int) -> int:
    """What the remainder of a piece is in a whole in which `count` bytes follow it."""
    return crc32_combine(part, 0, count)


def of_remainder(whole: int, length: int) -> int:
    """The CRC-32 of `length` bytes whose remainder is `whole`."""
    return crc32_combine(_ALL, whole, length) ^ _ALL


def of_range(stream: BinaryIO, offset: int, count: int) -> int:
    """The CRC-32 of `count` bytes of a file from `offset` on."""
    stream.seek(offset)
    crc = 0
    while count > 0 and (chunk := stream.read(min(count, _CHUNK))):
        crc = crc32(chunk, crc)
        count -= len(chunk)
    return crc


def _multiply(a: int, b: int) -> int:
    """The product of two polynomials modulo the CRC polynomial."""
    product = 0
    bit = _ONE
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


def _power(count: int) -> int:
    """The polynomial that appending `count` zero bytes multiplies by: x**(8 * count)."""
    result = _ONE
    for number in range(count.bit_length()):
        if count >> number & 1:
            result = _multiply(result, _square(number))
    return result


@cache
def _square(number: int) -> int:
    """x**(8 * 2**number)."""
    return _multiply(_square(number - 1), _square(number - 1)) if number else _ONE >> 8
