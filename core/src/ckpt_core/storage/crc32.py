"""CRC-32 of data that arrives in pieces, in any order.

A CRC is linear over GF(2): the checksum of `a + b` is that of `a` followed by
`len(b)` zero bytes, xor that of `b`. Appending zeros multiplies the checksum,
seen as a polynomial, by x**(8 * len(b)) modulo the CRC polynomial.

    crc32(a + b) == crc32_combine(crc32(a), crc32(b), len(b))
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import BinaryIO

_POLYNOMIAL = 0xEDB88320  # of zip, gzip and zlib; bit 31 is the coefficient of x**0
_ONE = 1 << 31
_CHUNK = 1 << 20


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


@lru_cache(maxsize=256)
def _zeros(count: int) -> int:
    """The polynomial that appending `count` zero bytes multiplies by: x**(8 * count)."""
    result, square = _ONE, _ONE >> 8
    while count:
        if count & 1:
            result = _multiply(result, square)
        square = _multiply(square, square)
        count >>= 1
    return result


def crc32_combine(crc_a: int, crc_b: int, len_b: int) -> int:
    """The CRC-32 of two byte strings in a row, from their CRCs and the length (bytes) of the second.

    >>> crc32_combine(zlib.crc32(b"check"), zlib.crc32(b"point"), 5) == zlib.crc32(b"checkpoint")
    True
    """
    if len_b < 0:
        raise ValueError(f"a length of {len_b} bytes")
    return _multiply(crc_a, _zeros(len_b)) ^ crc_b


def of_range(stream: BinaryIO, offset: int, count: int) -> int:
    """The CRC-32 of `count` bytes of a file from `offset` on."""
    stream.seek(offset)
    crc = 0
    while count > 0 and (chunk := stream.read(min(count, _CHUNK))):
        crc = zlib.crc32(chunk, crc)
        count -= len(chunk)
    return crc
