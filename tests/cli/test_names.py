"""Finding one's way: near names, completion in bash and zsh, the options of a format in `--help`, odd names of destinations."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_core.cli.completion import BashWithValues
from ckpt_core.cli.main import cli
from ckpt_core.cli.progress import DrawnListener, announced
from ckpt_core.engine.run import Progress
from ckpt_core.plugins import discovery

HERE = Path(__file__).parent
CORE = Path(discovery.__file__).parents[2]


class TestNearNames:
    @pytest.mark.parametrize(("asked", "meant"), [("conver", "convert"), ("compare", "diff"), ("inspct", "inspect")])
    def test_commands(self, ckpt, asked, meant):
        ran = ckpt(asked)
        assert ran.code == 2 and f"did you mean 'ckpt {meant}'?" in ran.err

    def test_a_command_like_no_other(self, ckpt):
        assert "did you mean" not in ckpt("xyzzy").err

    @pytest.mark.parametrize("asked", ["toi", "toys", "plaything", "Play-Thing", "play_thing"])
    def test_formats(self, ckpt, asked, tmp_path):
        """A format is found by what else it is called; the name is looked at before the source is."""
        ran = ckpt("convert", tmp_path / "nowhere", tmp_path / "out", "--to", asked)
        assert ran.code == 2 and "did you mean 'toy'?" in ran.err

    def test_every_other_name_is_of_one_format_and_of_no_installed_one(self):
        plugins = [discovery.load(name) for name in discovery.format_names()]
        called = [one for plugin in plugins if not plugin.broken for one in plugin.info.called]
        assert len(called) == len({*called}) and not {*called} & {*discovery.format_names()}
        assert "huggingface" in called or "hf" not in discovery.format_names()

    def test_version(self, ckpt):
        assert ckpt("-V").out == ckpt("--version").out != ""


class TestHelp:
    def test_the_options_of_a_format(self, ckpt):
        text = ckpt("convert", "--help", "--to", "toy").out
        assert "Options of toy:" in text and "-o untie=bool" in text and "flavour" not in text
        text = ckpt("inspect", "--help", "--from=toy").out
        assert "-o flavour=sweet | sour" in text and "[default: sweet]" in text and "untie" not in text
        assert "-o untie=bool" in ckpt("selftest", "toy", "--help").out
        assert "Options of" not in ckpt("convert", "--help").out


@pytest.fixture
def shell(installed: Path, tmp_path: Path) -> Path:
    """A `ckpt` in a folder for PATH, that sees the toy format."""
    program = tmp_path / "bin" / "ckpt"
    program.parent.mkdir()
    path = os.pathsep.join(map(str, (installed, HERE, CORE)))
    program.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {sys.executable} -m ckpt_core "$@"\n')
    program.chmod(0o755)
    return program.parent


OFFERED = {
    "ckpt conv": "convert",
    "ckpt convert a b --to t": "toy",
    "ckpt convert a b --to toy -o unt": "untie=",
    "ckpt convert a b --to toy -o untie=": "true false",
    "ckpt inspect a --from toy -o flavour=so": "sour",
    "ckpt explain toy --family llama-h": "llama-headless",
}
"""What is offered at the end of a line."""


def in_bash(line: str) -> str:
    """What bash itself does at the end of a line: its words are broken at `=`, as COMP_WORDBREAKS says."""
    *words, last = line.replace("=", " = ").split(" ")
    words = [*filter(None, words), last]
    return (
        f"COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}\n"
        '_ckpt_completion ckpt; printf "%s\\n" "${COMPREPLY[*]}"\n'
    )


class TestCompletion:
    def test_bash(self, shell):
        """A start of the program for each line, and one for the script."""
        script = 'eval "$(ckpt completion bash)"\n' + "".join(map(in_bash, OFFERED))
        environment = os.environ | {"PATH": f"{shell}:{os.environ['PATH']}"}
        ran = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
        assert (ran.stdout.splitlines(), ran.stderr) == ([*OFFERED.values()], "")

    @pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh is installed")
    def test_zsh(self, shell):
        """The script is one that zsh takes, and it offers keys and commands, both with their help."""
        environment = os.environ | {"PATH": f"{shell}:{os.environ['PATH']}"}
        script = (
            'autoload -U compinit; compinit -u -D; eval "$(ckpt completion zsh)"; whence -w _ckpt_completion\n'
            "words=(ckpt convert a b --to toy -o unt); CURRENT=8\n"
            "compadd() { print -l -- $plain $shown; }; _describe() { print -l -- $described; }; _ckpt_completion\n"
            "words=(ckpt conv); CURRENT=2; _ckpt_completion"
        )
        ran = subprocess.run(["zsh", "-fc", script], env=environment, capture_output=True, text=True)
        lines = ran.stdout.splitlines()
        assert lines == [
            "_ckpt_completion: function",
            f"{'untie=':30} -- write the head out",
            "convert:Convert a checkpoint to another format.",
        ], ran

    @pytest.mark.parametrize(
        ("line", "offered"),
        [
            ("inspect mod", "file,mod"),
            ("convert model ou", "file,ou"),
            ("convert a b --config ", "file,"),
            ("convert a b --to toy --spool /tm", "file,/tm"),
            ("diff a b", "file,b"),
            ("follow run", "file,run"),
            ("inspect a --html pa", "file,pa"),
            ("selftest toy --like m", "file,m"),
            ("launch a --at b", "file,b"),
            ("convert a b --dtype b", "plain,bf16"),
            ("convert a b --engine d", "plain,dask"),
            ("schema fing", "plain,fingerprint"),
            ("formats to", "plain,toy"),
        ],
    )
    def test_words_of_every_kind(self, installed, monkeypatch, line, offered):
        """A path is left to the shell, which knows the disk."""
        monkeypatch.setenv("COMP_WORDS", f"ckpt {line}")
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" "))))
        assert BashWithValues(cli, {}, "ckpt", "_CKPT_COMPLETE").complete() == offered

    def test_words_that_bash_broke_at_the_sign(self, monkeypatch):
        for words, begun in (("-o untie =", "untie="), ("-o untie = f", "untie=f"), ("-o unt", "unt")):
            monkeypatch.setenv("COMP_WORDS", f"ckpt convert {words}")
            monkeypatch.setenv("COMP_CWORD", str(len(words.split()) + 1))
            args, incomplete = BashWithValues(cli, {}, "ckpt", "_CKPT_COMPLETE").get_completion_args()
            assert (args, incomplete) == (["convert", "-o"], begun)


class TestDestinations:
    def test_parents(self, ckpt, model, tmp_path):
        out = tmp_path / "a" / "b" / "out"
        refused = ckpt("convert", model, out, "--to", "toy")
        assert refused.code == 1 and "or use -p" in refused.err and not (tmp_path / "a").exists()
        assert ckpt("convert", model, out, "--to", "toy", "-p", "--dry-run").code == 0 and not (tmp_path / "a").exists()
        assert ckpt("convert", model, out, "--to", "toy", "-p").code == 0 and out.is_dir()

    def test_a_folder_with_the_name_of_a_file(self, ckpt, model, tmp_path):
        ran = ckpt("convert", model, tmp_path / "model.safetensors", "--to", "toy")
        assert ran.code == 0 and "note: toy writes a folder, and this is the name of a file" in ran.err
        assert "note" not in ckpt("convert", model, tmp_path / "model-1.5", "--to", "toy").err

    def test_peak_memory(self, ckpt, model, tmp_path):
        assert 1 << 20 < ckpt("convert", model, tmp_path / "out", "--to", "toy", "--json").json["peak_memory"] < 1 << 36


class TestFirstWord:
    def test_it_comes_within_two_seconds(self, capsys, monkeypatch):
        monkeypatch.setattr("ckpt_core.cli.progress.SILENCE", 0.01)
        import time

        for first, said in ((True, "reading ...\n"), (False, "")):
            with announced("reading", lambda first=first: first):
                heard, until = "", time.monotonic() + (20 if said else 0.1)  # a busy machine takes its time
                while time.monotonic() < until and not (said and heard == said):
                    time.sleep(0.01)
                    heard += capsys.readouterr().err
            assert heard == said

    def test_a_bar_without_rich(self, capsys):
        times = iter([0.0, 1.0, 1.1, 2.0])
        listen = DrawnListener("converting", lambda: next(times))
        for done in (50, 60, 100):
            listen(Progress(done * 10**9, 200 * 10**9, "x"))
        listen.wipe()
        drawn = capsys.readouterr().err.split("\r")[1:]
        assert drawn == [
            "converting [######..................]  25%\x1b[K",
            "converting [############............]  50%  50 GB/s  2.0 s left\x1b[K",
            "\x1b[K",
        ]
