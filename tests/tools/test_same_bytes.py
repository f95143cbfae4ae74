"""The comparison of two commits: it sees a byte that was turned, and runs the code that it says it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ONE = ("--formats", "ir", "--quick", "--only", "llama-tied -> ir")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/same_bytes.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CKPT_GOLDENS": ""})


def test_a_changed_byte_is_found_and_only_that(tmp_path: Path) -> None:
    """The other tree writes one byte less at the end of one document."""
    shutil.copytree(ROOT / "core/src", tmp_path / "core/src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "core/pyproject.toml", tmp_path / "core")
    (tmp_path / "plugins").symlink_to(ROOT / "plugins")
    writer = tmp_path / "core/src/ckpt_core/ir/files.py"
    line = '(json.dumps(checkpoint.notes, indent=1) + "\\n")'
    text = writer.read_text()
    assert line in text
    done = run(ROOT, tmp_path, *ONE, "--cache", tmp_path / "cache")
    assert (done.returncode, done.stdout) == (0, "ir: 1 compared, 1 equal, 0 refused by both, 0 different\n"), (
        done.stderr
    )
    writer.write_text(text.replace(line, "json.dumps(checkpoint.notes, indent=1)"))
    done = run(ROOT, tmp_path, *ONE, "--cache", tmp_path / "cache")
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[1].startswith("  DIFFERS llama-tied -> ir: notes.json differs (")


def test_code_of_another_tree_is_not_taken_for_its_own(tmp_path: Path) -> None:
    """A tree that lacks a plugin would import what is installed: the run stops, instead of comparing a tree with itself."""
    (tmp_path / "core/src").mkdir(parents=True)
    done = run(ROOT, tmp_path, *ONE, "--cache", tmp_path / "cache")
    assert done.returncode == 1
    assert f"and not from {tmp_path}" in done.stderr
