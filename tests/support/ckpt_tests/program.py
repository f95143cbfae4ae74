"""Running `ckpt` in this process, and what a refusal must look like."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from unittest import mock

from ckpt_core.cli import progress
from ckpt_core.cli.main import main
from ckpt_tests.folders import assert_nothing_at, contents


def ckpt(*arguments: object) -> tuple[int, str]:
    """Exit code and everything printed, but for what is said because a machine is slow."""
    out = io.StringIO()
    with (
        mock.patch.object(progress, "SILENCE", 600),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
    ):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue()


def assert_refused(source: Path, *names: str, to: str, code: int = 1, arguments: tuple[object, ...] = ()) -> str:
    """A conversion ends with `code`, names every one of `names`, shows no traceback and leaves nothing behind."""
    destination = source.parent / "refused"
    before = contents(source) if source.is_dir() else None
    found, text = ckpt("convert", source, destination, "--to", to, *arguments)
    assert found == code, text
    for name in names:
        assert name in text, f"{name!r} is not named in:\n{text}"
    assert "Traceback" not in text
    assert_nothing_at(destination)
    assert before is None or contents(source) == before, "the source was changed"
    return text
