"""The section that lists every tensor."""

from __future__ import annotations

from ckpt_core.cli.survey import Survey
from ckpt_core.sizes import size_text
from ckpt_core.text import plural
from ckpt_core.verify.statistics import Statistics
from ckpt_page.markup import Markup, element, join
from ckpt_page.overview import section
from ckpt_page.parts import Files, anchors, shape_text
from ckpt_page.sharding import cut_text

_COLUMNS = ["tensor", "axes", "elements", "dtype", "bytes", "cut", "files"]
_STATISTICS = ["norm", "mean", "min", "max", "zeros", "NaN", "inf"]
_NUMBERS = {"elements", "bytes", *_STATISTICS}


def tensors(survey: Survey) -> Markup:
    """A table of all tensors, with their statistics if they were read."""
    files = Files(survey)
    held = survey.checkpoint.tensors
    links = anchors(held)
    rows = []
    for name, assembly in held.items():
        size = sum(block.tile.elements * block.dtype.size for block in assembly.value_blocks)
        shares = files.shares[name]
        cells: list[object] = [
            shape_text(assembly),
            f"{assembly.parameter.elements:,}",
            assembly.dtype,
            size_text(size),
        ]
        cells += [cut_text(assembly.parameter, shares), files.text(shares)]
        found = None if survey.statistics is None else survey.statistics[name]
        kinds = ["num" if column in _NUMBERS else None for column in (_COLUMNS + _STATISTICS)[1:]]
        shown = [*cells, *(() if found is None else _numbers(found))]
        bad = found is not None and not found.finite
        rows.append(
            element(
                "tr",
                element("th", name, scope="row"),
                *(element("td", cell, class_=kind) for cell, kind in zip(shown, kinds, strict=False)),
                id=links[name],
                class_="bad" if bad else None,
            )
        )
    columns = _COLUMNS + ([] if survey.statistics is None else _STATISTICS)
    head = element(
        "tr", *(element("th", name, scope="col", class_="num" if name in _NUMBERS else None) for name in columns)
    )
    table = element("table", element("thead", head), element("tbody", *rows), id="tensors")
    box = element("div", table, class_="wide", tabindex=0, role="region", aria_label="All tensors")
    return section(plural(len(rows), "tensor"), _filter(survey), _explained(survey), box)


def _filter(survey: Survey) -> Markup:
    """The controls that the page's script brings to life; hidden without it."""
    words = element(
        "label",
        "Filter ",
        element("input", id="words", type="search", placeholder="layers.3. attention", autocomplete="off"),
    )
    bad = join(())
    if survey.not_finite:
        bad = element("label", element("input", id="only-bad", type="checkbox"), " only with NaN or infinities")
    return element("p", words, bad, element("output", id="matches", for_="words"), id="filter", hidden=True)


def _explained(survey: Survey) -> Markup:
    if survey.statistics is None:
        return element(
            "p",
            "Values were not read; ",
            element("code", "--stats"),
            " does, and adds norms, extremes, zeros and NaNs.",
        )
    return element(
        "p", "Norm, mean, min and max are those of the finite values; padding of the vocabulary is left out."
    )


def _numbers(found: Statistics) -> list[object]:
    values = [f"{value:.5g}" if value is not None else "–" for value in (found.norm, found.mean, found.low, found.high)]
    bad = [element("strong", f"{count:,}") if count else "0" for count in (found.nans, found.infinities)]
    return [*values, f"{found.zeros:,}", *bad]
