"""Lines of one key, or of one fact: `key`, `key_is`, `fact_is`, `derived`, `note`, `ignore`, `implied`, `all_agree`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ckpt_core.architecture import Facts, PerLayer
from ckpt_core.config.entry import (
    AS_LEFT_OUT,
    REQUIRED,
    UNEXPECTED,
    Entry,
    Fate,
    SameAs,
    agreed,
    literal,
    one_value,
    quoted,
)
from ckpt_core.config.formula import Formula, Rounding
from ckpt_core.config.values import Codec, ValueType, checked, whole
from ckpt_core.errors import CkptError, Refusal, did_you_mean
from ckpt_core.lean import dataclass


@dataclass(frozen=True)
class Key(Entry):
    """A key that says one fact, or several that must agree. A null value means the thing does not exist."""

    key: str
    paths: tuple[str, ...]
    default: object = REQUIRED
    codec: Codec | None = None
    null: object = AS_LEFT_OUT
    type: ValueType | None = None
    also: tuple[str, ...] = ()
    written_as_all: bool = False
    noted: str = ""
    times: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key, *self.also)

    @property
    def claims(self) -> tuple[str, ...]:
        return self.paths

    @property
    def uses(self) -> tuple[str, ...]:
        others = tuple(one.key for one in (self.default, self.null) if isinstance(one, SameAs))
        return (*others, self.times) if self.times else others

    @property
    def by_hand(self) -> tuple[tuple[Callable, Callable], ...]:
        return self.codec.by_hand if self.codec else ()

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        value = agreed(config, self.keys, self._meaning) if self.also else config.get(self.key)
        if value is None:
            default = self._of_null if self.key in config else self.default
            if default is REQUIRED:
                lack = "is null" if self.key in config else "is missing"
                fix = None if self.key in config else did_you_mean(self.key, config)
                raise CkptError(f"key {self.key!r} {lack}", fix=fix)
            value = config.get(default.key) if isinstance(default, SameAs) else default
            if value is None:
                return
        fact = self._meaning(self.key, value)
        if self.times and fact is not None:
            if config.get(self.times) is None:
                return  # its own line says that it is missing
            fact = fact * checked(self.times, config[self.times], whole)
        if fact is not None:  # None: the value says that there is no such thing
            facts.update(dict.fromkeys(self.paths, fact))
        if self.noted:
            notes[self.noted] = value

    def _meaning(self, name: str, value: Any) -> Any:
        """What a value says, under the key itself or another name of it."""
        value = checked(name, value, self.type)
        try:
            return self.codec.read(value) if self.codec else value
        except CkptError as problem:
            raise CkptError(
                f"key {name!r}: {problem.problem}", found=problem.found, expected=problem.expected
            ) from None
        except UNEXPECTED as error:  # a value that the codec does not expect
            found, expected = f"{name} = {str(value)[:60]}", f"other values ({error})"
            raise CkptError(f"key {name!r} has a wrong value", found=found, expected=expected) from error

    @property
    def _of_null(self) -> object:
        return self.default if self.null is AS_LEFT_OUT else self.null

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        value = one_value(facts, self.paths, self.key)
        if value is None and self._of_null is not None:
            raise Refusal(f"{self.key} cannot say that there is no {self.paths[0]}", fact=self.paths)
        if self.times and value is not None and config.get(self.times) is not None:
            value = self._multiple(value, config[self.times])
        try:
            said = self.codec.write(value) if self.codec and value is not None else value
        except Refusal as problem:
            raise Refusal(
                f"{self.key}: {problem.problem}",
                found=f"{self.paths[0]} = {problem.found}",
                expected=problem.expected,
                fact=self.paths,
            ) from None
        if said is not None and self.type is not None and self.type.read(said) is None:
            # What a framework does not read it can't run: BERT without types of tokens fails at a table without rows.
            raise Refusal(
                f"{self.key} is {self.type.words}", found=f"{self.paths[0]} = {str(value)[:60]}", fact=self.paths
            )
        config.update(dict.fromkeys(self.keys if self.written_as_all else (self.key,), said))

    def _multiple(self, value: int, unit: int) -> int:
        if value % unit:
            raise Refusal(
                f"{self.paths[0]} is {self.key} times {self.times}",
                found=f"{self.paths[0]} = {value} with {self.times} = {unit}",
                fact=self.paths,
            )
        return value // unit

    def words(self) -> str:
        parts = [quoted(self.paths)]
        parts += [f"times `{self.times}`"] * bool(self.times)
        parts += [self.type.words] if self.type is not None else []
        parts += [self.codec.meaning] if self.codec is not None and self.codec.meaning else []
        parts += [f"the same under {quoted(self.also)}"] * bool(self.also)
        parts += [f"by default {_said(self.default)}"] * (self.default is not REQUIRED)
        parts += [f"null means {_said(self.null)}"] * (self.null is not AS_LEFT_OUT)
        return "; ".join(parts)


def _said(default: object) -> str:
    if isinstance(default, SameAs):
        return f"that of `{default.key}`"
    if default is REQUIRED:
        return "an error"
    return "it does not exist" if default is None else literal(default)


def key(
    key: str,
    *paths: str,
    default: object = REQUIRED,
    null: object = AS_LEFT_OUT,
    via: Codec | None = None,
    type: ValueType | None = None,
    also: Sequence[str] = (),
    write_all: bool = False,
    noted: str = "",
    times: str = "",
) -> Key:
    """`key` says the fact(s) at `paths`; without it `default` holds (or `same_as` another key).

    A null value means what a missing key means, unless `null` says otherwise. `type` is what the value must be (`whole`,
    `positive`, `flag`, ...), `via` how it says the fact. `also` are further names of the key, which must agree where
    several are there; the first is written, or with `write_all` every one. `noted`: the value is a note of this name, too.
    `times`: the fact is the value times that of this key, as where a width is said in units of another.
    """
    return Key(key, paths, default, via, null, type, tuple(also), write_all, noted, times)


@dataclass(frozen=True)
class Repeats(Entry):
    """A key that says again what another key says, which alone decides."""

    key: str
    other: str
    default: object
    written: bool

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    @property
    def uses(self) -> tuple[str, ...]:
        return (self.other,)

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        value, decides = config.get(self.key, self.default), config.get(self.other)
        if value is not None and decides is not None and value != decides:
            absent = "" if self.key in config else f", which is {self.key} where it is left out"
            raise CkptError(
                f"keys {self.other!r} and {self.key!r} disagree",
                found=f"{str(decides)[:40]} and {str(value)[:40]}{absent}",
                fix=None
                if self.written
                else f"{self.other} is read: if that is right, leave the other out with -o ignore_keys={self.key}",
            )

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        if self.written and self.other in config:
            config[self.key] = config[self.other]

    def words(self) -> str:
        default = "" if self.default is None else f"; by default {literal(self.default)}"
        return f"must be as `{self.other}`" + ("" if self.written else ", which alone is read") + default


def repeats(key: str, other: str, *, default: object = None, written: bool = True) -> Repeats:
    """`key` must say the same as the key `other`, where both are there; no fact is read from it.

    `default` is what an absent key means (None: nothing). With `written=False` it is a name that the framework does not read.
    """
    return Repeats(key, other, default, written)


@dataclass(frozen=True)
class FactIs(Entry):
    """A fact that holds for every model of this kind, and that no key says."""

    path: str
    value: object

    @property
    def claims(self) -> tuple[str, ...]:
        return (self.path,)

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        facts[self.path] = self.value

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        if facts.get(self.path) != self.value:
            raise Refusal(f"{self.path} is always {self.value}", found=facts.get(self.path), fact=self.path)

    def words(self) -> str:
        return f"`{self.path}` is always `{self.value}`"


def fact_is(path: str, value: object) -> FactIs:
    """The fact at `path` has this value in every model of this kind; no key says it."""
    return FactIs(path, value)


@dataclass(frozen=True)
class FactAs(Entry):
    """A fact that is always another fact."""

    path: str
    other: str

    @property
    def claims(self) -> tuple[str, ...]:
        return (self.path,)

    @property
    def uses(self) -> tuple[str, ...]:
        return (self.other,)

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        if self.other in facts:
            facts[self.path] = facts[self.other]

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        if facts.get(self.path) != facts.get(self.other):
            found = f"{self.path} = {facts.get(self.path)}, {self.other} = {facts.get(self.other)}"
            raise Refusal(f"{self.path} is always {self.other}", found=found, fact=self.path)

    def words(self) -> str:
        return f"`{self.path}` is always `{self.other}`"


def fact_as(path: str, other: str) -> FactAs:
    """The fact at `path` is that at `other`; no key says it."""
    return FactAs(path, other)


@dataclass(frozen=True)
class Elsewhere(Entry):
    """Facts that a format says outside of this config: by the shapes of its tensors, or in another file."""

    paths: tuple[str, ...]
    why: str

    @property
    def claims(self) -> tuple[str, ...]:
        return self.paths

    def words(self) -> str:
        return f"{quoted(self.paths)}: {self.why}"


def elsewhere(*paths: str, why: str) -> Elsewhere:
    """No key says these facts; `why` says what does. The format's own reader enters them, and its writer says them."""
    return Elsewhere(paths, why)


@dataclass(frozen=True)
class KeyIs(Entry):
    """A key that has one of `values` in every model we read, as no fact says what another would mean."""

    key: str
    values: tuple[object, ...]
    default: object = REQUIRED
    written: bool = True
    why: str = ""
    fix: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        value = config.get(self.key, self.default)
        if value is REQUIRED:
            raise CkptError(f"key {self.key!r} is missing", expected=self._expected, fix=did_you_mean(self.key, config))
        if not any((type(value) is type(one) and value == one) or _equal_numbers(value, one) for one in self.values):
            absent = "" if self.key in config else f", which is {self.key} where it is left out"
            raise CkptError(
                f"key {self.key!r} has a value that is not supported" + (f": {self.why}" if self.why else ""),
                found=repr(value)[:80] + absent,
                expected=self._expected,
                fix=self.fix,
            )

    @property
    def _expected(self) -> str:
        return " or ".join(repr(value) for value in self.values)

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        if self.written:
            config[self.key] = self.values[0]

    def words(self) -> str:
        absent = self.default is not REQUIRED
        parts = [f"always {' or '.join(map(literal, self.values))}" + ", or absent" * absent]
        return "; ".join([*parts, *[self.why] * bool(self.why)])


def _equal_numbers(one: object, two: object) -> bool:
    """Whether two numbers are equal, where a truth value is none."""
    return all(type(value) in (int, float) for value in (one, two)) and one == two


def key_is(
    key: str,
    *values: object,
    or_absent: bool = False,
    default: object = REQUIRED,
    written: bool = True,
    why: str = "",
    fix: str | None = None,
) -> KeyIs:
    """`key` has one of `values`; another is an error, which `why` explains. The first is written, unless `written=False`.

    A file without the key is an error, too, unless the key may be left out: `or_absent` if the framework then takes the
    first of `values`, `default=` if it takes this value (which is refused if it is none of `values`). True is not 1.
    """
    return KeyIs(key, values, values[0] if or_absent else default, written, why, fix)


@dataclass(frozen=True)
class Derived(Entry):
    """A fact that follows from other keys by a formula, unless a key of its own says it."""

    key: str | None
    paths: tuple[str, ...]
    formula: Formula
    default: object = None
    type: ValueType | None = None
    tolerance: float = 0.0
    of_facts: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        return () if self.key is None else (self.key,)

    @property
    def claims(self) -> tuple[str, ...]:
        return self.paths

    @property
    def uses(self) -> tuple[str, ...]:
        return self.formula.names

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        value = None if self.key is None else config.get(self.key, self.default)
        value = (
            self.formula.of(facts if self.of_facts else config)
            if value is None
            else checked(str(self.key), value, self.type)
        )
        if value is not None:  # None: keys of the formula are missing, which their own lines say
            facts.update(dict.fromkeys(self.paths, value))

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        value = one_value(facts, self.paths, self.key or self.paths[0])
        if self.key is not None:
            config[self.key] = value
            return
        said = facts if self.of_facts else config
        try:
            wanted = self.formula.of(said)
        except CkptError as problem:
            raise Refusal(problem.problem, found=problem.found, expected=problem.expected, fact=self.paths) from None
        if wanted is not None and (value is None or not math.isclose(value, wanted, rel_tol=self.tolerance)):
            raise Refusal(
                f"{self.paths[0]} is always {self.formula.text}",
                found=f"{self.paths[0]} = {value}, with " + ", ".join(f"{name} = {said[name]}" for name in self.uses),
                expected=wanted,
                fact=self.paths,
            )

    def words(self) -> str:
        said = quoted(self.paths)
        if self.key is None:
            return f"{said} is always {self.formula.words()}"
        absent = "by default" if self.default is None else f"by default {literal(self.default)}; null means"
        return f"{said}; {absent} {self.formula.words()}"


def derived(
    key: str | None,
    paths: str | Sequence[str],
    formula: str,
    *,
    rounding: Rounding = "exact",
    default: object = None,
    type: ValueType | None = whole,
    tolerance: float = 0.0,
    of_facts: bool = False,
) -> Derived:
    """The fact at `paths` follows from other keys by `formula`, unless `key` says it (None: no key does).

    `rounding` says what becomes of a quotient: "floor", "exact" (anything else is an error) or "none" (a real number).
    `default`: the value without the key, where null alone means the formula. To write, the key says the fact; where there is none, the
    fact must be what the formula makes of the written keys, to within a relative `tolerance`. `of_facts`: the names in the formula
    are facts, as where a key has several names.
    """
    said = (paths,) if isinstance(paths, str) else tuple(paths)
    return Derived(
        key, said, Formula(formula, rounding), default, type if rounding != "none" else None, tolerance, of_facts
    )


@dataclass(frozen=True)
class Note(Entry):
    """A key that belongs to the model but changes none of its outputs; carried under a common name.

    It is written where it is known, or has a default that a strict reader of the config needs. With `null` it is written
    as null where it is not known: a reader would take a missing key for a default of its own. With `gives_way` another
    line of the table may speak for the key, too: where that line writes it for the sake of a fact, its value stands.
    """

    key: str
    name: str
    default: object = None
    null: bool = False
    gives_way: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        if self.key in config:
            notes[self.name] = config[self.key]

    @property
    def fate(self) -> Fate:
        return "carried", ""

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        if self.name in notes or self.default is not None or self.null:
            config[self.key] = notes.get(self.name, self.default)

    def words(self) -> str:
        return f"note `{self.name}`"


def note(key: str, name: str, *, default: object = None, null: bool = False, gives_way: bool = False) -> Note:
    """`key` changes no output, and is carried as the note `name`; see `Note`."""
    return Note(key, name, default, null, gives_way)


@dataclass(frozen=True)
class Ignore(Entry):
    """A key that is left behind on purpose. Where `written` is given, it is written for other readers, from facts of other lines."""

    key: str
    why: str
    written: Callable[[Facts], object] | None = None
    used: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    @property
    def uses(self) -> tuple[str, ...]:
        return self.used

    def write(self, facts: Facts, notes: Mapping[str, Any], config: Any) -> None:
        if self.written is not None:
            config[self.key] = self.written(facts)

    @property
    def fate(self) -> Fate:
        return "left", self.why

    def words(self) -> str:
        return f"ignored: {self.why}"


def ignore(
    *names: str, why: str, written: Callable[[Facts], object] | None = None, uses: Sequence[str] = ()
) -> list[Ignore]:
    """Keys that are left behind, and why that changes no output.

    `written` is for keys that the framework says again for people and other programs: what to write, from the facts in `uses`.
    """
    return [Ignore(name, why, written, tuple(uses)) for name in names]


@dataclass(frozen=True)
class Implied(Ignore):
    """A key that says again what the tensors themselves say, such as their dtype."""

    @property
    def fate(self) -> Fate:
        return "used", ""

    def words(self) -> str:
        return f"not needed: {self.why}"


def implied(*names: str, why: str) -> list[Implied]:
    """Keys that say again what the tensors say."""
    return [Implied(name, why) for name in names]


@dataclass(frozen=True)
class AllAgree(Entry):
    """Things that have the same facts as a first one: no key tells them apart."""

    first: str
    others: tuple[str, ...]
    why: str

    @property
    def claims(self) -> tuple[str, ...]:
        return tuple(f"{other}.*" for other in self.others)

    @property
    def uses(self) -> tuple[str, ...]:
        return (f"{self.first}.*",)

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        for part, value in _below(facts, self.first).items():
            facts.update({f"{other}.{part}": value for other in self.others})

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        parts = {name: _below(facts, name) for name in (self.first, *self.others)}
        wanted = parts[self.first]
        if any(said != wanted for said in parts.values()) or any(isinstance(one, PerLayer) for one in wanted.values()):
            raise Refusal(self.why, found=", ".join(_departing(parts)), fact=tuple(parts))

    def words(self) -> str:
        return f"{quoted(self.others)}: as `{self.first}`; {self.why}"


def _departing(parts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The things that do not exist, and of the others each fact that is not the same in all of them, or differs by layer."""
    there = {name: said for name, said in parts.items() if said}
    yield from (f"no {name}" for name in parts if name not in there)
    for part in dict.fromkeys(part for said in there.values() for part in said):
        values = {f"{name}.{part}": said.get(part) for name, said in there.items()}
        if len(set(values.values())) > 1 or any(isinstance(value, PerLayer) for value in values.values()):
            yield from (f"{path} = {value}" for path, value in values.items())


def _below(facts: Facts, path: str) -> dict[str, Any]:
    return {name.removeprefix(f"{path}."): facts[name] for name in facts if name.startswith(f"{path}.")}


def all_agree(first: str, *others: str, why: str) -> AllAgree:
    """The facts below `others` are those below `first`; `why` is the sentence of the refusal where they are not."""
    return AllAgree(first, others, why)
