"""Formats side by side: what each calls a tensor and a fact of one model, and what is rewritten, lost or refused on the way.

A model of the kit, without values, is given to the writer of a format. Whatever the writer then places says what the
format calls each parameter, and in which arrangement; so this holds for every format, whatever it declares. What a
format declares (`ckpt_tables`) adds the keys of its config, and the rows that hold under other choices.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field

from ckpt_core.architecture import Architecture, Facts, PerLayer, facts_of, parameters
from ckpt_core.architecture.examples import example, example_architectures
from ckpt_core.checkpoint import Target
from ckpt_core.config import Config
from ckpt_core.config.views import covers
from ckpt_core.errors import CkptError, ProblemsFound, UsageError, did_you_mean
from ckpt_core.layout import Native, Row, Table, Under, parse, words_of
from ckpt_core.layout.bind import join
from ckpt_core.layout.choices import both_of
from ckpt_core.lean import dataclass
from ckpt_core.ledger import Loss
from ckpt_core.plugins.discovery import Plugin, all_plugins, require
from ckpt_core.plugins.request import WriteRequest
from ckpt_core.plugins.tables import FamilyTables
from ckpt_core.plugins.values import typed_options
from ckpt_core.storage.dtypes import dtype_named
from ckpt_core.verify.holes import model_of_holes

_DTYPE = "bf16"  # of most checkpoints; a row that is always stored in another dtype says so


@dataclass(frozen=True)
class NativeName:
    """What one format calls a parameter, and how it is arranged there.

    `native` has `{l}` for the layer and `{x}` for other indices; `ranks` says how parallel ranks divide it (`tp=g`);
    `conditions` are the facts and choices that the row is for, and what else it says of itself.
    """

    native: str
    sentence: str
    ranks: str = ""
    conditions: tuple[str, ...] = ()

    @classmethod
    def of(cls, row: Row, native: str, under: Under = ()) -> NativeName:
        chosen = [f"under {words_of(under)}"] if under else []
        return cls(native, row.sentence, _ranks(row), (*_conditions(row), *chosen))

    def __str__(self) -> str:
        return ", ".join(part for part in (f"{self.native}  {self.sentence}", self.ranks, *self.conditions) if part)


Everywhere = Mapping[str, Mapping[str, Sequence[NativeName]]]
"""What formats call each canonical parameter, by format."""


def _ranks(row: Row) -> str:
    return " ".join(f"{dimension}={axes if ':' in axes else axes.replace(' ', ',')}" for dimension, axes in row.splits)


def _conditions(row: Row) -> Iterator[str]:
    if row.when:
        yield f"when {row.when}"
    if row.via is not None:
        yield f"values via {row.via}"
    if row.dtype is not None:
        yield f"always {row.dtype}"
    if row.copy:
        yield "a copy, may be absent"


@dataclass(frozen=True)
class SaidBy:
    """How a config says a fact: by which keys (none: it holds for every model of the class), and in words."""

    keys: tuple[str, ...]
    words: str

    def __str__(self) -> str:
        return f"{', '.join(self.keys)}: {self.words}" if self.keys else self.words


@dataclass
class InFormat:
    """One model in one format. If the format refuses the model, `refused` says why, and there is nothing else.

    `family` is what the format calls this kind of model, `decisions` are those of its writer. `names` and `facts` go by
    canonical parameter (`layers.{l}.attention.q.weight`) and by the path of a fact.
    """

    format: str
    refused: tuple[str, ...] = ()
    family: str = ""
    decisions: Mapping[str, object] = field(default_factory=dict)
    rewrites: tuple[str, ...] = ()
    losses: tuple[Loss, ...] = ()
    names: dict[str, list[NativeName]] = field(default_factory=dict)
    facts: dict[str, list[SaidBy]] = field(default_factory=dict)
    elsewhere: dict[str, list[NativeName]] = field(default_factory=dict)
    architecture: Architecture | None = None


@dataclass
class Explanation:
    """One model in one format or in two; the second is given what the first one holds, rewritten if it was.

    `changes` are facts in which the model differs from the example `example`, which one of the formats refuses.
    """

    example: str
    changes: Mapping[str, object]
    architecture: Architecture
    sides: Sequence[InFormat]

    @property
    def refused(self) -> bool:
        """Whether one of the formats refuses the model."""
        return any(side.refused for side in self.sides)

    def parameters(self) -> dict[str, str]:
        """Every canonical parameter, with `{l}` for the layer, and its axes, in the order of the forward pass."""
        found: dict[str, str] = {}
        for architecture in (self.architecture, *(side.architecture for side in self.sides)):
            for name, parameter in (parameters(architecture) if architecture else {}).items():
                found.setdefault(canonical_pattern(name), " ".join(axis.name for axis in parameter.axes))
        return found

    def facts(self) -> dict[str, str]:
        """Every fact of the model that is said by any of the formats, with its value."""
        facts = facts_of(self.architecture)
        said = {path for side in self.sides for path in side.facts}
        return {path: _value(value) for path, value in facts.items() if path in said}


def _value(value: object) -> str:
    if isinstance(value, PerLayer):
        return "by layer: " + " ".join(map(_value, value))
    return str(getattr(value, "value", value))


def explain(formats: Sequence[str], family: str | None = None) -> Explanation:
    """An example of the kit in one format, or in two of which the second gets it from the first.

    `family` names the example; by default it is the first one that all of the formats hold. Where one of them refuses
    it, it is tried with heads that fill its width. Raises `UsageError` for a name that is none.
    """
    plugins = [require(name) for name in formats]
    known = list(example_architectures())
    if family is not None and family not in known:
        raise UsageError(f"no example is called {family!r}", expected=", ".join(known), fix=did_you_mean(family, known))
    tried = [explained(plugins, name, changes) for name in [family or "llama"] for changes in ({}, _SQUARE)]
    if family is None and all(found.refused for found in tried):
        tried += (explained(plugins, name, changes) for name in known for changes in ({}, _SQUARE))
    return next((found for found in tried if not found.refused), tried[0])


# Heads times head dim, for the many formats that have no size of a head.
_SQUARE = {"hidden": 216}


def explained(plugins: Iterable[Plugin], name: str, changes: Mapping[str, object]) -> Explanation:
    """One model in each format, given from one to the next; a format that refuses it passes it on as it was."""
    architecture = example(name, **changes)
    sides: list[InFormat] = []
    given = architecture
    for plugin in plugins:
        sides.append(in_format(plugin, given))
        given = sides[-1].architecture or given
    return Explanation(name, changes, architecture, sides)


def in_format(plugin: Plugin, architecture: Architecture) -> InFormat:
    """What a format makes of an architecture."""
    try:
        target = written(plugin, architecture)
    except CkptError as refusal:
        problems = refusal.problems if isinstance(refusal, ProblemsFound) else [refusal]
        return InFormat(plugin.name, tuple(str(problem) for problem in problems))
    found = InFormat(plugin.name, architecture=target.architecture, losses=tuple(target.losses))
    found.decisions = {name: value for name, value in target.decisions.items() if name not in ("rewrites", "tokens")}
    found.rewrites = tuple(target.decisions.get("rewrites", ()))
    for placement in target.placements:
        native = placement.native
        said = NativeName.of(native.row, native_pattern(native))
        for parameter in dict.fromkeys(part.parameter for part in native.pieces):
            names = found.names.setdefault(canonical_pattern(parameter), [])
            if said not in names:
                names.append(said)
    family = family_of(plugin, target)
    if family is not None:
        found.family = family.name
        facts = facts_of(target.architecture)
        found.facts = dict(_facts_said(family.config, facts)) if family.config else {}
        for canonical, name in declared_names(family.tables):
            if canonical in found.names and name.sentence not in {one.sentence for one in found.names[canonical]}:
                found.elsewhere.setdefault(canonical, []).append(name)
    return found


def written(plugin: Plugin, architecture: Architecture) -> Target:
    """What the writer of a format would write of a model without values, on one rank."""
    if not plugin.info.writes:
        raise UsageError(f"format {plugin.name} can only be read", fix="see what is written: ckpt formats")
    request = WriteRequest(typed_options(plugin.info, plugin.info.bare, "write"), None, None, None, None, "DST")
    target: Target = plugin.hooks.ckpt_write(
        checkpoint=model_of_holes(architecture, dtype_named(_DTYPE)), request=request
    )
    return target


def declared_families(plugin: Plugin) -> Sequence[FamilyTables]:
    """What a format declares with `ckpt_tables`; nothing if it doesn't."""
    return plugin.hooks.ckpt_tables() or ()


def family_of(plugin: Plugin, target: Target) -> FamilyTables | None:
    """The family that a target is of: one that its decisions name, or the first whose config says this architecture."""
    families = declared_families(plugin)
    named = [family for family in families if family.name in map(str, target.decisions.values())]
    facts = facts_of(target.architecture)
    return next((family for family in [*named, *families] if family.config and _says(family.config, facts)), None)


def _says(config: Config, facts: Facts) -> bool:
    try:
        config.write(facts, {})
    except CkptError:
        return False
    return True


def _facts_said(config: Config, facts: Facts) -> Iterator[tuple[str, list[SaidBy]]]:
    """How each fact is said: by the lines that claim its path, or what it is below."""
    for path in facts:
        lines = [entry for entry in config.entries if any(covers(claim, path) for claim in entry.claims)]
        if lines:
            yield path, [SaidBy(entry.keys, entry.words().replace("`", "")) for entry in lines]


# Names


def canonical_pattern(name: str) -> str:
    """`layers.{l}.attention.q.weight` for `layers.3.attention.q.weight`."""
    return re.sub(r"(?<=layers\.)\d+|(?<=predictors\.)\d+", "{l}", name)


def native_pattern(native: Native) -> str:
    """The name of a native tensor with `{l}` for its layer and `{x}` for the other index that its row runs over."""
    layer = re.search(r"(?<=layers\.)\d+|(?<=predictors\.)\d+", native.pieces[0].parameter) if native.pieces else None
    steps = native.name.split(".")
    if layer is not None and layer[0] in steps:
        steps[steps.index(layer[0])] = "{l}"
    indexed = re.search(r"\{(?!l\})\w+\}", native.row.native)
    if indexed is not None:  # a number after that of the layer
        numbers = [place for place, step in enumerate(steps) if step.isdigit()]
        steps[numbers[-1]] = indexed[0]
    return ".".join(steps)


def declared_names(tables: Iterable[Table]) -> Iterator[tuple[str, NativeName]]:
    """Every canonical parameter that tables hold, and what each row calls it."""
    for table in tables:
        for row in table.rows:
            name = NativeName.of(row, join(table.native, row.native), both_of(table.under, row.under) or ())
            for canonical in canonical_names(join(table.to, row.canonical), row.sentence):
                yield canonical, name


def canonical_names(template: str, sentence: str) -> list[str]:
    """The parameters of a row: one, or one for each part of its sentence."""
    if "{part}" not in template:
        return [template]
    return [template.replace("{part}", part) for part in sorted(parse(sentence).part_names())]


def names_everywhere() -> Everywhere:
    """What every installed format calls each canonical parameter, by format.

    Layers and the stacks of an encoder-decoder are left out of the canonical names: `attention.q.weight`. Those that predict further
    tokens are left out too, as what they are built of has the names of a layer. It takes seconds: some formats write every example for it.
    """
    found: dict[str, dict[str, list[NativeName]]] = {}
    for plugin in all_plugins():
        if plugin.broken is None:
            for canonical, name in _names_of(plugin):
                if ".layer." in canonical:
                    continue
                names = found.setdefault(without_place(canonical), {}).setdefault(plugin.name, [])
                if name not in names:
                    names.append(name)
    return found


def called_by_us(everywhere: Everywhere, parameter: str) -> Everywhere:
    """What `names_everywhere` has of the parameters whose canonical name ends in `parameter`."""
    wanted = without_place(parameter)
    return {
        canonical: by_format
        for canonical, by_format in everywhere.items()
        if canonical == wanted or canonical.endswith(f".{wanted}") or not wanted
    }


def called_so(everywhere: Everywhere, native: str) -> Everywhere:
    """What `names_everywhere` has of the parameters that any format calls `native`, or by a part of it: `q_proj` or
    `model.layers.3.self_attn.q_proj.weight`.
    """
    wanted = _steps(native)
    return {
        canonical: by_format
        for canonical, by_format in everywhere.items()
        if any(_holds(_steps(name.native), wanted) for names in by_format.values() for name in names)
    }


def _steps(name: str) -> list[str]:
    """The steps of a native name; whatever is a number there is alike."""
    return ["#" if step.isdigit() or step.startswith("{") else step for step in name.split(".")]


def _holds(steps: list[str], wanted: list[str]) -> bool:
    return any(steps[at : at + len(wanted)] == wanted for at in range(len(steps)))


def near_parameters(everywhere: Everywhere, parameter: str) -> list[str]:
    """The names that a name that is none may mean, the likeliest first; at most four.

    Each of its steps shortens one of ours, as `attn.q` does `attention.q.weight`; or one of ours or of a format's is misspelled.
    """
    known, wanted = list(everywhere), without_place(parameter).lower()
    short = [name for name in known if _shortens(wanted.split("."), name.split("."))]
    if short:
        return sorted(short, key=len)[:4]
    tried = ((known, 0.8), (sorted(_parts_of_names(everywhere, wanted)), 0.7), (known, 0.6))
    close = (difflib.get_close_matches(wanted, names, n=3, cutoff=cutoff) for names, cutoff in tried)
    return next(filter(None, close), [])


def _parts_of_names(everywhere: Everywhere, like: str) -> set[str]:
    """The parts of native names that have as many steps as `like`: for `q_prj`, which has one, every `q_proj`, `wq` and `weight`."""
    count = like.count(".") + 1
    names = (
        name.native.split(".") for by_format in everywhere.values() for names in by_format.values() for name in names
    )
    return {".".join(steps[at : at + count]) for steps in names for at in range(len(steps) - count + 1)}


def _shortens(short: Sequence[str], steps: Sequence[str]) -> bool:
    """Whether each of the short steps has its letters, in order, in one of the steps, one after the other."""
    rest = iter(steps)
    return all(any(_abbreviates(one, step) for step in rest) for one in short)


def _abbreviates(short: str, word: str) -> bool:
    letters = iter(word)
    return bool(short) and short[0] == word[:1] and all(letter in letters for letter in short)


def without_place(canonical: str) -> str:
    """A canonical name without its stack and layer."""
    return re.sub(r"^(encoder\.|decoder\.)?((layers|predictors)\.(\{l\}|\d+)\.)?", "", canonical)


def _names_of(plugin: Plugin) -> Iterator[tuple[str, NativeName]]:
    """What a format declares; of one that declares nothing, what it writes of the kit's examples."""
    families = declared_families(plugin)
    tables = [table for family in families if not family.like for table in family.tables]
    if tables:
        found = dict.fromkeys(declared_names(tables))
        yield from found
        known = {canonical for canonical, _ in found}
        for family in families:  # of a kind that is like another, what that one has not
            if family.like:
                yield from (
                    (canonical, name) for canonical, name in declared_names(family.tables) if canonical not in known
                )
    elif plugin.info.writes:
        for architecture in example_architectures().values():
            for canonical, names in in_format(plugin, architecture).names.items():
                yield from ((canonical, name) for name in names)
