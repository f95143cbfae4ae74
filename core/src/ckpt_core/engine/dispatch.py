"""Handing transfers to threads of this process, or to the workers of an executor, and judging what comes back.

A worker is believed only in what this machine sees too:

- That a tensor is written: the file that the worker made to mark its end, and in each output file the first bytes other than
  zeros that it wrote, are looked for here. Of a file without such bytes nothing is missing if they never came.
- That the input is at fault: the tensor is read here as well. If that goes well, the worker is at fault.

What workers do wrong is a `WorkerError`; those that are at work meanwhile may finish, and what they did counts.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)

from ckpt_core.engine.pieces import Transfer
from ckpt_core.engine.software import SOFTWARE
from ckpt_core.engine.transfer import Result, TargetFiles, run_transfer
from ckpt_core.engine.worker import KEPT, Report, Run, Sample, Task, perform
from ckpt_core.errors import CkptError, FormatError, WorkerError
from ckpt_core.storage.bytes.stored import read_range
from ckpt_core.tensors.source import SourceFiles

_PATIENCE = 30.0  # seconds
_TWINS = 2
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


class Workers:
    """The workers behind an executor, for one run. `source` is what this machine sees of the input."""

    def __init__(self, executor: Executor, run: Run, source: SourceFiles) -> None:
        self._executor, self._source = executor, source
        self._run = pickle.dumps(run)
        self._staging = os.path.dirname(run.out)
        self._running: dict[Future, Transfer] = {}
        self._pace = 0.0  # the most seconds for a byte so far

    def carry_out(self, todo: Iterable[Transfer], ahead: int) -> Finished:
        """Carry out transfers, at most `ahead` of them handed over at a time.

        After an error nothing more is handed over, and it is raised when the others are done. Where no result comes for
        long, what is awaited is handed over once more: the same bytes to the same places, and the first result counts.
        """
        waiting = iter(todo)
        failure: Exception | None = None
        silences = 0
        try:
            while True:
                while failure is None and len(self._running) < ahead and (transfer := next(waiting, None)) is not None:
                    self._hand_over(transfer)
                if not self._running:
                    break
                done = wait(self._running, self._patience() * 2**silences, FIRST_COMPLETED).done
                silences = 0 if done else silences + 1
                if not done and failure is not None:
                    break
                if not done and silences <= _TWINS:
                    for transfer in {transfer.key: transfer for transfer in self._running.values()}.values():
                        self._hand_over(transfer)
                for future in done:
                    if (awaited := self._running.pop(future, None)) is None:
                        continue  # it was handed over twice, and both came at the same moment
                    try:
                        result = self._believed(awaited, future)
                    except (CkptError, OSError) as error:
                        failure = failure or error
                        continue
                    self._forget(awaited)
                    yield awaited, result
            if failure is not None:
                raise failure
        finally:
            for future in self._running:
                future.cancel()

    def _hand_over(self, transfer: Transfer) -> None:
        try:
            task = Task(transfer, self._source.states(transfer.paths))
            future = self._executor.submit(perform, SOFTWARE, self._run, pickle.dumps(task))
        except Exception as error:  # what an executor raises that is broken, or lost its cluster, is its own affair
            future = Future()
            future.set_exception(error)
        self._running[future] = transfer

    def _forget(self, transfer: Transfer) -> None:
        """Await a transfer no longer that was handed over twice."""
        for future in [future for future, other in self._running.items() if other is transfer]:
            del self._running[future]
            future.cancel()

    def _patience(self) -> float:
        """For how many seconds no result at all is not a reason to wonder."""
        largest = max(transfer.bytes_read for transfer in self._running.values())
        return max(_PATIENCE, 3 * self._pace * largest)

    def _believed(self, transfer: Transfer, future: Future) -> Result:
        """The result of a transfer, if it is what a worker says it is; else a `WorkerError`, or what is wrong with the input."""
        try:
            report: Report = future.result()
        except WorkerError:
            raise
        except CancelledError as error:  # so Dask says that it lost its scheduler
            raise WorkerError("the cluster went away", fix=f"start it again, {KEPT}") from error
        except BrokenExecutor as error:
            raise WorkerError("a worker died", found=error, fix=f"look for a lack of memory, {KEPT}") from error
        except Exception as error:
            found = f"{type(error).__name__}: {str(error).partition(os.linesep)[0]}"
            fix = f"see that every worker has {SOFTWARE}, and enough memory; {KEPT}"
            raise WorkerError("a worker failed", found=found, fix=fix) from error
        if report.result is None:
            raise self._judged(transfer, report)
        self._check_written(report)
        self._pace = max(self._pace, report.seconds / max(transfer.bytes_read, _SMALL))
        return report.result

    def _judged(self, transfer: Transfer, report: Report) -> WorkerError:
        """Whose fault an error is: raises what this machine finds wrong with the input, and returns what only a worker does."""
        self._source.recheck()
        error = report.error
        if isinstance(error, WorkerError):
            return error
        if isinstance(error, CkptError):
            run_transfer(transfer, self._source, None)
            found = "; ".join(str(part) for part in (error.problem, error.found) if part)
            return WorkerError(
                "a worker can't read what this machine can",
                file=error.file,
                found=f"{found}, on {report.host}",
                fix=f"give every worker the same file systems, {KEPT}",
            )
        file, reason = getattr(error, "filename", None), getattr(error, "strerror", None) or error
        return WorkerError(
            "a worker can't read or write", file=file, found=f"{reason}, on {report.host}", fix=f"end the cause, {KEPT}"
        )

    def _check_written(self, report: Report) -> None:
        """Raise `WorkerError` if what a worker says it wrote is not here."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._staging, report.mark))
            if all(map(_is_here, report.samples)):
                return
        raise WorkerError(
            "what a worker wrote is not here",
            file=next((sample.path for sample in report.samples if not _is_here(sample)), self._staging),
            found=f"other bytes than were written on {report.host}",
            fix=f"give every worker the destination's file system itself, not an overlay or a copy of it, {KEPT}",
        )


def _is_here(sample: Sample) -> bool:
    """Whether this machine sees the bytes. The file is opened anew, for a client of NFS then asks the server."""
    try:
        return read_range(sample.path, sample.offset, len(sample.data)) == sample.data
    except FormatError:
        return False
