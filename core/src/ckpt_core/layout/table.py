"""Tables of rows: a framework's tensors, their arrangement, and the canonical parameters they hold.

    LAYER = Table("decoder.layers.{l}", to="layers.{l}", rows=[
        row("self_attention.linear_qkv.weight", "(g (q[r] + k + v) d) h", "attention.{part}.weight", tp="g"),
        row("mlp.linear_fc1.weight",            "((gate + up) f) h",      "mlp.{part}.weight",       tp="f", when="mlp.gated"),
    ])

`{l}` runs over layers. Any other name in braces in a native name (`experts.{x}.up`) runs over the
canonical axis of that name: each native tensor then holds one index of it. A sentence that itself
names `l` describes a tensor that holds all layers.

A row applies where all its canonical parameters exist and its `when` holds; `when` is a path into the
layer or the architecture (`mlp.gated`), `!path` its negation, several separated by spaces all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ckpt_core.errors import CkptError
from ckpt_core.layout.maps import ValueMap
from ckpt_core.layout.sentence import parse


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

    def applies_to(self, subject: object) -> bool:
        """Whether `when` holds for a layer (or, outside layers, for the architecture)."""
        for condition in self.when.split():
            value: object = subject
            for step in condition.removeprefix("!").split("."):
                value = None if value is None else getattr(value, step)
            if bool(value) == condition.startswith("!"):
                return False
        return True


def row(
    native: str,
    sentence: str,
    canonical: str,
    *,
    tp: str | None = None,
    ep: str | None = None,
    when: str = "",
    via: ValueMap | None = None,
    dtype: str | None = None,
    copy: bool = False,
) -> Row:
    """A native tensor, the layout of one rank's tensor, and the canonical parameter(s) it holds.

    `tp`, `ep`: the axes that tensor (expert) parallel ranks divide before the sentence applies. With several
    axes ("g r") ranks count through them row-major, and a part without one of them is replicated over it; where
    parts are dealt out differently, each has its own ("q: g r; k v: r g").
    `via`: canonical value from stored value. `dtype`: the framework stores this one dtype whatever the model's.
    `copy`: a duplicate of a parameter another row owns; it is checked on reading and may be absent.
    """
    parse(sentence)
    splits = tuple((dimension, axes) for dimension, axes in (("tp", tp), ("ep", ep)) if axes is not None)
    return Row(native, sentence, canonical, splits, when, via, dtype, copy)


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
    """Rows below a common native prefix, mapped below a common canonical prefix."""

    native: str = ""
    to: str = ""
    rows: tuple[Row, ...] = ()
    drops: tuple[Drop, ...] = ()

    def __init__(self, native: str = "", to: str = "", rows: Iterable[Row | Drop] = ()) -> None:
        rows = tuple(rows)
        object.__setattr__(self, "native", native)
        object.__setattr__(self, "to", to)
        object.__setattr__(self, "rows", tuple(r for r in rows if isinstance(r, Row)))
        object.__setattr__(self, "drops", tuple(r for r in rows if isinstance(r, Drop)))

    def replace(self, *changed: Row) -> Table:
        """The same table with rows of the same native name exchanged; unknown names are an error."""
        by_name = {r.native: r for r in changed}
        unknown = set(by_name) - {r.native for r in self.rows}
        if unknown:
            raise CkptError(f"no row named {sorted(unknown)[0]!r} to replace in table {self.native!r}")
        return Table(self.native, self.to, [*(by_name.get(r.native, r) for r in self.rows), *self.drops])

    def extend(self, *added: Row | Drop) -> Table:
        """The same table with more rows."""
        return Table(self.native, self.to, [*self.rows, *self.drops, *added])

    def drops_name(self, name: str) -> bool:
        """Whether a native name is one that this table drops."""
        prefix = f"{self.native}." if self.native else ""
        return any(matches(prefix + dropped.native, name) for dropped in self.drops)

    def without(self, *names: str) -> Table:
        """The same table without the rows of these native names."""
        return Table(self.native, self.to, [*(r for r in self.rows if r.native not in names), *self.drops])


def matches(pattern: str, name: str) -> bool:
    """Whether a drop pattern covers a native name; `{l}` stands for a number, `*` for anything.

    >>> matches("layers.{l}.rotary.inv_freq", "layers.12.rotary.inv_freq")
    True
    """
    expression = re.escape(pattern).replace(r"\{l\}", r"\d+").replace(r"\*", ".*")
    return re.fullmatch(expression, name) is not None
