"""Shared by the tests of the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_core import api
from ckpt_core.engine import threads as in_threads
from ckpt_tests import tiny


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models, too, are moved by threads."""
    monkeypatch.setattr(in_threads, "_FEW", 0)
    monkeypatch.setattr(api, "_FEW", 0)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tensors that this process moves; those that are only read to be compared are not among them."""
    moved: list[str] = []
    original = in_threads.run_transfer

    def noted(transfer, source, sink):
        if sink is not None:
            moved.append(transfer.name)
        return original(transfer, source, sink)

    monkeypatch.setattr(in_threads, "run_transfer", noted)
    return moved


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one layer in HF, with a tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "hf"
    tiny.build(folder, "llama", num_hidden_layers=1)
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    return folder
