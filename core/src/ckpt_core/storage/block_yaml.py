"""Plain values as YAML text in block style, character for character as PyYAML writes them, and without it.

Importing PyYAML and its writer take 0.03 s of CPU time, a fifth of a short command. What it would quote, fold, tag or give an
anchor is left to it (`plain_yaml`): here is no second judgement of what YAML takes for what.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

# Words that YAML 1.1 can only take for text: none begins as a number does, but for those in which a letter follows the digits (`1f1b`).
_WORD = r"(?:[A-Za-z_/][\w/.+-]*|[1-9]\d*[A-Za-z]\w*)"
_TEXT = re.compile(rf"{_WORD}(?: [A-Za-z]\w*)*", re.ASCII)
_NO_TEXT = {"yes", "no", "true", "false", "on", "off", "null"}
_WIDTH = 80
"""PyYAML breaks longer lines, where there are spaces."""
_LONGEST_KEY = 64


class Beyond(ValueError):
    """A value that PyYAML does not write plain."""


def text_of(value: object) -> str:
    """A mapping in its order; `Beyond` where PyYAML has to write it."""
    if type(value) is not dict or not value:
        raise Beyond
    return "".join(f"{line}\n" for line in _mapping(value, 0, set()))


def _mapping(value: dict[object, object], indent: int, seen: set[int]) -> Iterator[str]:
    _enter(value, seen)
    for key, inner in value.items():
        if type(key) is not str or len(key) > _LONGEST_KEY or " " in key:
            raise Beyond
        begun = f"{' ' * indent}{_scalar(key, 0, seen)}:"
        if type(inner) is dict and inner:
            yield begun
            yield from _mapping(inner, indent + 2, seen)
        elif type(inner) in (list, tuple) and inner:
            yield begun
            yield from _sequence(inner, indent, seen)  # type: ignore[arg-type]
        else:
            yield f"{begun} {_scalar(inner, len(begun) + 1, seen)}"


def _sequence(value: list[object] | tuple[object, ...], indent: int, seen: set[int]) -> Iterator[str]:
    _enter(value, seen)
    for inner in value:
        if type(inner) is dict and inner:
            lines = _mapping(inner, indent + 2, seen)
        elif type(inner) in (list, tuple) and inner:
            lines = _sequence(inner, indent + 2, seen)  # type: ignore[arg-type]
        else:
            lines = iter([" " * (indent + 2) + _scalar(inner, indent + 2, seen)])
        yield f"{' ' * indent}- {next(lines)[indent + 2 :]}"  # the first line stands behind the dash
        yield from lines


def _enter(value: object, seen: set[int]) -> None:
    """What stands in two places has an anchor in the first."""
    if id(value) in seen:
        raise Beyond
    seen.add(id(value))


def _scalar(value: object, column: int, seen: set[int]) -> str:
    """What has no others in it, from a column of its line on."""
    if value is None or type(value) is bool:
        return {None: "null", True: "true", False: "false"}[value]
    if type(value) is int:
        return str(value)
    if type(value) is float and math.isfinite(value):
        return float_text(value)
    if (
        type(value) is str
        and _TEXT.fullmatch(value)
        and value.lower() not in _NO_TEXT
        and column + len(value) <= _WIDTH
    ):
        return value
    if type(value) in (dict, list) and not value:
        _enter(value, seen)
        return "{}" if type(value) is dict else "[]"
    if type(value) is tuple and not value:  # of which Python has one object: it gets no anchor
        return "[]"
    raise Beyond


def float_text(value: float) -> str:
    """A finite float that readers of YAML 1.1 take for one: `1.0e-05`, never `1e-05`."""
    text = repr(value)
    return text.replace("e", ".0e", 1) if "e" in text and "." not in text else text
