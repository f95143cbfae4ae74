"""Checkpoints from strangers: whatever is wrong with one, the program says so once, runs nothing and writes nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from ckpt_tests.corpus import CASES
from ckpt_tests.goldens import SHIPPED

GOLDEN = SHIPPED / "nanotron" / "main_llama_tied_tp2_pp2" / "checkpoint"
SECONDS = 2  # of CPU time
MEMORY = 300 << 20
UNFORESEEN = "Traceback|this is a bug|fails on this checkpoint|fails to look"


SAYS = {case.name: case.says for case in CASES}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the program did about every case: see `run_corpus`."""
    folder = tmp_path_factory.mktemp("malice")
    command = [sys.executable, "-m", "ckpt_tests.run_corpus", str(folder), str(GOLDEN)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=folder)
    assert run.returncode == 0, run.stderr
    assert {path.name for path in folder.iterdir()} == {"hosts", "strays"}, "something was run, or unpacked"
    return json.loads(run.stdout)


def test_names_are_different_and_many() -> None:
    assert len(SAYS) == len(CASES) >= 60


@pytest.mark.parametrize("name", SAYS)
def test_a_case_ends_in_one_clear_error(done: dict, name: str) -> None:
    record = done["cases"][name]
    for run in record["runs"]:
        text = run["text"]
        assert run["code"] == 1, text
        assert re.search(SAYS[name], text), text
        assert record["folder"] in text, f"no file is named in:\n{text}"
        assert text.count("error: ") == 1 and len(text) < 20_000
        assert not re.search(UNFORESEEN, text), text
        assert run["seconds"] < SECONDS
        assert run["noted"] == [], "something was run or written"
    assert record["untouched"], "a file was changed, made or removed"


@pytest.mark.parametrize("host", sorted({case.host for case in CASES}))
def test_what_the_cases_damage_is_good(done: dict, host: str) -> None:
    """Else every case would pass. The conversion writes, so the watch sees."""
    record = done["good"][host]
    assert [run["code"] for run in record["runs"]] == [0, 0], record["runs"]
    assert record["runs"][0]["noted"] == []
    assert any("os.rename" in noted for noted in record["runs"][1]["noted"])


def test_memory_is_bounded(done: dict) -> None:
    assert done["memory"] < MEMORY


def test_every_format_refuses_what_is_no_checkpoint(done: dict) -> None:
    assert len(done["strays"]) > 100
    for stray in done["strays"]:
        assert stray["code"] == 1, stray
        assert stray["path"] in stray["text"], stray
        assert not re.search(UNFORESEEN, stray["text"]), stray
        assert stray["seconds"] < SECONDS and stray["noted"] == [], stray
