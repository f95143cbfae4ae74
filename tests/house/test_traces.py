"""The guard of `ckpt_tests.traces`: a test that leaves something behind fails by name, and those after it do not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

LEAVING = """
import contextvars, gc, logging, multiprocessing, os, signal, sys, types
import pytest
from ckpt_core.errors import UsageError
from ckpt_core.plugins import discovery, installed

PRESENT = contextvars.ContextVar("present")


def test_variable(): os.environ["CKPT_LEFT"] = "1"
def test_variable_gone(): del os.environ["CKPT_LEFT"]
def test_folder(): os.chdir("..")
def test_mask(): os.umask(0o077)
def test_path(): sys.path.append("/left")
def test_signal(): signal.signal(signal.SIGUSR1, signal.SIG_IGN)
def test_context(): PRESENT.set(1)
def test_collector(): gc.disable()
def test_handler(): logging.root.addHandler(logging.NullHandler())
def test_method(): multiprocessing.set_start_method("spawn")
def test_stand_in(): sys.modules["ray"] = None
def test_module_of_a_folder(tmp_path, monkeypatch):
    (tmp_path / "odd.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    import odd
def test_module_twice():
    del sys.modules["ckpt_core.plugins.request"]
    import ckpt_core.plugins.request
def test_server(monkeypatch):
    monkeypatch.setenv("CKPT_PLUGINS", "ir")
    multiprocessing.forkserver.ensure_running()
def test_fixture(left): pass
@pytest.fixture
def left():
    yield
    os.environ["LEFT"] = "1"
def test_formats_that_were_restricted(monkeypatch):
    installed.entry_points.cache_clear()
    monkeypatch.setenv("CKPT_PLUGINS", "ir")
    installed.entry_points()
def test_a_format_that_is_broken(monkeypatch):  # and stays so for all tests that need it
    monkeypatch.setattr(discovery, "entry_points", lambda: {"ir": []})
    with pytest.raises(UsageError):
        discovery.load.__wrapped__("fsdp-lora")
"""
CLEAN = """
def test_patched(monkeypatch, tmp_path):
    monkeypatch.setenv("CKPT_LEFT", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "dask", types.ModuleType("dask"))
def test_imports(): import wave
def test_loads(): assert discovery.load("ir").broken is None
"""


def test_what_leaves_a_trace_fails_by_name(tmp_path: Path) -> None:
    file = tmp_path / "test_left.py"
    file.write_text(LEAVING.replace("\ndef", CLEAN + "\ndef", 1) + CLEAN.replace("test_", "test_later_"))
    options = [
        "-p",
        "ckpt_tests.traces",
        "-p",
        "no:randomly",
        "-p",
        "no:cacheprovider",
        "-rE",
        "--noconftest",
        "-n",
        "0",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", tmp_path, file],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    left = re.findall(r"^def (test_\w+)", LEAVING, re.M)
    assert re.findall(r"^ERROR \S+::(\w+)", done.stdout, re.M) == left, done.stdout + done.stderr
    assert f"{len(left) + 6} passed, {len(left)} errors" in done.stdout
    assert "load('ir') is kept, and broken: IndexError: list index out of range" in done.stdout
