"""What leaves the program: text that a terminal can't be misled by, errors of a screen, and an end whatever stdout is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_core.cli.output import Page, emit_json, paint, say, table
from ckpt_core.errors import CkptError, Lines, Problems, ProblemsFound
from ckpt_core.plugins import discovery

HERE = Path(__file__).parent
CORE = Path(discovery.__file__).parents[2]

HOSTILE = "a\x1b[2J\x1b]0;owned\x07\r\n\x9b31m\u202eb\udcff\x7f"
SHOWN = "a\\x1b[2J\\x1b]0;owned\\x07\\r\\n\\x9b31m\\u202eb\\udcff\\x7f"
LONG = "n" * (1 << 20)


class TestText:
    def test_lines(self, capsys):
        say(HOSTILE)
        say(HOSTILE, err=True)
        Page().say("label", f"x {HOSTILE}", HOSTILE)
        out, err = capsys.readouterr()
        assert (
            out.split("\n") == [SHOWN, f"label        x {SHOWN}", f"             {SHOWN}", ""] and err == SHOWN + "\n"
        )

    def test_long_text_keeps_both_ends(self, capsys):
        say(f"tensor {LONG} is missing")
        out = capsys.readouterr().out
        assert len(out) < 3000 and out.startswith("tensor nn") and out.endswith("nn is missing\n")
        assert "characters left out" in out
        assert len("".join(table([[LONG, "1"], ["short", "2"]]))) < 2000

    def test_only_our_own_colours_are_colours(self, capsys, monkeypatch):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.delenv("NO_COLOR", raising=False)
        say(paint(HOSTILE, "red") + "\x1b[31m" + LONG + paint("bold", "bold"))
        out = capsys.readouterr().out
        assert out.startswith(f"\x1b[31m{SHOWN}\x1b[0m\\x1b[31mnnn") and out.endswith("nnn\x1b[1mbold\x1b[0m\n")
        assert out.count("\x1b") == 4

    def test_json_is_whole_and_has_no_control_character(self, capsys):
        document = {HOSTILE: [HOSTILE, LONG, "\U000e0001", "\u2028", "ß"]}
        emit_json(document)
        out = capsys.readouterr().out
        assert json.loads(out) == document and out.replace("\n", "").isprintable() and "ß" in out

    def test_a_stream_that_knows_no_unicode(self, process):
        ran = process(
            "import os, sys\nsys.stdout.reconfigure(encoding='ascii')\n"
            "from ckpt_core.cli.output import emit_json, say\nsay('ß')\nemit_json('ß\U0001f600')"
        )
        said, document = ran.stdout.splitlines()
        assert said == "\\xdf" and json.loads(document) == "ß\U0001f600"

    def test_a_config_reaches_no_terminal(self, ckpt, model):
        """Of every command's text; the law of the JSON document is above."""
        path = model / "architecture.json"
        facts = json.loads(path.read_text())
        for changed in ({**facts, HOSTILE: 1}, {**facts, "hidden": HOSTILE}, {**facts, "hidden": LONG}):
            path.write_text(json.dumps(changed))
            for command in (["inspect", model], ["convert", model, "out", "--to", "toy"], ["inspect", model, "--json"]):
                ran = ckpt(*command)
                assert ran.code == 1 and (ran.out + ran.err).replace("\n", "").isprintable()
                assert "--json" in command or len(ran.err) < 5000

    def test_arguments_that_click_refuses(self, ckpt):
        for arguments in ([HOSTILE.replace("\udcff", "")], ["inspect", "x", f"--{LONG}"], ["formats", HOSTILE, LONG]):
            ran = ckpt(*arguments)
            assert ran.code == 2 and ran.err.replace("\n", "").isprintable() and len(ran.err) < 10_000


class TestErrors:
    def test_parts_are_whole_and_their_text_is_not(self):
        error = CkptError(HOSTILE, file=LONG, found=HOSTILE)
        assert len(str(error)) < 2000 and str(error).split("\n")[0] == SHOWN
        assert error.to_json() == {"problem": HOSTILE, "file": LONG, "found": HOSTILE}

    def test_several_lines_are_asked_for(self):
        error = CkptError("no", found=Lines(["one", "two\nthree"]))
        assert str(error) == "no\n  found: one\ntwo\\nthree" and error.to_json()["found"] == "one\ntwo\nthree"

    @pytest.mark.parametrize("count", [3, 6, 500, 5000])
    def test_an_error_is_a_screen(self, count):
        problems = Problems("reading x")
        for number in range(count):
            problems.add(CkptError(f"{LONG[:5000]}{number}", file="f", found="a", expected="b", fix="c"))
        with pytest.raises(ProblemsFound) as raised:
            problems.raise_any()
        lines = str(raised.value).split("\n")
        shown = sum(line.startswith("- nnn") for line in lines)
        assert len(lines) <= 30 and (shown == count or lines[-1].startswith(f"- and {count - shown} problem"))
        body = raised.value.to_json()
        assert len(body["problems"]) + body.get("more", 0) == count

    def test_problems_that_begin_alike_are_two(self):
        problems = Problems("reading x")
        for name in ("a", "b"):
            problems.add(CkptError(f"{LONG}{name}{LONG}"))
        assert len(problems.found) == 2

    def test_what_was_only_counted_stays_counted(self):
        outer = Problems("all")
        outer.add(ProblemsFound("inner", [CkptError("a")], more=7))
        with pytest.raises(ProblemsFound, match="8 problems"):
            outer.raise_any()


def program(arguments: list[object], installed: Path, redirections: str, **options) -> subprocess.CompletedProcess:
    """The program with its streams as a shell leads them."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (installed, HERE, CORE)))}
    command = [sys.executable, "-P", "-m", "ckpt_core", *map(os.fsencode, arguments)]
    return subprocess.run(
        ["bash", "-c", f'"$@" {redirections}', "-", *command],
        env=environment,
        capture_output=True,
        timeout=120,
        **options,
    )


class TestStreams:
    @pytest.mark.parametrize("redirections", [">&-", ">/dev/full", "<&- >&- 2>&-", "2>/dev/full", "| true"])
    def test_a_conversion_ends_well_whatever_stdout_is(self, installed, model, tmp_path, redirections):
        ran = program(["convert", model, tmp_path / "out", "--to", "toy"], installed, redirections)
        assert ran.returncode == 0 and (tmp_path / "out").is_dir(), ran
        assert b"bug" not in ran.stderr and b"Traceback" not in ran.stderr and b"Exception" not in ran.stderr
        if "full" in redirections and "2" not in redirections:
            assert b"is complete, but its summary can't be printed: No space left" in ran.stderr

    def test_what_exists_to_be_printed_must_be(self, installed, model):
        ran = program(["inspect", model], installed, ">/dev/full")
        assert ran.returncode == 1 and b"error: the output can't be printed" in ran.stderr
        assert program(["inspect", model], installed, ">&-").returncode == 0
        assert program(["inspect", "nothing"], installed, "2>&-").returncode == 1

    def test_no_file_gets_the_number_of_a_closed_stream(self, installed):
        code = "import os; from ckpt_core.cli.main import main; main(['formats']); os.write(2, os.readlink('/proc/self/fd/1').encode())"
        ran = subprocess.run(
            ["bash", "-c", '"$@" >&-', "-", sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (installed, HERE, CORE)))},
            capture_output=True,
        )
        assert ran.stderr == b"/dev/null"


class TestNames:
    def test_a_source_whose_name_is_no_text(self, installed, model, tmp_path):
        source = Path(os.fsdecode(os.fsencode(model) + b"\xff"))
        model.rename(source)
        out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/out\xff"))
        for arguments in (
            ["convert", source, out, "--to", "toy"],
            ["verify", source, out],
            ["inspect", out, "--json"],
            ["inspect", out, "--html", tmp_path / os.fsdecode(b"\xff.html")],
        ):
            ran = program(arguments, installed, "")
            assert ran.returncode == 0, ran
        assert json.loads((out / "ckpt-receipt.json").read_text())["source"]["path"] == str(source)

    def test_the_module_looks_for_nothing_in_the_current_folder(self, installed, model):
        info = model / "evil-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[ckpt.formats]\nevil = evil\n")
        for name in ("evil", "click", "json"):
            (model / f"{name}.py").write_text("raise SystemExit('a module of the current folder was run')")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (installed, HERE, CORE)))}
        environment.pop("CKPT_PLUGINS")
        ran = subprocess.run(
            [sys.executable, "-m", "ckpt_core", "formats"], env=environment, cwd=model, capture_output=True, text=True
        )
        assert ran.returncode == 0 and "toy" in ran.stdout and "evil" not in ran.stdout + ran.stderr, ran


@pytest.mark.parametrize("name", ["../..", "a/..", "-/a", "a--b/c", "a/b.git", "a" * 300 + "/b", "a/b@../..", "a/b@"])
def test_names_that_the_hub_does_not_have(ckpt, name):
    pytest.importorskip("huggingface_hub")
    ran = ckpt("inspect", f"hf://{name}")
    assert ran.code == 2 and "bug" not in ran.err and f"hf://{name}"[:200] in ran.err
