"""Lines that hold lines: an object in a config, one whose tag says what it holds, a switch, and what holds only where a fact is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ckpt_core.architecture import Facts
from ckpt_core.config.entry import Entry, literal, one_value, quoted
from ckpt_core.config.lines import Lines
from ckpt_core.config.values import Codec, checked, switch
from ckpt_core.config.views import covers
from ckpt_core.errors import CkptError, Problems, Refusal, did_you_mean
from ckpt_core.lean import dataclass


class _Holder(Entry):
    """A line that holds lines: what they claim and use, it claims and uses."""

    @property
    def held(self) -> tuple[Lines, ...]:
        raise NotImplementedError

    @property
    def claims(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(claim for lines in self.held for entry in lines for claim in entry.claims))

    @property
    def uses(self) -> tuple[str, ...]:
        own = {*self.keys, *self.claims}
        used = (
            name
            for lines in self.held
            for entry in lines
            for name in entry.uses or ()
            # a line that uses the name of its own key means the fact of that name
            if name not in own and not any(name in other.keys for other in lines if other is not entry)
        )
        return tuple(dict.fromkeys(used))

    @property
    def by_hand(self) -> tuple[tuple[Callable, Callable], ...]:
        return tuple(pair for lines in self.held for entry in lines for pair in entry.by_hand)

    def _is_there(self, facts: Facts, lines: Lines) -> bool:
        claims = [claim for entry in lines for claim in entry.claims]
        return any(covers(claim, path) for path in facts for claim in claims)


def _read(lines: Lines, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any], inside: str = "") -> None:
    problems = Problems(f"config of {lines.name}")
    lines.read(config, facts, notes, problems)
    for problem in problems.found if inside else ():
        problem.problem += f" (in {inside!r})"
    problems.raise_any()


def _written(lines: Lines, facts: Facts, notes: Mapping[str, Any], outside: Mapping[str, Any]) -> dict[str, Any]:
    problems = Problems(f"{lines.name} cannot hold this")
    config = lines.write(facts, notes, problems, outside)
    if len(problems.found) > 1:
        # one line of the table raises one refusal
        found = "; ".join(f"{one.problem} ({one.found})" for one in problems.found)
        about = tuple(fact for one in problems.found if isinstance(one, Refusal) for fact in one.facts)
        raise Refusal(f"{lines.name} cannot hold this", found=found, fact=about)
    problems.raise_any()
    return config


class _Inside(Mapping[str, Any]):
    """An object's keys, and behind them those of the config around it; its own lines' keys are looked for in it alone."""

    def __init__(self, inner: Mapping[str, Any], outer: Mapping[str, Any], lines: Lines) -> None:
        self._inner, self._outer, self._own = inner, outer, lines.keys

    def __getitem__(self, key: str) -> Any:
        return self._inner[key] if key in self._inner or key in self._own else self._outer[key]

    def __iter__(self) -> Any:
        return iter({**dict.fromkeys(key for key in self._outer if key not in self._own), **self._inner})

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _object(config: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    value = config.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise CkptError(f"key {key!r} is not an object", found=repr(value)[:60])
    return value


def _refuse_unknown(lines: Lines, inner: Mapping[str, Any], key: str, rest: str = "") -> None:
    for name in lines.unknown(inner):
        raise CkptError(f"unknown config key '{key}.{name}'{rest}", fix=did_you_mean(str(name), lines.keys))


def _in_words(lines: Iterable[Entry]) -> str:
    return "; ".join(": ".join(part for part in (quoted(entry.keys), entry.words()) if part) for entry in lines)


@dataclass(frozen=True)
class Nested(_Holder):
    """An object in a config, with lines of its own."""

    key: str
    lines: Lines
    optional: bool

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    @property
    def held(self) -> tuple[Lines, ...]:
        return (self.lines,)

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        inner = _object(config, self.key)
        if inner is None:
            if not self.optional:
                raise CkptError(f"key {self.key!r} is missing", fix=did_you_mean(self.key, config))
            return
        _refuse_unknown(self.lines, inner, self.key)
        _read(self.lines, _Inside(inner, config, self.lines), facts, notes, self.key)

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        if self.optional and not self._is_there(facts, self.lines):
            config[self.key] = None
            return
        config[self.key] = _written(self.lines, facts, notes, config)

    def words(self) -> str:
        return ("an object, or null: " if self.optional else "an object: ") + _in_words(self.lines)


def nested(key: str, lines: Iterable[Entry | Sequence[Entry]], *, optional: bool = False) -> Nested:
    """The object at `key` holds these lines. `optional`: it is null where the model has none of their facts."""
    return Nested(key, Lines(key, lines), optional)


@dataclass(frozen=True)
class Tagged(_Holder):
    """An object, or a part of the config itself, of which a tag says what kind it is and which lines it holds."""

    key: str | None
    path: str
    tags: tuple[str, ...]
    kinds: Mapping[Any, Lines]
    when: Mapping[str, str]
    default: object
    codec: Codec | None
    rest: Mapping[str, object]

    @property
    def keys(self) -> tuple[str, ...]:
        if self.key is not None:
            return (self.key,)
        held = (key for lines in self.kinds.values() for entry in lines for key in entry.keys)
        return tuple(dict.fromkeys((*self.tags, *held, *self.rest)))

    @property
    def claims(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*([self.path] if self.path else []), *super().claims)))

    @property
    def uses(self) -> tuple[str, ...]:
        conditions = (part.removeprefix("!") for condition in self.when.values() for part in condition.split())
        return tuple(dict.fromkeys((*super().uses, *(one for one in conditions if not self._owns(one)))))

    def _owns(self, path: str) -> bool:
        return any(covers(claim, path) or claim.startswith(f"{path}.") for claim in self.claims)

    @property
    def held(self) -> tuple[Lines, ...]:
        return tuple(self.kinds.values())

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        inner = config if self.key is None else _object(config, self.key)
        name = (
            next((inner[tag] for tag in self.tags if inner.get(tag) is not None), self.default)
            if inner is not None
            else self.default
        )
        if type(name) is int and set(self.kinds) == {False, True}:  # a switch may be saved as 0 or 1
            name = name == 1 if name in (0, 1) else name
        if not any(name is kind or (isinstance(kind, str) and name == kind) for kind in self.kinds):
            where = self.tags[0] if self.key is None else f"{self.key}.{self.tags[0]}"
            raise CkptError(
                f"key {where!r} has a value that is not supported",
                found=repr(name)[:60],
                expected=", ".join(map(str, self.kinds)),
            )
        lines = self.kinds[name]
        if self.key is not None and inner is not None:
            own = {key: value for key, value in inner.items() if key not in self.tags}
            _refuse_unknown(lines, own, self.key, f" for {self.tags[0]}={name}")
        if self.path and name != self.default:
            facts[self.path] = self.codec.read(name) if self.codec else name
        around = config if self.key is None else _Inside(inner or {}, config, lines)
        _read(lines, around, facts, notes, self.key or "")

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        name = self._kind_of(facts) if self.path or self.when else self._first_that_writes(facts, notes, config)
        lines = self.kinds[name]
        held = [claim for entry in lines for claim in entry.claims] + [self.path] * bool(self.path)
        stray = [path for path in facts if self._owns(path) and not any(covers(claim, path) for claim in held)]
        if stray:
            raise Refusal(
                f"{self.tags[0]} is one of {', '.join(map(str, self.kinds))}",
                found=f"{name}, with " + ", ".join(f"{path} = {facts[path]}" for path in stray),
                fact=stray,
            )
        said = _written(lines, facts, notes, config)
        if self.key is None:
            config.update({self.tags[0]: name, **self.rest, **said})
        elif name == self.default and not said:
            config[self.key] = None
        else:
            config[self.key] = {self.tags[0]: name, **self.rest, **said}

    def _first_that_writes(self, facts: Facts, notes: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
        refusals = []
        for name, lines in self.kinds.items():
            try:
                _written(lines, facts, notes, config)
            except Refusal as problem:
                refusals.append(problem)
            else:
                return name
        raise refusals[-1]

    def _name_of(self, value: object) -> object:
        if self.codec is None:
            return str(value)
        try:
            return self.codec.write(value)
        except Refusal:
            expected, found = ", ".join(map(str, self.kinds)), f"{self.path} = {value}"
            raise Refusal(f"{self.tags[0]} is one of {expected}", found=found, fact=self.claims) from None

    def _kind_of(self, facts: Facts) -> Any:
        if self.path:
            value = one_value(facts, (self.path,), self.tags[0])
            name = self.default if value is None else self._name_of(value)
        else:
            name = next((name for name in self.kinds if holds(self.when.get(name, ""), facts)), None)
        if name not in self.kinds:
            said = f"{self.path} = {facts.get(self.path)}" if self.path else "none of them"
            raise Refusal(f"{self.tags[0]} is one of {', '.join(map(str, self.kinds))}", found=said, fact=self.claims)
        return name

    def words(self) -> str:
        tag = f"`{self.tags[0]}`" + (f" (older: {quoted(self.tags[1:])})" if self.tags[1:] else "")
        kinds = "; ".join(f"`{name}`: {_in_words(lines) or 'nothing more'}" for name, lines in self.kinds.items())
        default = f"; by default {literal(self.default)}" if self.default is not None else ""
        said = f" says `{self.path}`" if self.path else ""
        return ("an object, or null; its " if self.key is not None else "") + f"{tag}{said}{default}. {kinds}"


def tagged(
    key: str | None,
    path: str = "",
    *,
    tag: str | Sequence[str],
    kinds: Mapping[Any, Iterable[Entry | Sequence[Entry]]],
    when: Mapping[str, str] | None = None,
    default: object = None,
    via: Codec | None = None,
    rest: Mapping[str, object] | None = None,
) -> Tagged:
    """The object at `key` (None: the config itself) is of the kind that its `tag` names, and holds the lines of that kind.

    `tag` may be several names, the oldest last. `default` is the kind where there is no object, or no tag. To write, the fact at
    `path` names the kind (`via` a codec); without a path the first kind is taken whose condition in `when` holds (see `where`),
    and without conditions the first whose lines can say the facts.
    `rest` are keys that are written with these values where the kind has no line for them.
    """
    tags = (tag,) if isinstance(tag, str) else tuple(tag)
    lines = {name: Lines(f"{tags[0]}={name}", held) for name, held in kinds.items()}
    return Tagged(key, path, tags, lines, dict(when or {}), default, via, dict(rest or {}))


def holds(condition: str, facts: Facts) -> bool:
    """Whether all parts of a condition hold: `path` where the fact is true, or the thing exists; `!path` where not.

    >>> holds("mlp.gated !mlp.moe", Facts({"mlp.gated": True}))
    True
    """
    return all(_is_true(part.removeprefix("!"), facts) != part.startswith("!") for part in condition.split())


def _is_true(path: str, facts: Facts) -> bool:
    return bool(facts[path]) if path in facts else facts.present(path) is not False


@dataclass(frozen=True)
class Where(_Holder):
    """Lines that hold only for models with certain facts."""

    condition: str
    lines: Lines
    otherwise: Mapping[str, object]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*(key for entry in self.lines for key in entry.keys), *self.otherwise)))

    @property
    def uses(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*super().uses, *(part.removeprefix("!") for part in self.condition.split()))))

    @property
    def held(self) -> tuple[Lines, ...]:
        return (self.lines,)

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        if holds(self.condition, facts):
            _read(self.lines, config, facts, notes)

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        if holds(self.condition, facts):
            config.update({**self.otherwise, **_written(self.lines, facts, notes, config)})
            return
        if self._is_there(facts, self.lines):
            found = ", ".join(
                f"{path} = {facts[path]}" for path in facts if any(covers(one, path) for one in self.claims)
            )
            raise Refusal(f"it has this only where {self.condition}", found=found, fact=self.claims)
        config.update(self.otherwise)

    def words(self) -> str:
        return f"where `{self.condition}`: {_in_words(self.lines)}"


def where(
    condition: str, lines: Iterable[Entry | Sequence[Entry]], *, otherwise: Mapping[str, object] | None = None
) -> Where:
    """These lines hold for models where `condition` does: `path`, or `!path`, or several parts that must all hold.

    `otherwise` are keys that are written with these values where the lines do not hold.
    """
    return Where(condition, Lines(f"where {condition}", lines), dict(otherwise or {}))


@dataclass(frozen=True)
class Switch(_Holder):
    """A key that is true where a model has what the lines say."""

    key: str
    lines: Lines
    default: bool
    written: bool

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key, *(key for entry in self.lines for key in entry.keys))

    @property
    def held(self) -> tuple[Lines, ...]:
        return (self.lines,)

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        value = config.get(self.key)
        if checked(self.key, self.default if value is None else value, switch):
            _read(self.lines, config, facts, notes)

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        there = self._is_there(facts, self.lines)
        if self.written:
            config[self.key] = there
        if there:
            config.update(_written(self.lines, facts, notes, config))

    def words(self) -> str:
        return f"if true: {_in_words(self.lines)}; by default {literal(self.default)}"


def switched(
    key: str, lines: Iterable[Entry | Sequence[Entry]], *, default: bool = False, written: bool = True
) -> Switch:
    """`key` is true where the model has any of the facts that the lines say; where it is false they say nothing.

    `written=False`: the key is read, but not written, as where the tensors of a checkpoint say it, too.
    """
    return Switch(key, Lines(key, lines), default, written)
