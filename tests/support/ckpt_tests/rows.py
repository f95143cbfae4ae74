"""Tables that are wrong on purpose, for tests of what notices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from ckpt_core.architecture import Stack
from ckpt_core.layout import BoundTables, Row, Table, bind


def wrong_everywhere(monkeypatch: pytest.MonkeyPatch, change: Callable[[Row], Row]) -> None:
    """Tables that are wrong for reader and writer alike: every row, in whatever format, is changed before it is used."""

    class Wrong(bind._BoundRow):
        def __init__(self, layout: BoundTables, table: Table, row: Row, stack: Stack | None, layer: int | None) -> None:
            super().__init__(layout, table, change(row), stack, layer)

    monkeypatch.setattr(bind, "_BoundRow", Wrong)


def wrong_sentences(monkeypatch: pytest.MonkeyPatch, sentences: Mapping[str, str], native: str | None = None) -> None:
    """Rows have other sentences: `sentences` has the wrong one for each right one. `native`: the rows of this tensor alone."""

    def change(row: Row) -> Row:
        if native in (None, row.native):
            return replace(row, sentence=sentences.get(row.sentence, row.sentence))
        return row

    wrong_everywhere(monkeypatch, change)
