"""Handing transfers to the workers of an executor, and again where nothing good comes back.

What workers do wrong is a `WorkerError`, and none of the run's: what one fails to do is handed over to another, and so is what
takes one too long. Of a cluster, which names its workers, the one that failed is left out from then on. One that runs other code
or sees other files is too, where it is one of many; else the cluster is not what the user thinks it is, and he is told. After
such a failure of the run what is at hand is done all the same, by the others, and counts.
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
from dataclasses import dataclass, field, replace

from ckpt_core.engine import marks
from ckpt_core.engine.cluster import Cluster
from ckpt_core.engine.judging import Done, Fault, Judge
from ckpt_core.engine.pages import write_edges
from ckpt_core.engine.pieces import Transfer
from ckpt_core.engine.software import SOFTWARE
from ckpt_core.engine.threads import Finished
from ckpt_core.engine.transfer import Result
from ckpt_core.engine.worker import Run, Task, look, perform
from ckpt_core.errors import CkptError, Lines, WorkerError
from ckpt_core.tensors.source import SourceFiles

_FIRST = 30.0  # seconds for the first results: on a cluster processes are started, and import
_PATIENCE = 10.0  # seconds that a transfer may take whatever the others took
_TIMES = 5  # and this many times the median
_LAST = 101  # results of which that is
_SILENCE = 60.0  # seconds without a result, of which something is said
_TWINS = 2
_AHEAD = 2  # transfers for each of those that may be carried out at a time, so that nobody waits for the next
_MUSTER = 5.0  # seconds between two looks at who is there
_TRIES = 3
_SPARED = 10  # of so many workers one may be no part of the cluster
_SMALL = 16 << 20  # of less, the bytes are not what takes the time


@dataclass(eq=False)
class _Awaited:
    """A transfer that was handed over and is not done. Each copy has a mark, by which the staging folder tells who began it."""

    transfer: Transfer
    copies: dict[Future, str] = field(default_factory=dict)
    since: float = 0.0  # when the last copy was handed over
    failures: int = 0


@dataclass(eq=False)
class _Crew:
    """How many transfers are carried out at a time, by all workers and by one process; `met` are the workers of a cluster that are known."""

    size: int
    threads: int  # of a process, by which the memory of each transfer was planned
    grows: bool
    now: int = 1  # the threads that a process has
    met: set[str] = field(default_factory=set)
    until: float = 0.0  # when to look who is there again

    def fitted(self, transfer: Transfer) -> Transfer:
        """A transfer that takes no more than its part of the memory of a process that joined later and has more threads."""
        if self.now <= self.threads:
            return transfer
        return replace(transfer, chunk=max(1, transfer.chunk * self.threads // self.now))


class Workers:
    """The workers behind an executor, for one run.

    `source` is what this machine sees of the input, and `tell` is given a sentence for whoever waits.
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
        self._run = pickle.dumps(run)
        self._staging = os.path.dirname(run.out)
        self._asked: dict[Future, str] = {}  # who was asked to look whether all is there
        self._awaited: list[_Awaited] = []
        self._paces: deque[float] = deque(maxlen=_LAST)  # seconds for a byte
        self._pace = 0.0  # their median
        self._misfits: dict[str, WorkerError] = {}
        self._failure: Exception | None = None
        self._crew: _Crew

    def carry_out(self, todo: Sequence[Transfer], workers: int, threads: int = 1, grows: bool = False) -> Finished:
        """Carry out transfers, two for each of so many workers handed over at a time; `grows`: of a cluster, for those that join it, too.

        Each transfer has the memory that it may take where a process carries out `threads` at a time. What is handed over twice
        is the same bytes to the same places, and the first result counts. After a failure of the run nothing more is handed over, and it is
        raised when the others are done.
        """
        waiting = iter(todo)
        self._crew = _Crew(workers, threads, grows)
        heard = told = time.monotonic()
        try:
            while True:
                self._muster()
                ahead = _AHEAD * self._crew.size
                while self._failure is None and len(self._awaited) < ahead and (one := next(waiting, None)) is not None:
                    self._awaited.append(_Awaited(one))
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

    # --- who is there

    def _muster(self) -> None:
        """See now and then who joined the cluster. Each is asked once to look for all that a task wants to find, and nobody waits for
        the answer: a task looks too."""
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
        except Exception as error:  # what an executor raises that is broken, or lost its cluster, is its own affair
            future = Future()
            future.set_exception(error)
        awaited.copies[future] = mark
        awaited.since = time.monotonic()

    def _forget(self, awaited: _Awaited) -> None:
        """Await a transfer no longer."""
        self._awaited.remove(awaited)
        copies, awaited.copies = awaited.copies, {}
        for future in copies:
            future.cancel()

    def _doubt(self, awaited: _Awaited) -> None:
        if self._cluster is not None:
            self._cluster.doubt(awaited.copies)

    # --- waiting

    def _patience(self, awaited: _Awaited) -> float:
        """For how many seconds after it was handed over a transfer is not late. Each copy is given twice the time of the last."""
        usual = self._pace * max(awaited.transfer.bytes_read, _SMALL)
        return max(_PATIENCE if self._paces else _FIRST, _TIMES * usual) * 2 ** (len(awaited.copies) - 1)

    def _late(self, now: float) -> list[_Awaited]:
        return [awaited for awaited in self._awaited if now - awaited.since >= self._patience(awaited)]

    def _pause(self, told: float) -> float:
        """Seconds until one of those that may have another copy is late, something is to be said, or the cluster is looked at again."""
        ends = [told + _SILENCE]
        if self._cluster is not None:
            ends.append(self._crew.until)
        for awaited in self._awaited:
            if len(awaited.copies) <= _TWINS or self._failure is not None:
                ends.append(awaited.since + self._patience(awaited))
        return max(0.01, min(ends) - time.monotonic())

    def _silence(self, seconds: float) -> str:
        """What is awaited, where nothing was heard for so long."""
        oldest = self._awaited[0]
        began = next((who for mark in oldest.copies.values() if (who := marks.begun_by(self._staging, mark))), None)
        of = f"which {began} began" if began else "which no worker has begun"
        more = f", and {len(self._awaited) - 1:,} more" if self._awaited[1:] else ""
        return f"no result for {seconds:.0f} s: waiting for {oldest.transfer.name}, {of}{more}; what is done is kept"

    # --- judging

    def _looked(self, worker: str, future: Future, todo: Sequence[Transfer]) -> None:
        """A worker has looked for what tasks want to find."""
        try:
            fault = self._judge.look(worker, future, todo)
        except (CkptError, OSError) as error:
            self._fail(error)
            return
        if fault is not None and not self._goes_elsewhere(worker, fault):
            self._fail(fault.error)

    def _fail(self, error: Exception) -> None:
        """Note what ends the run: the first that was found, but that what is no worker's fault explains what workers said."""
        if self._failure is None or (isinstance(self._failure, WorkerError) and not isinstance(error, WorkerError)):
            self._failure = error

    def _settled(self, awaited: _Awaited, future: Future) -> Result | None:
        """The result of a transfer that is awaited no longer; None where it was not a result."""
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
        """Whether others may do what this worker did not; of a cluster it is left out.

        Where too many are no part of the cluster that is a failure of the run, and what is at hand goes elsewhere all the same.
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
        """An error about a worker, with what was found at those that are wrong in the same way."""
        if isinstance(failure, WorkerError):
            alike = [one.found for one in self._misfits.values() if one.problem == failure.problem]
            failure.found = Lines(map(str, alike)) if len(alike) > 1 else failure.found
        return failure
