"""What every law works with: the format, its quirks, and how its checkpoints are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_core.api import convert, plan_conversion, read_checkpoint
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.engine.staging import SUFFIX
from ckpt_core.errors import CkptError
from ckpt_core.testing.entries import Entries, Entry
from ckpt_core.testing.quirks import Quirks, Ranks
from ckpt_core.testing.workshop import Workshop

TOLERANCE = 1e-4
"""How far two logits of one model may be apart."""


class Law:
    """A law about `format`, which `quirks` describes."""

    format: str
    quirks: Quirks = Quirks()

    def _read(self, path: str) -> Checkpoint:
        return read_checkpoint(path, format=self.format, options=self.quirks.read_options)

    def _entries(self) -> Entries:
        if self.quirks.entries is None:
            pytest.skip("Quirks.entries is None: nothing to damage")
        return self.quirks.entries

    def _weight_files(self, workshop: Workshop, source: str, layout: Ranks) -> list[str]:
        plan = plan_conversion(source, workshop.new(), **workshop.arguments(layout))
        return [file.path for file in plan.target.files]

    def _assert_refused(self, workshop: Workshop, folder: str, what: str, entry: Entry | None = None) -> str:
        """Converting `folder` must fail with an error of ours that names `entry`, and leave nothing behind."""
        out = workshop.new()
        options = {f"src.{name}": value for name, value in self.quirks.read_options.items()}
        try:
            convert(folder, out, to="ir", format=self.format, options=options)
        except CkptError as error:
            message = str(error)
        else:
            raise AssertionError(f"{what}, and nobody noticed")
        assert not os.path.exists(out) and not os.path.exists(out + SUFFIX), (
            f"{what}: the output of a refused conversion is left behind"
        )
        if entry is not None:
            assert entry.name in message or entry.file in message, f"{what}, but the error does not name it:\n{message}"
        return message


def assert_same_weights(one: str, two: str, files: list[str]) -> None:
    """Two outputs hold the same bytes in their weight files."""
    assert files
    different = [file for file in files if Path(one, file).read_bytes() != Path(two, file).read_bytes()]
    assert not different, f"files that differ: {different}"


def no_crash(read: Callable[[], object], said: str = "a foreign file") -> object:
    """What `read` returns, or the error of ours that it raises. Any other error is a failure."""
    try:
        return read()
    except CkptError as error:
        return error
    except Exception as error:
        raise AssertionError(f"{said} crashes the reader: {type(error).__name__}: {error}") from error
