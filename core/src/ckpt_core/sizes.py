"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re

from ckpt_core.errors import UsageError

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}


def parse_size(text: str) -> int:
    """`5GB`, `200MiB` or a plain number, in bytes.

    >>> parse_size("5GB"), parse_size("200 MiB")
    (5000000000, 209715200)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match and match[2].upper() in _UNITS else 0
    if size <= 0:
        raise UsageError("not a size", found=text, expected="a number with B, KB, MB, GB, KiB, MiB or GiB")
    return size
