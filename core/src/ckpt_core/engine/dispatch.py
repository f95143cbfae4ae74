"""Handing transfers to threads of this process, or to the workers of an executor, and judging what comes back.

A worker is believed only in what this machine sees too:

- That a tensor is written: the file that the worker made to mark its end, and in each output file the first bytes other than
  zeros that it wrote, are looked for here. Of a file without such bytes nothing is missing if they never came.
- That the input is at fault: the tensor is read here as well. If that goes well, the worker is at fault.

What workers do wrong is a `WorkerError`, and none of the run's: what one fails to do is handed over to another, and so is what
takes one too long. Of a cluster, which names its workers, the one that failed is left out from then on. One that runs other code
or sees other files is too, where it is one of many; else the cluster is not what the user thinks it is, and he is told. After
such a failure of the run those that are at work may finish, and what they did counts.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import secrets
import statistics
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import dataclass, field

from ckpt_core.engine.cluster import Cluster
from ckpt_core.engine.plan import Transfer
from ckpt_core.engine.software import SOFTWARE
from ckpt_core.engine.staging import MARK
from ckpt_core.engine.transfer import Result, TargetFiles, run_transfer
from ckpt_core.engine.worker import KEPT, Report, Run, Sample, Task, look, perform
from ckpt_core.errors import CkptError, FormatError, Lines, WorkerError
from ckpt_core.storage.bytes.space import free_space
from ckpt_core.storage.bytes.stored import read_range
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


@dataclass(frozen=True, slots=True)
class _Fault:
    """What a worker did wrong. `lasting`: it would do so with every task; `final`: and so would all others."""

    error: WorkerError
    lasting: bool = False
    final: bool = False


class Workers:
    """The workers behind an executor, for one run.

    `source` is what this machine sees of the input, `begun_by` says who has begun a task of a mark, and `tell` is given
    a sentence for whoever waits.
    """

    def __init__(
        self,
        executor: Executor,
        run: Run,
        source: SourceFiles,
        begun_by: Callable[[str], str | None] = lambda _: None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._executor, self._source, self._begun_by, self._tell = executor, source, begun_by, tell
        self._cluster = executor if isinstance(executor, Cluster) else None
        self._run = pickle.dumps(run)
        self._staging = os.path.dirname(run.out)
        self._asked: dict[Future, str] = {}  # who was asked to look whether all is there
        self._awaited: list[_Awaited] = []
        self._paces: deque[float] = deque(maxlen=_LAST)  # seconds for a byte
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

    # --- before the first byte

    def _ask_all(self) -> None:
        """Have every worker of a cluster look for all that a task wants to find. Nobody waits for that: a task looks too."""
        if self._cluster is not None:
            for worker in self._cluster.workers():
                self._asked[self._cluster.ask(worker, look, SOFTWARE, self._run)] = worker

    def _looked(self, worker: str, future: Future, todo: Sequence[Transfer]) -> None:
        try:
            report: Report = future.result()
        except CancelledError:
            return  # the cluster went away, as the tasks will tell
        except WorkerError as error:
            wrong = error
        except Exception as error:
            wrong = _failed(f"{_said(error)}, on {worker}")
        else:
            if isinstance(report.error, WorkerError):
                wrong = report.error
            elif report.error is not None:
                wrong = _failed(f"{_said(report.error)}, on {report.host}")
            elif self._has_less_room(report, todo):
                wrong = WorkerError(
                    "a worker has no room for the output, and this machine has",
                    file=self._staging,
                    found=f"{report.room:,} bytes free, on {report.host}",
                    fix=f"give every worker the destination's file system at that path, without a quota, {KEPT}",
                )
            else:
                return
        if not self._goes_on(worker, _Fault(wrong, lasting=True)):
            self._failure = self._failure or wrong

    def _has_less_room(self, report: Report, todo: Sequence[Transfer]) -> bool:
        """Whether a worker finds less room than is needed, and far less than is there."""
        here = free_space(self._staging)
        if report.room is None or here is None or report.room >= here[0] // 2:
            return False
        return report.room < sum(sum(transfer.files.values()) for transfer in todo)

    # --- handing over

    def _hand_over(self, awaited: _Awaited) -> None:
        mark = f"{MARK}{secrets.token_hex(8)}"
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
        if not self._paces:
            return _FIRST * 2 ** (len(awaited.copies) - 1)
        usual = statistics.median(self._paces) * max(awaited.transfer.bytes_read, _SMALL)
        return max(_PATIENCE, _TIMES * usual) * 2 ** (len(awaited.copies) - 1)

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
        began = next((who for mark in oldest.copies.values() if (who := self._begun_by(mark))), None)
        of = f"which {began} began" if began else "which no worker has begun"
        more = f", and {len(self._awaited) - 1:,} more" if self._awaited[1:] else ""
        return f"no result for {seconds:.0f} s: waiting for {oldest.transfer.name}, {of}{more}; what is done is kept"

    # --- judging

    def _settled(self, awaited: _Awaited, future: Future) -> Result | None:
        """The result of a transfer that is awaited no longer; None where it was not a result."""
        worker = getattr(future, "worker", None)
        try:
            found = self._believed(awaited.transfer, future)
        except (CkptError, OSError) as error:
            self._failure = self._failure or error
            self._forget(awaited)
            return None
        if isinstance(found, Result):
            if worker is not None and self._cluster is not None:
                self._cluster.trust(worker)
            self._forget(awaited)
            return found
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

    def _goes_on(self, worker: str | None, fault: _Fault) -> bool:
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

    def _believed(self, transfer: Transfer, future: Future) -> Result | _Fault:
        """The result of a transfer if it is what a worker says it is, else what that did wrong. Raises what is wrong with the input."""
        try:
            report: Report = future.result()
        except WorkerError as error:  # it runs other code
            return _Fault(error, lasting=True)
        except CancelledError:  # so a cluster says that it lost its head
            return _Fault(WorkerError("the cluster went away", fix=f"start it again, {KEPT}"), final=True)
        except BrokenExecutor as error:
            died = WorkerError("a worker died", found=error, fix=f"look for a lack of memory, {KEPT}")
            return _Fault(died, final=True)
        except Exception as error:
            return _Fault(_failed(_said(error)))
        if report.result is None:
            return self._judged(transfer, report)
        if (missing := self._missing(report)) is not None:
            return _Fault(missing, lasting=True)
        self._paces.append(report.seconds / max(transfer.bytes_read, _SMALL))
        return report.result

    def _judged(self, transfer: Transfer, report: Report) -> _Fault:
        """Whose fault an error is: raises what this machine finds wrong with the input, and returns what only a worker does."""
        self._source.recheck()
        error = report.error
        if isinstance(error, WorkerError):
            return _Fault(error, lasting=True)
        if isinstance(error, CkptError):
            run_transfer(transfer, self._source, None)
            found = "; ".join(str(part) for part in (error.problem, error.found) if part)
            return _Fault(
                WorkerError(
                    "a worker can't read what this machine can",
                    file=error.file,
                    found=f"{found}, on {report.host}",
                    fix=f"give every worker the same file systems, {KEPT}",
                )
            )
        file, reason = getattr(error, "filename", None), getattr(error, "strerror", None) or error
        return _Fault(
            WorkerError(
                "a worker can't read or write",
                file=file,
                found=f"{reason}, on {report.host}",
                fix=f"end the cause, {KEPT}",
            )
        )

    def _missing(self, report: Report) -> WorkerError | None:
        """What is wrong if what a worker says it wrote is not here."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._staging, report.mark))
            if all(map(_is_here, report.samples)):
                return None
        return WorkerError(
            "what a worker wrote is not here",
            file=next((sample.path for sample in report.samples if not _is_here(sample)), self._staging),
            found=f"other bytes than were written on {report.host}",
            fix=f"give every worker the destination's file system itself, not an overlay or a copy of it, {KEPT}",
        )


def _failed(found: str) -> WorkerError:
    fix = f"see that every worker has {SOFTWARE}, and enough memory; {KEPT}"
    return WorkerError("a worker failed", found=found, fix=fix)


def _said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).partition(os.linesep)[0]}"


def _is_here(sample: Sample) -> bool:
    """Whether this machine sees the bytes. The file is opened anew, for a client of NFS then asks the server."""
    try:
        return read_range(sample.path, sample.offset, len(sample.data)) == sample.data
    except FormatError:
        return False
