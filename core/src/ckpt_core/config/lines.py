"""Lines together: no two of them speak for one key or one fact, and each is read and written after those it uses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ckpt_core.architecture import Facts
from ckpt_core.config.entry import UNEXPECTED, Entry
from ckpt_core.config.values import layers
from ckpt_core.config.views import FactsSaid, FactsSeen, KeysSeen, KeysWritten, Scope, TableError, touches
from ckpt_core.errors import CkptError, Problems, Refusal


def one_by_one(entries: Iterable[Entry | Sequence[Entry]]) -> Iterator[Entry]:
    """Lines, and lines in lists, as lines."""
    for entry in entries:
        if isinstance(entry, Entry):
            yield entry
        else:
            yield from entry


@functools.cache
def _above(claim: str) -> tuple[str, ...]:
    """The claims of everything below a path that a claim lies under."""
    parts = claim.split(".")
    return tuple(f"{'.'.join(parts[:length])}.*" for length in range(1, len(parts)))


class Lines(Sequence[Entry]):
    """The lines of a table, or of an object inside one. `TableError` if they contradict one another, or, when the table is
    first used, if they use one another in a circle.

    Rules: a key is one line's (a note may give way to another line), and so is a fact; `attention.window` and `attention.window?` (which layers have one) are two
    facts, and may be two lines'. A line that only looks at a key or a fact names it in `uses`. What a line
    uses is read and written before it, wherever it stands; what is written stands in the order of the lines.
    """

    def __init__(self, name: str, entries: Iterable[Entry | Sequence[Entry]]) -> None:
        self.name = name
        self._entries = tuple(one_by_one(entries))
        self.keys = frozenset(key for entry in self._entries for key in entry.keys)
        self._refuse_two_speakers()

    # The orders are found when a table is first used: there are very many tables, and a conversion needs a few.

    @functools.cached_property
    def _scopes(self) -> list[Scope]:
        return [Scope(entry) for entry in self._entries]

    @functools.cached_property
    def _to_read(self) -> list[tuple[int, frozenset[int]]]:
        claims = [(claim, index) for index, entry in enumerate(self._entries) for claim in entry.claims]
        return self._ordered(lambda used: {index for claim, index in claims if touches(used, claim)})

    @functools.cached_property
    def _to_write(self) -> list[tuple[int, frozenset[int]]]:
        keys = [(key, index) for index, entry in enumerate(self._entries) for key in entry.keys]
        return self._ordered(lambda used: {index for key, index in keys if key == used})

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: Any) -> Any:
        return self._entries[index]

    def _refuse_two_speakers(self) -> None:
        owners: dict[str, Entry] = {}
        said: dict[str, Entry] = {}
        for entry in self._entries:
            for key in () if entry.gives_way else dict.fromkeys(entry.keys):
                if key in owners:
                    raise TableError(f"{self.name}: two lines speak for the key {key!r}: {owners[key]} and {entry}")
                owners[key] = entry
            for claim in entry.claims:
                within = [name for name in said if name.startswith(claim[:-1])] if claim.endswith(".*") else []
                others = (said[name] for name in (claim, *_above(claim), *within) if name in said)
                other = next((one for one in others if one is not entry), None)
                if other is not None:
                    raise TableError(f"{self.name}: two lines say the fact {claim!r}: {other} and {entry}")
            said |= dict.fromkeys(entry.claims, entry)

    def _ordered(self, givers: Callable[[str], set[int]]) -> list[tuple[int, frozenset[int]]]:
        """The lines, each after those that give what it uses, and which those are."""
        order: list[tuple[int, frozenset[int]]] = []
        entered: dict[int, bool] = {}
        known = functools.cache(givers)  # many lines use the same

        def enter(index: int) -> None:
            if entered.get(index) is False:
                raise TableError(f"{self.name}: lines use one another in a circle: {self._entries[index]}")
            if index in entered:
                return
            entered[index] = False
            needed = frozenset().union(*(known(name) for name in self._entries[index].uses)) - {index}
            for other in sorted(needed):
                enter(other)
            entered[index] = True
            order.append((index, needed))

        for index in range(len(self._entries)):
            enter(index)
        return order

    def unknown(self, config: Mapping[str, Any]) -> Iterator[str]:
        """The keys that no line speaks for."""
        return (key for key in config if key not in self.keys)

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any], problems: Problems) -> None:
        """Enter what the lines say; one that uses what another could not say is left out, as that one is the problem."""
        failed: set[int] = set()
        noted: dict[int, dict[str, Any]] = {}
        for index, needed in self._to_read:
            if failed & needed:
                failed.add(index)
                continue
            scope = self._scopes[index]
            said = FactsSaid(facts, scope)
            try:
                self._entries[index].read(KeysSeen(config, scope), said, noted.setdefault(index, {}))
                _check_layers(self._entries[index], said.own())
            except CkptError as problem:
                failed.add(index)
                problems.add(problem)
            facts.update(said.own())
        for index in sorted(noted):
            notes.update(noted[index])

    def write(
        self, facts: Facts, notes: Mapping[str, Any], problems: Problems, outside: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The keys that say the facts, in the order of the lines. `outside`: keys of the object that these lie in."""
        failed: set[int] = set()
        written: dict[str, Any] = dict(outside)
        parts: dict[int, dict[str, Any]] = {}
        for index, needed in self._to_write:
            if failed & needed:
                failed.add(index)
                continue
            scope, entry = self._scopes[index], self._entries[index]
            part = KeysWritten(written, scope)
            try:
                entry.write(FactsSeen(facts, scope), notes, part)
            except Refusal as problem:
                failed.add(index)
                if not problem.facts:
                    problem.facts = tuple(entry.claims)
                problems.add(problem)
            except UNEXPECTED as error:  # another kind of model, without the facts that this kind always has
                failed.add(index)
                names = ", ".join(map(repr, entry.keys)) or " and ".join(entry.claims)
                found = f"no {error}" if isinstance(error, KeyError) else str(error)
                problems.add(Refusal(f"it cannot say {names} of this model", found=found, fact=entry.claims))
            parts[index] = part.own
            written |= part.own
        weak = {index for index in parts if self._entries[index].gives_way}
        config = {key: value for index in sorted(parts) for key, value in parts[index].items()}
        return config | {key: value for index in sorted(parts.keys() - weak) for key, value in parts[index].items()}


def _check_layers(entry: Entry, said: Mapping[str, Any]) -> None:
    """Lines that differ by layer count them: no number that a file says may make them count without end."""
    for path, value in said.items():
        if path.rpartition(".")[2] == "layers" and layers.read(value) is None:
            raise CkptError(
                f"key {' or '.join(map(repr, entry.keys)) or repr(path)} is not a number of layers",
                found=repr(value)[:60],
                expected="a whole number from 1 to 100,000",
            )
