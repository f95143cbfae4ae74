"""`ckpt explain`: one model in two formats side by side, or one parameter in every format."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ckpt_core.cli.names import FamilyName, FormatName
from ckpt_core.cli.output import Page, emit_json, paint, say, table
from ckpt_core.errors import UsageError

if TYPE_CHECKING:
    from ckpt_core.explain import Explanation, InFormat, NativeName, SaidBy

_SHOWN = 3


@click.command(short_help="What two formats call the tensors and keys of a model, side by side.")
@click.argument("formats", type=FormatName(), metavar="[FORMAT] [OTHER]", nargs=-1)
@click.option(
    "--family", type=FamilyName(), metavar="NAME", help="The model: one of the kit's examples, as llama or moe."
)
@click.option(
    "--parameter",
    metavar="NAME",
    help="One parameter in every format, by our name or that of a format: attention.q.weight, q_proj.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def command(formats: tuple[str, ...], *, family: str | None, parameter: str | None, as_json: bool) -> None:
    """Show what FORMAT calls each tensor and config key of a model, and beside it what OTHER calls them.

    A small model of the family, without values, is given to the writer of FORMAT, and what that holds to the writer of
    OTHER: so what is rewritten, lost or refused is shown as well.

    \b
    ckpt explain hf megatron --family llama
    ckpt explain --parameter attention.q.weight
    ckpt explain --parameter model.layers.0.self_attn.q_proj.weight
    """
    from ckpt_core.explain import explain
    from ckpt_core.plugins.installed import format_names

    for name in formats:
        if name not in format_names() and os.path.exists(name):
            raise UsageError(
                "ckpt explain is asked about formats, and this is a path", file=name, fix="ckpt inspect says what it is"
            )
    if parameter is not None:
        if formats or family:
            raise UsageError(
                "--parameter asks about every format and family",
                fix=f"ckpt explain --parameter {shlex.quote(parameter)}",
            )
        _show_parameter(parameter, as_json)
        return
    if not 1 <= len(formats) <= 2:
        raise UsageError("which formats?", expected="one, or two, or --parameter NAME", fix="see: ckpt formats")
    found = explain(formats, family)
    if as_json:
        emit_json(explanation_json(found), "explain")
    else:
        _show(found)


def explanation_json(found: Explanation) -> dict[str, object]:
    """An explanation as a JSON object."""

    def by_format(attribute: str, key: str) -> dict[str, object]:
        sides = {side.format: getattr(side, attribute).get(key, []) for side in found.sides}
        return {name: [asdict(one) for one in said] for name, said in sides.items()}

    return {
        "family": found.example,
        "changes": dict(found.changes),
        "formats": [
            {
                "format": side.format,
                "class": side.family,
                "refused": list(side.refused),
                "decisions": dict(side.decisions),
                "rewrites": list(side.rewrites),
                "losses": [loss.to_json() for loss in side.losses],
            }
            for side in found.sides
        ],
        "tensors": [
            {
                "parameter": parameter,
                "axes": axes,
                "names": by_format("names", parameter),
                "elsewhere": by_format("elsewhere", parameter),
            }
            for parameter, axes in found.parameters().items()
        ],
        "facts": [
            {"fact": path, "value": value, "said": by_format("facts", path)} for path, value in found.facts().items()
        ],
    }


def _show(found: Explanation) -> None:
    page = Page()
    changes = "".join(f", with {name} = {value}" for name, value in found.changes.items())
    page.say("model", f"the kit's example {found.example}{changes}")
    for side in found.sides:
        _show_side(page, side)
    if all(side.refused for side in found.sides):
        return
    names = [side.format for side in found.sides]
    say()
    titles = ("CANONICAL", "AXES", *(cell for name in names for cell in (name.upper(), "ITS LAYOUT", "RANKS")))
    rows = [
        row
        for parameter, axes in found.parameters().items()
        for row in _rows((parameter, axes), [side.names.get(parameter, []) for side in found.sides])
    ]
    _show_table(titles, rows)
    elsewhere = [
        (parameter, side.format, name.native, name.sentence, ", ".join((*filter(None, [name.ranks]), *name.conditions)))
        for side in found.sides
        for parameter, other in side.elsewhere.items()
        for name in other
    ]
    if elsewhere:
        say()
        _show_table(("UNDER OTHER CHOICES", "FORMAT", "NAME", "ITS LAYOUT", ""), elsewhere)
    alone = len(names) == 1  # with room for words
    facts = [
        (path, value, *(_said(side.facts.get(path, []), alone) for side in found.sides))
        for path, value in found.facts().items()
    ]
    if facts:
        say()
        _show_table(("FACT", "VALUE", *(f"KEYS OF {name.upper()}" for name in names)), facts)


def _said(lines: Sequence[SaidBy], in_words: bool) -> str:
    """How a config says a fact, or "-" if it doesn't."""
    return "; ".join(str(line) if in_words or not line.keys else _few(line.keys) for line in lines) or "-"


def _few(keys: Sequence[str]) -> str:
    """Keys in a narrow column; some lines speak for more than fit."""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def _show_side(page: Page, side: InFormat) -> None:
    """What became of the model in one format."""
    if side.refused:
        page.say(side.format, *(line for refusal in side.refused for line in f"refused: {refusal}".split("\n")))
        return
    choices = ", ".join(f"{name}={value}" for name, value in side.decisions.items() if isinstance(value, str | int))
    page.say(
        side.format,
        ", ".join(part for part in (side.family or "holds it", choices) if part),
        *(f"rewritten: {line}" for line in side.rewrites),
        *(f"lost: {loss}" for loss in side.losses),
    )


def _rows(head: Sequence[str], sides: Sequence[Sequence[NativeName]]) -> list[tuple[str, ...]]:
    """The lines of one parameter: as many as the format with the most names for it has."""
    found = []
    for number in range(max(1, *map(len, sides))):
        cells: list[str] = []
        for names in sides:
            name = names[number] if number < len(names) else None
            cells += (
                [name.native, name.sentence, ", ".join((name.ranks, *name.conditions)).strip(", ")]
                if name
                else ["-" if number == 0 else "", "", ""]
            )
        found.append((*(head if number == 0 else [""] * len(head)), *cells))
    return found


def _show_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    head, *body = table([titles, *rows])
    say(paint(head, "bold"))
    for line in body:
        say(line)


def _show_parameter(parameter: str, as_json: bool) -> None:
    from ckpt_core.explain import called_by_us, called_so, names_everywhere, near_parameters

    everywhere = names_everywhere()
    found = called_by_us(everywhere, parameter) or called_so(everywhere, parameter)
    if not found:
        near = " or ".join(near_parameters(everywhere, parameter))
        raise UsageError(
            f"no parameter is called {parameter!r}, by us or by a format",
            fix=f"did you mean {near}?"
            if near
            else "ckpt explain ir lists ours, with --family NAME those of another model",
        )
    if as_json:
        emit_json({"parameters": {name: _json_of(by_format) for name, by_format in found.items()}}, "names")
        return
    rows = [
        (canonical, format, name.native, name.sentence, ", ".join((name.ranks, *name.conditions)).strip(", "))
        for canonical, by_format in found.items()
        for format, names in by_format.items()
        for name in names
    ]
    _show_table(("CANONICAL", "FORMAT", "NAME", "ITS LAYOUT", ""), rows)


def _json_of(by_format: Mapping[str, Sequence[NativeName]]) -> dict[str, object]:
    return {format: [asdict(name) for name in names] for format, names in by_format.items()}
