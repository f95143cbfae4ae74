"""What the value of a key may be, and how it says a fact: types, and named values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ckpt_core.config.entry import literal
from ckpt_core.errors import CkptError, Refusal
from ckpt_core.lean import dataclass

__all__ = [
    "Codec", "ValueType", "checked", "count", "flag", "integral", "layers", "number", "one_of", "positive", "reciprocal", "switch", "text", "whole", "whole_numbers",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Codec:
    """Two functions: from a config's value to a fact's, and back. `meaning` says in words what they do."""

    read: Callable[[object], object]
    write: Callable[[object], object]
    meaning: str = ""

    @property
    def by_hand(self) -> tuple[tuple[Callable, Callable], ...]:
        """The two functions, which a person wrote as inverses of one another."""
        return ((self.read, self.write),)


class Named(Codec):
    """A codec that is a table: nobody wrote its two directions."""

    @property
    def by_hand(self) -> tuple[tuple[Callable, Callable], ...]:
        return ()


def one_of(names: Mapping[object, object]) -> Codec:
    """A codec for named values; several config names may mean one fact, the first is written.

    >>> one_of({"silu": 1, "swish": 1}).write(1)
    'silu'
    """
    back: dict[object, object] = {}
    for name, value in names.items():
        back.setdefault(value, name)

    def read(value: object) -> object:
        if isinstance(value, list | dict) or value not in names:
            raise CkptError("unknown value", found=repr(value), expected=", ".join(map(repr, names)))
        return names[value]

    def write(value: object) -> object:
        if value not in back:
            raise Refusal("it has no name for this", found=str(value), expected=", ".join(map(str, back)))
        return back[value]

    listed = "; ".join(
        f"{', '.join(literal(name) for name in names if names[name] == value)} = {value}" for value in back
    )
    return Named(read, write, listed)


def _as_whole(value: Any) -> int:
    if value != int(value):
        raise Refusal("it is a whole number", found=str(value))
    return int(value)


integral = Named(lambda value: value, _as_whole, "written as a whole number")
"""A key that its framework takes only as a whole number, of a fact that is a real one."""


def _as_numbers(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        raise CkptError("not a list of whole numbers", found=repr(value)[:80])
    return tuple(value)


whole_numbers = Named(_as_numbers, list, "a list of whole numbers")  # type: ignore[arg-type]
"""A key with a list, of a fact that is several numbers."""


def _inverted(value: Any) -> float:
    """1 / value, and of the numbers whose own inverse that value is to the last bit the one with the fewest digits."""
    exact = 1.0 / value
    short = float(f"{exact:.15g}")
    return short if 1.0 / short == value else exact


reciprocal = Named(lambda value: 1.0 / value, _inverted, "which is 1 divided by it")  # type: ignore[operator]
"""A key that divides, of a fact that multiplies."""


@dataclass(frozen=True, slots=True)
class ValueType:
    """What a value must be: `read` returns it, or None if it is something else. `words` name it in errors."""

    words: str
    read: Callable[[object], object]

    def __str__(self) -> str:
        return self.words


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


whole = ValueType(
    "a positive whole number", lambda value: value if type(value) is int and 0 < value < 1 << 40 else None
)
count = ValueType("a whole number", lambda value: value if type(value) is int and 0 <= value < 1 << 40 else None)
number = ValueType("a number", lambda value: value if _is_number(value) else None)
positive = ValueType("a positive number", lambda value: value if _is_number(value) and value > 0 else None)  # type: ignore[operator]
flag = ValueType("true or false", lambda value: value if type(value) is bool else None)
switch = ValueType(
    "true or false (1 or 0)", lambda value: bool(value) if type(value) in (bool, int) and value in (0, 1) else None
)
text = ValueType("a text", lambda value: value if isinstance(value, str) else None)
layers = ValueType("a number of layers", lambda value: value if type(value) is int and 0 < value <= 100_000 else None)


def checked(key: str, value: object, type: ValueType | None) -> Any:
    """The value of a key, if it is of a type; `CkptError` names the key if not."""
    if type is None:
        return value
    found = type.read(value)
    if found is None:
        raise CkptError(f"key {key!r} is not {type.words}", found=repr(value)[:80], expected=type.words)
    return found
