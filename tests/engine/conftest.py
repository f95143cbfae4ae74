"""Shared by the tests of the engine."""

from __future__ import annotations

import pytest

from ckpt_core import api
from ckpt_core.engine import threads as in_threads


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models, too, are moved by threads."""
    monkeypatch.setattr(in_threads, "_FEW", 0)
    monkeypatch.setattr(api, "_FEW", 0)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tensors that this process moves."""
    moved: list[str] = []
    original = in_threads.run_transfer

    def noted(transfer, source, sink):
        moved.append(transfer.name)
        return original(transfer, source, sink)

    monkeypatch.setattr(in_threads, "run_transfer", noted)
    return moved
