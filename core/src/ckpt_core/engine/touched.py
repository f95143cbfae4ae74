"""Source files that were touched: what was read of them is read again, and compared.

A file of the size and the modification time of before may be another one: a copy that keeps times was put over it, or whoever wrote it set
its time back. More often it is the same one, with a hard link more, or other permissions. Headers tell, by a plan that is made anew and must
have the same hash; and values, by the digests of the pieces that were read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace

from ckpt_core.engine.pieces import Transfer
from ckpt_core.engine.plan import Plan
from ckpt_core.engine.results import Result
from ckpt_core.engine.staging import SOURCE_CHANGED, Staging
from ckpt_core.engine.threads import in_threads
from ckpt_core.errors import CkptError, FormatError, StoreError, TouchedSource, plural
from ckpt_core.lean import dataclass
from ckpt_core.receipt.receipt import Receipt
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.bytes.watch import touched
from ckpt_core.tensors.source import SourceFiles

_ROUNDS = 3

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Copy:
    """What was copied as it is: from which files, a sum of it, and how the sum is taken again."""

    sources: Set[str]
    sum: object
    again: Callable[[], object]


def check_resumed(staging: Staging, plan: Plan, source: SourceFiles, tell: Tell) -> None:
    """Compare those finished pieces of an earlier run whose files were touched since. `CkptError` if values differ: the folder is of another source."""
    known = staging.seen
    again = [one for one in plan.transfers if one.key in known and known[one.key] != source.seen(one.paths)]
    if not again:
        return
    tell(f"source files were touched since then: {plural(len(again), 'piece')} of tensors are read again, and compared")
    differing = _differing(again, staging.done, source, plan.workers)
    if differing is not None:
        was, now = SOURCE_CHANGED
        raise staging.in_the_way(was, f"{now}, with the same size and time, but other values of {differing.name}")
    for transfer in again:
        staging.finish(staging.done[transfer.key], source.seen(transfer.paths))


def touched_after(states: Iterable[FileState], receipt: Receipt) -> str | None:
    """A source file that was touched after a receipt on this machine was written; None without one, as far as the clocks of their file systems agree."""
    try:
        written = os.stat(receipt.file).st_mtime_ns
    except OSError:  # in a store
        return None
    return next((state.path for state in states if state.ctime_ns > written), None)


def settle(
    plan: Plan,
    again: Callable[[], Plan] | None,
    done: Mapping[tuple[str, int], Result],
    copies: Iterable[Copy],
    source: SourceFiles,
    tell: Tell,
) -> None:
    """Return when what a run read is the same now, and no file was touched meanwhile; `again` makes its plan anew.

    `FormatError` where a file is another one. `TouchedSource` where that can't be told: no plan can be made anew, or files are touched again and again.
    """
    paths: Set[str] = source.touched
    for _ in range(_ROUNDS):
        if not paths:
            return
        first, were = min(paths), "was" if len(paths) == 1 else "were"
        if again is None:
            raise touched(first)
        tell(f"{plural(len(paths), 'source file')} {were} touched ({first}): what was read is read again, and compared")
        looked = SourceFiles(_states(plan, again, first))
        try:
            differing = _differing([one for one in plan.transfers if one.paths & paths], done, looked, plan.workers)
            if differing is not None:
                raise _another(min(differing.paths & paths), f"other values of {differing.name}")
            for copy in copies:
                if copy.sources & paths and copy.again() != copy.sum:
                    raise _another(min(copy.sources & paths), "other contents")
            looked.recheck()
        finally:
            looked.close()
        paths = looked.touched
    if paths:
        raise touched(min(paths))


def _states(plan: Plan, again: Callable[[], Plan], file: str) -> list[FileState]:
    """What the files are now, if they give the same plan. Their inodes do not count any more: on some file systems (FUSE) they are numbers that
    the kernel forgets, and a file gets another one each time."""
    try:
        made = again()
    except (StoreError, TouchedSource):
        raise
    except CkptError as problem:
        raise _another(file, problem.problem) from problem
    if made.hash != plan.hash:
        raise _another(file, "the conversion of another checkpoint")
    return [replace(state, inode=0) for state in made.source.files]


def _another(file: str, found: str) -> FormatError:
    return FormatError(
        "the file changed while it was being read",
        file=file,
        found=f"{found}, with the same size and modification time",
        expected="what was read of it before",
        fix="let the writer finish, then run again",
    )


def _differing(
    transfers: Sequence[Transfer], done: Mapping[tuple[str, int], Result], source: SourceFiles, workers: int
) -> Transfer | None:
    """The first of some finished pieces whose values are others now."""
    with contextlib.closing(in_threads(transfers, source, None, workers)) as results:
        for transfer, now in results:
            was = done[transfer.key]
            if (was.leaves, was.source_leaves) != (now.leaves, now.source_leaves):
                return transfer
    return None
