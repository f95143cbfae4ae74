"""Workers that run other code, see other files, fail or fall silent: no wrong output, and nothing that was done is lost.

A worker of another machine is a call in this process, in which paths lead elsewhere: that is all that a worker knows of its machine.
`real/check_cluster.py` does the same to real clusters of Dask and Ray.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import itertools
import os
import pickle
import pickletools
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import ClassVar
from unittest import mock

import pytest

from ckpt_core import convert, plan_conversion
from ckpt_core.engine import (
    cluster,
    dask_cluster,
    dispatch,
    executors,
    judging,
    plan,
    ray_cluster,
    software,
    staging,
    worker,
)
from ckpt_core.engine.run import run_plan
from ckpt_core.engine.states import KnownStates
from ckpt_core.errors import CkptError, FormatError, Lines, WorkerError
from ckpt_core.storage.bytes.files import FileState
from ckpt_tests import tiny
from ckpt_tests.folders import contents, staging_of
from ckpt_tests.program import ckpt

ARGUMENTS = {"to": "hf", "options": {"max_shard_size": "40000"}}  # several files, none of which names its folder
TENSORS = 12  # of a Llama of one layer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "hf"
    tiny.build(folder, "llama", num_hidden_layers=1)
    return folder


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a conversion without workers gives."""
    destination = tmp_path_factory.mktemp("expected") / "run"
    convert(model, destination, **ARGUMENTS)
    return destination


Elsewhere = Callable[[], AbstractContextManager]


def called(function: Callable, arguments: tuple, elsewhere: Elsewhere) -> Future:
    """What a worker makes of a call, whose answer is pickled as that of another process is."""
    future: Future = Future()
    with elsewhere():
        try:
            answer, error = function(*arguments), None
        except Exception as raised:
            answer, error = None, raised
    answer, error = pickle.loads(pickle.dumps((answer, error)))
    future.set_exception(error) if error else future.set_result(answer)
    return future


class Cluster(Executor):
    """Workers that are calls in this process. The one at number `bad` of the calls, and all later ones, live `elsewhere`."""

    def __init__(self, elsewhere: Elsewhere = nullcontext, bad: int = 4) -> None:
        self.elsewhere, self.bad = elsewhere, bad
        self.calls: list[tuple] = []

    def submit(self, function, /, *arguments, **named):
        self.calls.append((function, arguments))
        return called(function, arguments, self.elsewhere if len(self.calls) >= self.bad else nullcontext)


class Named(cluster.Cluster):
    """A cluster whose workers take turns. Some live elsewhere; the `silent` ones never answer."""

    def __init__(self, size: int, elsewhere: dict[str, Elsewhere] | None = None, silent: str = "") -> None:
        super().__init__()
        self.names = [f"w{number}" for number in range(size)]
        self.elsewhere, self.silent = elsewhere or {}, silent
        self.tasks: list[str] = []  # who was given each
        self.arguments: list[tuple] = []
        self.held: dict[Future, str] = {}
        self.looks = True

    def workers(self):
        return dict.fromkeys(self.names, 1)

    threads = 1

    def ask(self, worker, function, /, *arguments):
        return self.at(worker, function, arguments if self.looks else None)

    def submit(self, function, /, *arguments, **named):
        names = [name for name in self.names if name not in self.avoided()]
        worker = names[len(self.tasks) % len(names)]
        self.tasks.append(worker)
        self.arguments.append(arguments)
        return self.at(worker, function, arguments)

    def at(self, worker: str, function: Callable, arguments: tuple | None) -> cluster.Placed:
        placed = cluster.Placed()
        self.held[placed] = worker
        if worker != self.silent and arguments is not None:
            answer = (cluster.Answer.of, (worker, function, arguments))
            placed.follow(called(*answer, self.elsewhere.get(worker, nullcontext)))
        return placed

    def holders(self, futures):
        return {self.held[future] for future in futures}


def mounted(path: Path, there: Path) -> Elsewhere:
    """What `path` holds is what `there` holds, for one worker."""

    def mapped(name):
        text = os.fspath(name)
        inside = isinstance(text, str) and (text == str(path) or text.startswith(f"{path}/"))
        return str(there) + text[len(str(path)) :] if inside else name

    def elsewhere() -> AbstractContextManager:
        patch = pytest.MonkeyPatch()
        opened, stat = os.open, os.stat
        patch.setattr(os, "open", lambda name, *rest, **named: opened(mapped(name), *rest, **named))
        patch.setattr(os, "stat", lambda name, *rest, **named: stat(mapped(name), *rest, **named))
        return undone(patch)

    return elsewhere


class undone(AbstractContextManager):
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


def patched(module: object, name: str, value: object) -> Elsewhere:
    def elsewhere() -> AbstractContextManager:
        patch = pytest.MonkeyPatch()
        patch.setattr(module, name, value)
        return undone(patch)

    return elsewhere


def done(destination: Path) -> int:
    """The tensors in the journal."""
    return len((staging_of(destination) / "journal.jsonl").read_text().splitlines()) - 1


def refused(model: Path, destination: Path, executor: Executor, workers: int = 2) -> WorkerError:
    """The error of a run, after which nothing is published and the first tensors are kept."""
    with pytest.raises(WorkerError) as caught:
        convert(model, destination, **ARGUMENTS, workers=workers, executor=executor)
    assert not destination.exists() and done(destination) == 3
    assert caught.value.fix.endswith("then repeat the same command: what is done is kept")
    return caught.value


def continues(model: Path, destination: Path, expected: Path, work: list[str]) -> None:
    """The same command again, without the bad worker, moves what is missing and gives the same bytes."""
    kept = done(destination)
    del work[:]
    convert(model, destination, **ARGUMENTS)
    assert contents(destination) == contents(expected) and len(work) == TENSORS - kept
    assert not staging_of(destination).exists()


# --- other code, other files ------------------------------------------------------------------------------------------------


def test_a_worker_with_other_code_is_refused(model: Path, tmp_path: Path, expected: Path, work: list[str]) -> None:
    """Before anything of the task is looked at: what this version pickles may be nonsense to another one."""
    loaded: list[object] = []

    def other() -> AbstractContextManager:
        patch = pytest.MonkeyPatch()
        patch.setattr(worker, "SOFTWARE", "ckpt 0.0.1 (code 0123)")
        patch.setattr(worker.pickle, "loads", loaded.append)
        return undone(patch)

    destination = tmp_path / "run"
    error = refused(model, destination, Cluster(other))
    assert "0.0.1" in error.found and socket.gethostname() in error.found and error.expected == software.SOFTWARE
    assert not loaded
    continues(model, destination, expected, work)


def test_code_is_told_apart_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert software._digest() in software.SOFTWARE
    sources = software._sources(software.files("ckpt_core"))
    assert {"engine/transfer.py", "storage/dtypes.py", "layout/maps.py"} <= sources.keys()
    for name in ("engine/transfer.py", "storage/dtypes.py"):
        monkeypatch.setattr(software, "_sources", lambda _, name=name: {**sources, name: sources[name] + b"\n"})
        assert software._digest() not in software.SOFTWARE


def nothing(there: Path, staging: Path) -> None:
    pass


def unmounted(there: Path, staging: Path) -> None:
    there.mkdir()


def left(there: Path, staging: Path) -> None:
    """An earlier run of the same plan began there."""
    shutil.copytree(staging, there / staging.name)
    (there / staging.name / "token").write_text("0" * 32)


def without_token(there: Path, staging: Path) -> None:
    shutil.copytree(staging, there / staging.name)
    (there / staging.name / "token").unlink()


@pytest.mark.parametrize(
    ("prepare", "seen"),
    [(nothing, "No such file"), (unmounted, "No such file"), (left, "0" * 32), (without_token, "no token")],
)
def test_a_worker_that_sees_another_staging_folder_writes_nothing(
    model: Path, tmp_path: Path, expected: Path, work: list[str], prepare: Callable, seen: str
) -> None:
    share, there = tmp_path / "share", tmp_path / "there"
    share.mkdir()
    destination = share / "run"
    before: list[dict[str, bytes]] = []

    def elsewhere() -> AbstractContextManager:
        if not before:
            prepare(there, staging_of(destination))
            before.append(contents(there) if there.exists() else {})
        return mounted(share, there)()

    error = refused(model, destination, Cluster(elsewhere))
    assert error.file == str(staging_of(destination))
    assert seen in error.found and socket.gethostname() in error.found
    assert error.expected.count((staging_of(destination) / "token").read_text())
    assert (contents(there) if there.exists() else {}) == before[0]
    continues(model, destination, expected, work)


@pytest.mark.parametrize("begun", [False, True], ids=["holes", "written before"])
def test_a_worker_whose_writes_do_not_arrive_is_not_believed(
    model: Path, tmp_path: Path, expected: Path, work: list[str], begun: bool
) -> None:
    """It sees the token, as in an overlay: what lies below shows, and what is written stays above.

    What an earlier, killed run left may look like what it says it wrote; the mark does not.
    """
    share, there = tmp_path / "share", tmp_path / "there"
    share.mkdir()
    destination = share / "run"
    out = staging_of(destination) / "out"

    def elsewhere() -> AbstractContextManager:
        if begun and not there.exists():
            for path in out.rglob("*.safetensors"):
                path.write_bytes((expected / path.relative_to(out)).read_bytes())
        if not there.exists():
            shutil.copytree(share, there)
        return mounted(share, there)()

    error = refused(model, destination, Cluster(elsewhere))
    assert error.problem == "what a worker wrote is not here" and socket.gethostname() in error.found
    continues(model, destination, expected, work)


def test_bytes_that_do_not_arrive_in_one_file_are_missed(
    model: Path, tmp_path: Path, expected: Path, work: list[str]
) -> None:
    """The mark arrives, and what was written to a file does not."""
    error = refused(model, tmp_path / "run", Cluster(patched(os, "pwrite", lambda _, view, offset: len(view))))
    assert error.problem == "what a worker wrote is not here" and error.file.endswith(".safetensors")
    continues(model, tmp_path / "run", expected, work)


def older(file: Path) -> None:
    os.utime(file, ns=(0, 0))


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"0")


@pytest.mark.parametrize("change", [older, longer, Path.unlink])
def test_a_worker_that_sees_another_source_is_refused(
    model: Path, tmp_path: Path, expected: Path, work: list[str], change: Callable
) -> None:
    there = tmp_path / "there"
    shutil.copytree(model, there)
    change(there / "model.safetensors")
    destination = tmp_path / "run"
    error = refused(model, destination, Cluster(mounted(model, there)))
    file = model / "model.safetensors"
    assert error.problem == "a worker sees another source file" and error.file == str(file)
    assert socket.gethostname() in error.found and str(file.stat().st_size) in error.expected
    continues(model, destination, expected, work)


def test_a_source_that_changes_for_all_is_an_error_of_the_input(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "hf"
    shutil.copytree(model, source)

    def elsewhere() -> AbstractContextManager:
        longer(source / "model.safetensors")
        return nullcontext()

    with pytest.raises(FormatError, match="changed while it was being read"):
        convert(source, tmp_path / "run", **ARGUMENTS, workers=2, executor=Cluster(elsewhere))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_a_source_that_changes_before_the_workers_look(model: Path, tmp_path: Path) -> None:
    """They all say that they see another one, and are right."""
    source = tmp_path / "hf"
    shutil.copytree(model, source)

    class Changing(Named):
        def ask(self, worker, function, /, *arguments):
            longer(source / "model.safetensors")
            return super().ask(worker, function, *arguments)

    with pytest.raises(FormatError, match="changed while it was being read"):
        convert(source, tmp_path / "run", **ARGUMENTS, executor=Changing(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_two_runs_at_one_destination_without_locks(
    model: Path, tmp_path: Path, expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that keeps nobody apart the second one takes the folder over, and the first one says so."""
    monkeypatch.setattr(staging.fcntl, "flock", raising(OSError(errno.ENOLCK, "No locks available")))
    destination, calls = tmp_path / "run", Cluster(bad=99)

    def second(_: object) -> None:
        if not destination.exists():
            convert(model, destination, **ARGUMENTS, workers=2, executor=Cluster(bad=99))

    with pytest.raises(WorkerError, match="this run has lost its staging folder") as caught:
        convert(model, destination, **ARGUMENTS, workers=2, executor=calls, listener=second)
    assert "no token of a run (No such file" in caught.value.found
    assert contents(destination) == contents(expected) and sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    convert(model, destination, **ARGUMENTS)  # repeated, it finds what is there


# --- workers that fail ------------------------------------------------------------------------------------------------------


def raising(error: BaseException) -> Callable:
    def fail(*_: object) -> None:
        raise error

    return fail


ERRORS = {
    "its disk": OSError(errno.EIO, "Input/output error", "/data/x"),
    "its view of the input": FormatError("the file is truncated", file="/data/x", found="3 bytes"),
    "its memory": MemoryError("no room\nat all"),
    "a class it does not know": ModuleNotFoundError("No module named 'ckpt_core'"),
    "lost": CancelledError(),
    "killed": BrokenExecutor("a process died"),
}


@pytest.mark.parametrize("fault", ERRORS)
def test_an_error_of_a_worker_is_none_of_the_input(
    model: Path, tmp_path: Path, expected: Path, work: list[str], fault: str
) -> None:
    destination = tmp_path / "run"
    error = refused(model, destination, Cluster(patched(worker, "run_transfer", raising(ERRORS[fault]))))
    assert "\n" not in error.problem + (error.found or "")
    if fault.startswith("its ") and fault != "its memory":
        assert error.file == "/data/x" and socket.gethostname() in error.found
    continues(model, destination, expected, work)


def test_an_error_of_the_input_is_seen_here_too(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing of the output can be used."""
    for module in (worker, judging):
        monkeypatch.setattr(module, "run_transfer", raising(FormatError("two copies differ", file="x")))
    with pytest.raises(FormatError, match="two copies differ"):
        convert(model, tmp_path / "run", **ARGUMENTS, workers=2, executor=Cluster())
    assert not list(tmp_path.iterdir())


def test_an_executor_that_takes_nothing_more(model: Path, tmp_path: Path) -> None:
    class Broken(Cluster):
        def submit(self, function, /, *arguments, **named):
            if len(self.calls) == 3:
                raise RuntimeError("cannot schedule new futures after shutdown")
            return super().submit(function, *arguments)

    assert "cannot schedule" in refused(model, tmp_path / "run", Broken(bad=99)).found


@pytest.mark.parametrize("fault", ["its disk", "its view of the input", "its memory", "a class it does not know"])
def test_what_a_worker_fails_to_do_another_one_does(model: Path, tmp_path: Path, expected: Path, fault: str) -> None:
    """Of a cluster, which says who it was, that one is given nothing more."""
    failing = patched(worker, "run_transfer", raising(ERRORS[fault]))
    executor, said = Named(3, {"w1": failing}), Remarks()
    convert(model, tmp_path / "run", **ARGUMENTS, workers=3, executor=executor, listener=said)
    assert contents(tmp_path / "run") == contents(expected) and not staging_of(tmp_path / "run").exists()
    assert executor.tasks.count("w1") <= 3 and len(said.remarks) == 1  # those at hand when it failed first
    reason = getattr(ERRORS[fault], "strerror", None) or str(ERRORS[fault]).partition("\n")[0]
    assert "left out" in said.remarks[0] and reason in said.remarks[0]


def test_what_nobody_can_do_is_an_error(model: Path, tmp_path: Path, expected: Path, work: list[str]) -> None:
    """Once for each of three workers, and not for every one of many."""
    full = patched(worker, "run_transfer", raising(OSError(errno.ENOSPC, "No space left on device", "/x")))
    executor = Named(20, {f"w{number}": full for number in range(20)})
    with pytest.raises(WorkerError, match="can't read or write") as caught:
        convert(model, tmp_path / "run", **ARGUMENTS, workers=1, executor=executor)
    assert len(executor.tasks) <= 6 and "No space left" in caught.value.found
    continues(model, tmp_path / "run", expected, work)


def test_a_process_that_fails_once_is_forgiven(model: Path, tmp_path: Path, expected: Path) -> None:
    """An executor without names may have another worker for the same task."""
    faults = iter([OSError(errno.EIO, "x"), MemoryError()])

    def twice() -> AbstractContextManager:
        fault = next(faults, None)
        return patched(worker, "run_transfer", raising(fault))() if fault else nullcontext()

    convert(model, tmp_path / "run", **ARGUMENTS, workers=2, executor=Cluster(twice))
    assert contents(tmp_path / "run") == contents(expected)


class Odd(Exception):
    """As a plugin may have one: it can't be made again of what it says."""

    def __init__(self, layer: int, why: str) -> None:
        super().__init__(f"layer {layer}: {why}")


@pytest.mark.parametrize("error", [Odd(3, "no such axis"), FormatError("no such axis", found="layer 3")])
def test_what_the_code_itself_does_not_do_is_said_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """As it is without workers, none of which is to blame."""
    for module in (worker, judging):
        monkeypatch.setattr(module, "run_transfer", raising(error))
    executor, said = Named(3), Remarks()
    with pytest.raises(type(error)) as caught:
        convert(model, tmp_path / "run", **ARGUMENTS, workers=1, executor=executor, listener=said)
    assert caught.value is error and not said.remarks and len(executor.tasks) <= 2


def test_an_error_that_can_not_be_sent_is_told_by_what_it_says(model: Path, tmp_path: Path) -> None:
    elsewhere = patched(worker, "run_transfer", raising(Odd(3, "no such axis")))
    error = refused(model, tmp_path / "run", Cluster(elsewhere))
    assert error.problem == "a worker failed" and "Odd: layer 3: no such axis, on " in error.found


_INTERRUPTS = """
import re, signal
from multiprocessing import forkserver
from pathlib import Path

from ckpt_core.engine.executors import executor_for

with executor_for("processes", 1) as pool:
    blocked = pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, []).result()
status = Path(f"/proc/{forkserver._forkserver._forkserver_pid}/status").read_text()
mask = int(re.search(r"SigBlk:\\s*(\\w+)", status)[1], 16)
here = signal.pthread_sigmask(signal.SIG_BLOCK, [])
print(bool(mask >> (signal.SIGINT - 1) & 1), signal.SIGINT in blocked, signal.SIGINT in here)
"""


@pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="the system does not say which signals a process blocks"
)
def test_ctrl_c_is_for_the_command_alone() -> None:
    """Workers would print tracebacks. SIGINT is blocked in the server and in a worker, and not here."""
    said = subprocess.run([sys.executable, "-c", _INTERRUPTS], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["True", "True", "False"]


def test_a_task_needs_no_plugin(model: Path, tmp_path: Path) -> None:
    """Workers that have other ones, or none, carry it out all the same."""
    for name, options in (
        ("nanotron", {}),
        ("megatron", {"container": "torch_dist"}),
        ("nemo", {}),
        ("gguf", {"tokenizer": "none"}),
    ):
        transfers = plan_conversion(model, tmp_path / "run", to=name, options=options).transfers
        strings = {text for one in transfers for _, text, _ in pickletools.genops(pickle.dumps(one))}
        modules = {text for text in strings if isinstance(text, str) and re.fullmatch(r"ckpt_\w+(\.\w+)*", text)}
        assert modules and all(module.startswith("ckpt_core.") for module in modules)


# --- those that join late ---------------------------------------------------------------------------------------------------


class Growing(Named):
    """A cluster of one worker, which others join soon after; processes of theirs have more threads."""

    def __init__(self) -> None:
        super().__init__(1)
        self.asked: list[str] = []

    @property
    def threads(self):
        return 4 if len(self.names) > 1 else 1

    def ask(self, worker, function, /, *arguments):
        self.asked.append(worker)
        return super().ask(worker, function, *arguments)

    def submit(self, function, /, *arguments, **named):
        if len(self.tasks) == 2:
            self.names = ["w0", "w1", "w2"]
        return super().submit(function, *arguments)


@pytest.mark.parametrize("workers", [None, 1], ids=["all", "one"])
def test_a_worker_that_joins_late_is_used(
    model: Path, tmp_path: Path, expected: Path, monkeypatch: pytest.MonkeyPatch, workers: int | None
) -> None:
    """As where a batch system starts the workers one by one. Their memory is shared by more transfers then."""
    monkeypatch.setattr(dispatch, "_MUSTER", 0)
    executor, given = Growing(), []
    convert(
        model, tmp_path / "run", **ARGUMENTS, workers=workers, executor=executor,
        listener=lambda _: given.append(len(executor.tasks)),
    )  # fmt: skip
    assert contents(tmp_path / "run") == contents(expected)
    assert executor.asked == ["w0", "w1", "w2"] and {*executor.tasks} == {"w0", "w1", "w2"}
    at_once = [after - before for before, after in itertools.pairwise([0, *sorted({*given})])]
    assert at_once[0] == 2 and at_once[2] == (2 if workers else 6)
    chunks = [pickle.loads(arguments[-1]).transfer.chunk for arguments in executor.arguments]
    assert len({*chunks[:3]}) == 1 and {*chunks[4:]} == {chunks[0] // 4}


# --- one of many ------------------------------------------------------------------------------------------------------------


class Remarks:
    """A listener that keeps what is said of the workers."""

    def __init__(self) -> None:
        self.remarks: list[str] = []

    def __call__(self, event) -> None:
        if event.remark:
            self.remarks.append(event.remark)


def unlike(model: Path, tmp_path: Path, kind: str) -> Elsewhere:
    """What makes a worker no part of a cluster."""
    if kind == "other code":
        return patched(worker, "SOFTWARE", "ckpt 0.0.1 (code 0123)")
    if kind == "another source":
        shutil.copytree(model, tmp_path / "hf")
        older(tmp_path / "hf" / "model.safetensors")
        return mounted(model, tmp_path / "hf")
    return mounted(tmp_path / "share", tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["other code", "another source", "no mount"])
@pytest.mark.parametrize("looks", [True, False], ids=["it looked", "it was given a task"])
def test_one_of_many_that_is_no_part_of_the_cluster_is_left_out(
    model: Path, tmp_path: Path, expected: Path, kind: str, looks: bool
) -> None:
    (tmp_path / "share").mkdir()
    executor, said = Named(10, {"w1": unlike(model, tmp_path, kind)}), Remarks()
    executor.looks = looks
    convert(model, tmp_path / "share" / "run", **ARGUMENTS, workers=2, executor=executor, listener=said)
    assert contents(tmp_path / "share" / "run") == contents(expected)
    assert executor.tasks.count("w1") == 1 and len(said.remarks) == 1
    assert socket.gethostname() in said.remarks[0] and "it is left out" in said.remarks[0]
    path = {"other code": "", "another source": str(model), "no mount": str(staging_of(tmp_path / "share" / "run"))}[
        kind
    ]
    assert path in said.remarks[0]


@pytest.mark.parametrize("kind", ["other code", "another source", "no mount"])
def test_of_few_it_is_an_error_that_names_them_all(
    model: Path, tmp_path: Path, expected: Path, work: list[str], kind: str
) -> None:
    share = tmp_path / "share"
    share.mkdir()
    bad = unlike(model, tmp_path, kind)
    executor, said = Named(6, {"w0": bad, "w5": bad}), Remarks()
    with pytest.raises(WorkerError) as caught:
        convert(model, share / "run", **ARGUMENTS, workers=2, executor=executor, listener=said)
    assert isinstance(caught.value.found, Lines) and len(caught.value.found) == 2 and not said.remarks
    assert done(share / "run") == 4, "what was at hand is done"
    continues(model, share / "run", expected, work)


def test_a_worker_with_less_room_is_found_before_it_fills_it(model: Path, tmp_path: Path) -> None:
    def small() -> AbstractContextManager:
        said = types.SimpleNamespace(f_bavail=1, f_frsize=4096, f_blocks=1)
        return patched(os, "fstatvfs", lambda _: said)()

    with pytest.raises(WorkerError, match="no room") as caught:
        convert(model, tmp_path / "run", **ARGUMENTS, executor=Named(3, {"w2": small}))
    assert caught.value.found.startswith("4,096 bytes free, on ")


# --- what a task weighs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [1, 24_288])
def test_a_task_does_not_carry_the_files_of_the_source(model: Path, tmp_path: Path, files: int) -> None:
    """A checkpoint of 405B in xser form has 24,288; a worker reads once, in the staging folder, what they were."""
    made = plan_conversion(model, tmp_path / "run", **ARGUMENTS, apart=True)
    more = [
        FileState(f"/data/iter_{n:07}/model/dp_rank_00.tp_rank_{n:02}.pt.tensors/tensor_{n}.pt", n, n)
        for n in range(files)
    ]
    made.source = replace(made.source, files=[*made.source.files, *more])
    executor = Named(2)
    with pytest.raises(FormatError, match="can't be read"):  # at the end, when all are looked at again
        run_plan(made, str(tmp_path / "run"), executor=executor)
    sizes = [len(pickle.dumps(arguments)) for arguments in executor.arguments]
    assert len(sizes) == TENSORS and max(sizes) < 3000, "bytes"


def test_states_of_another_run_are_not_believed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_KNOWN", KnownStates())  # a worker reads the states of a run once

    def changed() -> AbstractContextManager:
        staging = staging_of(tmp_path / "run")
        (staging / "sources").write_text((staging / "sources").read_text().replace("0", "1"))
        return nullcontext()

    with pytest.raises(WorkerError, match="does not see the staging folder") as caught:
        convert(model, tmp_path / "run", **ARGUMENTS, executor=Cluster(changed, 1))
    assert "the sources of another run" in caught.value.found


# --- workers that fall silent -----------------------------------------------------------------------------------------------


def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody waited for."""
    for name in ("_FIRST", "_PATIENCE"):
        monkeypatch.setattr(dispatch, name, 0.05)


class Stalled(Cluster):
    """Some calls are never answered; they are the zombies that may wake up later."""

    def __init__(self, silent: set[int], elsewhere: Elsewhere = nullcontext, bad: int = 99) -> None:
        super().__init__(elsewhere, bad)
        self.silent = silent

    def submit(self, function, /, *arguments, **named):
        if len(self.calls) in self.silent:
            self.calls.append((function, arguments))
            return Future()
        return super().submit(function, *arguments)


def test_what_no_worker_answers_is_handed_over_again(
    model: Path, tmp_path: Path, expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once(monkeypatch)
    executor = Stalled({1, 2, TENSORS})
    events: list[int] = []
    convert(
        model,
        tmp_path / "run",
        **ARGUMENTS,
        workers=2,
        executor=executor,
        listener=lambda event: events.append(event.done),
    )
    assert contents(tmp_path / "run") == contents(expected)
    assert len(executor.calls) == TENSORS + 3 and len(events) == TENSORS and events == sorted(events)
    for number in (1, 2):  # the run is over when they wake up
        function, arguments = executor.calls[number]
        assert isinstance(function(*arguments).error, WorkerError)
    assert contents(tmp_path / "run") == contents(expected) and sorted(path.name for path in tmp_path.iterdir()) == [
        "run"
    ]


def test_both_of_two_answers_may_come_at_once(
    model: Path, tmp_path: Path, expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All workers are slow to start; then what was handed over twice is done twice."""
    at_once(monkeypatch)

    class Slow(Cluster):
        silent: ClassVar[list[tuple[Future, tuple]]] = []

        def submit(self, function, /, *arguments, **named):
            if len(self.calls) < 4:
                self.calls.append(arguments)
                self.silent.append((Future(), (function, *arguments)))
                return self.silent[-1][0]
            for future, (late, *given) in self.silent:
                future.set_result(late(*given))
            self.silent.clear()
            return super().submit(function, *arguments)

    events: list[int] = []
    convert(
        model, tmp_path / "run", **ARGUMENTS, workers=2, executor=Slow(bad=99), listener=lambda e: events.append(e.done)
    )
    assert contents(tmp_path / "run") == contents(expected) and len(events) == TENSORS


def test_an_error_does_not_wait_for_the_silent(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once(monkeypatch)
    monkeypatch.setattr(worker, "run_transfer", raising(OSError(errno.EIO, "x")))
    with pytest.raises(WorkerError, match="can't read or write"):
        convert(model, tmp_path / "run", **ARGUMENTS, workers=2, executor=Stalled({0}))
    assert staging_of(tmp_path / "run").is_dir()


def test_a_worker_that_stands_still_is_given_nothing_more(
    model: Path, tmp_path: Path, expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it holds goes elsewhere after several times the median, though other results come all the while."""
    at_once(monkeypatch)
    executor = Named(3, silent="w0")
    convert(model, tmp_path / "run", **ARGUMENTS, workers=1, executor=executor)
    assert contents(tmp_path / "run") == contents(expected)
    assert executor.tasks.count("w0") <= 2 and len(executor.tasks) == TENSORS + executor.tasks.count("w0")


def test_a_silence_is_told_with_tensor_and_host(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_FIRST", 0.3)
    monkeypatch.setattr(dispatch, "_SILENCE", 0.1)

    class Begun(Stalled):
        """What is never answered was begun."""

        def submit(self, function, /, *arguments, **named):
            if len(self.calls) in self.silent:
                with patched(worker, "run_transfer", raising(OSError(errno.EIO, "x")))():
                    function(*arguments)
            return super().submit(function, *arguments)

    said = Remarks()
    convert(model, tmp_path / "run", **ARGUMENTS, workers=1, executor=Begun({0, 1}), listener=said)
    assert "no result for 0 s: waiting for layers.0.attention." in said.remarks[0]
    assert f"which {socket.gethostname()}, process {os.getpid()} began, and 1 more" in said.remarks[0]


@pytest.mark.parametrize("after", ["published", "another run"])
def test_a_worker_that_wakes_up_too_late_writes_no_more(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """It stood still in the middle of a tensor."""
    destination = tmp_path / "run"
    at_once(monkeypatch)
    monkeypatch.setattr(plan, "_CHUNK", 4096)  # so that a tensor is written piece by piece
    executor = Stalled({0}, patched(worker, "run_transfer", raising(OSError(errno.EIO, "x"))), 2)
    with pytest.raises(WorkerError):
        convert(model, destination, **ARGUMENTS, workers=2, executor=executor)
    pwrite, written = os.pwrite, []

    def sleeping(descriptor: int, view: memoryview, offset: int) -> int:
        written.append(offset)
        if after == "published":
            (staging_of(destination) / "out").rename(destination)
            shutil.rmtree(staging_of(destination))
        else:
            (staging_of(destination) / "token").write_text("0" * 32)
        return pwrite(descriptor, view, offset)

    monkeypatch.setattr(worker, "_SECOND", -1)
    monkeypatch.setattr(os, "pwrite", sleeping)
    function, arguments = executor.calls[0]
    assert function(*arguments).error is not None and len(written) == 1
    assert not list(tmp_path.glob("mark-*"))


class Head:
    """A Ray that never answers, and the port of its head."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"

    def remote(self, *_: object) -> Head:
        return self

    def future(self) -> Future:
        return Future()


def test_a_ray_that_lost_its_head_answers_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_BEAT", 0.02)
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(nodes=list))
    head = Head()
    executor = ray_cluster.RayCluster(lambda _: head)
    with executor.watching(head.address):
        future = executor.submit(print)
        assert not wait([future], 0.2).done, "while somebody listens there it may be at work"
        head.socket.close()
        assert wait([future], 20).done and future.cancelled() and executor.lost.is_set()


@pytest.mark.parametrize(("engine", "scheme"), [("ray", ""), ("dask", "tcp://"), ("dask", "")])
def test_a_cluster_that_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch, engine: str, scheme: str) -> None:
    """Ray itself tries for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.setitem(sys.modules, "distributed", types.SimpleNamespace(Client=None))
    nobody = executors.executor_for(engine, 1, address)
    with pytest.raises(CkptError, match=f"{engine} cluster does not answer") as caught, nobody:
        pass
    assert str(caught.value.expected).endswith(f" at {address}")


@pytest.mark.parametrize(
    ("engine", "says", "good"),
    [
        ("dask", b":\0\0\0\0\0\0\0\1\0", True),
        ("ray", b"\0\0\x18\4\0\0\0\0\0", True),
        ("ray", b":\0\0\0\0\0\0\0\1\0", False),
        ("dask", b"\0\0\x18\4\0\0\0\0\0", False),
        ("dask", b"SSH-2.0-OpenSSH", False),
        ("dask", b"", False),  # the dashboard, which waits for a question
    ],
)
def test_what_listens_there_is_a_cluster(monkeypatch: pytest.MonkeyPatch, engine: str, says: bytes, good: bool) -> None:
    """Dask would read the answer of a dashboard as the size of what comes, and Ray wait for it for two minutes."""
    monkeypatch.setattr(ray_cluster, "_BUSY", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for _ in range(2):  # whether anyone listens is asked before
                connection, _ = server.accept()
                connection.sendall(says)
                held.append(connection)

        held: list[socket.socket] = []
        thread = threading.Thread(target=serve)
        thread.start()
        with nullcontext() if good else pytest.raises(ConnectionError, match="what listens there is no"):
            executors._check_listens(engine, f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()
        for connection in held:
            connection.close()


class Client:
    """A client of Dask: its workers, and what it is asked to do."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.scheduler = self
        self.loop = types.SimpleNamespace(asyncio_loop=loop)
        self.held: dict[str, list[str]] = {}
        self.submitted: list[dict] = []
        self.inner: list[Future] = []
        self.there, self.status = True, "running"

    def get_executor(self, **_: object) -> Client:
        return self

    def submit(self, function, *arguments, **how):
        self.submitted.append(how)
        self.inner.append(Future())
        return self.inner[-1]

    async def ncores(self, workers: None) -> dict[str, int]:
        await asyncio.sleep(0 if self.there else 60)
        return {"a": 1, "b": 4}

    async def processing(self, workers: None) -> dict[str, list[str]]:
        await asyncio.sleep(0 if self.there else 60)
        return self.held


class Killed(Exception):
    pass


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setitem(sys.modules, "distributed", types.SimpleNamespace(KilledWorker=Killed))
    monkeypatch.setattr(dask_cluster, "_PATIENCE", 0.5)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield Client(loop)
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), loop).result()  # what was cancelled ends
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_dask_is_told_who_is_left_out_and_who_is_asked(client: Client) -> None:
    workers = dask_cluster.DaskCluster(client)
    assert workers.threads == 4 and workers.workers() == {"a": 1, "b": 4}
    first = workers.submit(print)
    assert "workers" not in client.submitted[0]
    client.held = {"a": [client.submitted[0]["key"]], "b": ["of somebody else"]}
    assert workers.holders([first]) == {"a"}
    workers.doubt([first])
    workers.submit(print)
    assert client.submitted[1]["workers"] == ["b"]
    workers.trust("a")
    assert workers.leave_out("b") and not workers.leave_out("b")
    workers.submit(print)
    assert client.submitted[2]["workers"] == ["a"]
    workers.doubt([first])
    workers.submit(print)
    assert client.submitted[3]["workers"] == ["a"], "nobody else is left"
    assert workers.ask("b", print).worker == "b" and client.submitted[4]["workers"] == ["b"]
    for client.there, client.status in ((False, "running"), (True, "connecting")):  # a scheduler that does not answer
        assert workers.workers() == {"a": 1, "b": 4} and workers.holders([first]) == set()


def test_what_became_of_a_call_is_told(client: Client) -> None:
    workers = dask_cluster.DaskCluster(client)
    answered, failed, killed, lost = (workers.submit(print) for _ in range(4))
    client.inner[0].set_result(cluster.Answer.of("a", len, ("four",)))
    client.inner[1].set_result(cluster.Answer.of("b", len, (4,)))
    client.inner[2].set_exception(Killed("x died\nfour times"))
    client.inner[3].cancel()
    assert answered.result(1) == 4 and answered.worker == "a" and failed.worker == "b"
    assert isinstance(failed.exception(1), TypeError) and isinstance(killed.exception(1), BrokenExecutor)
    assert lost.cancelled() and wait([lost], 1).done
    mine = workers.submit(print)
    assert mine.cancel() and client.inner[4].cancelled()


class Remote:
    """A function of Ray, and the options with which it was called; an old Ray has no label selectors."""

    def __init__(self, selects: bool = True) -> None:
        self.selects, self.asked = selects, {}

    def options(self, **how: object) -> Remote:
        if "label_selector" in how and not self.selects:
            raise ValueError("Invalid option keyword label_selector")
        self.asked = how
        return self

    def remote(self, *_: object) -> Remote:
        return self

    def future(self) -> Future:
        return Future()


@pytest.mark.parametrize("selects", [True, False])
def test_ray_is_told_which_nodes_are_left_out(monkeypatch: pytest.MonkeyPatch, selects: bool) -> None:
    nodes = [{"NodeID": name, "Alive": True, "Resources": {"CPU": 2.0}} for name in "ab"]
    idle = [
        {"NodeID": "head", "Alive": True, "Resources": {}},
        {"NodeID": "c", "Alive": False, "Resources": {"CPU": 2.0}},
    ]
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(nodes=lambda: nodes + idle))
    remote = Remote(selects)
    workers = ray_cluster.RayCluster(lambda _: remote)
    assert workers.workers() == {"a": 2, "b": 2}
    workers.leave_out("b")
    workers.submit(print)
    assert remote.asked == ({"label_selector": {"ray.io/node-id": "!in(b)"}} if selects else {})


# --- how files are opened, and left -----------------------------------------------------------------------------------------


def test_a_worker_opens_what_is_there_for_writing_alone(model: Path, tmp_path: Path) -> None:
    opened, flags = os.open, []

    def noting(name, flag, *rest, **named):
        if str(name).startswith("out/"):
            flags.append(flag)
        return opened(name, flag, *rest, **named)

    convert(model, tmp_path / "run", **ARGUMENTS, executor=Cluster(patched(os, "open", noting), 1))
    assert len(flags) == TENSORS
    assert {flag & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC) for flag in flags} == {os.O_WRONLY}


@pytest.mark.parametrize(
    ("boot", "sync", "forced"), [("other", True, True), ("other", False, False), (None, True, False)]
)
def test_a_worker_of_another_machine_forces_its_bytes_to_the_disk(
    model: Path, tmp_path: Path, boot: str | None, sync: bool, forced: bool
) -> None:
    """Nobody else can: a client of a network file system syncs what itself wrote."""
    synced: set[str] = set()

    def there() -> AbstractContextManager:
        patch = pytest.MonkeyPatch()
        patch.setattr(os, "fsync", lambda descriptor: synced.add(os.readlink(f"/proc/self/fd/{descriptor}")))
        if boot:
            patch.setattr(worker, "boot_id", lambda: boot)
        return undone(patch)

    convert(model, tmp_path / "run", **ARGUMENTS, sync=sync, executor=Cluster(there, 1))
    files = {path for path in synced if path.endswith(".safetensors")}
    assert len(files) == (len(list((tmp_path / "run").glob("*.safetensors"))) if forced else 0)


def test_a_file_that_lost_its_size_is_not_published(model: Path, tmp_path: Path) -> None:
    def cut(_: object) -> None:
        for path in (staging_of(tmp_path / "run") / "out").rglob("*.safetensors"):
            os.truncate(path, 8)

    with pytest.raises(WorkerError, match="size"):
        convert(model, tmp_path / "run", **ARGUMENTS, workers=1, executor=Cluster(bad=99), listener=cut)
    assert not (tmp_path / "run").exists()


_CREDENTIALS = """
import os
from ckpt_core.engine.executors import executor_for

for said in ("first", "second"):
    os.environ["CREDENTIALS"] = said
    with executor_for("processes", 1) as pool:
        print(pool.submit(os.getenv, "CREDENTIALS").result())
"""


def test_a_worker_has_the_environment_of_now() -> None:
    """The server that workers are forked from keeps the environment of the first conversion of its process."""
    said = subprocess.run([sys.executable, "-c", _CREDENTIALS], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["first", "second"]


_KILLED = """
import os, signal, time
from ckpt_core.engine.executors import executor_for

with executor_for("processes", 2) as pool:
    first = pool.submit(os.getpid).result()  # the other one begins with what takes long
    pool.submit(time.sleep, 600)
    pool.submit(time.sleep, 600)
    print(first, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_command_that_is_killed() -> None:
    """As by the kernel, where memory is short: a shell that waits for the end of its output (`ckpt ... | tee`) would wait for ever."""
    killed = subprocess.run([sys.executable, "-c", _KILLED], capture_output=True, text=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL and int(killed.stdout), killed.stderr


def test_a_system_without_semaphores_is_said(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a container whose /dev/shm is read-only, or missing."""
    monkeypatch.setattr(
        concurrent.futures, "ProcessPoolExecutor", mock.Mock(side_effect=OSError(errno.EROFS, "Read-only file system"))
    )
    code, text = ckpt("convert", model, tmp_path / "out", "--to", "hf", "--engine", "processes")
    assert code == 1 and "Read-only file system" in text and "--engine local" in text
    assert not list(tmp_path.iterdir())
