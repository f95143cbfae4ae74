"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _with_examples() -> list[str]:
    """Every module of ours that has one, by its dotted name."""
    found = []
    for source in (ROOT / "core" / "src", *(ROOT / "plugins").glob("*/src")):
        for path in source.rglob("*.py"):
            if ">>> " in path.read_text():
                parts = path.relative_to(source).with_suffix("").parts
                found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(found)


MODULES = _with_examples()


def test_there_are_many() -> None:
    assert len(MODULES) > 10


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0
