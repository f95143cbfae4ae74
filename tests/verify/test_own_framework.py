"""A format's own framework as a judge: a stand-in on the path is asked in processes of its own, and never ends ours."""

from __future__ import annotations

import pickle
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest

from ckpt_core.plugins.discovery import require
from ckpt_core.plugins.judgement import installed, judged_apart

INPUTS = {"tokens": np.arange(6).reshape(2, 3)}
MODULE = """
    import os, pickle, sys, time
    import numpy as np
    from ckpt_core.plugins.judgement import CannotRun, FilesRefused, loading

    CLASSES = {("collections", "OrderedDict")}

    def framework():
        import standin_framework
        return f"standin {standin_framework.__version__}"

    def logits(case):
        tokens = case.tokens()
        return np.float32(tokens[..., None] + np.arange(5) * case.world) if case.rank == case.world - 1 else None
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ask a stand-in; `body` takes the place of its `logits`."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.syspath_prepend(site)
    (tmp_path / "checkpoint").mkdir()

    def ask(body: str = "", version: str | None = "3.1", ranks: dict[str, int] | None = None, seconds: float = 600):
        if version:
            (site / "standin_framework.py").write_text(f"__version__ = {version!r}\n")
        text = textwrap.dedent(MODULE)
        if body:
            text += "\ndef logits(case):\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ") + "\n"
        (site / "standin_own.py").write_text(text)
        checkpoint = types.SimpleNamespace(path=str(tmp_path / "checkpoint"))
        return judged_apart("standin_own", "standin_framework", checkpoint, INPUTS, ranks, seconds)

    return ask


def test_what_is_not_installed_is_not_asked(asked) -> None:
    assert asked(version=None) is None


def test_nothing_is_imported_to_find_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "standin_space").mkdir()
    (tmp_path / "standin_space" / "core.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        installed("standin_space.core") and not installed("standin_space.other") and not installed("standin_none.core")
    )


@pytest.mark.parametrize("ranks", [{}, {"tp": 2, "pp": 1}], ids=["one", "two"])
def test_what_it_computes_is_what_is_given(asked, ranks: dict[str, int]) -> None:
    judgement = asked(ranks=ranks)
    world = ranks.get("tp", 1)
    assert judgement.framework == "standin 3.1"
    assert judgement.logits.tolist() == (INPUTS["tokens"][..., None] + np.arange(5) * world).tolist()


def test_ranks_find_each_other(asked) -> None:
    judgement = asked(
        """
        import torch
        case.joined()
        mine = torch.full((1,), float(case.rank + 1))
        torch.distributed.all_reduce(mine)
        return mine.numpy() if case.rank == 0 else None
        """,
        ranks={"tp": 2},
    )
    assert judgement.logits.tolist() == [3.0]


CANNOT = {
    "it says why": ("raise CannotRun('it needs a GPU')", "it needs a GPU"),
    "a part is missing": ("import standin_kernels", "No module named 'standin_kernels'"),
    "it fails": ("raise RuntimeError('line one\\n  line two')", "RuntimeError: line one line two"),
    "it dies": ("sys.stderr.write('Fatal: no driver\\n'); sys.stderr.flush(); os.abort()", "Fatal: no driver"),
    "it ends": ("os._exit(0)", "it ended without an answer"),
}


@pytest.mark.parametrize(("body", "why"), CANNOT.values(), ids=CANNOT)
def test_what_cannot_run_says_why(asked, body: str, why: str) -> None:
    judgement = asked(body)
    assert judgement.logits is None and not judgement.refused and why in judgement.cannot
    assert "\n" not in judgement.cannot


def test_what_does_not_end_is_ended(asked) -> None:
    judgement = asked("time.sleep(600)", seconds=3)
    assert judgement.cannot == "it did not end within 3 seconds"


def test_a_rank_that_fails_ends_the_others(asked) -> None:
    judgement = asked("if case.rank == 0: time.sleep(600)\nraise CannotRun('no')", ranks={"tp": 2})
    assert judgement.cannot == "no"


def test_too_many_ranks_are_not_started(asked) -> None:
    assert "16 ranks are more than the 8" in asked(ranks={"tp": 4, "pp": 4}).cannot


def test_files_that_it_does_not_load_are_refused(asked) -> None:
    judgement = asked("with loading():\n    raise KeyError('layers.0.weight')")
    assert judgement.refused == "KeyError: 'layers.0.weight'" and not judgement.cannot


@pytest.mark.parametrize("caught", [False, True], ids=["", "in spite of the framework's own handling"])
def test_no_class_is_made_that_a_checkpoint_may_not_name(asked, tmp_path: Path, caught: bool) -> None:
    class Touch:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    (tmp_path / "checkpoint" / "state.pkl").write_bytes(pickle.dumps(Touch()))
    read = "pickle.load(open(os.path.join(case.path, 'state.pkl'), 'rb'))"
    body = f"try:\n    {read}\nexcept Exception:\n    raise KeyError('not loaded')" if caught else read
    judgement = asked(f"with loading():\n{textwrap.indent(body, '    ')}")
    assert "which is not made here" in judgement.cannot and "pathlib" in judgement.cannot
    assert not judgement.refused and not (tmp_path / "touched").exists()


def test_a_class_that_it_may_name_is_made(asked) -> None:
    judgement = asked(
        "import collections\nreturn np.zeros(len(pickle.loads(pickle.dumps(collections.OrderedDict(a=1)))))"
    )
    assert judgement.logits.tolist() == [0.0]


def test_no_module_is_taken_from_where_it_is_called(asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("numpy.py", "standin_own.py", "pickle.py"):
        (tmp_path / "checkpoint" / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path / "checkpoint")
    assert asked().logits is not None and not (tmp_path / "ran").exists()


# The formats whose framework is asked apart, and what its package is called; a process is started for each.
APART = {"megatron": "megatron.core", "nanotron": "nanotron", "nxdt": "neuronx_distributed_training"}
# Those whose framework only says why it is not asked.
NEVER = {
    "deepspeed": "deepspeed", "megatron-deepspeed": "deepspeed", "megatron-bridge": "megatron.bridge",
    "nemo": "nemo.collections.nlp", "nemo2": "nemo.collections.llm",
}  # fmt: skip


@pytest.mark.parametrize("format", {**APART, **NEVER})
def test_a_framework_that_cannot_run_is_one_line(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of each framework's name that fails when it is imported, as one does whose kernels are for a GPU."""
    hooks = require(format).hooks
    (tmp_path / "run").mkdir()
    checkpoint = types.SimpleNamespace(
        path=str(tmp_path / "run"), parallel={}, provenance=types.SimpleNamespace(hints={})
    )
    assert hooks.ckpt_logits(checkpoint=checkpoint, inputs=INPUTS) is None
    package = tmp_path / "site"
    for part in {**APART, **NEVER}[format].split("."):
        package = package / part
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
    (package / "__init__.py").write_text("raise OSError('libcudart.so: cannot open\\nshared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    judgement = hooks.ckpt_logits(checkpoint=checkpoint, inputs=INPUTS)
    assert judgement.logits is None and not judgement.refused and judgement.framework
    assert judgement.cannot and "\n" not in judgement.cannot
