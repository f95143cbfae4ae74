"""Workers that run other code, see other files, fail or fall silent: no wrong output, and nothing that was done is lost.

A worker of another machine is a call in this process, in which paths lead elsewhere: that is all that a worker knows of its machine.
`real/check_clusters.py` does the same to real clusters of Dask and Ray.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import socket
import sys
import types
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar

import pytest

from ckpt_core import convert
from ckpt_core.engine import dispatch, executors, plan, software, worker
from ckpt_core.errors import CkptError, FormatError, WorkerError
from ckpt_tests import tiny
from ckpt_tests.folders import contents

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


class Cluster(Executor):
    """Workers that are calls in this process. The one at number `bad` of the calls, and all later ones, live `elsewhere`."""

    def __init__(self, elsewhere: Elsewhere = nullcontext, bad: int = 4) -> None:
        self.elsewhere, self.bad = elsewhere, bad
        self.calls: list[tuple] = []

    def submit(self, function, /, *arguments, **named):
        future: Future = Future()
        self.calls.append((function, arguments))
        with self.elsewhere() if len(self.calls) >= self.bad else nullcontext():
            try:
                answer, error = function(*arguments), None
            except Exception as raised:
                answer, error = None, raised
        answer, error = pickle.loads(pickle.dumps((answer, error)))
        future.set_exception(error) if error else future.set_result(answer)
        return future


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


def staging_of(destination: Path) -> Path:
    return destination.with_name(f"{destination.name}.ckpt-partial")


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
    assert "0.0.1" in error.found and socket.gethostname() in error.found and error.expected == dispatch.SOFTWARE
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
    for module in (worker, dispatch):
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


# --- workers that fall silent -----------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(dispatch, "_PATIENCE", 0.05)
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
    monkeypatch.setattr(dispatch, "_PATIENCE", 0.05)

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
    monkeypatch.setattr(dispatch, "_PATIENCE", 0.05)
    monkeypatch.setattr(worker, "run_transfer", raising(OSError(errno.EIO, "x")))
    with pytest.raises(WorkerError, match="can't read or write"):
        convert(model, tmp_path / "run", **ARGUMENTS, workers=2, executor=Stalled({0}))
    assert staging_of(tmp_path / "run").is_dir()


@pytest.mark.parametrize("after", ["published", "another run"])
def test_a_worker_that_wakes_up_too_late_writes_no_more(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """It stood still in the middle of a tensor."""
    destination = tmp_path / "run"
    monkeypatch.setattr(dispatch, "_PATIENCE", 0.05)
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
    monkeypatch.setattr(executors, "_BEAT", 0.02)
    head = Head()
    executor = executors.RayExecutor(lambda _: head)
    with executor.watching(head.address):
        future = executor.submit(print)
        assert not wait([future], 0.2).done, "while somebody listens there it may be at work"
        head.socket.close()
        assert wait([future], 20).done and future.cancelled() and executor.lost.is_set()


def test_a_ray_that_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself tries for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(is_initialized=lambda: False))
    cluster = executors.executor_for("ray", 1, address)
    with pytest.raises(CkptError, match="ray cluster does not answer") as caught, cluster:
        pass
    assert caught.value.expected == address


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
