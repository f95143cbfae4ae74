"""Config files as tables: each line maps a framework's key to a fact of the architecture, both ways.

    CONFIG = Config("LlamaForCausalLM", [
        field("num_key_value_heads", "attention.groups", default=same_as("num_attention_heads")),
        field("rms_norm_eps", "attention.norm.eps", "mlp.norm.eps", "final_norm.eps", default=1e-6),
        fixed("mlp.gated", True),
        const("is_decoder", False),
        note("bos_token_id", "bos", default=1),
        ignore("use_cache", why="inference only"),
    ])

Reading claims every key of the file: one that is neither mapped nor ignored is an error. Writing claims every
fact of the architecture: one that no line says must be at the schema's default ("does not happen"), or the
architecture is refused by that fact's name.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ckpt_core.architecture import Facts, PerLayer
from ckpt_core.architecture.facts import default_of
from ckpt_core.errors import CkptError, Problems, Refusal, did_you_mean

_UNEXPECTED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
REQUIRED = object()
AS_LEFT_OUT = object()


@dataclass(frozen=True, slots=True)
class Codec:
    """Two functions: from a config's value to a fact's, and back."""

    read: Callable[[object], object]
    write: Callable[[object], object]


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

    return Codec(read, write)


@dataclass(frozen=True, slots=True)
class SameAs:
    """A default that is another key's value."""

    key: str


def same_as(key: str) -> SameAs:
    return SameAs(key)


class Entry:
    """One line of a config table."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The config keys this line speaks for."""
        return ()

    @property
    def claims(self) -> tuple[str, ...]:
        """The fact paths this line says."""
        return ()

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        """Enter what this line's keys say."""

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        """Enter this line's keys; `Refusal` if they cannot say the facts."""

    @property
    def fate(self) -> tuple[Literal["used", "carried", "left"], str]:
        """What becomes of this line's keys when they are read, and why if they are left."""
        return "used", ""


@dataclass(frozen=True)
class Key(Entry):
    """A key that says one fact, or several that must agree. A null value means the thing does not exist."""

    key: str
    paths: tuple[str, ...]
    default: object = REQUIRED
    codec: Codec | None = None
    null: object = AS_LEFT_OUT

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    @property
    def claims(self) -> tuple[str, ...]:
        return self.paths

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        value = config.get(self.key)
        if value is None:
            default = self._of_null if self.key in config else self.default
            if default is REQUIRED:
                raise CkptError(f"key {self.key!r} is missing", fix=did_you_mean(self.key, config))
            value = config.get(default.key) if isinstance(default, SameAs) else default
            if value is None:
                return
        try:
            fact = self.codec.read(value) if self.codec else value
        except CkptError as problem:
            raise CkptError(
                f"key {self.key!r}: {problem.problem}", found=problem.found, expected=problem.expected
            ) from None
        for path in self.paths:
            facts[path] = fact

    @property
    def _of_null(self) -> object:
        return self.default if self.null is AS_LEFT_OUT else self.null

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        values = {path: facts[path] for path in self.paths if path in facts}
        kinds = set(values.values())
        if len(kinds) > 1:
            raise Refusal(
                f"{self.key} is one value", found=", ".join(f"{path}={value}" for path, value in values.items())
            )
        value = kinds.pop() if kinds else None
        if isinstance(value, PerLayer):
            raise Refusal(f"{self.key} is one value for all layers", found=f"{self.paths[0]} = {value}")
        if value is None and self._of_null is not None:
            raise Refusal(f"{self.key} cannot say that there is no {self.paths[0]}")
        try:
            config[self.key] = self.codec.write(value) if self.codec and value is not None else value
        except Refusal as problem:
            raise Refusal(
                f"{self.key}: {problem.problem}", found=f"{self.paths[0]} = {problem.found}", expected=problem.expected
            ) from None


def key(key: str, *paths: str, default: object = REQUIRED, null: object = AS_LEFT_OUT, via: Codec | None = None) -> Key:
    """`key` says the fact(s) at `paths`; without it `default` holds (or `same_as` another key).

    A null value means what a missing key means, unless `null` says otherwise.
    """
    return Key(key, paths, default, via, null)


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
            raise Refusal(f"{self.path} is always {self.value}", found=facts.get(self.path))


def fact_is(path: str, value: object) -> FactIs:
    return FactIs(path, value)


@dataclass(frozen=True)
class KeyIs(Entry):
    """A key that has one value in every model we read, and is written so. Another value is an error."""

    key: str
    value: object
    written: bool = True

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        if self.key in config and config[self.key] != self.value:
            raise CkptError(
                f"key {self.key!r} has a value that is not supported",
                found=repr(config[self.key]),
                expected=repr(self.value),
            )

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        if self.written:
            config[self.key] = self.value


def key_is(key: str, value: object, *, written: bool = True) -> KeyIs:
    return KeyIs(key, value, written)


@dataclass(frozen=True)
class Note(Entry):
    """A key that belongs to the model but changes none of its outputs; carried under a common name.

    It is written where it is known, or has a default that a strict reader of the config needs. With `null` it is written
    as null where it is not known: a reader would take a missing key for a default of its own.
    """

    key: str
    name: str
    default: object = None
    null: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        if self.key in config:
            notes[self.name] = config[self.key]

    @property
    def fate(self) -> tuple[Literal["used", "carried", "left"], str]:
        return "carried", ""

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        if self.name in notes or self.default is not None or self.null:
            config[self.key] = notes.get(self.name, self.default)


def note(key: str, name: str, *, default: object = None, null: bool = False) -> Note:
    return Note(key, name, default, null)


@dataclass(frozen=True)
class Ignore(Entry):
    """A key that is left behind on purpose."""

    key: str
    why: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    @property
    def fate(self) -> tuple[Literal["used", "carried", "left"], str]:
        return "left", self.why


def ignore(*names: str, why: str) -> list[Ignore]:
    return [Ignore(name, why) for name in names]


@dataclass(frozen=True)
class Implied(Ignore):
    """A key that says again what the tensors themselves say, such as their dtype."""

    @property
    def fate(self) -> tuple[Literal["used", "carried", "left"], str]:
        return "used", ""


def implied(*names: str, why: str) -> list[Implied]:
    return [Implied(name, why) for name in names]


@dataclass(frozen=True)
class Custom(Entry):
    """Several keys and facts that belong together; the functions get what `Entry.read` and `Entry.write` get."""

    own_keys: tuple[str, ...]
    own_claims: tuple[str, ...]
    reader: Callable[[Mapping[str, Any], Facts, dict[str, Any]], None]
    writer: Callable[[Facts, Mapping[str, Any], dict[str, Any]], None]

    @property
    def keys(self) -> tuple[str, ...]:
        return self.own_keys

    @property
    def claims(self) -> tuple[str, ...]:
        return self.own_claims

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        try:
            self.reader(config, facts, notes)
        except _UNEXPECTED as error:  # a value no reader expects
            given = ", ".join(f"{key} = {str(config[key])[:60]}" for key in self.own_keys if key in config)
            names = ", ".join(map(repr, self.own_keys)) or "those it is computed from"
            raise CkptError(
                f"a wrong value among the keys {names}", found=given or None, expected=f"other values ({error})"
            ) from error

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        try:
            self.writer(facts, notes, config)
        except _UNEXPECTED as error:  # another kind of model, without the facts that this kind always has
            names = ", ".join(map(repr, self.own_keys)) or " and ".join(self.own_claims)
            raise Refusal(f"it cannot say {names} of this model", found=f"no {error}") from error


def custom(keys: Iterable[str], claims: Iterable[str], *, read: Callable, write: Callable) -> Custom:
    """The escape hatch. A claim `path.*` covers everything below a path."""
    return Custom(tuple(keys), tuple(claims), read, write)


class Config:
    """A config table: see the module's docstring. Later entries for a key replace earlier ones."""

    def __init__(self, name: str, entries: Iterable[Entry | Sequence[Entry]]) -> None:
        self.name = name
        self.entries: tuple[Entry, ...] = tuple(
            one for entry in entries for one in ([entry] if isinstance(entry, Entry) else entry)
        )

    def replace(self, name: str, *entries: Entry | Sequence[Entry], without: Iterable[str] = ()) -> Config:
        """A variant: entries that share a key or claim with a new one, or are named in `without`, give way to it."""
        added = Config(name, entries).entries
        taken = {key for entry in added for key in (*entry.keys, *entry.claims)} | set(without)
        kept = [entry for entry in self.entries if not taken & {*entry.keys, *entry.claims}]
        return Config(name, [*kept, *added])

    @property
    def keys(self) -> frozenset[str]:
        """Every key some line speaks for."""
        return frozenset(key for entry in self.entries for key in entry.keys)

    def said(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The notes that a written config says, as a reader of it finds them."""
        facts = Facts()
        notes: dict[str, Any] = {}
        for entry in self.entries:
            with contextlib.suppress(CkptError):  # what cannot be read back says nothing
                entry.read(config, facts, notes)
        return notes

    def fates(self, config: Mapping[str, Any]) -> dict[str, tuple[Literal["used", "carried", "left"], str]]:
        """What becomes of every key of a config that this table reads, for the ledger."""
        known = {key: entry.fate for entry in self.entries for key in entry.keys}
        return {key: known[key] for key in config if key in known}

    def read(self, config: Mapping[str, Any], file: str) -> tuple[Facts, dict[str, Any]]:
        """The facts and notes of a config; every unknown key and wrong value is raised at once, naming `file`."""
        facts = Facts()
        notes: dict[str, Any] = {}
        problems = Problems(f"config of {self.name}")
        for key in config:
            if key not in self.keys:
                problems.add(
                    CkptError(
                        f"unknown config key {key!r} (value {str(config[key])[:60]})",
                        file=file,
                        fix=did_you_mean(
                            str(key), self.keys, "if it changes no output of the model, name it in -o ignore_keys=..."
                        ),
                    )
                )
        for entry in self.entries:
            try:
                entry.read(config, facts, notes)
            except CkptError as problem:
                problem.file = problem.file or file
                problems.add(problem)
        problems.raise_any()
        return facts, notes

    def write(self, facts: Facts, notes: Mapping[str, Any]) -> dict[str, Any]:
        """The config that says `facts`; raises every refusal at once."""
        config: dict[str, Any] = {}
        problems = Problems(f"{self.name} cannot hold this architecture")
        for refusal in self._unsaid(facts):
            problems.add(refusal)
        for entry in self.entries:
            try:
                entry.write(facts, notes, config)
            except Refusal as problem:
                problem.problem = f"{self.name}: {problem.problem}"
                problems.add(problem)
        problems.raise_any()
        return config

    def _unsaid(self, facts: Facts) -> Iterable[Refusal]:
        claims = [claim for entry in self.entries for claim in entry.claims]
        exact = set(claims)
        below = tuple(claim[:-1] for claim in claims if claim.endswith(".*"))
        for path, value in facts.items():
            if path in exact or (path.startswith(below) and path.removesuffix("?") + ".*" not in exact):
                continue
            if path.endswith("?"):
                yield Refusal(f"{self.name} has {path[:-1]} in every layer or in none", found=_spell(value))
                continue
            default = default_of(path)
            if default is dataclasses.MISSING or value != default:
                yield Refusal(f"{self.name} has no {path}", found=f"{path} = {value}")


def _spell(presence: PerLayer) -> str:
    return "layers " + ", ".join(str(index) for index, exists in enumerate(presence) if exists)


def uniform(facts: Facts, path: str) -> Any:
    """The fact at `path`, for a key that has one value for all layers; None if there is none."""
    value = facts.get(path)
    if isinstance(value, PerLayer):
        raise Refusal("it has one value for all layers", found=f"{path} = {value}")
    return value
