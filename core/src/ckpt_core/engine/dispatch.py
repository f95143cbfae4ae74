"""Handing transfers to threads of this process, or to the workers of an executor, and again where nothing good comes back.

What workers do wrong is a `WorkerError`, and none of the run's: what one fails to do is handed over to another, and so is what
takes one too long. Of a cluster, which names its workers, the one that failed is left out from then on. One that runs other code
or sees other files is too, where it is one of many; else the cluster is not what the user thinks it is, and he is told. After
such a failure of the run those that are at work may finish, and what they did counts.
"""

from __future__ import annotations

import itertools
import os
import pickle
import statistics
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import dataclass, field

from ckpt_core.engine import marks
from ckpt_core.engine.cluster import Cluster
from ckpt_core.engine.judging import Done, Fault, Judge
from ckpt_core.engine.pages import write_edges
from ckpt_core.engine.pieces import Transfer
from ckpt_core.engine.software import SOFTWARE
from ckpt_core.engine.transfer import Result, TargetFiles, run_transfer
from ckpt_core.engine.worker import Run, Task, look, perform
from ckpt_core.errors import CkptError, Lines, WorkerError
from ckpt_core.tensors.source import SourceFiles

_FIRST = 30.0  # seconds for the first results: on a cluster processes are started, and import
_PATIENCE = 10.0  # seconds that a transfer may take whatever the others took
_TIMES = 5  # and this many times the median
_LAST = 101  # results of which that is
_SILENCE = 60.0  # seconds without a result, of which something is said
_TWINS = 2
_TRIES = 3
_SPARED = 10  # of so many workers one may be no part of the cluster
_SMALL = 16 << 20  # of less, the bytes are not what takes the time
_FEW = 1 << 20  # bytes: fewer are moved before threads have been started

Finished = Generator[tuple[Transfer, Result], None, None]
"""Transfers in the order in which they were finished."""


def in_threads(todo: Sequence[Transfer], source: SourceFiles, sink: TargetFiles, workers: int) -> Finished:
    """Carry out transfers in threads of this process, or in this one where there is little to do; the first error ends it."""
    if sum(transfer.bytes_read for transfer in todo) < _FEW:
        yield from ((transfer, run_transfer(transfer, source, sink)) for transfer in todo)
        return
    waiting = iter(todo)
    running: dict[Future, Transfer] = {}
    with ThreadPoolExecutor(workers, "transfer") as pool:
        try:
            while True:
                for transfer in itertools.islice(waiting, 2 * workers - len(running)):
                    running[pool.submit(run_transfer, transfer, source, sink)] = transfer
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            for future in running:
                future.cancel()


@dataclass(eq=False)
class _Awaited:
    """A transfer that was handed over and is not done. Each copy has a mark, by which the staging folder tells who began it."""

    transfer: Transfer
    copies: dict[Future, str] = field(default_factory=dict)
    since: float = 0.0  # when the last copy was handed over
    failures: int = 0


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
        self._judge = Judge(source, os.path.dirname(run.out))
        self._cluster = executor if isinstance(executor, Cluster) else None
        self._run = pickle.dumps(run)
        self._staging = os.path.dirname(run.out)
        self._asked: dict[Future, str] = {}  # who was asked to look whether all is there
        self._awaited: list[_Awaited] = []
        self._paces: deque[float] = deque(maxlen=_LAST)  # seconds for a byte
        self._pace = 0.0  # their median
        self._misfits: dict[str, WorkerError] = {}
        self._failure: Exception | None = None

    def carry_out(self, todo: Sequence[Transfer], ahead: int) -> Finished:
        """Carry out transfers, at most `ahead` of them handed over at a time.

        What is handed over twice is the same bytes to the same places, and the first result counts. After a failure of the
        run nothing more is handed over, and it is raised when the others are done.
        """
        waiting = iter(todo)
        heard = told = time.monotonic()
        self._ask_all()
        try:
            while True:
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
                        fault = self._judge.look(asked, future, todo)
                        if fault is not None and not self._goes_on(asked, fault):
                            self._failure = self._failure or fault.error
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

    # --- before the first byte

    def _ask_all(self) -> None:
        """Have every worker of a cluster look for all that a task wants to find. Nobody waits for that: a task looks too."""
        if self._cluster is not None:
            for worker in self._cluster.workers():
                self._asked[self._cluster.ask(worker, look, SOFTWARE, self._run)] = worker

    # --- handing over

    def _hand_over(self, awaited: _Awaited) -> None:
        mark = marks.new_mark()
        try:
            task = Task(awaited.transfer, mark, self._source.remote_states(awaited.transfer.paths))
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
        """Seconds until one of those that may have another copy is late, or something is to be said."""
        ends = [told + _SILENCE]
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

    def _settled(self, awaited: _Awaited, future: Future) -> Result | None:
        """The result of a transfer that is awaited no longer; None where it was not a result."""
        worker = getattr(future, "worker", None)
        try:
            found = self._judge.task(awaited.transfer, awaited.copies[future], future)
            if isinstance(found, Done):
                write_edges(found.edges)
        except (CkptError, OSError) as error:
            self._failure = self._failure or error
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
        again = self._goes_on(worker, found) and awaited.failures < _TRIES and not found.final
        if not again and self._failure is None:
            self._failure = found.error
        if self._failure is not None:
            self._forget(awaited)
        elif not awaited.copies:
            self._hand_over(awaited)
        return None

    def _goes_on(self, worker: str | None, fault: Fault) -> bool:
        """Whether other workers may do what this one did not; it is left out if the executor knows it."""
        if worker is None or self._cluster is None:
            return not fault.lasting
        if fault.lasting:
            self._misfits[worker] = fault.error
        new = self._cluster.leave_out(worker)
        if len(self._misfits) * _SPARED > len(self._cluster.workers()) or not self._cluster.left():
            return False
        if new and self._failure is None:
            place = "" if fault.error.file is None else f" ({fault.error.file})"
            self._tell(f"{fault.error.problem}{place}: {fault.error.found}; it is left out")
        return True

    def _with_others(self, failure: Exception) -> Exception:
        """An error about a worker, with what was found at those that are wrong in the same way."""
        if isinstance(failure, WorkerError):
            alike = [one.found for one in self._misfits.values() if one.problem == failure.problem]
            failure.found = Lines(map(str, alike)) if len(alike) > 1 else failure.found
        return failure
