"""Maps of a model drawn as strips: from left to right the places of the model, in the order of its forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ckpt_page.markup import Markup, element

_HEIGHT = 16


@dataclass(frozen=True, slots=True)
class Run:
    """Places that lie side by side and look alike: `start` up to `stop`; `strength` is the opacity, 0 to 1."""

    start: int
    stop: int
    kind: str
    title: str
    strength: float = 1.0


def strip(runs: Iterable[Run], places: int) -> Markup:
    """A strip of so many places, with the runs on it."""
    shapes = [
        element(
            "rect",
            element("title", run.title),
            class_=run.kind,
            x=_percent(run.start, places),
            width=_percent(run.stop - run.start, places),
            height=_HEIGHT,
            fill_opacity=None if run.strength == 1 else f"{run.strength:.2f}",
        )
        for run in runs
    ]
    return element("svg", *shapes, class_="strip", width="100%", height=_HEIGHT, aria_hidden="true")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3f}%"


def runs_of(values: Sequence[object]) -> list[tuple[int, int, object]]:
    """Runs of equal values, those of None left out: (start, stop, value).

    >>> runs_of(["a", "a", None, "b"])
    [(0, 2, 'a'), (3, 4, 'b')]
    """
    found: list[tuple[int, int, object]] = []
    for number, value in enumerate(values):
        if value is not None:
            if found and found[-1][1] == number and found[-1][2] == value:
                found[-1] = (found[-1][0], number + 1, value)
            else:
                found.append((number, number + 1, value))
    return found


def ranges_text(numbers: Iterable[int]) -> str:
    """Numbers in words, those in a row as a range.

    >>> ranges_text([1, 2, 3, 5])
    '1–3, 5'
    """
    known = set(numbers)
    runs = runs_of([number in known or None for number in range(max(known, default=-1) + 1)])
    return ", ".join(f"{start}" if stop == start + 1 else f"{start}–{stop - 1}" for start, stop, _ in runs)
