"""Tables of rows: a framework's tensors, their arrangement, and the canonical parameters they hold.

    LAYER = Table("decoder.layers.{l}", to="layers.{l}", rows=[
        row("self_attention.linear_qkv.weight", "(g (q[r] + k + v) d) h", "attention.{part}.weight", tp="g"),
        row("mlp.linear_fc1.weight",            "((gate + up) f) h",      "mlp.{part}.weight",       tp="f", when="mlp.gated"),
    ])

`{l}` runs over layers; in a table to `predictors.{l}` over the layers that predict further tokens, for which `{after}`, in a native
prefix, counts on from the last layer of the stack. Any other name in braces in a native name (`experts.{x}.up`) runs over the
canonical axis of that name: each native tensor then holds one index of it. A sentence that itself
names `l` describes a tensor that holds all layers.

A row applies where all its canonical parameters exist, its `when` holds (facts of the model, see `conditions`) and its
`under` is met (choices, see `choices`). `Tables` are the tables of a format with all choices that its rows stand under.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from ckpt_core.architecture import Architecture, Layer
from ckpt_core.errors import CkptError
from ckpt_core.layout.choices import (
    Choice,
    Chosen,
    Fragment,
    Under,
    Value,
    both_of,
    fragment_names,
    is_met,
    texts_of,
    under_of,
    words_of,
)
from ckpt_core.layout.conditions import check_paths, conditions
from ckpt_core.layout.maps import ValueMap
from ckpt_core.layout.sentence import parse
from ckpt_core.layout.split import Ranks
from ckpt_core.lean import dataclass

_PREDICTORS = "predictors.{l}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; build it with `row`."""

    native: str
    sentence: str
    canonical: str
    splits: tuple[tuple[str, str], ...] = ()
    when: str = ""
    via: ValueMap | None = None
    dtype: str | None = None
    copy: bool = False
    under: Under = ()

    def applies_to(self, subject: object, ranks: Ranks) -> bool:
        """Whether `when` holds for a layer (or, outside layers, for the architecture) on these ranks."""
        return all(condition.holds(subject, ranks) for condition in conditions(self.when))


def row(
    native: str,
    sentence: str,
    canonical: str,
    *,
    tp: str | None = None,
    ep: str | None = None,
    when: str = "",
    under: Mapping[str, Value | tuple[Value, ...]] | None = None,
    via: ValueMap | None = None,
    dtype: str | None = None,
    copy: bool = False,
) -> Row:
    """A native tensor, the layout of one rank's tensor, and the canonical parameter(s) it holds.

    `tp`, `ep`: the axes that tensor (expert) parallel ranks divide before the sentence applies. With several
    axes ("g r") ranks count through them row-major, and a part without one of them is replicated over it; where
    parts are dealt out differently, each has its own ("q: g r; k v: r g"). "rows": ranks cut the tensor into equal blocks
    of its first dimension, whatever lies in it.
    `when`: facts of the model that the row is for (see `conditions`). `under`: the choices that it is for, by name.
    `via`: canonical value from stored value. `dtype`: the framework stores this one dtype whatever the model's.
    `copy`: a duplicate of a parameter another row owns; it is checked on reading and may be absent.
    """
    if not fragment_names(sentence):
        parse(sentence)
    conditions(when)
    splits = tuple((dimension, axes) for dimension, axes in (("tp", tp), ("ep", ep)) if axes is not None)
    return Row(native, sentence, canonical, splits, when, via, dtype, copy, under_of(under))


@dataclass(frozen=True, slots=True)
class Drop:
    """Native tensors that hold no parameter, and why they may be left behind."""

    native: str
    why: str


def drop(native: str, why: str) -> Drop:
    """A native name (`{l}` and `*` match any run of characters) that is read by nobody, on purpose."""
    return Drop(native, why)


@dataclass(frozen=True)
class Table:
    """Rows below a common native prefix, mapped below a common canonical prefix; with `under`, all under a choice."""

    native: str = ""
    to: str = ""
    rows: tuple[Row, ...] = ()
    drops: tuple[Drop, ...] = ()
    under: Under = ()

    def __init__(
        self,
        native: str = "",
        to: str = "",
        rows: Iterable[Row | Drop] = (),
        under: Mapping[str, Value | tuple[Value, ...]] | None = None,
    ) -> None:
        rows = tuple(rows)
        for one in rows:
            if isinstance(one, Row):
                check_paths(one.when, Layer if "{l}" in native or _PREDICTORS in to else Architecture)
        object.__setattr__(self, "under", under_of(under))
        object.__setattr__(self, "native", native)
        object.__setattr__(self, "to", to)
        object.__setattr__(self, "rows", tuple(r for r in rows if isinstance(r, Row)))
        object.__setattr__(self, "drops", tuple(r for r in rows if isinstance(r, Drop)))

    @property
    def is_of_layers(self) -> bool:
        """Whether the prefix of its native names runs over layers, or over those that predict further tokens."""
        return "{l}" in self.native or self.is_of_predictors

    @property
    def is_of_predictors(self) -> bool:
        """Whether it holds, for each layer that predicts a further token, parameters of it or copies of others."""
        return _PREDICTORS in self.to or "{after}" in self.native

    def replace(self, *changed: Row) -> Table:
        """The same table with rows of the same native name exchanged; unknown names are an error."""
        by_name = {r.native: r for r in changed}
        unknown = set(by_name) - {r.native for r in self.rows}
        if unknown:
            raise CkptError(f"no row named {sorted(unknown)[0]!r} to replace in table {self.native!r}")
        return self.with_rows([*(by_name.get(r.native, r) for r in self.rows), *self.drops])

    def extend(self, *added: Row | Drop) -> Table:
        """The same table with more rows."""
        return self.with_rows([*self.rows, *self.drops, *added])

    def with_rows(self, rows: Iterable[Row | Drop]) -> Table:
        """The same prefixes and choices with these rows."""
        return Table(self.native, self.to, rows, dict(self.under))

    def renamed(self, name: Callable[[str], str]) -> Table:
        """The same table with other native names: `name` gives the new one for a whole name, or for the prefix of a layer."""
        if self.is_of_layers:
            return Table(name(self.native), self.to, [*self.rows, *self.drops], dict(self.under))
        prefix = f"{self.native}." if self.native else ""
        rows = [replace(one, native=name(prefix + one.native)) for one in self.rows]
        drops = [replace(one, native=name(prefix + one.native)) for one in self.drops]
        return Table("", self.to, [*rows, *drops], dict(self.under))

    def counted(self, layers: int) -> Table:
        """The same table with `{layers}` in the names of its drops filled in."""
        drops = [replace(one, native=one.native.replace("{layers}", str(layers))) for one in self.drops]
        return self.with_rows([*self.rows, *drops])

    def drops_name(self, name: str) -> bool:
        """Whether a native name is one that this table drops."""
        return self.why_dropped(name) is not None

    def why_dropped(self, name: str) -> str | None:
        """The reason why this table drops a native name; None if it does not."""
        prefix = f"{self.native}." if self.native else ""
        return next((dropped.why for dropped in self.drops if matches(prefix + dropped.native, name)), None)

    def without(self, *names: str) -> Table:
        """The same table without the rows of these native names."""
        return self.with_rows([*(r for r in self.rows if r.native not in names), *self.drops])


@dataclass(frozen=True)
class Tables:
    """The tables of a format, and the choices that their rows stand under.

    `fragments` are the parts of sentences that choices decide; a row that names one stands for a row for each of its texts.
    `decided` are choices of shared tables that this format does not leave open: rows for other values are left out.
    Raises `CkptError` for a row under a choice or a value that is not declared, and for two rows that hold the same
    parameters in the same tensor under the same choices.
    """

    tables: tuple[Table, ...]
    choices: tuple[Choice, ...] = ()

    def __init__(
        self,
        tables: Iterable[Table],
        choices: Iterable[Choice] = (),
        fragments: Iterable[Fragment] = (),
        decided: Chosen | None = None,
    ) -> None:
        by_name, decided = {one.name: one for one in fragments}, decided or {}
        whole = [table.with_rows([*_whole(table, by_name), *table.drops]) for table in tables]
        selected = (_selected(table, decided) for table in whole)
        object.__setattr__(self, "tables", tuple(table for table in selected if table is not None))
        object.__setattr__(self, "choices", tuple(choices))
        self._check()

    def __iter__(self) -> Iterator[Table]:
        return iter(self.tables)

    def _check(self) -> None:
        declared = {choice.name: choice for choice in self.choices}
        if len(declared) < len(self.choices):
            raise CkptError("a choice is declared twice", found=", ".join(choice.name for choice in self.choices))
        claims: dict[tuple[str, str, str], list[Under]] = {}
        for table in self.tables:
            for one in table.rows:
                for name, values in (*table.under, *one.under):
                    if name not in declared:
                        raise CkptError(
                            f"row {one.native!r} is under a choice that is not declared",
                            found=name,
                            expected=", ".join(declared) or "no choice",
                        )
                    for value in values:
                        declared[name].check(value)
                place = f"{table.native}.{one.native}", f"{table.to}.{one.canonical}", one.when
                both = both_of(table.under, one.under)
                if both is None:
                    raise CkptError(
                        f"row {one.native!r} is under other choices than its table", found=words_of(one.under)
                    )
                for other in claims.setdefault(place, []):
                    if both_of(other, both) is not None:
                        raise CkptError(f"two rows claim the native tensor {one.native!r} under the same choices")
                claims[place].append(both)

    def chosen(self, choices: Chosen | None = None) -> dict[str, Value]:
        """A value for every choice: those of `choices`, and defaults. `CkptError` for an unknown name or value."""
        made, declared = dict(choices or {}), {choice.name: choice for choice in self.choices}
        for name, value in made.items():
            if name not in declared:
                raise CkptError(f"there is no choice {name}", expected=", ".join(declared) or "no choice")
            declared[name].check(value)
        for choice in self.choices:
            if choice.name not in made:
                if choice.default is None:
                    raise CkptError(
                        f"choice {choice.name} has to be made", expected=" or ".join(map(repr, choice.values))
                    )
                made[choice.name] = choice.default
        return made

    def combinations(self, choices: Chosen | None = None) -> Iterator[dict[str, Value]]:
        """Every way to make the choices that `choices` leaves open, the first values first."""
        fixed = dict(choices or {})
        left = [choice for choice in self.choices if choice.name not in fixed]
        for values in itertools.product(*(choice.values for choice in left)):
            yield self.chosen({**fixed, **dict(zip((choice.name for choice in left), values, strict=True))})

    def beside(self, *tables: Table) -> Tables:
        """These tables and more, under the same choices."""
        return Tables([*self.tables, *tables], self.choices)

    def spelt(self, choice: Choice, names: Mapping[Value, Callable[[str], str]]) -> Tables:
        """The same tables once for each value of one more `choice`, with the native names that `names` has for it."""
        tables = [
            Table(one.native, one.to, [*one.rows, *one.drops], {**dict(one.under), choice.name: value})
            for value, name in names.items()
            for one in (table.renamed(name) for table in self.tables)
        ]
        return Tables(tables, [*self.choices, choice])

    def renamed(self, name: Callable[[str], str]) -> Tables:
        """The same tables with other native names; see `Table.renamed`."""
        return Tables([table.renamed(name) for table in self.tables], self.choices)

    def under(self, choices: Chosen | None = None) -> tuple[Table, ...]:
        """The tables with the rows of these choices alone."""
        chosen = self.chosen(choices)
        selected = (_selected(table, chosen) for table in self.tables)
        return tuple(table for table in selected if table is not None)


def _whole(table: Table, fragments: Mapping[str, Fragment]) -> Iterator[Row]:
    """The rows of a table without fragments in their sentences and splits."""
    for one in table.rows:
        texts = (one.sentence, *(axes for _, axes in one.splits))
        if not any(map(fragment_names, texts)):
            yield one
            continue
        for said in itertools.product(*(list(texts_of(text, fragments)) for text in texts)):
            under: Under | None = one.under
            for _, choices in said:
                under = None if under is None else both_of(under, choices)
            if under is not None:
                sentence, *splits = (text for text, _ in said)
                parse(sentence)
                named = zip((dimension for dimension, _ in one.splits), splits, strict=True)
                yield replace(one, sentence=sentence, splits=tuple(named), under=under)


def _selected(table: Table, chosen: Chosen) -> Table | None:
    """The table under the choices that were made, which its rows then no longer name; None if it is for others."""
    made = [pair for pair in table.under if pair[0] in chosen]
    if not is_met(tuple(made), chosen):
        return None
    rows: list[Row | Drop] = []
    for one in table.rows:
        if is_met(tuple(pair for pair in one.under if pair[0] in chosen), chosen):
            left = tuple(pair for pair in one.under if pair[0] not in chosen)
            rows.append(one if left == one.under else replace(one, under=left))
    return Table(
        table.native,
        table.to,
        [*rows, *table.drops],
        {name: values for name, values in table.under if name not in chosen},
    )


def matches(pattern: str, name: str) -> bool:
    """Whether a drop pattern covers a native name; `{l}` stands for a number, `*` for anything.

    >>> matches("layers.{l}.rotary.inv_freq", "layers.12.rotary.inv_freq")
    True
    """
    expression = re.escape(pattern).replace(r"\{l\}", r"\d+").replace(r"\*", ".*")
    return re.fullmatch(expression, name) is not None
