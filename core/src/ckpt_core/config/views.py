"""What one line of a config table sees of the config and of the facts, and what it may enter.

The rule that these views hold: a key and a fact belong to one line each. A line that reads what it has not declared,
or enters what is another line's, is a mistake in the table, and raises `TableError` where it happens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from ckpt_core.architecture import Facts, PerLayer
from ckpt_core.config.entry import Entry, quoted


class TableError(Exception):
    """A mistake in a config table, and not in a file: two lines for one key, or a line that leaves its own."""


def covers(claim: str, path: str) -> bool:
    """Whether a claim is one of a fact's path.

    >>> covers("attention.norm.*", "attention.norm.eps"), covers("attention.window", "attention.window?")
    (True, False)
    """
    return claim == path or (claim.endswith(".*") and path.startswith(claim[:-1]))


def touches(used: str, claim: str) -> bool:
    """Whether a claim is of something that a line uses: of the thing itself, of its layers, or of a part of it.

    >>> touches("mlp.moe", "mlp.moe?"), touches("mlp.moe", "mlp.moe.*"), touches("mlp.moe", "mlp.ffn")
    (True, True, False)
    """
    bare, whole = used.removesuffix(".*").removesuffix("?"), claim.removesuffix(".*").removesuffix("?")
    return whole == bare or whole.startswith(f"{bare}.") or (claim.endswith(".*") and bare.startswith(f"{whole}."))


class Scope:
    """What a line owns, and what it has declared that it looks at."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.keys = frozenset(entry.keys)
        self._used = frozenset(entry.uses)
        seen = (*entry.claims, *entry.uses)
        self._below = tuple(name[:-1] for name in seen if name.endswith(".*"))
        self._named = frozenset(path for name in seen for path in _at_and_above(name))

    def sees_key(self, key: object) -> bool:
        return key in self.keys or key in self._used

    def sees_fact(self, path: str) -> bool:
        """Whether the line may look at a fact, or ask whether anything exists at or below a path."""
        return path in self._named or path.startswith(self._below)

    def seen_in(self, facts: Facts) -> dict[str, Any]:
        """Those of `facts` that the line may look at."""
        named, below = self._named, self._below
        if below:
            return {path: facts[path] for path in facts if path in named or path.startswith(below)}
        return {path: facts[path] for path in facts if path in named}

    def claims(self, path: str) -> bool:
        return any(covers(claim, path) for claim in self.entry.claims)

    def mistake(self, does: str) -> TableError:
        entry = self.entry
        name = f"line of {quoted(entry.keys or entry.claims)}"
        return TableError(f"the {name} {does}, which is not its own: name it in `uses`, or leave it to its own line")


def _at_and_above(name: str) -> Iterator[str]:
    """The paths that a claim names: its own and those that it lies below, each also with the question whether it is there."""
    parts = name.removesuffix(".*").removesuffix("?").split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        yield from (path, f"{path}?")


class KeysSeen(Mapping[str, Any]):
    """A config as one line reads it: its own keys, and those it uses."""

    def __init__(self, config: Mapping[str, Any], scope: Scope) -> None:
        self._config, self._scope = config, scope

    def __getitem__(self, key: str) -> Any:
        if not self._scope.sees_key(key):
            raise self._scope.mistake(f"reads the key {key!r}")
        return self._config[key]

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._config if self._scope.sees_key(key))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        if not self._scope.sees_key(key):
            raise self._scope.mistake(f"asks for the key {key!r}")
        return key in self._config

    def get(self, key: str, default: Any = None) -> Any:
        return self._config[key] if key in self else default


class KeysWritten(MutableMapping[str, Any]):
    """A config as one line writes it. `own` are the keys it has entered; it sees those of the lines it uses, too."""

    def __init__(self, before: Mapping[str, Any], scope: Scope) -> None:
        self.own: dict[str, Any] = {}
        self._before, self._scope = before, scope

    def __getitem__(self, key: str) -> Any:
        if not self._scope.sees_key(key):
            raise self._scope.mistake(f"reads the key {key!r}")
        return self.own[key] if key in self.own else self._before[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self._scope.keys:
            raise self._scope.mistake(f"writes the key {key!r}")
        self.own[key] = value

    def __delitem__(self, key: str) -> None:
        if key not in self.own:
            raise self._scope.mistake(f"removes the key {key!r}")
        del self.own[key]

    def __iter__(self) -> Iterator[str]:
        return (key for key in {**self._before, **self.own} if self._scope.sees_key(key))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __ior__(self, other: Mapping[str, Any]) -> KeysWritten:
        self.update(other)
        return self


class FactsSeen(Facts):
    """The facts as one line sees them: its own, and those it uses."""

    def __init__(self, facts: Facts, scope: Scope) -> None:
        super().__init__(scope.seen_in(facts))
        self._scope, self._all = scope, facts

    def _look(self, path: Any) -> None:
        if not self._scope.sees_fact(path):
            raise self._scope.mistake(f"reads the fact {path!r}")

    def __getitem__(self, path: str) -> Any:
        self._look(path)
        return super().__getitem__(path)

    def get(self, path: str, default: Any = None) -> Any:
        self._look(path)
        return super().get(path, default)

    def __contains__(self, path: object) -> bool:
        self._look(path)
        return super().__contains__(path)

    def present(self, path: str) -> bool | PerLayer:
        self._look(path)
        return Facts({**self._all, **dict(self.items())}).present(path)

    def __setitem__(self, path: str, value: Any) -> None:
        raise self._scope.mistake(f"changes the fact {path!r} that it is to write")


class FactsSaid(FactsSeen):
    """The facts as one line enters them: `said` are the paths it has entered."""

    def __init__(self, facts: Facts, scope: Scope) -> None:
        super().__init__(facts, scope)
        self.said: set[str] = set()

    def __setitem__(self, path: str, value: Any) -> None:
        if not self._scope.claims(path):
            raise self._scope.mistake(f"says the fact {path!r}")
        self.said.add(path)
        dict.__setitem__(self, path, value)

    def __delitem__(self, path: str) -> None:
        if path not in self.said:
            raise self._scope.mistake(f"takes back the fact {path!r}")
        self.said.discard(path)
        dict.__delitem__(self, path)

    def update(self, *others: Any, **more: Any) -> None:
        for path, value in dict(*others, **more).items():
            self[path] = value

    def __ior__(self, other: Any) -> FactsSaid:  # type: ignore[override, misc]
        self.update(other)
        return self

    def pop(self, path: str, *default: Any) -> Any:
        value = self[path] if path in self else default[0]
        if path in self:
            del self[path]
        return value

    def setdefault(self, path: str, default: Any = None) -> Any:
        if path not in self:
            self[path] = default
        return self[path]

    def own(self) -> dict[str, Any]:
        """What this line has said."""
        return {path: dict.__getitem__(self, path) for path in self if path in self.said}
