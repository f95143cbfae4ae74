"""Plugins that cannot be used, and paths that several recognise: what the user is told, in one line each."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_core.plugins import discovery
from ckpt_core.plugins.discovery import detect
from ckpt_core.plugins.installed import entry_points

HEAD = "from ckpt_core.plugins.hookspecs import hookimpl\nfrom ckpt_core.plugins.request import FormatInfo\n"
INFO = '@hookimpl\ndef ckpt_info():\n    return FormatInfo("{name}", "a format for tests"{more})\n'
DETECT = "@hookimpl\ndef ckpt_detect(path):\n    {body}\n"
READ = "@hookimpl\ndef ckpt_read(path, request):\n    return None\n"
WRITE = "@hookimpl\ndef ckpt_write(checkpoint, request):\n    return None\n"


def plugin(
    *, more: str = "", body: str = "return None", detects: str = DETECT, read: str = READ, write: str = WRITE
) -> str:
    return HEAD + INFO.replace("{more}", more) + detects.replace("{body}", body) + read + write


@pytest.fixture
def install(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a distribution that has one format, whose module is the given text."""

    def distribution(format: str, text: str, *, named: str = "") -> None:
        name = named or f"ckpt-{format}"
        module = name.replace("-", "_")
        info = installed / f"{module}-2.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n")
        (info / "entry_points.txt").write_text(f"[ckpt.formats]\n{format} = {module}\n")
        (installed / f"{module}.py").write_text(text.replace("{name}", format))
        monkeypatch.setenv("CKPT_PLUGINS", f"toy,{format}")
        monkeypatch.setitem(sys.modules, module, None)  # which is undone, whatever is imported under this name
        del sys.modules[module]
        importlib.invalidate_caches()
        for cached in (entry_points, discovery.load):
            cached.cache_clear()

    return distribution


FAULTS = {
    "no info": (HEAD, "it has no hook ckpt_info; add ckpt_info to ckpt_odd, and mark it with @hookimpl"),
    "info of nothing": (
        HEAD + "@hookimpl\ndef ckpt_info(): pass\n",
        "its ckpt_info returns None; let ckpt_info return a",
    ),
    "no detector": (plugin(detects=""), "it has no hook ckpt_detect, which every format needs; add ckpt_detect to"),
    "no reader": (plugin(read=""), "it has no hook ckpt_read, and FormatInfo says reads=True; add ckpt_read to"),
    "no writer": (plugin(write=""), "it has no hook ckpt_write, and FormatInfo says writes=True; add ckpt_write to"),
    "a misspelt argument": (
        plugin(read=READ.replace("request", "reqest")),
        "hookimpl definition: ckpt_read(path, reqest); Argument(s) {'reqest'} are declared in the hookimpl",
    ),
    "a misspelt hook": (
        plugin(read=READ.replace("_read", "_reed")),
        "ckpt has no hook ckpt_reed; rename it to ckpt_read",
    ),
    "a newer SDK": (
        plugin(more=", sdk=2", read=READ.replace("request", "later")),
        "it was written for SDK 2, this is SDK 1; pip install --upgrade ckpt-core",
    ),
    "an older SDK": (plugin(more=", sdk=0"), "it was written for SDK 0, this is SDK 1; pip install --upgrade ckpt-odd"),
    "another name": (
        plugin().replace("{name}", "even"),
        "it calls itself 'even', its entry point says 'odd'; give both",
    ),
    "a detector that raises": (
        plugin(body="return 1 / 0"),
        "its ckpt_detect raises ZeroDivisionError: division by zero on a path that does not exist; let ckpt_detect return None",
    ),
    "a detector that lists": (
        plugin(body="import os; return 'x' in os.listdir(path) or None"),
        "its ckpt_detect raises NotADirectoryError",
    ),
    "a detector of all folders": (
        plugin(body="import os; return 'a folder' if os.path.isdir(path) else None"),
        "its ckpt_detect takes a folder of Python files for its own: a folder; let ckpt_detect look closer",
    ),
    "a sentence that does not parse": (
        "from ckpt_core.layout import parse\nparse('(g (q + k) d h')\n",
        "expected ')' here: (g (q + k) d h",
    ),
    "no module": ("import nothing_of_this_name\n", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_that_names_plugin_and_distribution(ckpt, install, fault: str, tmp_path: Path) -> None:
    text, said = FAULTS[fault]
    install("odd", text)
    ran = ckpt("formats")
    odd, toy = ran.out.splitlines()[1:]
    assert ran.code == 0 and odd.split()[:4] == ["odd", "ckpt-odd", "2.0", "broken:"] and said in odd
    assert toy.split()[3:5] == ["yes", "yes"]
    assert ckpt("formats", "--json").json["formats"][0]["broken"] in odd
    for command in (["formats", "odd"], ["inspect", tmp_path, "--from", "odd"]):
        asked = ckpt(*command)
        assert asked.code == 1 and "format odd is installed but broken" in asked.err
        assert f"found: ckpt-odd 2.0: {said.partition(';')[0]}" in asked.err or fault == "a misspelt argument"
        assert "fix: " in asked.err


def test_two_distributions_of_one_format(ckpt, install) -> None:
    install("odd", plugin())
    install("odd", plugin(), named="other-odd")
    odd = ckpt("formats").out.splitlines()[1]
    said = "several distributions have a format of this name: ckpt-odd 2.0, other-odd 2.0"
    assert odd.startswith("odd") and f"broken: {said}; uninstall all of them but one" in odd
    asked = ckpt("formats", "odd")
    assert asked.code == 1 and said in asked.err and "fix: uninstall all of them but one" in asked.err


def test_a_reader_and_a_writer_that_return_nothing(ckpt, install, model: Path, tmp_path: Path) -> None:
    install("odd", plugin())
    ran = ckpt("inspect", model, "--from", "odd")
    assert (
        ran.code == 1 and "ckpt_read of format odd returns no Description\n  found: None from ckpt-odd 2.0" in ran.err
    )
    ran = ckpt("convert", model, tmp_path / "out", "--to", "odd")
    assert ran.code == 1 and "ckpt_write of format odd returns no Target\n  found: None from ckpt-odd 2.0" in ran.err


def test_a_reader_that_assembles_its_checkpoint_itself(ckpt, install, model: Path) -> None:
    """Only what is made of another checkpoint, as an adapter is, can't be described."""
    made = "from ckpt_core.checkpoint import Checkpoint\n" + READ.replace(
        "None", "Checkpoint('odd', path, None, {}, [])"
    )
    install("odd", plugin(read=made))
    ran = ckpt("inspect", model, "--from", "odd")
    assert ran.code == 1 and "ckpt_read of format odd returns no Description\n  found: Checkpoint(" in ran.err


# Several formats that recognise one folder

MORE_SPECIFIC = "import os; return 'spice beside the toy' if os.path.exists(f'{path}/spice') else None"


def test_the_more_specific_of_two_is_read(ckpt, install, model: Path) -> None:
    (model / "spice").touch()
    install("spiced", plugin(body=MORE_SPECIFIC))
    ran = ckpt("inspect", model)
    assert ran.code == 2 and "several formats recognise this path" in ran.err and "choose one with --from" in ran.err
    install("seasoned", plugin(body=MORE_SPECIFIC, more=', before=("toy",)'))
    (found,) = detect(str(model))
    fact = "spice beside the toy; before toy (toy.safetensors beside architecture.json)"
    assert (found[0].name, found[1]) == ("seasoned", fact)
    assert "toy: where both recognise a folder, this one is read" in ckpt("formats", "seasoned").out
    (model / "spice").unlink()
    assert [found.name for found, _ in detect(str(model))] == ["toy"]


def test_two_that_each_come_before_the_other_are_left_to_the_user(ckpt, install, model: Path, monkeypatch) -> None:
    (model / "spice").touch()
    install("one", plugin(body=MORE_SPECIFIC, more=', before=("two",)'))
    install("two", plugin(body=MORE_SPECIFIC, more=', before=("one",)'))
    monkeypatch.setenv("CKPT_PLUGINS", "one,two")
    entry_points.cache_clear()
    assert [found.name for found, _ in detect(str(model))] == ["one", "two"]


def test_a_detector_that_fails_on_this_path_is_named(ckpt, install, model: Path, tmp_path: Path) -> None:
    install("odd", plugin(body="import os; return 1 / 0 if 'model' in path else None"))
    failure = "format odd fails to look at this path (ckpt-odd 2.0: ZeroDivisionError: division by zero)"
    assert failure in ckpt("inspect", model).out
    (tmp_path / "other-model").mkdir()
    ran = ckpt("inspect", tmp_path / "other-model")
    assert ran.code == 1 and "format odd fails to look at this path" in ran.err and "--from" in ran.err
