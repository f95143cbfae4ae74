"""What commands print: sizes in words, aligned columns, colour where it is wanted, one JSON document."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

import click


def paint(text: str, style: str, stream: TextIO | None = None) -> str:
    """`text` in a colour or `bold` or `dim`; as it is if `stream` (stdout) is no terminal, or NO_COLOR is set."""
    stream = stream or sys.stdout
    if os.environ.get("NO_COLOR") or not stream.isatty():
        return text
    return click.style(text, **({style: True} if style in ("bold", "dim") else {"fg": style}))


def emit_json(document: object) -> None:
    """Print one JSON document on stdout. Numbers that JSON lacks (NaN, infinities) become strings."""
    click.echo(json.dumps(_plain(document), indent=1, ensure_ascii=False, allow_nan=False))


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)


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


def memory_text(count: int) -> str:
    """Bytes of memory in MiB.

    >>> memory_text(256 << 20)
    '256 MiB'
    """
    return f"{math.ceil(count / (1 << 20))} MiB"


def count_text(count: int) -> str:
    """A number of elements, exact and in words.

    >>> count_text(7_241_732_096)
    '7,241,732,096 (7.24 B)'
    """
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if count >= size:
            return f"{count:,} ({count / size:.3g} {unit})"
    return f"{count:,}"


def plural(count: int, noun: str) -> str:
    """`3 files`, `1 file`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def shortened(lines: Sequence[str], head: int = 6, tail: int = 2) -> list[str]:
    """A long list with its middle left out."""
    if len(lines) <= head + tail + 1:
        return list(lines)
    return [*lines[:head], f"... {len(lines) - head - tail:,} more ...", *lines[-tail:]]


def table(rows: Iterable[Sequence[str]], gap: str = "  ") -> list[str]:
    """Rows of equally many cells in aligned columns."""
    rows = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [gap.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


class Page:
    """Labelled lines: a label once, then everything that belongs to it, indented to one column."""

    def __init__(self, width: int = 13) -> None:
        self._width = width

    def say(self, label: str, *lines: str) -> None:
        """Print `lines` under `label`; nothing if there are none."""
        for number, line in enumerate(lines):
            left = label if number == 0 else ""
            click.echo((paint(f"{left} ".ljust(self._width), "bold") + line).rstrip())
