"""What commands print: sizes in words, aligned columns, colour where it is wanted, one JSON document.

All text leaves the program here, by `say` or `emit_json`. Names and values in it come from strangers' files: what a terminal
would obey is spelled out, and what is too long is cut. Only what `paint` marked becomes a colour.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from ckpt_core.addresses import spelled, spelled_in
from ckpt_core.errors import CkptError
from ckpt_core.text import printable

_STYLES = {"bold": 1, "dim": 2, "red": 31, "green": 32}
_SECRET = os.urandom(8).hex()  # what no file can know: colours are marked with it until they are printed
_MARK = re.compile(f"(\x1b{_SECRET}[0-9]+m)")
_LONGEST_CELL = 300
_LONGEST_LINE = 2000


class Unprintable(CkptError):
    """What stdout leads to takes no more: a full disk, a device that fails."""


def paint(text: str, style: str, stream: TextIO | None = None) -> str:
    """`text` in a colour or `bold` or `dim`; as it is if `stream` (stdout) is not a terminal, or NO_COLOR is set."""
    stream = stream or sys.stdout
    if os.environ.get("NO_COLOR") or stream is None or not stream.isatty():
        return text
    return f"\x1b{_SECRET}{_STYLES[style]}m{text}\x1b{_SECRET}0m"


def say(line: str = "", err: bool = False) -> None:
    """Print one line on stdout, or on stderr."""
    parts = [
        part.replace(_SECRET, "[") if number % 2 else printable(part, _LONGEST_LINE)
        for number, part in enumerate(_MARK.split(spelled(line)))
    ]
    _write("".join(parts), err)


SCHEMA_VERSION = 1
"""Of all documents that `--json` prints. A key that goes, or that means something else, makes it one more; a new key does not."""


def emit_json(document: object, schema: str = "", *, line: bool = False) -> None:
    """Print one JSON document on stdout, whole, on one `line` if asked. Numbers that JSON lacks (NaN, infinities) become strings.

    An object says first which of `ckpt schema` it follows (`inspect/1`).
    """
    if schema and isinstance(document, dict):
        document = {"schema": f"{schema}/{SCHEMA_VERSION}", **document}
    narrow = "utf" not in (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    text = json.dumps(spelled_in(_plain(document)), indent=None if line else 1, ensure_ascii=narrow, allow_nan=False)
    _write(re.sub(r"[^\n\x20-\x7e]", _json_escape, text), False)


def _json_escape(found: re.Match[str]) -> str:
    """A character as it stands in JSON, as its number if it has no shape. JSON itself asks for less."""
    char = found.group()
    return char if char.isprintable() else json.dumps(char)[1:-1]


def _write(text: str, err: bool) -> None:
    stream = sys.stderr if err else sys.stdout
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
    except BrokenPipeError:  # whoever was reading has seen enough; the command goes on to its own end
        _close(stream)
    except OSError as error:
        _close(stream)
        if not err:
            raise Unprintable("the output can't be printed", found=error.strerror) from error


def _close(stream: TextIO) -> None:
    """Lead a stream that takes no more to nowhere: what it still holds would fail once more when the program ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def open_standard_streams() -> None:
    """Open stdin, stdout and stderr where the caller closed them (`>&-`): the next file that is opened would get the
    number, and would be written to by whatever prints.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


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


def shortened(lines: Sequence[str], head: int = 6, tail: int = 2) -> list[str]:
    """A long list with its middle left out."""
    if len(lines) <= head + tail + 1:
        return list(lines)
    return [*lines[:head], f"... {len(lines) - head - tail:,} more ...", *lines[-tail:]]


def table(rows: Iterable[Sequence[str]], gap: str = "  ") -> list[str]:
    """Rows of equally many cells in aligned columns."""
    rows = [[printable(cell, _LONGEST_CELL) for cell in row] for row in rows]
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
            say((paint(f"{left} ".ljust(self._width), "bold") + line).rstrip())
