"""Hands transfers to the workers of an executor, and hands them over again if a worker fails.

The failure of a worker is a `WorkerError`, and does not end the run: another worker gets the transfer. So it does when a worker takes
too long. A cluster names its workers, so a worker that failed gets nothing more. The same holds for a worker that runs other code
or sees other files, if it is one of many. If there are more of them, the cluster is not what the user thinks it is, and the run ends with an error.
The other workers still finish the transfers that they have, and these count.
"""

from __future__ import annotations

import os
import pickle
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    wait,
)
from dataclasses import field, replace

from ckpt_core.engine import marks
from ckpt_core.engine.cluster import Cluster
from ckpt_core.engine.judging import Done, Fault, Judge
from ckpt_core.engine.pages import write_edges
from ckpt_core.engine.pieces import Transfer
from ckpt_core.engine.results import Result
from ckpt_core.engine.software import SOFTWARE
from ckpt_core.engine.threads import Finished
from ckpt_core.engine.worker import Run, Task, look, perform
from ckpt_core.errors import CkptError, Lines, WorkerError
from ckpt_core.lean import dataclass
from ckpt_core.tensors.source import SourceFiles

_FIRST = 30.0  # seconds for the first results: on a cluster processes are started, and import
_PATIENCE = 10.0  # seconds that each transfer may take
_TIMES = 5  # and so many times the median
_LAST = 101  # the median is that of so many results
_SILENCE = 60.0  # seconds without a result, after which a line says so
_TWINS = 2
_AHEAD = 2  # transfers handed over for each that is carried out at a time, so that no worker waits for the next
_MUSTER = 5.0  # seconds between two looks at the list of workers
_TRIES = 3
_SPARED = 10  # one of so many workers may see other files or run other code
_SMALL = 16 << 20  # bytes; the time of a smaller transfer does not depend on its size


@dataclass(eq=False)
class _Awaited:
    """A transfer that was handed over and is not done. Each copy has a mark; a file of that name in the staging folder says which worker began it."""

    transfer: Transfer
    number: int
    copies: dict[Future, str] = field(default_factory=dict)
    since: float = 0.0  # when the last copy was handed over
    failures: int = 0


@dataclass(eq=False)
class _Crew:
    """How many transfers are carried out at a time, by all workers (`size`) and by one process (`threads`). `met` are the known workers of a cluster."""

    size: int
    threads: int  # of one process, when the memory of a transfer was planned
    grows: bool
    now: int = 1  # the threads of a process now
    met: set[str] = field(default_factory=set)
    until: float = 0.0  # the time of the next look at the list of workers

    def fitted(self, transfer: Transfer) -> Transfer:
        """The transfer, with smaller chunks if a process that joined later has more threads, which share its memory."""
        if self.now <= self.threads:
            return transfer
        return replace(transfer, chunk=max(1, transfer.chunk * self.threads // self.now))


class Workers:
    """The workers behind an executor, for one run.

    `source` has the input files as this machine sees them. `tell` gets a sentence for the user who waits.
    """

    def __init__(
        self,
        executor: Executor,
        run: Run,
        source: SourceFiles,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._executor, self._source, self._tell = executor, source, tell
        self._judge = Judge(source, os.path.dirname(run.out), run.token)
        self._cluster = executor if isinstance(executor, Cluster) else None
        self._run, self._in_step = pickle.dumps(run), run.spooled
        self._staging = os.path.dirname(run.out)
        self._asked: dict[Future, str] = {}  # the workers that were asked to check their view
        self._awaited: list[_Awaited] = []
        self._begun = 0  # transfers that were handed over
        self._paces: deque[float] = deque(maxlen=_LAST)  # seconds for a byte
        self._pace = 0.0  # their median
        self._misfits: dict[str, WorkerError] = {}
        self._failure: Exception | None = None
        self._crew: _Crew

    def carry_out(self, todo: Sequence[Transfer], workers: int, threads: int = 1, grows: bool = False) -> Finished:
        """Carry out transfers. Two for each of `workers` are handed over at a time; with `grows` also for workers that join the cluster.

        The memory of each transfer is planned for `threads` at a time in one process. A transfer that is handed over twice
        writes the same bytes to the same places, and the first result counts. After a failure of the run no more transfers are handed over; the
        error is raised when those at work are done.
        """
        waiting = iter(todo)
        self._crew = _Crew(workers, threads, grows)
        heard = told = time.monotonic()
        try:
            while True:
                self._muster()
                ahead = _AHEAD * self._crew.size
                while self._failure is None and self._out < ahead and (one := next(waiting, None)) is not None:
                    self._awaited.append(_Awaited(one, self._begun))
                    self._begun += 1
                    self._hand_over(self._awaited[-1])
                if not self._awaited:
                    break
                copies = {future: awaited for awaited in self._awaited for future in awaited.copies}
                done = wait([*copies, *self._asked], self._pause(told), FIRST_COMPLETED).done
                now = time.monotonic()
                for future in done:
                    if (asked := self._asked.pop(future, None)) is not None:
                        self._looked(asked, future, todo)
                    elif future in (awaited := copies[future]).copies:  # or its twin came at the same moment
                        heard = told = now
                        if (result := self._settled(awaited, future)) is not None:
                            yield awaited.transfer, result
                for awaited in self._late(now):
                    if self._failure is not None:
                        self._forget(awaited)
                    elif len(awaited.copies) <= _TWINS:
                        self._doubt(awaited)
                        self._hand_over(awaited)
                if now - told >= _SILENCE and self._awaited:
                    told = now
                    self._tell(self._silence(now - heard))
            if self._failure is not None:
                raise self._with_others(self._failure)
        finally:
            for future in (*self._asked, *(future for awaited in self._awaited for future in awaited.copies)):
                future.cancel()

    @property
    def _out(self) -> int:
        """How many transfers are out. Of an output that is sent on while it is written, those behind the first count, too, done or not: otherwise
        more parts would wait for one that takes long than there is room for."""
        return self._begun - self._awaited[0].number if self._in_step and self._awaited else len(self._awaited)

    # --- who is there

    def _muster(self) -> None:
        """Look from time to time which workers joined the cluster. Each is asked once to check version, token, files and space. Nothing waits for
        the answer, since each task checks them, too."""
        if self._cluster is None or time.monotonic() < self._crew.until:
            return
        there = self._cluster.workers()
        for worker in there:
            if worker not in self._crew.met:
                self._asked[self._cluster.ask(worker, look, SOFTWARE, self._run)] = worker
        self._crew.met |= there.keys()
        self._crew.now = max(self._crew.now, self._cluster.threads)
        if self._crew.grows:
            self._crew.size = max(self._crew.size, sum(there.values()))
        self._crew.until = time.monotonic() + _MUSTER

    # --- handing over

    def _hand_over(self, awaited: _Awaited) -> None:
        mark = marks.new_mark()
        try:
            transfer = self._crew.fitted(awaited.transfer)
            task = Task(transfer, mark, self._source.remote_states(transfer.paths))
            future = self._executor.submit(perform, SOFTWARE, self._run, pickle.dumps(task))
        except Exception as error:  # a broken executor, or one without its cluster, may raise anything
            future = Future()
            future.set_exception(error)
        awaited.copies[future] = mark
        awaited.since = time.monotonic()

    def _forget(self, awaited: _Awaited) -> None:
        """Stop waiting for a transfer."""
        self._awaited.remove(awaited)
        copies, awaited.copies = awaited.copies, {}
        for future in copies:
            future.cancel()

    def _doubt(self, awaited: _Awaited) -> None:
        if self._cluster is not None:
            self._cluster.doubt(awaited.copies)

    # --- waiting

    def _patience(self, awaited: _Awaited) -> float:
        """How many seconds after the last hand-over a transfer is late. Each copy gets twice the time of the one before."""
        usual = self._pace * max(awaited.transfer.bytes_read, _SMALL)
        return max(_PATIENCE if self._paces else _FIRST, _TIMES * usual) * 2 ** (len(awaited.copies) - 1)

    def _late(self, now: float) -> list[_Awaited]:
        return [awaited for awaited in self._awaited if now - awaited.since >= self._patience(awaited)]

    def _pause(self, told: float) -> float:
        """Seconds until a transfer that may have another copy is late, a line about silence is due, or the list of workers is read again."""
        ends = [told + _SILENCE]
        if self._cluster is not None:
            ends.append(self._crew.until)
        for awaited in self._awaited:
            if len(awaited.copies) <= _TWINS or self._failure is not None:
                ends.append(awaited.since + self._patience(awaited))
        return max(0.01, min(ends) - time.monotonic())

    def _silence(self, seconds: float) -> str:
        """The line about a silence of so many seconds: which transfer is awaited, and from which worker."""
        oldest = self._awaited[0]
        began = next((who for mark in oldest.copies.values() if (who := marks.begun_by(self._staging, mark))), None)
        of = f"which {began} began" if began else "which no worker has begun"
        more = f", and {len(self._awaited) - 1:,} more" if self._awaited[1:] else ""
        return f"no result for {seconds:.0f} s: waiting for {oldest.transfer.name}, {of}{more}; what is done is kept"

    # --- judging

    def _looked(self, worker: str, future: Future, todo: Sequence[Transfer]) -> None:
        """Judge the answer of a worker that was asked to check its view."""
        try:
            fault = self._judge.look(worker, future, todo)
        except (CkptError, OSError) as error:
            self._fail(error)
            return
        if fault is not None and not self._goes_elsewhere(worker, fault):
            self._fail(fault.error)

    def _fail(self, error: Exception) -> None:
        """Note the error that ends the run: the first one, unless a later one is not a worker's fault. That one explains the workers' errors."""
        if self._failure is None or (isinstance(self._failure, WorkerError) and not isinstance(error, WorkerError)):
            self._failure = error

    def _settled(self, awaited: _Awaited, future: Future) -> Result | None:
        """The result of a transfer whose future is done. None if it failed; then it is handed over again, or the run fails."""
        worker = getattr(future, "worker", None)
        try:
            found = self._judge.task(awaited.transfer, awaited.copies[future], future)
            if isinstance(found, Done):
                write_edges(found.edges)
        except Exception as error:
            self._fail(error)
            self._forget(awaited)
            return None
        if isinstance(found, Done):
            if worker is not None and self._cluster is not None:
                self._cluster.trust(worker)
            self._paces.append(found.seconds / max(awaited.transfer.bytes_read, _SMALL))
            self._pace = statistics.median(self._paces)
            self._forget(awaited)
            return found.result
        del awaited.copies[future]
        awaited.failures += 1
        again = self._goes_elsewhere(worker, found) and awaited.failures < _TRIES and not found.final
        if not again:
            self._fail(found.error)
            self._forget(awaited)
        elif not awaited.copies:
            self._hand_over(awaited)
        return None

    def _goes_elsewhere(self, worker: str | None, fault: Fault) -> bool:
        """Whether other workers may do what this one did not. On a cluster this worker is left out.

        If too many workers see other files or run other code, the run fails; the transfers at work still go elsewhere.
        """
        if worker is None or self._cluster is None:
            return not fault.lasting
        if fault.lasting:
            self._misfits[worker] = fault.error
        new, others = self._cluster.leave_out(worker), bool(self._cluster.left())
        if len(self._misfits) * _SPARED > len(self._cluster.workers()):
            self._fail(fault.error)
        if new and others and self._failure is None:
            place = "" if fault.error.file is None else f" ({fault.error.file})"
            self._tell(f"{fault.error.problem}{place}: {fault.error.found}; it is left out")
        return others

    def _with_others(self, failure: Exception) -> Exception:
        """An error about a worker, with the findings of all workers that failed in the same way."""
        if isinstance(failure, WorkerError):
            alike = [one.found for one in self._misfits.values() if one.problem == failure.problem]
            failure.found = Lines(map(str, alike)) if len(alike) > 1 else failure.found
        return failure
