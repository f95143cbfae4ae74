"""The floors of the house, as `docs/architecture.md` shows them: drawn from the contracts in pyproject.toml."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
_WIDTH = 78


def floors(container: str) -> list[list[str]]:
    """The rooms of a package, floor by floor from the top, as its `layers` contract lists them; `plugins` are the packages there."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [
        one["layers"]
        for one in contracts
        if one["type"] == "layers" and one.get("containers", ["plugins"]) == [container]
    ]
    return [[room.strip(" ()") for room in layer.replace(":", "|").split("|")] for layer in layers]


def there(container: str, floor: list[str]) -> list[str]:
    """The rooms of a floor that exist: the contract may name one that is still to come."""
    return [room for room in floor if _file(container, room) is not None]


def drawing(container: str) -> str:
    """The floors as boxes, the highest on top: each room imports from the floors below it alone."""
    rows = [rooms for floor in floors(container) if (rooms := there(container, floor))]
    above: set[int] = set()
    lines: list[str] = []
    for rooms in [*rows, []]:
        ends = _ends(len(rooms))
        lines += [_border(above, ends, first=not lines, last=not rooms)]
        starts = [0, *ends]
        cells = (
            room.center(stop - start - 1) for room, start, stop in zip(rooms, starts, [*ends, _WIDTH - 1], strict=False)
        )
        lines += ["│" + "│".join(cells) + "│"] if rooms else []
        above = set(ends)
    return "```text\n" + "\n".join(lines) + "\n```"


def _ends(rooms: int) -> list[int]:
    """Where the walls between so many rooms are."""
    return [number * (_WIDTH - 1) // rooms for number in range(1, rooms)] if rooms else []


def _border(above: set[int], below: list[int], *, first: bool, last: bool) -> str:
    inner = "".join("─┴┬┼"[(place in above) + 2 * (place in below)] for place in range(1, _WIDTH - 1))
    left, right = "┌┐" if first else "└┘" if last else "├┤"
    return left + inner + right


def rooms(container: str) -> str:
    """Every room with its sentence: the first of its docstring."""
    lines = ["| room | what it is |", "| --- | --- |"]
    for floor in floors(container):
        lines += [f"| `{room}` | {sentence(container, room)} |" for room in there(container, floor)]
    return "\n".join(lines)


def sentence(container: str, room: str) -> str:
    """The first paragraph of a room's docstring, on one line; it is read, and nothing is imported."""
    file = _file(container, room)
    assert file is not None
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def _file(container: str, room: str) -> Path | None:
    if container == "plugins":
        file = ROOT / container / room.removeprefix("ckpt_") / "src" / room / "__init__.py"
        return file if file.is_file() else None
    package, *inner = container.split(".")
    source = ROOT / ("core" if package == "ckpt_core" else "") / "src" / package
    base = source.joinpath(*inner)
    return next((file for file in (base / f"{room}.py", base / room / "__init__.py") if file.is_file()), None)
