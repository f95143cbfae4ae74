"""`Entry`, the line of a config table, and the values that lines of all kinds share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from ckpt_core.architecture import Facts, PerLayer
from ckpt_core.errors import CkptError, Refusal
from ckpt_core.lean import dataclass

Fate = tuple[Literal["used", "carried", "left"], str]
Reader = Callable[[Mapping[str, Any], Facts, dict[str, Any]], None]
Writer = Callable[[Facts, Mapping[str, Any], Any], None]


UNEXPECTED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a function trips over where a config has a value that nobody expects there."""


class _Mark:
    """A value that no config has."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


REQUIRED: Any = _Mark("REQUIRED")
AS_LEFT_OUT: Any = _Mark("AS_LEFT_OUT")
LEFT_OUT: Any = _Mark("LEFT_OUT")
"""As a value to write: the key is not written."""


class Entry:
    """One line of a config table: a value from which its reader, its writer and its documentation follow.

    A line reads its own keys and says its own claims, and writes its own keys from its own claims. It sees those of
    other lines only where it names them in `uses`; the lines that it uses are read, and written, before it.
    """

    @property
    def keys(self) -> tuple[str, ...]:
        """The config keys this line speaks for. No other line of a table may speak for them."""
        return ()

    @property
    def claims(self) -> tuple[str, ...]:
        """The fact paths this line says; `path.*` is everything below a path. No other line of a table may say them."""
        return ()

    @property
    def uses(self) -> tuple[str, ...]:
        """Keys and facts of other lines that this one looks at."""
        return ()

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        """Enter what this line's keys say; `CkptError` if they say nothing that is known."""

    def write(self, facts: Facts, notes: Mapping[str, Any], config: Any) -> None:
        """Enter this line's keys; `Refusal` if they cannot say the facts."""

    @property
    def gives_way(self) -> bool:
        """Whether another line may speak for this line's keys, too, and is then right: so with a note, which changes no output."""
        return False

    @property
    def fate(self) -> Fate:
        """What becomes of this line's keys when they are read, and why if they are left."""
        return "used", ""

    def words(self) -> str:
        """What this line says of its keys, in words, as Markdown: the documentation of a format is made of it."""
        return quoted(self.claims)

    @property
    def held(self) -> tuple[Sequence[Entry], ...]:
        """The tables of lines inside this one, as of an object in a config."""
        return ()

    @property
    def by_hand(self) -> tuple[tuple[Callable, Callable], ...]:
        """The pairs of functions in this line that a person wrote as inverses of one another."""
        return ()


def every_line(lines: Iterable[Entry]) -> Iterator[Entry]:
    """The lines, and those inside of them, at any depth."""
    for line in lines:
        yield line
        for held in line.held:
            yield from every_line(held)


@dataclass(frozen=True, slots=True)
class SameAs:
    """A default that is another key's value."""

    key: str


def same_as(key: str) -> SameAs:
    """As a default: the value of another key."""
    return SameAs(key)


def uniform(facts: Facts, path: str) -> Any:
    """The fact at `path`, for a key that has one value for all layers; None if there is none."""
    value = facts.get(path)
    if isinstance(value, PerLayer):
        raise Refusal("it has one value for all layers", found=f"{path} = {value}", fact=path)
    return value


def one_value(facts: Facts, paths: tuple[str, ...], key: str) -> Any:
    """The value that all facts at `paths` have, for one key; None where there is none. `Refusal` if they differ."""
    values = {path: facts[path] for path in paths if path in facts}
    if len(set(values.values())) > 1:
        found = ", ".join(f"{path}={value}" for path, value in values.items())
        raise Refusal(f"{key} is one value for {' and '.join(values)}", found=found, fact=tuple(values))
    value = next(iter(values.values()), None)
    if isinstance(value, PerLayer):
        raise Refusal(f"{key} is one value for all layers", found=f"{paths[0]} = {value}", fact=paths)
    return value


def agreed(config: Mapping[str, Any], names: tuple[str, ...], meaning: Callable[[str, Any], Any]) -> Any:
    """The value of a key that has several names, any of which may be there; None where none is. An error if they mean different things."""
    values = {name: config[name] for name in names if config.get(name) is not None}
    found = [meaning(name, value) for name, value in values.items()]
    if any(value != found[0] for value in found[1:]):
        raise CkptError(
            f"keys {' and '.join(map(repr, values))} disagree",
            found=", ".join(f"{name} = {str(value)[:60]}" for name, value in values.items()),
        )
    return next(iter(values.values()), None)


def quoted(names: tuple[str, ...]) -> str:
    """Names as Markdown.

    >>> quoted(("a", "b"))
    '`a`, `b`'
    """
    return ", ".join(f"`{name}`" for name in names)


def literal(value: object) -> str:
    """A config's value as Markdown, null in the word of JSON and YAML."""
    return "null" if value is None else f"`{value}`" if value != "" else "an empty text"
