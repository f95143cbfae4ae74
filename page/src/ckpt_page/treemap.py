"""A squarified treemap: areas in proportion to sizes, groups within groups.

Positions are percentages, so the picture fits any width without its text being scaled. A label says from which
width on there is room for it (`from-600`: 600 pixels), and the style sheet hides it below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ckpt_page.markup import Markup, element, join

WIDTH, HEIGHT = 1152, 560
"""Pixels: of the page's column at its widest, and of the treemap always."""

_CHARACTER, _MARGIN, _LINE, _STEP = 7.0, 9, 18, 50
_SMALLEST, _LABELLED = 0.5, 5000


@dataclass(frozen=True, slots=True)
class Frame:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float

    @property
    def area(self) -> float:
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class Leaf:
    """Something to draw: its groups from the outermost in, its size, and how it looks."""

    groups: tuple[str, ...]
    label: str
    size: int
    kind: str
    title: str
    link: str


def squarified(sizes: Sequence[float], frame: Frame) -> list[Frame]:
    """Frames that fill `frame` in proportion to `sizes` (the largest first), in their order, and are nearly squares.

    Bruls, Huizing, van Wijk: Squarified Treemaps (2000).

    >>> [(f.width, f.height) for f in squarified([2, 1, 1], Frame(0, 0, 4, 2))]
    [(2.0, 2.0), (2.0, 1.0), (2.0, 1.0)]
    """
    found: list[Frame] = []
    left = float(sum(sizes))
    while len(found) < len(sizes):
        rest = sizes[len(found) :]
        wide = frame.width >= frame.height
        long, short = (frame.width, frame.height) if wide else (frame.height, frame.width)
        count = _row_length([size * frame.area / left for size in rest], short) if left else len(rest)
        total = float(sum(rest[:count]))
        # The last row takes all that is left, whatever was lost to rounding.
        thick = long if count == len(rest) else long * total / left
        x, y, width, height = frame.x, frame.y, frame.width, frame.height
        if wide:
            row, frame = Frame(x, y, thick, height), Frame(x + thick, y, width - thick, height)
        else:
            row, frame = Frame(x, y, width, thick), Frame(x, y + thick, width, height - thick)
        found += _sliced(rest[:count], row, down=wide)
        left -= total
    return found


def _row_length(areas: Sequence[float], short: float) -> int:
    """How many areas make the row whose worst side ratio is best, along the short side of what is left."""
    total, best = 0.0, math.inf
    for count, area in enumerate(areas, 1):
        total += area
        if not area or not short:
            return len(areas)
        worst = max(short**2 * areas[0] / total**2, total**2 / (short**2 * area))
        if worst > best:
            return count - 1
        best = worst
    return len(areas)


def _sliced(sizes: Sequence[float], row: Frame, *, down: bool) -> Iterator[Frame]:
    total, before = float(sum(sizes)) or 1.0, 0.0
    for size in sizes:
        start, share = before / total, size / total
        if down:
            yield Frame(row.x, row.y + start * row.height, row.width, share * row.height)
        else:
            yield Frame(row.x + start * row.width, row.y, share * row.width, row.height)
        before += size


def placed(leaves: Iterable[Leaf], frame: Frame, depth: int = 0) -> Iterator[tuple[Leaf, Frame]]:
    """Every leaf with its frame; leaves of one group lie together."""
    members: dict[object, list[Leaf]] = {}
    for number, leaf in enumerate(leaves):
        members.setdefault(leaf.groups[depth] if depth < len(leaf.groups) else number, []).append(leaf)
    groups = sorted(members.values(), key=lambda group: -sum(leaf.size for leaf in group))
    frames = squarified([sum(leaf.size for leaf in group) for group in groups], frame)
    for group, place in zip(groups, frames, strict=True):
        if depth < len(group[0].groups):
            yield from placed(group, place, depth + 1)
        else:
            yield group[0], place


def treemap(leaves: Sequence[Leaf], label_of: Callable[[str], str], name: str) -> tuple[Markup, list[Leaf]]:
    """The picture, and the leaves that are too small to be in it.

    `label_of` gives the label of an outermost group; `name` says what the picture shows to who can't see it.
    """
    drawn: dict[str, list[tuple[Leaf, Frame]]] = {}
    missing = []
    for leaf, frame in placed(leaves, Frame(0, 0, WIDTH, HEIGHT)):
        if frame.area < _SMALLEST:
            missing.append(leaf)
        else:
            drawn.setdefault(leaf.groups[0], []).append((leaf, frame))
    groups = [_group(label_of(group), members) for group, members in drawn.items()]
    picture = element("svg", *groups, class_="treemap", role="group", aria_label=name, width="100%", height=HEIGHT)
    return element("div", picture, class_="map"), missing


def _group(label: str, members: list[tuple[Leaf, Frame]]) -> Markup:
    x, y = min(frame.x for _, frame in members), min(frame.y for _, frame in members)
    right = max(frame.x + frame.width for _, frame in members)
    bottom = max(frame.y + frame.height for _, frame in members)
    whole = Frame(x, y, right - x, bottom - y)
    named = [
        item for item in members if item[1].area > _LABELLED and item[1].height > 2 * _LINE and item[0].label != label
    ]
    labels = [_label(leaf.label, frame, bottom=True) for leaf, frame in named]
    border = element("rect", class_="border", **_position(whole))
    return element("g", *(_tile(leaf, frame) for leaf, frame in members), *labels, border, _label(label, whole))


def _tile(leaf: Leaf, frame: Frame) -> Markup:
    shape = element("rect", element("title", leaf.title), class_=leaf.kind, **_position(frame))
    return element("a", shape, href=leaf.link, tabindex=-1)


def _label(text: str, frame: Frame, *, bottom: bool = False) -> Markup:
    """Text in a frame, in a picture of its own, which clips it; nothing where there is never room for it."""
    share = frame.width / WIDTH
    needed = (len(text) * _CHARACTER + _MARGIN) / share if share else math.inf
    if frame.height < _LINE or needed > WIDTH:
        return join(())
    line = element("text", text, x=5, y=f"{frame.height - 6:.0f}" if bottom else 14)
    kind = f"{'small' if bottom else 'group'} from-{_STEP * math.ceil(needed / _STEP)}"
    return element("svg", line, class_=kind, **_position(frame))


def _position(frame: Frame) -> dict[str, str]:
    across = {key: f"{100 * value / WIDTH:.3f}%" for key, value in (("x", frame.x), ("width", frame.width))}
    return across | {"y": f"{frame.y:.2f}", "height": f"{frame.height:.2f}"}
