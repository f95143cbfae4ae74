"""Lines of several keys: `decided`, whose writer is found by search, `choice`, which is a table, and `custom`."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ckpt_core.architecture import Facts, PerLayer, differing
from ckpt_core.architecture.facts import default_of
from ckpt_core.config.entry import LEFT_OUT, REQUIRED, UNEXPECTED, Entry, Reader, Writer, literal, quoted
from ckpt_core.config.said import Said
from ckpt_core.config.views import FactsSaid, KeysSeen, Scope, TableError
from ckpt_core.errors import CkptError, Refusal
from ckpt_core.lean import dataclass


def read_by(reader: Reader, entry: Entry, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """Call a reader that a person wrote; what it trips over is a wrong value of the file."""
    try:
        reader(config, facts, notes)
    except UNEXPECTED as error:  # a value no reader expects
        given = ", ".join(f"{key} = {str(config[key])[:60]}" for key in entry.keys if key in config)
        names = ", ".join(map(repr, entry.keys)) or "those it is computed from"
        raise CkptError(
            f"a wrong value among the keys {names}", found=given or None, expected=f"other values ({error})"
        ) from error


def _claims_and_why(claims: tuple[str, ...], why: str) -> str:
    """What a line is about and what for, in words; it may claim no fact."""
    return "; ".join(part for part in (quoted(claims), why) if part)


@dataclass(frozen=True)
class Custom(Entry):
    """Several keys and facts that belong together; the functions get what `Entry.read` and `Entry.write` get."""

    own_keys: tuple[str, ...]
    own_claims: tuple[str, ...]
    reader: Reader
    writer: Writer
    why: str
    used: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return self.own_keys

    @property
    def claims(self) -> tuple[str, ...]:
        return self.own_claims

    @property
    def uses(self) -> tuple[str, ...]:
        return self.used

    @property
    def by_hand(self) -> tuple[tuple[Callable, Callable], ...]:
        return ((self.reader, self.writer),)

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        read_by(self.reader, self, config, facts, notes)

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        self.writer(facts, notes, config)

    def words(self) -> str:
        return _claims_and_why(self.own_claims, self.why)


def custom(
    keys: Iterable[str],
    claims: Iterable[str],
    *,
    read: Reader,
    write: Writer,
    why: str,
    uses: Iterable[str] = (),
) -> Custom:
    """The escape hatch: two functions, written by hand as inverses; `why` says why no other line serves, and what it means.

    `uses` are keys and facts of other lines that the functions look at; most look at none. A claim `path.*` covers everything below a path.
    Raises `TableError` where `why` says nothing.
    """
    keys, claims = tuple(keys), tuple(claims)
    if not why.strip():
        raise TableError(f"the line of {quoted(keys or claims)} is written by hand, and `why` does not say what for")
    return Custom(keys, claims, read, write, why, tuple(uses))


@dataclass(frozen=True)
class Decided(Entry):
    """Keys of few values: the reader is given, and the writer tries the values in order until the reader says the facts."""

    own_keys: tuple[str, ...]
    own_claims: tuple[str, ...]
    reader: Reader
    values: Mapping[tuple[str, ...], tuple[tuple[object, ...], ...]]
    used: tuple[str, ...]
    why: str
    tolerance: float = 0.0
    assuming: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @property
    def keys(self) -> tuple[str, ...]:
        return self.own_keys

    @property
    def claims(self) -> tuple[str, ...]:
        return self.own_claims

    @property
    def uses(self) -> tuple[str, ...]:
        return (*self.used, *self.assuming)

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        read_by(self.reader, self, config, facts, notes)

    @property
    def by_hand(self) -> tuple[tuple[Callable, Callable], ...]:
        said = (one for rows in self.values.values() for row in rows for one in row if isinstance(one, Said))
        return tuple((self.reader, one.function) for one in said if one.function is not None)

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        seen = {**self.assuming, **{key: config[key] for key in self.uses if key in config}}
        scope = Scope(self)
        wanted = {path: facts[path] for path in facts if scope.claims(path)}
        beside = Facts({path: facts[path] for path in facts if path not in wanted})
        for rows in itertools.product(*self.values.values()):
            tried = self._to_try(rows, facts)
            if tried is not None and self._says(seen | tried, scope, beside, wanted):
                config.update(tried)
                return
        keys = [key for keys in self.values for key in keys] or self.own_keys
        raise Refusal(
            f"no value of {' and '.join(keys)} says this" if keys else f"no key says {' and '.join(self.own_claims)}",
            found=", ".join(f"{path} = {value}" for path, value in wanted.items())
            or f"no {' and no '.join(self.own_claims)}",
            expected=self.why,
            fact=self.own_claims,
        )

    def _to_try(self, rows: tuple[tuple[object, ...], ...], facts: Facts) -> dict[str, object] | None:
        """Keys with values for them; None where a fact that one of them says does not exist, or differs between layers."""
        tried: dict[str, object] = {}
        for keys, row in zip(self.values, rows, strict=True):
            for key, value in zip(keys, row, strict=True):
                if isinstance(value, Said):
                    try:
                        value = value.of(facts)
                    except Refusal:
                        return None
                    if value is None:
                        return None
                if value is not LEFT_OUT:
                    tried[key] = value
        return tried

    def _says(self, config: Mapping[str, Any], scope: Scope, beside: Facts, wanted: Mapping[str, Any]) -> bool:
        said = FactsSaid(beside, scope)
        try:
            self.read(KeysSeen(config, scope), said, {})
        except CkptError:
            return False
        own = said.own()
        near = {path: own[path] if self._is_near(own.get(path), value) else value for path, value in wanted.items()}
        return same_facts(own, near, beside)

    def _is_near(self, one: object, two: object) -> bool:
        return isinstance(one, float) and isinstance(two, float) and math.isclose(one, two, rel_tol=self.tolerance)

    def words(self) -> str:
        return _claims_and_why(self.own_claims, self.why)


def same_facts(one: Mapping[str, Any], two: Mapping[str, Any], beside: Mapping[str, Any]) -> bool:
    """Whether two sets of facts say the same of a model that has the facts `beside`. A fact not said is at its default."""
    full = [
        Facts(
            {**beside, **{path: _plain(value) for path, value in said.items() if not _is_nowhere(path, value, beside)}}
        )
        for said in (one, two)
    ]
    for path in full[0].keys() ^ full[1].keys():
        default = None if path.endswith("?") else default_of(path)
        for said in full:
            if path not in said and default is not dataclasses.MISSING and default is not None:
                said[path] = default
    return not differing(*full)


def _is_nowhere(path: str, value: object, beside: Mapping[str, Any]) -> bool:
    """Whether a fact says that no layer has a thing that the model does not have either: then it need not be said."""
    bare = path.removesuffix("?")
    nowhere = bare != path and isinstance(value, PerLayer) and not any(value)
    return nowhere and not Facts(beside).present(bare)


def _plain(value: object) -> object:
    """A value that all layers have, as one value."""
    return value[0] if isinstance(value, PerLayer) and value and len(set(value)) == 1 else value


def decided(
    keys: Iterable[str],
    claims: Iterable[str],
    *,
    read: Reader,
    values: Mapping[Any, Sequence[Any]],
    why: str,
    uses: Iterable[str] = (),
    tolerance: float = 0.0,
    assuming: Mapping[str, object] | None = None,
) -> Decided:
    """Keys of few values decide the facts at `claims`, as `read` (which gets what `Entry.read` gets) says.

    Nobody writes the inverse: `values` are what each key may be written as, or what several keys may be written as together (a
    tuple of keys, with tuples of values), the preferred value first. A value is a constant, `LEFT_OUT`, or what a fact is
    (`value_of`, `layers_of`). The first combination that reads back to the facts, numbers to within a relative `tolerance`, is
    written. Keys without values are only read. `why` says in words what is decided; it is in the documentation, and in the
    refusal where nothing fits. `assuming` are keys that no line of the table writes and that `read` looks at, such as the version of
    the framework, with the values under which the search reads what it tries.
    """
    rows: dict[tuple[str, ...], tuple[tuple[object, ...], ...]] = {}
    for names, options in values.items():
        together = isinstance(names, tuple)
        rows[names if together else (str(names),)] = tuple(one if together else (one,) for one in options)
    return Decided(tuple(keys), tuple(claims), read, rows, tuple(uses), why, tolerance, dict(assuming or {}))


@dataclass(frozen=True)
class Choice(Entry):
    """Keys whose values name sets of facts: a table, read from left to right and written from right to left."""

    own_keys: tuple[str, ...]
    sets: Mapping[tuple[object, ...], Mapping[str, object]]
    default: tuple[object, ...] | None
    why: str

    @property
    def keys(self) -> tuple[str, ...]:
        return self.own_keys

    @property
    def claims(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(path for said in self.sets.values() for path in said))

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        absent = self.default or (None,) * len(self.keys)
        given = tuple(
            other if config.get(key) is None else config[key] for key, other in zip(self.keys, absent, strict=True)
        )
        said = next((facts for values, facts in self.sets.items() if _identical(values, given)), None)
        if said is None:
            names = " and ".join(map(repr, self.keys))
            raise CkptError(
                f"key{'s' * (len(self.keys) > 1)} {names} has an unknown value"
                if len(self.keys) == 1
                else f"keys {names} have values that mean nothing together",
                found=", ".join(map(repr, given))[:80],
                expected=", ".join(" and ".join(map(repr, values)) for values in self.sets),
            )
        facts.update(said)

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        wanted = {path: facts[path] for path in self.claims if path in facts}
        for values, said in self.sets.items():
            if same_facts(said, wanted, {}):
                config.update(
                    {key: value for key, value in zip(self.keys, values, strict=True) if value is not LEFT_OUT}
                )
                return
        raise Refusal(
            f"{' and '.join(self.keys)} {'has' if len(self.keys) == 1 else 'have'} no value for this",
            found=", ".join(f"{path} = {value}" for path, value in wanted.items())
            or f"no {' and no '.join(self.claims)}",
            expected=" or ".join(
                ", ".join(f"{path} = {value}" for path, value in said.items()) for said in self.sets.values()
            ),
            fact=self.claims,
        )

    def words(self) -> str:
        says = "; ".join(
            f"{' and '.join(map(literal, values))}: "
            + (", ".join(f"`{path}` = {value}" for path, value in said.items()) or "nothing")
            for values, said in self.sets.items()
        )
        default = f"; by default {' and '.join(map(literal, self.default))}" if self.default else ""
        return says + default + (f"; {self.why}" if self.why else "")


def _identical(one: tuple[object, ...], two: tuple[object, ...]) -> bool:
    """Whether values are equal, and truth values are not mistaken for numbers."""
    return all(a == b and isinstance(a, bool) == isinstance(b, bool) for a, b in zip(one, two, strict=True))


def choice(
    keys: str | Sequence[str],
    sets: Mapping[Any, Mapping[str, object]],
    *,
    default: object = REQUIRED,
    why: str = "",
) -> Choice:
    """The value of a key (or the values of several, as tuples) names facts: `{"RMSNorm": {"final_norm.kind": "rms"}, ...}`.

    Several values may name the same facts: the first is written. `default` is what an absent or null key means.
    """
    names = (keys,) if isinstance(keys, str) else tuple(keys)
    single = isinstance(keys, str)
    table = {(value,) if single else tuple(value): dict(said) for value, said in sets.items()}
    absent = None if default is REQUIRED else (default,) if single else tuple(default)  # type: ignore[arg-type]
    return Choice(names, table, absent, why)
