"""Formulas over keys: `hidden_size / num_attention_heads`, `4 * n_embd`, `hidden_size ** 0.5`. Nothing else is run.

A formula holds numbers, names of keys, brackets, and `+ - * / **`; a quotient may be a fraction until `rounding` says
what becomes of it.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Literal

from ckpt_core.config.values import checked, whole
from ckpt_core.errors import CkptError
from ckpt_core.lean import dataclass

Rounding = Literal["floor", "exact", "none"]
"""`floor`: rounded down to a whole number; `exact`: a whole number, or an error; `none`: a real number."""


def _quotient(one: Any, other: Any) -> Any:
    whole_one = type(one) is type(other) is int and other and not one % other
    return one // other if whole_one else _fraction(one) / other


def _power(base: Any, exponent: Any) -> Any:
    return (_fraction(base) if exponent < 0 else base) ** exponent


def _fraction(number: Any) -> Any:
    """A number that is divided without rounding. Most quotients are whole, and need none: the module takes a while to import."""
    from fractions import Fraction

    return Fraction(number) if isinstance(number, int) else number


_OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _quotient,
    ast.Pow: _power,
}


@dataclass(frozen=True)
class Formula:
    """A formula, parsed; `names` are the keys in it."""

    text: str
    rounding: Rounding = "exact"

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_names(self._tree)))

    @cached_property
    def _tree(self) -> ast.expr:
        return ast.parse(self.text, mode="eval").body

    def __post_init__(self) -> None:
        _evaluate(self._tree, dict.fromkeys(self.names, 1))  # an error here names what a formula cannot have

    def of(self, config: Mapping[str, Any]) -> Any:
        """The value, for the keys of a config, each a positive whole number; None if one of them is absent or null."""
        if any(config.get(name) is None for name in self.names):
            return None
        given = {name: checked(name, config[name], whole) for name in self.names}
        value = _evaluate(self._tree, given)
        if self.rounding == "none":
            return float(value)
        if self.rounding == "exact" and value != int(value):
            found = ", ".join(f"{name}={size}" for name, size in given.items())
            raise CkptError(f"{self.text} is not a whole number", found=f"{float(value):g} with {found}")
        return int(value // 1)

    def words(self) -> str:
        """The formula as Markdown, and how it is rounded."""
        rest = {"floor": ", rounded down", "exact": ", which must be a whole number", "none": ""}[self.rounding]
        return f"`{self.text}`{rest}"


def _names(node: ast.expr) -> list[str]:
    match node:
        case ast.BinOp(left=left, right=right):
            return [*_names(left), *_names(right)]
        case ast.Name() | ast.Attribute():
            return [ast.unparse(node)]
    return []


def _evaluate(node: ast.expr, given: Mapping[str, Any]) -> Any:
    match node:
        case ast.BinOp(left=left, right=right, op=op) if type(op) in _OPERATIONS:
            return _OPERATIONS[type(op)](_evaluate(left, given), _evaluate(right, given))
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return value
        case ast.Constant(value=float() as value):
            return value
        case ast.Name() | ast.Attribute():
            return given[ast.unparse(node)]
    raise ValueError(f"a formula cannot have {ast.unparse(node)!r}")
