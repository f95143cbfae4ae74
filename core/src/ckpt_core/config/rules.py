"""The rules by which configs say which layers have a thing; `by_layer` takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ckpt_core.config.entry import literal
from ckpt_core.lean import dataclass

__all__ = ["Rule", "each", "every_nth", "first_layers", "indices"]

Layers = tuple[bool, ...]


@dataclass(frozen=True)
class Rule:
    """How a key's value chooses layers. `read` gets the value and the number of layers, and returns None for a value that it does
    not take; `write` returns the value that chooses layers, or None. `a | b` takes what either takes, and writes as `a` where it can.
    """

    read: Callable[[Any, int], Layers | None]
    write: Callable[[Layers], Any]
    words: str

    def __or__(self, other: Rule) -> Rule:
        def read(value: Any, count: int) -> Layers | None:
            chosen = self.read(value, count)
            return other.read(value, count) if chosen is None else chosen

        def write(chosen: Layers) -> Any:
            value = self.write(chosen)
            return other.write(chosen) if value is None else value

        return Rule(read, write, f"{self.words}, or {other.words}")

    def __invert__(self) -> Rule:
        """The rule that chooses the layers which lack the thing."""

        def read(value: Any, count: int) -> Layers | None:
            chosen = self.read(value, count)
            return None if chosen is None else tuple(not one for one in chosen)

        return Rule(read, lambda chosen: self.write(tuple(not one for one in chosen)), f"all but {self.words}")


def some(rule: Rule) -> Rule:
    """The rule, without the values that choose no layer at all."""

    def read(value: Any, count: int) -> Layers | None:
        chosen = rule.read(value, count)
        return chosen if chosen and any(chosen) else None

    return Rule(read, lambda chosen: rule.write(chosen) if any(chosen) else None, f"{rule.words}, at least one")


def each(*, having: object = 1, lacking: object = 0, longer: bool = False) -> Rule:
    """A list with one value per layer: `having` where it has the thing, `lacking` where not. `longer`: the list may be longer.

    >>> each().read([1, 0], 2), each(having="sliding", lacking="full").write((True, False))
    ((True, False), ['sliding', 'full'])
    """

    def read(value: Any, count: int) -> Layers | None:
        if not isinstance(value, list | tuple) or not (len(value) == count or (longer and len(value) > count)):
            return None
        if any(one not in (having, lacking) for one in value):
            return None
        return tuple(one == having for one in value[:count])

    said = f"those with {literal(having)} in a list of {literal(having)} and {literal(lacking)}, one per layer"
    return Rule(read, lambda chosen: [having if one else lacking for one in chosen], said)


def every_nth(*, first: bool = False) -> Rule:
    """A number n: layers n - 1, 2n - 1, ... counted from 0, or 0, n, 2n, ... with `first`.

    >>> every_nth().read(2, 4), every_nth(first=True).read(2, 4)
    ((False, True, False, True), (True, False, True, False))
    """
    shift = 0 if first else 1

    def chosen_by(n: int, count: int) -> Layers:
        return tuple((index + shift) % n == 0 for index in range(count))

    def read(value: Any, count: int) -> Layers | None:
        return chosen_by(value, count) if type(value) is int and value > 0 else None

    def write(chosen: Layers) -> Any:
        # the smallest n; one above the number of layers chooses none (or, with `first`, the first alone)
        return next((n for n in range(1, len(chosen) + 2) if chosen_by(n, len(chosen)) == chosen), None)

    return Rule(read, write, "every n-th layer" + (", the first included" if first else ""))


def first_layers() -> Rule:
    """A number n: the layers below n.

    >>> first_layers().read(1, 3), first_layers().write((True, True, False))
    ((True, False, False), 2)
    """

    def read(value: Any, count: int) -> Layers | None:
        return tuple(index < value for index in range(count)) if type(value) is int and value >= 0 else None

    def write(chosen: Layers) -> Any:
        return sum(chosen) if read(sum(chosen), len(chosen)) == chosen else None

    return Rule(read, write, "the first n layers")


def indices(*, everywhere: object = None) -> Rule:
    """A list of layers, counted from 0; `everywhere` in it stands for all of them.

    >>> indices().read([0, 2], 3), indices(everywhere=-1).read([-1], 2)
    ((True, False, True), (True, True))
    """

    def read(value: Any, count: int) -> Layers | None:
        if not isinstance(value, list | tuple) or any(type(one) is not int for one in value):
            return None
        return tuple(index in value or (everywhere is not None and everywhere in value) for index in range(count))

    return Rule(
        read, lambda chosen: [index for index, one in enumerate(chosen) if one], "the layers in a list of indices"
    )
