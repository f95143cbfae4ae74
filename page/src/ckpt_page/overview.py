"""The sections that say what the model is and what it can become."""

from __future__ import annotations

from collections.abc import Iterable

from ckpt_core.architecture import facts_of
from ckpt_core.cli.describe import describe, value_text
from ckpt_core.cli.output import count_text
from ckpt_core.cli.survey import Future, Survey, not_finite_text
from ckpt_core.sizes import size_text
from ckpt_core.text import plural
from ckpt_page.markup import Markup, breakable, element, join

_SHOWN = 6


def section(title: str, *children: object) -> Markup:
    """A part of the page under a heading."""
    return element("section", element("h2", title), *children)


def bullets(lines: Iterable[object]) -> Markup:
    """A list, or nothing."""
    items = [element("li", line) for line in lines]
    return element("ul", *items) if items else join(())


def pairs(rows: Iterable[tuple[str, object]]) -> Markup:
    """Labels and what they stand for."""
    return element("dl", *(part for label, text in rows for part in (element("dt", label), element("dd", text))))


def lines(texts: Iterable[object]) -> Markup:
    """Texts, one a line."""
    return join(element("div", text) for text in texts)


def heading(survey: Survey) -> Markup:
    """Path and format, what decided them, and the numbers one asks for first."""
    checkpoint = survey.checkpoint
    ranks = ", ".join(f"{name} {count}" for name, count in checkpoint.parallel.items()) or "one rank"
    rows: list[tuple[str, object]] = [
        ("format", checkpoint.format),
        ("because", lines(checkpoint.provenance.evidence)),
        ("parallel layout", ranks),
        ("parameters", count_text(sum(survey.counts.values()))),
        ("files", f"{plural(len(checkpoint.files), 'file')}, {size_text(survey.bytes)}"),
        ("stored as", lines(dtype_text(*item) for item in survey.stored.items())),
        (
            "masters",
            "fp32 master weights exist; --weights master reads them" if checkpoint.provenance.masters else "none",
        ),
    ]
    return join([element("p", "Checkpoint", class_="over"), element("h1", breakable(survey.src)), pairs(rows)])


def dtype_text(name: str, held: tuple[int, int]) -> str:
    """`bf16: 723 tensors, 141 GB`."""
    return f"{name}: {plural(held[0], 'tensor')}, {size_text(held[1])}"


def warnings(survey: Survey) -> Markup:
    """Values that are not numbers, and what reading the checkpoint already loses."""
    parts: list[object] = []
    if survey.not_finite:
        found = [f"{name}: {not_finite_text(bad)}" for name, bad in survey.not_finite.items()]
        title = f"{plural(len(found), 'tensor')} with values that are not finite"
        parts.append(element("div", element("h2", title), bullets(found), class_="alarm", role="note"))
    if survey.checkpoint.all_losses:
        parts.append(section("Left behind while reading", bullets(survey.checkpoint.all_losses)))
    if survey.ledger_lines:
        parts.append(section("Files and keys of the source", bullets(survey.ledger_lines)))
    return join(parts)


def architecture(survey: Survey) -> Markup:
    """The model in words; every fact, note and sidecar below."""
    checkpoint = survey.checkpoint
    facts = [(path, value_text(value)) for path, value in facts_of(checkpoint.architecture).items()]
    notes = [(name, str(value)) for name, value in checkpoint.notes.items() if value is not None]
    sidecars = [(path, size_text(one.size)) for path, one in sorted(checkpoint.sidecars.items())]
    more = [(f"All {len(facts)} facts", facts), ("Notes", notes), ("Sidecars", sidecars)]
    return section(
        "Architecture",
        pairs(describe(checkpoint.architecture)),
        *(element("details", element("summary", title), pairs(rows)) for title, rows in more if rows),
    )


def conversions(survey: Survey) -> Markup:
    """Which formats can hold the model as it is, what they would lose, and why the others refuse it."""
    rows = [
        element(
            "tr", element("th", one.format, scope="row"), element("td", *_verdict(one)), element("td", _reasons(one))
        )
        for one in survey.futures
    ]
    head = element(
        "tr", *(element("th", name, scope="col") for name in ("format", "holds it", "loses, or refuses because of"))
    )
    table = element("table", element("thead", head), element("tbody", *rows), class_="conversions")
    return section("What it can become", element("div", table, class_="wide"))


def _verdict(one: Future) -> list[Markup]:
    return [element("span", "yes" if one.possible else "no", class_="yes" if one.possible else "no")]


def _reasons(one: Future) -> Markup:
    reasons = one.refusals or [str(loss) for loss in one.losses]
    if len(reasons) <= _SHOWN + 1:
        return bullets(reasons)
    rest = reasons[_SHOWN:]
    more = element("details", element("summary", f"{len(rest):,} more"), bullets(rest))
    return join([bullets(reasons[:_SHOWN]), more])
