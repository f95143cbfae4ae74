"""Conditions on a model: which layers, or which models, a row of a table is for.

    mlp.gated                    the value is true, a number other than 0, or there at all
    !latent_attention.q_rank     it is not
    attention.groups=2           a comparison: = != < <= > >=
    attention.groups%tp=0        each side is a path, a number, or what a division leaves

A path leads into a layer (`mlp.gated`) or, in tables without layers, into the architecture (`head.tied`); `tp` and `ep` are
numbers of ranks. Conditions that are separated by spaces all have to hold. A comparison with a value that is not there does not.
"""

from __future__ import annotations

import functools
import operator
import re
import typing
from collections.abc import Callable, Mapping

from ckpt_core.architecture.serial import field_types, optional_of
from ckpt_core.errors import CkptError, did_you_mean
from ckpt_core.layout.split import Ranks
from ckpt_core.lean import dataclass

_RELATIONS: dict[str, Callable[[typing.Any, typing.Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_COMPARISON = re.compile(r"([\w.%]+)(!=|<=|>=|=|<|>)([\w.%]+)")
_PATH = re.compile(r"!?[A-Za-z_]\w*(\.\w+)*")
_DIMENSIONS = ("tp", "ep")


@dataclass(frozen=True, slots=True)
class Condition:
    """`left relation right`, or only `left`, which then has to be there (with `!`: must not be)."""

    left: str
    relation: str = ""
    right: str = ""

    def holds(self, subject: object, ranks: Ranks) -> bool:
        """Whether it holds for a layer (or the architecture) on these ranks."""
        if not self.relation:
            return bool(_value(self.left.removeprefix("!"), subject, ranks)) != self.left.startswith("!")
        left, right = _value(self.left, subject, ranks), _value(self.right, subject, ranks)
        return left is not None and right is not None and _RELATIONS[self.relation](left, right)

    def paths(self) -> list[str]:
        """The paths it asks for."""
        names = [name for side in (self.left, self.right) for name in side.removeprefix("!").split("%")]
        return [name for name in names if name and not name.isdigit() and name not in _DIMENSIONS]


@functools.cache
def conditions(text: str) -> tuple[Condition, ...]:
    """The conditions of `when`; `CkptError` for one that cannot be read.

    >>> conditions("mlp.gated attention.groups%tp=0")
    (Condition(left='mlp.gated', relation='', right=''), Condition(left='attention.groups%tp', relation='=', right='0'))
    """
    found = []
    for word in text.split():
        comparison = _COMPARISON.fullmatch(word)
        if comparison is not None:
            found.append(Condition(comparison[1], comparison[2], comparison[3]))
        elif _PATH.fullmatch(word):
            found.append(Condition(word))
        else:
            raise CkptError(
                "a condition that cannot be read",
                found=word,
                expected="a path (mlp.gated), its opposite (!mlp.gated) or a comparison without spaces (attention.groups%tp=0)",
            )
    return tuple(found)


@functools.cache  # a row is in many tables
def check_paths(text: str, subject: type) -> None:
    """`CkptError` for a path of `when` that does not lead through the fields of `subject`."""
    for path in (path for condition in conditions(text) for path in condition.paths()):
        reached: object = subject
        for step in path.split("."):
            known = _members(reached)
            if step not in known:
                raise CkptError(
                    f"there is no {step!r} in {getattr(reached, '__name__', reached)}",
                    found=f"when={text!r}",
                    expected=", ".join(known) or "the end of the path",
                    fix=did_you_mean(step, known),
                )
            reached = known[step]


def _members(annotation: object) -> Mapping[str, object]:
    """The fields and properties of a schema class, and what they hold; none of other types."""
    if not isinstance(annotation, type) or not hasattr(annotation, "__dataclass_fields__"):
        return {}
    computed = {
        name: typing.get_type_hints(value.fget).get("return")
        for name, value in vars(annotation).items()
        if isinstance(value, property)
    }
    return {name: optional_of(kind)[0] for name, kind in {**field_types(annotation), **computed}.items()}


def _value(side: str, subject: object, ranks: Ranks) -> typing.Any:
    name, _, divisor = side.partition("%")
    if divisor:
        whole, by = _value(name, subject, ranks), _value(divisor, subject, ranks)
        return whole % by if whole is not None and by else None
    if name.isdigit():
        return int(name)
    if name in _DIMENSIONS:
        return ranks.get(name, (0, 1))[1]
    value: object = subject
    for step in name.split("."):
        value = None if value is None else getattr(value, step)
    return value
