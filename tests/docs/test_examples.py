"""The examples of plugins: installed as packages, they pass the kit, and need nothing of ckpt but what an author gets."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import notebook

EXAMPLES = Path(__file__).parents[2] / "examples"
# What an example may be long at most, all Python but its tests: half of what an outsider once wrote without `Format`.
LINES = {"litgpt": 254, "meta-llama": 163}
# The laws of the kit that are held here; those that try every fact, key and option take longer, and are in the example's own tests.
LAWS = (
    "loads or hooks or framework or detects or reads_back or writes_back or receipt or layout or dtype or notes or sidecars"
    " or missing or too_many or shape or integer or truncated or unknown"
)

every_example = pytest.mark.parametrize("name", LINES)


def modules(name: str) -> list[Path]:
    return sorted((EXAMPLES / name / "src").rglob("*.py"))


NOTEBOOK = EXAMPLES / "first-checkpoint.ipynb"


def test_every_example_is_here() -> None:
    assert {path.name for path in EXAMPLES.iterdir()} == {*LINES, NOTEBOOK.name}


def test_the_notebook_prints_what_it_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # else torch, once imported, keeps one in that folder
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    printed = notebook.executed(cells)
    assert len(cells) == 7 and [notebook.texts(one) for one in printed] == [
        notebook.texts(one["outputs"]) for one in cells
    ]


@every_example
def test_it_is_short(name: str) -> None:
    assert sum(len(module.read_text().splitlines()) for module in modules(name)) <= LINES[name]


@every_example
def test_it_imports_the_sdk_alone(name: str) -> None:
    imported = {
        node.module
        for module in [*modules(name), *(EXAMPLES / name / "tests").glob("*.py")]
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("ckpt_core")
    }
    assert imported == {"ckpt_core.sdk", "ckpt_core.testing"}


@every_example
def test_it_passes_the_kit(name: str, tmp_path: Path) -> None:
    """In a process that finds it as an installed distribution."""
    project = tomllib.loads((EXAMPLES / name / "pyproject.toml").read_text())["project"]
    shutil.copytree(EXAMPLES / name / "src", tmp_path / "site", ignore=shutil.ignore_patterns("__pycache__"))
    info = tmp_path / "site" / f"{project['name'].replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    (entry,) = project["entry-points"]["ckpt.formats"].items()
    (info / "entry_points.txt").write_text(f"[ckpt.formats]\n{entry[0]} = {entry[1]}\n")
    tests = shutil.copytree(EXAMPLES / name / "tests", tmp_path / "tests")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "ckpt_tests.quick",
        "--rootdir",
        tests,
        tests,
        "-k",
        LAWS,
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "CKPT_PLUGINS": f"{name},hf,ir"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
