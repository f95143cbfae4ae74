"""Files that are looked at more than once before their states are kept: their headers are read, their sizes asked for, one after the other.

    @steadily
    def plan(...): ...      # all looks inside agree about each file, or it is done again

The states that a plan keeps are those of the first look. Without that, a file that is replaced between the look at its header and the one at its
state would be read by the header of another.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from time import sleep, time_ns
from typing import ParamSpec, TypeVar

from ckpt_core.errors import FormatError, TouchedSource

_ATTEMPTS = 3
_TICK = 10_000_000
"""Nanoseconds: the times of files are those of a clock that ticks 100 to 1000 times a second (Linux before 6.13). What is written in one tick
with a look at the file does not change its times."""

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVar("A")

_looks: ContextVar[dict[str, tuple[int, ...]] | None] = ContextVar("looks", default=None)


def seen(path: str | os.PathLike[str], look: Callable[[A], os.stat_result], at: A) -> os.stat_result:
    """What `look` finds at a file. Inside of what is done `steadily`: `FormatError` if it changed since the first
    look, `TouchedSource` if it was touched."""
    status, looks = look(at), _looks.get()
    if looks is None:
        return status
    known = looks.get(name := os.fspath(path))
    if known is None and 0 <= time_ns() - status.st_ctime_ns < _TICK:
        sleep(_TICK / 1e9)
        status = look(at)
    now = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
    if known is None or known == now:
        looks[name] = now
    elif known[:2] == now[:2]:
        raise touched(name)
    else:
        raise changed(name, known[:2], now[:2])
    return status


def changed(path: str, was: Sequence[int], now: Sequence[int]) -> FormatError:
    """The error about a file of another size or modification time: both are given, in bytes and nanoseconds."""
    return FormatError(
        "the file changed while it was being read",
        file=path,
        found=f"{now[0]} bytes, modified at {now[1]}",
        expected=f"{was[0]} bytes, modified at {was[1]}",
        fix="let the writer finish, then run again",
    )


def touched(path: str) -> TouchedSource:
    """The error about a file that may have been replaced by one of the same size and time."""
    return TouchedSource(
        "the file was touched while it was being read",
        file=path,
        found="the size and modification time of before, but another inode, or a later change of its state",
        expected="a file that holds still: this may be another one of the same size and time",
        fix="end what copies files over it, or changes their links, owner or permissions, then run again",
    )


@contextlib.contextmanager
def _looking() -> Iterator[None]:
    token = _looks.set({})
    try:
        yield
    finally:
        _looks.reset(token)


def steadily(work: Callable[P, T], tell: Callable[[TouchedSource], None] = lambda _: None) -> Callable[P, T]:
    """Do it again, from its beginning, if a file was touched meanwhile, and `tell`; in the end raise `TouchedSource`. Where such a function calls
    another one, the outer one does it again."""

    @functools.wraps(work)
    def done(*given: P.args, **named: P.kwargs) -> T:
        if _looks.get() is not None:
            return work(*given, **named)
        for _ in range(_ATTEMPTS - 1):
            try:
                with _looking():
                    return work(*given, **named)
            except TouchedSource as problem:
                tell(problem)
        with _looking():
            return work(*given, **named)

    return done
