"""The template of a plugin: installed as a package, it passes the kit, converts, and the kit catches it when it is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "templates" / "plugin"

DISCOVERABLE = """\
Metadata-Version: 2.1
Name: ckpt-example
Version: 0.1.0
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder that holds the template as an installed distribution."""
    folder = tmp_path / "site"
    shutil.copytree(
        TEMPLATE / "src" / "ckpt_example", folder / "ckpt_example", ignore=shutil.ignore_patterns("__pycache__")
    )
    info = folder / "ckpt_example-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(DISCOVERABLE)
    (info / "entry_points.txt").write_text("[ckpt.formats]\nexample = ckpt_example:FORMAT\n")
    return folder


def run(site: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A Python command that sees the plugin."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CKPT_PLUGINS": "example,hf,ir",
    }
    return subprocess.run([sys.executable, *command], env=environment, cwd=site.parent, capture_output=True, text=True)


def conformance(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    tests = site.parent / "tests"
    shutil.copytree(TEMPLATE / "tests", tests, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return run(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tests), str(tests), *arguments)


def test_the_entry_point_is_the_one_it_declares() -> None:
    text = (TEMPLATE / "pyproject.toml").read_text()
    assert '[project.entry-points."ckpt.formats"]\nexample = "ckpt_example:FORMAT"\n' in text


def test_it_passes_the_kit(site: Path) -> None:
    done = conformance(site)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


def test_it_converts_from_and_to_hf(site: Path) -> None:
    pytest.importorskip("ckpt_hf")
    script = """
from ckpt_core import convert, fingerprint
from ckpt_core.testing import example, write_ir
write_ir("ir", example("llama-padded"))
convert("ir", "hf", to="hf")
convert("hf", "example", to="example", tp=4)
convert("example", "back", to="hf")
assert fingerprint("hf") == fingerprint("example") == fingerprint("back")
for name in ("model.safetensors", "config.json"):
    assert open(f"hf/{name}", "rb").read() == open(f"back/{name}", "rb").read(), name
"""
    done = run(site, "-c", script)
    assert done.returncode == 0, done.stderr
    listed = run(site, "-m", "ckpt_core", "formats")
    assert "ckpt-example 0.1.0" in listed.stdout


# What an author may get wrong, and the law that notices.
MISTAKES = {
    "a tensor that nobody accounts for": (
        "weights.py",
        "TABLES = (MODEL, LAYER)",
        'TABLES = (MODEL.extend(drop("*", "wrong")), LAYER)',
        "test_a_tensor_too_many_is_named",
    ),
    "a fact that nobody writes": (
        "config.py",
        'key("rope_base", "attention.rotary.theta", default=10000.0),',
        'ignore("rope_base", why="wrong"), fact_is("attention.rotary.theta", 10000.0),',
        "test_a_fact_is_expressed_or_refused_by_name and theta",
    ),
    "a fact that is written and not read": (
        "config.py",
        'key("tied", "head.tied", default=False),',
        'key("tied", "head.tied", default=False), ignore("softcap", why="wrong"), fact_is("attention.sinks", False),'
        ' custom([], ["attention.softcap"], read=lambda *_: None, write=lambda *_: None),',
        "test_a_fact_is_expressed_or_refused_by_name and softcap",
    ),
    "a rewrite that is another function": (
        "__init__.py",
        "    TABLES,\n)",
        "    TABLES,\n    rewrite=lambda model, _: rewrites.Rewritable(\n"
        "        rewrites.folded_attention_scale(model).architecture, model.tensors, ('folded',)\n    ),\n)",
        "test_a_fact_is_expressed_or_refused_by_name and attention.scale",
    ),
    "a vocabulary that is cut short": (
        "config.py",
        'key("vocabulary", "tokens.vocabulary"),',
        'custom(["vocabulary"], ["tokens.vocabulary"],'
        ' read=lambda config, facts, notes: facts.update({"tokens.vocabulary": config["vocabulary"] - 1}),'
        ' write=lambda facts, notes, config: config.update(vocabulary=facts["tokens.vocabulary"])),',
        "test_what_is_written_reads_back",
    ),
    "a file that is named without its rank": (
        "__init__.py",
        'weights="rank-{tp}.safetensors", counts={"tp": "ranks"}',
        'weights="rank-0.safetensors"',
        "test_every_layout_leads_to_every_other",
    ),
    "a framework that is imported": (
        "__init__.py",
        "from ckpt_core.sdk import",
        "import torch\n\nfrom ckpt_core.sdk import",
        "test_it_imports_no_framework",
    ),
    "a detection that is too eager": (
        "__init__.py",
        "FORMAT = Format(",
        "class Eager(Format):\n"
        "    @hookimpl\n"
        "    def ckpt_detect(self, path):\n"
        "        return 'a folder' if os.path.isdir(path) and '__init__.py' not in os.listdir(path) else None\n\n\n"
        "FORMAT = Eager(",
        "test_it_detects_its_own_and_nothing_else",
    ),
}


# The names that mistakes need besides, where the file imports others.
NAMES = (
    ("sdk import Activation, Config,", "sdk import Activation, Config, custom, ignore,"),
    ("sdk import Folder, Format,", "sdk import Folder, Format, hookimpl, rewrites,"),
    ("sdk import Table, row", "sdk import Table, drop, row"),
    ('model.json."""\n', 'model.json."""\n\nimport os\n'),
)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_kit_notices(site: Path, mistake: str) -> None:
    file, right, wrong, law = MISTAKES[mistake]
    path = site / "ckpt_example" / file
    text = path.read_text()
    assert text.count(right) == 1, f"{file} no longer has {right!r}"
    changed = text.replace(right, wrong)
    for known, more in NAMES:
        changed = changed.replace(known, more)
    path.write_text(changed)
    done = conformance(site, "-x", "-k", law)
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout[-3000:]
