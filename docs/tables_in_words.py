"""The config tables and the tensor tables of a format in words.

What a table shares with one that its page has shown before is said once: "as LlamaForCausalLM, and" its own lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cells import anchor, code, codes, table

from ckpt_core.config import Entry, FactIs, Ignore, KeyIs, Nested
from ckpt_core.config.entry import literal
from ckpt_core.layout import Drop, Row, Table, words_of
from ckpt_core.plugins.tables import FamilyTables
from ckpt_core.verify.declared import Declared

# An object in a config with more lines than these has a table of its own.
_FEW = 6


Line = tuple[tuple[str, ...], str]
"""What a line of a config says: its keys, and its words; those of an object with a table of its own are there."""


def _line(entry: Entry) -> Line:
    return entry.keys, "" if _has_own_table(entry) else entry.words()


def _has_own_table(entry: Entry) -> bool:
    return isinstance(entry, Nested) and len(entry.lines) > _FEW


@dataclass
class Sheet:
    """The tables of one page, and what of them it has shown until here. `linked`: "as ..." leads to the headings of its families."""

    linked: bool = False
    common: tuple[str, list[Line]] = "", []
    configs: list[tuple[str, list[Line]]] = field(default_factory=list)
    tables: dict[Table, str] = field(default_factory=dict)

    def _name(self, owner: str) -> str:
        return f"[{owner}](#{anchor(owner)})" if self.linked else owner

    # Configs

    def assume(self, name: str, entries: Iterable[Entry]) -> None:
        """Most configs have these lines, which are told elsewhere, under `name`."""
        self.common = name, [_line(entry) for entry in entries]

    def _base(self, lines: list[Line]) -> tuple[str, list[Line]]:
        """Where most of these lines are told already; without a name where the whole is quicker read than a difference."""
        plain = self.common if _cost(lines, self.common[1]) < len(lines) else ("", [])
        best = min(self.configs, key=lambda one: _cost(lines, one[1]), default=plain)
        return best if _cost(lines, best[1]) <= 0.6 * _cost(lines, plain[1]) else plain

    def config(self, owner: str, entries: Sequence[Entry], inside: str = "") -> list[str]:
        """The lines of a config, or of the object at its key `inside`; after them those of the objects in it."""
        lines = [_line(entry) for entry in entries]
        base = self._base(lines)
        said = [entry for entry, line in zip(entries, lines, strict=True) if line not in base[1]]
        keys = {key for line in lines for key in line[0]}
        gone = without(sorted({key for line in base[1] for key in line[0]} - keys))
        begin = [f"In {code(inside)}"] * bool(inside) + [f"as {base[0]}{gone}"] * bool(base[0])
        text = ": ".join(begin) + ("" if not said else ", and" if base[0] else ":" * bool(inside))
        parts = [f"{text[0].upper()}{text[1:]}{'' if said else '.'}"] if text else []
        parts += [config_table(said)] if said else []
        name = f"{code(inside)} of {self._name(owner)}" if inside else self._name(owner)
        self.configs.append((name, lines))
        for entry in entries:
            if _has_own_table(entry):
                parts += self.config(owner, entry.held[0], entry.keys[0])
        return parts

    # Tensors

    def tensors(self, label: str, tables: Iterable[Table]) -> list[str]:
        """The tensor tables of a family. One that another family has, too, is told there."""
        parts = []
        for one in tables:
            where = _where(one)
            if one in self.tables:
                owner = self.tables[one]
                if owner != label:
                    parts.append(f"{where}: as {self._name(owner)}.")
                continue
            like = [other for other in self.tables if (other.native, other.to) == (one.native, one.to)]
            base = max(like, key=lambda other: len({*other.rows} & {*one.rows}), default=None)
            if base is None or _cost(one.rows, base.rows) > len(one.rows) / 2:
                self.tables[one] = label
                parts += [f"{where}:", row_table(one.rows, one.drops)]
                continue
            mine = {row.native for row in one.rows}
            rows = [row for row in one.rows if row not in base.rows]
            drops = [drop for drop in one.drops if drop not in base.drops]
            gone = without(row.native for row in base.rows if row.native not in mine)
            owner = "above" if self.tables[base] == label else self._name(self.tables[base])
            self.tables[one] = label
            parts.append(f"{where}: as {owner}{gone}{', and' if rows or drops else '.'}")
            parts += [row_table(rows, drops)] if rows or drops else []
        return _told_once(parts)


def _told_once(parts: list[str]) -> list[str]:
    """Tables that are all told at one place are so in one sentence."""
    owners = {part.partition(": as ")[2] for part in parts}
    if len(parts) > 1 and len(owners) == 1 and (owner := owners.pop()).endswith(".") and "without" not in owner:
        return [f"All as {owner}"]
    return parts


def _cost(own: Sequence[object], base: Sequence[object]) -> float:
    """How long a difference is in lines: what is new, and half as much what is missing."""
    return len({*own} - {*base}) + len({*base} - {*own}) / 2


def without(names: Iterable[str]) -> str:
    """Names that something lacks, in words; nothing for nothing."""
    listed = codes(names)
    return f", without {listed}" if listed else ""


def _where(one: Table) -> str:
    said = [f"below {code(one.native)}"] * bool(one.native) + [f"for {code(one.to)}"] * bool(one.to)
    said += [f"under {code(words_of(one.under))}"] * bool(one.under)
    text = ", ".join(said) or "of the model"
    return f"Tensors {text}"


def config_table(entries: Iterable[Entry]) -> str:
    """Lines of a config. Keys that have the same fate, as those that are ignored for one reason, stand in one row."""
    always: list[str] = []
    alike: dict[tuple[bool, str], dict[str, None]] = {}
    rows: list[tuple[str, str]] = []
    for entry in entries:
        if isinstance(entry, FactIs):
            always.append(f"{code(entry.path)} = {literal(entry.value)}")
        elif isinstance(entry, (KeyIs, Ignore)):
            alike.setdefault((isinstance(entry, Ignore), entry.words()), {}).update(dict.fromkeys(entry.keys))
        elif _has_own_table(entry):
            null = " or null, " if entry.words().startswith("an object, or null") else " "
            rows.append((codes(entry.keys), f"an object,{null}told below"))
        else:
            rows.append((codes(entry.keys), entry.words()))
    rows += [("", f"always {', '.join(always)}")] * bool(always)
    rows += [(_by_section(keys), words) for (_, words), keys in sorted(alike.items(), key=lambda one: one[0][0])]
    return f'<div class="keys" markdown>\n\n{table(("key", "says"), rows)}\n\n</div>'


def _by_section(keys: Iterable[str]) -> str:
    """Keys in words; those that several sections of a config have (`encoder.seed`, `decoder.seed`) are said once."""
    owners: dict[str, list[str]] = {}
    for key in keys:
        section, _, name = key.rpartition(".")
        owners.setdefault(name, []).append(section)
    alone = [key for key in keys if len(owners[key.rpartition(".")[2]]) == 1]
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, sections in owners.items():
        if len(sections) > 1:
            groups.setdefault(tuple(sections), []).append(name)
    parts = [codes(alone)] if alone else []
    for those, names in groups.items():
        said = " and ".join(code(section) if section else "the config" for section in those)
        parts.append(f"in {said}: {codes(names)}")
    return "; ".join(parts)


def choice_table(families: Sequence[FamilyTables]) -> list[str]:
    """The choices that the rows of these families stand under."""
    found = {one.name: one for family in families for one in getattr(family.tables, "choices", ())}
    rows = []
    for one in found.values():
        default = "" if one.default is None else code(one.default)
        rows.append((code(one.name), codes(one.values), default, one.help))
    return ["## Choices", table(("choice", "values", "default", "what it decides"), rows)] if rows else []


def sentence_table(lines: Iterable[Declared]) -> str:
    """The declared sentences of a format that has no tables of its own."""
    rows = []
    for line in lines:
        rest = [f"{part.replace('=', '=`').replace(',', ' ')}`" for part in line.division.split()]
        rest += [f"{line.values} of the values"] * bool(line.values) + [f"for {code(line.under)}"] * bool(line.under)
        rows.append((code(line.native), code(line.sentence), code(line.canonical), ", ".join(rest)))
    return table(("native", "layout of one rank", "canonical", ""), rows)


def row_table(rows: Iterable[Row], drops: Iterable[Drop]) -> str:
    """Rows of a tensor table: the framework's name, how one rank holds it, and our name."""
    cells = [(code(row.native), code(row.sentence), code(row.canonical), _row_rest(row)) for row in rows]
    cells += [(code(dropped.native), "", "", f"dropped: {dropped.why}") for dropped in drops]
    return table(("native", "layout of one rank", "canonical", ""), cells)


def _row_rest(row: Row) -> str:
    said = [f"{dimension}=`{axes}`" for dimension, axes in row.splits]
    said += [f"when `{row.when}`"] * bool(row.when) + [f"under `{words_of(row.under)}`"] * bool(row.under)
    said += [f"via `{row.via}`"] * (row.via is not None)
    said += [f"always {row.dtype}"] * (row.dtype is not None) + ["a copy, may be absent"] * row.copy
    return ", ".join(said)
