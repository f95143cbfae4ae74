"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re

from ckpt_core.errors import UsageError

_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}  # fmt: skip


def parse_size(text: str) -> int:
    """Bytes from `256MiB`, `2GB` (10^9), `1.5G` (2^30), `4096`; `UsageError` for anything else, and for none.

    >>> parse_size("5GB"), parse_size("200 MiB"), parse_size("1.5g")
    (5000000000, 209715200, 1610612736)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower(), re.ASCII)
    unit = _UNITS.get(match[2], 0) if match else 0
    size = int(float(match[1]) * unit) if match and "." in match[1] else int(match[1]) * unit if match else 0
    if size <= 0:
        raise UsageError("not a size", found=text, expected="256MiB, 2GB or a number of bytes")
    return size


def size_text(count: float) -> str:
    """Bytes in words, by powers of ten as file managers and disks count.

    >>> size_text(1_234_567_890)
    '1.23 GB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError("the last unit returns")
