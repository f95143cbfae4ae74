"""What is uploaded to an index: one version, one licence, READMEs that stand alone."""

from __future__ import annotations

import doctest
import re
import tomllib
from pathlib import Path

import pytest

import version
from ckpt_core import __version__

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(
    file.parent
    for pattern in ("core", "page", "convert", "plugins/*")
    for file in ROOT.glob(f"{pattern}/pyproject.toml")
)
NAMES = [str(folder.relative_to(ROOT)) for folder in FOLDERS]


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_it_says_who_what_and_where(folder: Path) -> None:
    said, common = project(folder), project(ROOT / "core")
    assert said["version"] == __version__
    for key in ("requires-python", "license", "license-files", "authors", "classifiers", "urls"):
        assert said[key] == common[key], key
    assert {"checkpoint", "large-language-model"} < set(said["keywords"])
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_its_readme_stands_alone(folder: Path) -> None:
    """An index shows the README without the repository around it."""
    targets = re.findall(r"\]\(([^)]*)\)", (folder / "README.md").read_text())
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []


def test_one_install_brings_every_distribution_of_this_version() -> None:
    said = project(ROOT / "convert")
    brought = {re.split(r"[\[=]", requirement)[0]: requirement for requirement in said["dependencies"]}
    assert set(brought) == {project(folder)["name"] for folder in FOLDERS} - {"ckpt-convert"}
    extras = [extra for name, group in said["optional-dependencies"].items() if name != "all" for extra in group]
    for requirement in (*brought.values(), *extras):
        assert requirement.endswith(f"=={__version__}"), requirement
    (everything,) = said["optional-dependencies"]["all"]
    assert set(re.findall(r"\w+", everything.partition("[")[2])) == set(said["optional-dependencies"]) - {"all"}


def test_the_version_is_written_from_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert version.main([]) == 0
    assert version.main(["1.0"]) == 2
    assert doctest.testmod(version).failed == 0
    for path in version.places():
        text = path.read_text()
        later = version.stamped(text, "7.8.9")
        assert later != text and version.stamped(later, __version__) == text


def test_citation_and_changelog_know_the_version() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
