"""The floors of the house: the contracts in pyproject.toml, and no circle between the modules of any package."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "pyproject.toml"


def test_the_contracts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # import-linter puts the current folder in it
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = lint_imports(config_filename=str(CONFIG), no_cache=True)
    assert code == 0, out.getvalue()


@functools.cache
def house() -> grimp.ImportGraph:
    roots = tomllib.loads(CONFIG.read_text())["tool"]["importlinter"]["root_packages"]
    return grimp.build_graph(roots[0], *roots[1:], cache_dir=None)


def rooms_of(graph: grimp.ImportGraph, package: str) -> dict[str, set[str]]:
    """The modules and packages directly in a package, each with those beside it that something in it imports."""
    depth = package.count(".") + 2
    found: dict[str, set[str]] = {child: set() for child in graph.find_children(package)}
    for module in graph.find_descendants(package):
        room = ".".join(module.split(".")[:depth])
        for imported in graph.find_modules_directly_imported_by(module):
            other = ".".join(imported.split(".")[:depth])
            if other in found and other != room:
                found[room].add(other)
    return found


def circle(imports: Mapping[str, set[str]]) -> list[str]:
    """The rooms of one circle; empty if there is none."""
    left = {room: set(others) for room, others in imports.items()}
    while ground := [room for room, others in left.items() if not others & left.keys()]:
        for room in ground:
            del left[room]
    return sorted(left)


def packages(graph: grimp.ImportGraph) -> Iterator[str]:
    yield from (module for module in sorted(graph.modules) if graph.find_children(module))


def test_no_package_has_a_circle() -> None:
    found = {package: circle(rooms_of(house(), package)) for package in packages(house())}
    assert len(found) > 30 and "ckpt_core.storage.torch" in found
    assert not {package: rooms for package, rooms in found.items() if rooms}


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        ([("a.one", "a.two"), ("a.two", "a.three")], []),
        ([("a.one", "a.two"), ("a.two.inner", "a.one")], ["a.one", "a.two"]),
        ([("a.one", "a.two"), ("a.two", "a.three"), ("a.three", "a.one"), ("a.four", "a.one")], None),
    ],
)
def test_a_circle_is_found(imports: list[tuple[str, str]], expected: list[str] | None) -> None:
    graph = grimp.ImportGraph()
    for module in ("a", "a.one", "a.two", "a.two.inner", "a.three", "a.four"):
        graph.add_module(module)
    for importer, imported in imports:
        graph.add_import(importer=importer, imported=imported)
    found = circle(rooms_of(graph, "a"))
    assert found == expected if expected is not None else {"a.one", "a.two", "a.three"} <= {*found}
