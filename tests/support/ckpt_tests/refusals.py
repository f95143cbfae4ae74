"""What a refused checkpoint must be like, and files that are changed so that it is one."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_core import convert
from ckpt_core.errors import CkptError
from ckpt_tests.folders import assert_nothing_at


def refused(run: Path, *words: str, problem: str = "", **arguments: Any) -> str:
    """The error of a conversion to `ir`, which has the `words` and matches `problem`, and leaves nothing behind.

    `arguments` are further ones of `convert`.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "refused"
        with pytest.raises(CkptError) as error:
            convert(run, out, to="ir", **arguments)
        assert_nothing_at(out)
    text = str(error.value)
    assert re.search(problem, text), f"{problem!r} does not match:\n{text}"
    for word in words:
        assert word in text, f"{word!r} is not named in:\n{text}"
    return text


def loaded(path: Path) -> Any:
    """A whole torch file."""
    return torch.load(path, weights_only=False)


def changed(
    path: Path,
    change: Callable[[Any], object],
    load: Callable[[Path], Any] = loaded,
    save: Callable[[Any, Path], object] = torch.save,
) -> None:
    """A torch file whose content `change` changes in place."""
    content = load(path)
    change(content)
    save(content, path)
