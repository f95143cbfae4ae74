"""The program around the commands: what it imports, how it ends, what it says meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from ckpt_core.architecture import (
    Activation,
    Architecture,
    Attention,
    Layer,
    Mlp,
    Moe,
    Norm,
    Rotary,
    Router,
    SharedExpert,
    Stack,
    Tokens,
)
from ckpt_core.cli import convert
from ckpt_core.cli.describe import describe
from ckpt_core.cli.output import count_text, paint, say, shortened
from ckpt_core.cli.progress import PlainListener, duration_text
from ckpt_core.engine.run import Progress
from ckpt_core.errors import CkptError, UsageError
from ckpt_core.sizes import parse_size, size_text

HEAVY = "{'torch', 'numpy', 'blake3', 'toy', 'rich', 'pluggy'}"


class TestImports:
    @pytest.mark.parametrize(
        "arguments", [["--help"], ["--version"], ["convert", "--help"], ["formats", "--help"], ["verify", "--help"]]
    )
    def test_help_is_light(self, process, arguments):
        ran = process(
            f"import sys; from ckpt_core.cli.main import main; print(main({arguments}), {HEAVY} & set(sys.modules))"
        )
        assert ran.stdout.splitlines()[-1] == "0 set()", ran

    def test_every_command_has_help(self, ckpt):
        listed = ckpt("--help").out.split("Commands:")[1].split("Exit codes")[0]
        for name in (
            "convert", "launch", "inspect", "diff", "fingerprint", "verify", "selftest", "explain", "formats", "follow",
            "doctor", "plugin", "schema", "completion",
        ):  # fmt: skip
            assert f"\n  {name} " in listed and ckpt(name, "--help").code == 0

    def test_formats_does_not_import_torch(self, process):
        ran = process(
            "import sys; from ckpt_core.cli.main import main; print(main(['formats']), 'torch' in sys.modules)"
        )
        assert ran.stdout.splitlines()[-1] == "0 False", ran

    def test_module(self, process):
        ran = process(
            "import runpy, sys\n"
            "sys.argv = ['ckpt', 'formats', 'nonsense']\n"
            "runpy.run_module('ckpt_core', run_name='__main__')"
        )
        assert ran.returncode == 2 and "unknown format" in ran.stderr


class TestEndings:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
    def test_an_interrupted_conversion_continues(self, ckpt, model, tmp_path, monkeypatch, number, code):
        @contextlib.contextmanager
        def impatient(verb, **_):
            yield lambda event: signal.raise_signal(number)

        command = ("convert", model, tmp_path / "out", "--to", "toy")
        # a shell starts what it puts in the background with SIGINT ignored, and `nohup` with SIGHUP ignored, the test suite too
        before = {
            signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
            signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        }
        try:
            with monkeypatch.context() as patch:
                patch.setattr(convert, "progress", impatient)
                stopped = ckpt(*command)
                as_json = ckpt(*command, "--json")
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
        assert stopped.code == code and "repeat the same command" in stopped.err and "Traceback" not in stopped.err
        assert as_json.code == code and "repeat" in as_json.json["error"]["fix"]
        assert not (tmp_path / "out").exists()
        assert ckpt(*command).code == 0
        assert ckpt("verify", model, tmp_path / "out").code == 0

    def test_a_conversion_under_nohup_outlives_its_terminal(self, ckpt, model, tmp_path, monkeypatch):
        @contextlib.contextmanager
        def closed(verb, **_):
            yield lambda event: signal.raise_signal(signal.SIGHUP)

        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            monkeypatch.setattr(convert, "progress", closed)
            assert ckpt("convert", model, tmp_path / "out", "--to", "toy").code == 0
        finally:
            signal.signal(signal.SIGHUP, before)

    def test_full_disk_is_one_clear_error(self, ckpt, model, tmp_path):
        ran = ckpt("convert", model, tmp_path / "out", "--to", "toy", "-o", "dst.crash=true")
        assert ran.code == 1 and ran.err == (
            "error: No space left on device\n  file: /full\n  see: docs/troubleshooting.md#errors-of-the-system\n"
        )

    def test_a_bug_has_no_traceback(self, ckpt, model, monkeypatch):
        ran = ckpt("inspect", model, "-o", "crash=true")
        assert ran.code == 1 and "Traceback" not in ran.err
        assert "the reader of toy fails on this checkpoint" in ran.err and "ZeroDivisionError: on purpose" in ran.err
        monkeypatch.setenv("CKPT_DEBUG", "1")
        with pytest.raises(CkptError) as raised:
            ckpt("inspect", model, "-o", "crash=true")
        assert isinstance(raised.value.__cause__, ZeroDivisionError)

    @pytest.mark.parametrize(
        "arguments", [["convrt"], ["inspect"], ["inspect", "--weigths", "model", "x"], ["fingerprint", "a", "b"]]
    )
    def test_wrong_usage(self, ckpt, arguments):
        ran = ckpt(*arguments)
        assert ran.code == 2 and ran.err.startswith("error: ") and "#usage-error" in ran.err and ran.out == ""
        assert ckpt(*arguments, "--json").json["error"]["anchor"] == "usage-error"

    @pytest.mark.parametrize(("engine", "package"), [("dask", "distributed"), ("ray", "ray")])
    def test_engines_that_are_not_installed(self, ckpt, model, tmp_path, monkeypatch, engine, package):
        monkeypatch.setitem(sys.modules, package, None)
        ran = ckpt("convert", model, tmp_path / "out", "--to", "toy", "--engine", engine)
        assert ran.code == 1 and f"the package {package}\n" in ran.err
        assert f'pip install "ckpt-convert[{engine}]"' in ran.err


class TestProgress:
    def test_plain_lines(self, capsys):
        times = iter([0.0, 1.0, 3.0, 6.0, 7.0, 12.0])  # the first line after 1.5 s, the next 5 s later
        listen = PlainListener("converting", lambda: next(times))
        for done in (10, 30, 60, 70, 120):
            listen(Progress(done * 10**9, 200 * 10**9, "x"))
        assert capsys.readouterr().err.splitlines() == [
            "converting 15%  10 GB/s  17 s left",
            "converting 60%  10 GB/s  8.0 s left",
        ]

    def test_a_log_of_hours_has_a_line_a_minute(self, capsys):
        times = iter(range(3600))
        listen = PlainListener("converting", lambda: float(next(times)))
        for done in range(3599):
            listen(Progress(done, 3600, "x"))
        assert 60 < len(capsys.readouterr().err.splitlines()) < 70

    def test_a_second_pass_starts_anew(self, capsys):
        times = iter([0.0, 1.0, 10.0, 11.0, 20.0])
        listen = PlainListener("comparing", lambda: next(times))
        for done in (50, 100, 10, 55):
            listen(Progress(done, 100, "x"))
        assert capsys.readouterr().err.splitlines()[-1] == "comparing 55%  5 B/s  9.0 s left"

    def test_steps_of_a_model_are_no_bytes(self, capsys):
        times = iter([0.0, 1.0, 10.0])
        listen = PlainListener("running", lambda: next(times), of_bytes=False)
        for done in (1, 4):
            listen(Progress(done, 10, "x"))
        assert capsys.readouterr().err.splitlines()[-1] == "running 40%  18 s left"

    def test_a_remark_has_a_line_and_whoever_speaks_first_is_followed_later(self, capsys):
        times = iter([0.0, 2.0, 3.0, 8.0])
        listen = PlainListener("converting", lambda: next(times))
        assert listen.let_speak(), "at 2 s"
        listen(Progress(10, 100, "x"))
        listen(Progress(10, 100, "", remark="a worker is left out"))
        listen(Progress(20, 100, "x"))
        assert not listen.let_speak()
        assert capsys.readouterr().err.splitlines() == ["a worker is left out", "converting 20%  2 B/s  40 s left"]


class TestWords:
    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("256MiB", 256 << 20),
            ("2GB", 2 * 10**9),
            ("1.5 GiB", 3 << 29),
            ("4096", 4096),
            ("64m", 64 << 20),
            ("1TB", 10**12),
        ],
    )
    def test_sizes(self, text, size):
        assert parse_size(text) == size

    @pytest.mark.parametrize("text", ["", "GB", "-1", "0", "1XB", "1e9", "1 2"])
    def test_no_sizes(self, text):
        with pytest.raises(UsageError, match="not a size"):
            parse_size(text)

    def test_numbers(self):
        assert [size_text(n) for n in (0, 999, 1000, 123_456_789)] == ["0 B", "999 B", "1 kB", "123 MB"]
        assert count_text(1_235_814_400) == "1,235,814,400 (1.24 B)"
        assert [duration_text(s) for s in (0.42, 42, 600, 5000)] == ["0.4 s", "42 s", "10 min", "1 h 23 min"]
        assert shortened([str(n) for n in range(100)]) == ["0", "1", "2", "3", "4", "5", "... 92 more ...", "98", "99"]

    def test_no_color(self, monkeypatch, capsys):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        say(paint("x", "red"))
        monkeypatch.setenv("NO_COLOR", "1")
        say(paint("x", "red"))
        assert capsys.readouterr().out == "\x1b[31mx\x1b[0m\nx\n"

    def test_nothing_of_an_architecture_is_left_out(self):
        norm = Norm(kind="layer", eps=1e-6, bias=True, zero_centred=True)
        attention = Attention(
            heads=8, groups=8, head_dim=16, norm=norm, rotary=Rotary(theta=5e5, fraction=0.5), softcap=50.0, q_bias=True
        )
        router = Router(top_k=2, score="sigmoid", scale=2.5, correction_bias=True)
        moe = Mlp(
            activation=Activation.GELU_TANH,
            gated=False,
            moe=Moe(experts=4, ffn=32, router=router, shared=SharedExpert(ffn=64)),
        )
        dense = Mlp(activation=Activation.GELU_TANH, gated=False, ffn=128, down_bias=True)
        layers = (
            Layer(attention=attention, mlp=dense, parallel=True),
            *[Layer(attention=attention, mlp=moe, parallel=True)] * 9,
        )
        architecture = Architecture(
            hidden=128,
            tokens=Tokens(vocabulary=1000, padded_vocabulary=1000, scale=11.3),
            decoder=Stack(layers=layers, causal=True),
        )
        rows = dict(describe(architecture))
        assert rows["tokens"] == "vocabulary 1,000, embedding x 11.3"
        assert rows["layers"] == "10, causal, attention and mlp in parallel"
        assert rows["attention"] == "8 heads of 16, softcap 50, bias on q"
        assert rows["norms"] == "attention layer eps 1e-06 with bias zero-centred"
        assert rows["positions"] == "rotary theta 500000, on 0.5 of every head"
        assert (
            "width 128 in layer 0" in rows["mlp"]
            and "4 experts of width 32, 2 per token in 9 of 10 layers" in rows["mlp"]
        )
        assert "mlp.moe.router.scale 2.5" in rows["also"] and "mlp.moe.router.correction_bias" in rows["also"]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="only Linux says it")
def test_the_peak_of_memory_is_not_that_of_the_program_that_started_it() -> None:
    child = "from ckpt_core.cli.usage import peak_memory; print(peak_memory())"
    parent = f"import subprocess, sys; held = b'x' * (300 << 20); subprocess.run([sys.executable, '-c', {child!r}])"
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert 1 << 20 < int(done.stdout) < 150 << 20
