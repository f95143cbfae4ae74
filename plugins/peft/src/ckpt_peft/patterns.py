"""The regular expressions of an adapter's config, which come from strangers: compiled once, and only those that Python decides quickly.

Python's matcher tries every way to divide a text over the repeats of a pattern. Two kinds of pattern make that endless: a repeat of
something that has several ways itself (`(a+)+`, `(a|a)*`), and many repeats one after the other (`.*.*.*.*.*.*`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from ckpt_core.sdk import CkptError

_MOST_CHARACTERS = 4096
_MOST_REPEATS = 5  # in a row; on names of 100 characters that is well below a second
_FEW = 8  # a repeat of so many times at most has few ways
_REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT)


def match(pattern: str, name: str) -> re.Match[str] | None:
    """The match at the start of a name. `CkptError` for a pattern that is not a regular expression, or that may never end."""
    return _compiled(pattern).match(name)


def fits(pattern: str, name: str) -> bool:
    """Whether a whole name matches. Errors are those of `match`."""
    return _compiled(pattern).fullmatch(name) is not None


def check(pattern: str) -> None:
    """Raise the errors of `match`."""
    _compiled(pattern)


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        tree = parser.parse(pattern) if len(pattern) <= _MOST_CHARACTERS else None
        compiled = None if tree is None else re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise CkptError(f"{pattern!r:.80} is not a regular expression", found=str(error)) from None
    if tree is None or compiled is None:
        raise CkptError(f"{pattern!r:.80} is too long a pattern", expected=f"at most {_MOST_CHARACTERS} characters")
    if _repeats(tree, pattern) > _MOST_REPEATS:
        raise _endless(pattern, "more repeats one after the other than are tried")
    return compiled


def _repeats(tree: Any, pattern: str, inside: bool = False) -> int:
    """How many open repeats a pattern has one after the other, at most. Raises an error for one within another."""
    total = 0
    for code, argument in tree:
        repeats = code in _REPEATS and argument[1] > _FEW
        if inside and (repeats or code is codes.BRANCH or (code in _REPEATS and argument[0] != argument[1])):
            raise _endless(pattern, "a repeat of something that has several ways itself")
        inner = [_repeats(one, pattern, inside or repeats) for one in _parts(argument)]
        times = argument[1] if code in _REPEATS and not repeats else 1
        total += repeats + (max(inner, default=0) if code is codes.BRANCH else times * sum(inner))
    return total


def _parts(argument: Any) -> Iterator[Any]:
    """The patterns within the argument of a code."""
    if isinstance(argument, parser.SubPattern):
        yield argument
    elif isinstance(argument, tuple | list):
        for one in argument:
            yield from _parts(one)


def _endless(pattern: str, found: str) -> CkptError:
    return CkptError(
        f"{pattern!r:.80} is a pattern that may take for ever",
        found=found,
        fix="say the same with fewer repeats, or with a list of names",
    )
