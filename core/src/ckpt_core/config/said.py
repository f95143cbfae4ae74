"""What a line may write for a key, besides a constant: what a fact is, or which layers have a thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ckpt_core.architecture import Facts, PerLayer
from ckpt_core.config.entry import quoted, uniform
from ckpt_core.config.rules import Rule
from ckpt_core.lean import dataclass


@dataclass(frozen=True)
class Said:
    """A value to write that facts say; `of` returns None where they say none. `function` is what a person wrote for it."""

    of: Callable[[Facts], Any]
    words: str
    function: Callable | None = None

    def __repr__(self) -> str:
        return self.words


def value_of(*paths: str, by: Callable[..., Any] | None = None) -> Said:
    """The fact at a path, or a list of several facts; `by` turns them into the key's value.

    >>> value_of("patches.height", "patches.width").of(Facts({"patches.height": 2, "patches.width": 3}))
    [2, 3]
    """

    def of(facts: Facts) -> Any:
        values = [uniform(facts, path) for path in paths]
        if None in values:
            return None
        if by is not None:
            return by(*values)
        return values if len(values) > 1 else values[0]

    return Said(of, quoted(paths), by)


def layers_of(path: str, rule: Rule | Callable[[tuple[bool, ...]], Any], *, layers: str = "layers") -> Said:
    """Which layers have the thing at `path`, as a rule says them, or as a function of one truth value per layer does.

    `layers` is the fact with their number. The line must say both paths, or use them.
    """

    def of(facts: Facts) -> Any:
        present = facts.present(path)
        if layers not in facts:  # another kind of model: its stacks have layers of their own
            return None
        chosen = tuple(present) if isinstance(present, PerLayer) else (present,) * facts[layers]
        return rule.write(chosen) if isinstance(rule, Rule) else rule(chosen)

    if isinstance(rule, Rule):
        return Said(of, f"the layers with {quoted((path,))}: {rule.words}")
    return Said(of, f"of the layers with {quoted((path,))}", rule)
