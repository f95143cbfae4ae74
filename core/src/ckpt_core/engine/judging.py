"""Judging what a worker says of a task. It is believed only in what this machine sees too:

- That a tensor is written: the secret that the worker wrote into the mark of its task at the end, and in each output file the
  first bytes other than zeros that it wrote, are looked for here. Of a file without such bytes nothing is missing if they
  never came.
- That the input is at fault: the tensor is read here as well. If that goes well, the worker is at fault.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Future
from pathlib import Path

from ckpt_core.engine import marks
from ckpt_core.engine.pages import Edge
from ckpt_core.engine.pieces import Transfer
from ckpt_core.engine.results import Result
from ckpt_core.engine.software import SOFTWARE
from ckpt_core.engine.staging import KEPT, TOKEN
from ckpt_core.engine.transfer import run_transfer
from ckpt_core.engine.worker import Report, Sample
from ckpt_core.errors import CkptError, FormatError, WorkerError
from ckpt_core.lean import dataclass
from ckpt_core.storage.bytes.space import free_space
from ckpt_core.storage.bytes.stored import read_range
from ckpt_core.tensors.source import SourceFiles


@dataclass(frozen=True, slots=True)
class Fault:
    """What a worker did wrong. `lasting`: it would do so with every task; `final`: and so would all others."""

    error: WorkerError
    lasting: bool = False
    final: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """A transfer that is done but for its `edges`, and the seconds that it took its worker."""

    result: Result
    seconds: float
    edges: tuple[Edge, ...]


class Judge:
    """Judges the reports of one run: `source` is what this machine sees of the input, `staging` is its staging folder."""

    def __init__(self, source: SourceFiles, staging: str, token: str) -> None:
        self._source, self._staging, self._token = source, staging, token

    def task(self, transfer: Transfer, mark: str, future: Future) -> Done | Fault:
        """What a worker made of a transfer. Raises what is wrong with the input, with this run's own staging folder, or with the code."""
        try:
            report: Report = future.result()
        except WorkerError as error:  # it runs other code
            return Fault(error, lasting=True)
        except CancelledError:  # so a cluster says that it lost its head
            return Fault(WorkerError("the cluster went away", fix=f"start it again, {KEPT}"), final=True)
        except BrokenExecutor as error:
            died = WorkerError("a worker died", found=error, fix=f"look for a lack of memory, {KEPT}")
            return Fault(died, final=True)
        except Exception as error:
            return Fault(_failed(_said(error)))
        if report.result is None:
            return self._of_error(transfer, report)
        if (missing := self._missing(report, mark)) is not None:
            return Fault(missing, lasting=True)
        self._source.touched.update(report.touched)
        return Done(report.result, report.seconds, report.edges)

    def look(self, worker: str, future: Future, todo: Sequence[Transfer]) -> Fault | None:
        """What is wrong with a worker that looked for what the transfers to do want to find. Raises as `task` does."""
        try:
            report: Report = future.result()
        except (CancelledError, BrokenExecutor):
            return None  # the cluster went away, or the worker did, as the tasks will tell
        except WorkerError as error:
            return Fault(error, lasting=True)
        except Exception as error:
            return Fault(_failed(f"{_said(error)}, on {worker}"), lasting=True)
        if report.error is not None:
            self._check_own()
        if isinstance(report.error, WorkerError):
            return Fault(report.error, lasting=True)
        if report.error is not None:
            return Fault(_failed(f"{_said(report.error)}, on {report.host}"), lasting=True)
        if not self._has_less_room(report, todo):
            return None
        small = WorkerError(
            "a worker has no room for the output, and this machine has",
            file=self._staging,
            found=f"{report.room:,} bytes free, on {report.host}",
            fix=f"give every worker the destination's file system at that path, without a quota, {KEPT}",
        )
        return Fault(small, lasting=True)

    def _has_less_room(self, report: Report, todo: Sequence[Transfer]) -> bool:
        """Whether a worker finds less room than is needed, and far less than is there."""
        here = free_space(self._staging)
        if report.room is None or here is None or report.room >= here[0] // 2:
            return False
        return report.room < sum(sum(transfer.files.values()) for transfer in todo)

    def _of_error(self, transfer: Transfer, report: Report) -> Fault:
        """Whose fault an error is: raises what this machine finds wrong too, and returns what only a worker does."""
        self._check_own()
        error = report.error
        if isinstance(error, WorkerError):
            return Fault(error, lasting=True)
        if not isinstance(error, OSError):
            run_transfer(transfer, self._source, None)
        if isinstance(error, CkptError):
            found = "; ".join(str(part) for part in (error.problem, error.found) if part)
            return Fault(
                WorkerError(
                    "a worker can't read what this machine can",
                    file=error.file,
                    found=f"{found}, on {report.host}",
                    fix=f"give every worker the same file systems, {KEPT}",
                )
            )
        if not isinstance(error, OSError):
            return Fault(_failed(f"{_said(error)}, on {report.host}"))
        return Fault(
            WorkerError(
                "a worker can't read or write",
                file=error.filename,
                found=f"{error.strerror or error}, on {report.host}",
                fix=f"end the cause, {KEPT}",
            )
        )

    def _check_own(self) -> None:
        """Raise what any worker would stumble over: a source file that changed, or a staging folder that another run has."""
        self._source.recheck()
        try:
            seen = Path(self._staging, TOKEN).read_bytes()
        except OSError as error:
            found = f"no token of a run ({error.strerror})"
        else:
            found = f"the token of another run, {seen.decode(errors='replace')!r}"
            if seen == self._token.encode():
                return
        raise WorkerError(
            "this run has lost its staging folder",
            file=self._staging,
            found=found,
            expected=f"its own, {self._token!r}",
            fix=f"another conversion writes there, where the file system has no locks: wait for it, {KEPT}",
        )

    def _missing(self, report: Report, mark: str) -> WorkerError | None:
        """What is wrong if what a worker says it wrote is not here."""
        if marks.is_ended(self._staging, mark, report.secret) and all(map(_is_here, report.samples)):
            return None
        self._check_own()
        return WorkerError(
            "what a worker wrote is not here",
            file=next((sample.path for sample in report.samples if not _is_here(sample)), self._staging),
            found=f"other bytes than were written on {report.host}",
            fix=f"give every worker the destination's file system itself, not an overlay or a copy of it, {KEPT}",
        )


def _failed(found: str) -> WorkerError:
    fix = f"see that every worker has {SOFTWARE}, and enough memory; {KEPT}"
    return WorkerError("a worker failed", found=found, fix=fix)


def _said(error: Exception | None) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).partition(os.linesep)[0]}"


def _is_here(sample: Sample) -> bool:
    """Whether this machine sees the bytes. The file is opened anew, for a client of NFS then asks the server."""
    try:
        return read_range(sample.path, sample.offset, len(sample.data)) == sample.data
    except FormatError:
        return False
