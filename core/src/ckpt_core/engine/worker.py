"""What a worker does: another process, perhaps on another machine, which opens every file by its path.

Nothing says that it runs the same code, or that it finds the same files at the same paths. So before it writes a byte of a
task it compares what it sees with what this run wants it to see:

- the software, before anything else of the task is looked at;
- the token: random, made by each run, and lying in its staging folder. It is read through the very descriptor of that folder
  through which output files are opened: whoever reads it writes into the folder that this run made, and, when that has
  been published or removed, nowhere;
- the sources of the tensor, in the state in which they were when the plan was made. The states of all sources lie beside the
  token: a worker reads them once, and a task names none.

A worker can see the token and still write elsewhere (an overlay shows what lies below, and keeps what is written). So at the
end of a task it writes a secret into the task's mark beside the token, and its report has that secret and a sample of what it
wrote to each output file: the coordinator looks for both in its own view (`dispatch`).
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from multiprocessing.process import BaseProcess

from ckpt_core import numpy as np
from ckpt_core.engine import marks
from ckpt_core.engine.pages import Edge, Pages
from ckpt_core.engine.pieces import Transfer
from ckpt_core.engine.results import Result
from ckpt_core.engine.software import SOFTWARE
from ckpt_core.engine.staging import KEPT, TOKEN, boot_id
from ckpt_core.engine.states import STATES, KnownStates
from ckpt_core.engine.transfer import TargetFiles, run_transfer
from ckpt_core.errors import CkptError, WorkerError
from ckpt_core.lean import dataclass
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.bytes.pagecache import Kept
from ckpt_core.tensors.source import SourceFiles

_SAMPLE = 64
_SECOND = 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """What all tasks of a run share: where to write, and by which token the place is known.

    `boot` is that of the coordinator's machine; what is written on another one it can't force to the disk (`sync`) itself.
    `spooled`: files are sent on from there, and take no room beforehand.
    `kept` is what stays in the kernel's cache.
    `sources` is the digest of the states of all source files, as they lie beside the token.
    """

    out: str
    token: str
    boot: str
    sync: bool
    sources: str
    spooled: bool = False
    kept: Kept = Kept()


@dataclass(frozen=True, slots=True)
class Task:
    """A transfer, the name of its mark, and the states of those sources that lie in a store."""

    transfer: Transfer
    mark: str
    remote: tuple[FileState, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """Some of the bytes that were written to an output file, the first of them not zero."""

    path: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker says of one task: the result and traces of what it wrote, or the error that kept it from the task.

    `secret` is the one in the mark of the task, `room` the bytes that are free where the output goes, if it was asked for them. `edges`
    are bytes that it left to the coordinator. `touched` are source files that were touched before it opened them, where it is on the coordinator's machine.
    """

    host: str
    seconds: float
    result: Result | None = None
    secret: str = ""
    samples: tuple[Sample, ...] = ()
    edges: tuple[Edge, ...] = ()
    touched: tuple[str, ...] = ()
    error: Exception | None = None
    room: int | None = None


def begin_process(environment: Mapping[str, str]) -> None:
    """Give this process the environment of the one that asked for it, and end it when that one ends."""
    # The server that it was forked from may be as old as a notebook, and the credentials of a store younger.
    os.environ.clear()
    os.environ.update(environment)
    # A process that is killed can't say that no task follows. Nor is the queue of tasks closed by its death, since every worker can write to it, too.
    asker = multiprocessing.parent_process()
    if asker is not None:
        threading.Thread(target=_end_with, args=(asker,), name="end", daemon=True).start()


def _end_with(process: BaseProcess) -> None:
    """Wait for the end of a process, then end this one at once: its main thread may be in the middle of a task."""
    process.join()
    os._exit(1)


def perform(software: str, run: bytes, task: bytes) -> Report:
    """Carry out a task in this process. `run` and `task` are pickled, for another version may not even know their classes."""
    _check_software(software)
    begun = time.monotonic()
    try:
        done = _carried_out(pickle.loads(run), pickle.loads(task))
    except Exception as error:
        return Report(host(), time.monotonic() - begun, error=_sendable(error))
    return Report(host(), time.monotonic() - begun, *done)


def look(software: str, run: bytes) -> Report:
    """Look from this process for all that a task wants to find: what is wrong is said before one is begun.

    `room` of the report is what is free where the output goes.
    """
    _check_software(software)
    begun, room = time.monotonic(), None
    wanted: Run = pickle.loads(run)
    try:
        sink = WorkerSink(wanted)
        try:
            _check_sources(itertools.islice(_states(wanted, sink).values(), 1))
            status = os.fstatvfs(sink.staging.descriptor)
            room = status.f_bavail * status.f_frsize if status.f_blocks else None
        finally:
            sink.close()
    except (CkptError, OSError) as error:
        return Report(host(), time.monotonic() - begun, error=error)
    return Report(host(), time.monotonic() - begun, room=room)


def _sendable(error: Exception) -> Exception:
    """An exception as it can be sent: of a class that can't be pickled, or can't be made again of its message, what it says."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def host() -> str:
    """This process, as an error names it."""
    return f"{socket.gethostname()}, process {os.getpid()}"


def _check_software(software: str) -> None:
    if software != SOFTWARE:
        raise WorkerError(
            "a worker runs another version of ckpt",
            found=f"{SOFTWARE} on {host()}",
            expected=software,
            fix=f"install the same version on every worker and start them again, {KEPT}",
        )


def _carried_out(run: Run, task: Task) -> tuple[Result, str, tuple[Sample, ...], tuple[Edge, ...], tuple[str, ...]]:
    sink = WorkerSink(run)
    try:
        states = _states(run, sink)
        sources = [states[path] for path in sorted(task.transfer.paths) if path in states]
        _check_sources(sources)
        source = SourceFiles((*sources, *task.remote), drop=not run.kept.source)
        try:
            marks.begin(sink.staging, task.mark, host())
            sink.pages = Pages(task.transfer)
            result = run_transfer(task.transfer, source, sink)
        finally:
            source.close()
        here = boot_id() == run.boot
        if run.sync and not here:
            sink.to_disk()
        secret = marks.end(sink.staging, task.mark)
    finally:
        sink.close()  # and with it, on NFS, what was written goes to the server
    touched = tuple(source.touched) if here else ()  # elsewhere the time of a change may be another one
    return result, secret, tuple(sink.samples.values()), tuple(sink.edges), touched


_KNOWN = KnownStates()


def _states(run: Run, sink: WorkerSink) -> Mapping[str, FileState]:
    try:
        states = _KNOWN.of(sink.staging, run.sources)
    except OSError as error:
        raise sink.elsewhere(f"no {STATES} of a run ({error.strerror})") from error
    if states is None:
        raise sink.elsewhere(f"the {STATES} of another run")
    return states


def _check_sources(states: Iterable[FileState]) -> None:
    for state in states:
        try:
            seen = FileState.of(state.path)
        except CkptError as error:
            found = f"{error.problem}: {error.found}"
        else:
            if seen == state:
                continue
            found = f"{seen.size} bytes, modified at {seen.mtime_ns}"
        raise WorkerError(
            "a worker sees another source file",
            file=state.path,
            found=f"{found}, on {host()}",
            expected=f"{state.size} bytes, modified at {state.mtime_ns}",
            fix=f"give every worker the same file system at that path, {KEPT}",
        )


class WorkerSink(TargetFiles):
    """A sink that writes into the staging folder of its run or not at all, and keeps a sample of what it wrote to each file.

    It writes whole pages of the transfer's own; the others are `edges`. It looks for the token again after every second: a worker that stood still, and was given up, finds that the run is over.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        try:
            super().__init__(run.out, sync=False, spooled=run.spooled, kept=run.kept)
        except OSError as error:
            raise self.elsewhere(error.strerror) from error
        self.samples: dict[str, Sample] = {}
        self.edges: list[Edge] = []
        self.pages: Pages | None = None
        try:
            self._check()
        except WorkerError:
            self.close()
            raise

    def _check(self) -> None:
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(TOKEN, flags, dir_fd=self.staging.descriptor)
            try:
                seen = os.read(descriptor, 2 * len(self._run.token))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self.elsewhere(f"no token of a run ({error.strerror})") from error
        if seen != self._run.token.encode():
            raise self.elsewhere(f"the token of another run, {seen.decode(errors='replace')!r}")
        self._checked = time.monotonic()

    def elsewhere(self, seen: str | None) -> WorkerError:
        """The error of one that sees something else than the staging folder of its run."""
        return WorkerError(
            "a worker does not see the staging folder of this run",
            file=os.path.dirname(self._run.out),
            found=f"{seen}, on {host()}",
            expected=f"its token, {self._run.token!r}",
            fix=f"give every worker the destination's file system at that path, or leave that worker out, {KEPT}",
        )

    def _put(self, path: str, descriptor: int, view: memoryview, offset: int) -> None:
        if time.monotonic() - self._checked > _SECOND:
            self._check()
        stop, own = offset + len(view), (offset, offset + len(view))
        if self.pages is not None:
            own = self.pages.own(os.path.relpath(path, self._out), offset, stop)
        for first, end in ((offset, own[0]), (own[1], stop)):
            if first < end:
                self.edges.append(Edge(path, first, bytes(view[first - offset : end - offset])))
        view, offset = view[own[0] - offset : own[1] - offset], own[0]
        if not view:
            return
        super()._put(path, descriptor, view, offset)
        if path not in self.samples and (start := _first(view)) is not None:
            self.samples[path] = Sample(path, offset + start, bytes(view[start : start + _SAMPLE]))


def _first(view: memoryview) -> int | None:
    """Where the first byte is that is not zero."""
    if any(view[:_SAMPLE]):
        return next(number for number, byte in enumerate(view) if byte)
    set_ = np.frombuffer(view, np.uint8) != 0
    return int(set_.argmax()) if set_.any() else None
