"""A conversion in a process of its own that sends itself a signal (SIGKILL unless another is named) at a chosen moment."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ckpt_core import convert
from ckpt_core.cli.main import main
from ckpt_core.engine import run, staging
from ckpt_core.plugins.discovery import all_plugins
from ckpt_tests.cutting import pieces_of

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["ckpt_tests.victim"])
all_plugins()  # once, in the server that victims are forked from
by = signal.SIGKILL


def started(
    source: Path,
    destination: Path,
    moment: str,
    number: int,
    *,
    by: str = "SIGKILL",
    leaf: int = 0,
    **arguments: object,
) -> multiprocessing.Process:
    """The conversion, running; it gets the signal `by` at the call of that number of a moment, or ends as any other does.

    With `leaf`, in pieces of so many elements.
    """
    asked = str(source), str(destination), moment, number, by, leaf, arguments
    victim = SERVER.Process(target=_convert, args=asked)
    victim.start()
    return victim


def die() -> None:
    signal.raise_signal(by)


def counted(number: int, function: Callable, *, after: bool = False) -> Callable:
    """`function`, but the process dies before (or after) its call of that number, counted from 1."""
    calls = 0

    def wrapped(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            die()
        result = function(*arguments, **named)
        if calls == number:
            die()
        return result

    return wrapped


def half_a_line(number: int) -> Callable:
    """A journal whose line of that number is cut short by the kill."""
    append, calls = staging.Staging._append, 0

    def wrapped(self: staging.Staging, record: dict) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            line = json.dumps(record).encode()
            self._journal.write(line[: len(line) // 2])
            die()
        append(self, record)

    return wrapped


def arm(moment: str, number: int) -> None:
    """Have the process die at a moment."""
    if moment == "before finishing":
        staging.Staging.finish = counted(number, staging.Staging.finish)
    elif moment == "after finishing":
        staging.Staging.finish = counted(number, staging.Staging.finish, after=True)
    elif moment == "in a line":
        staging.Staging._append = half_a_line(number)
    elif moment == "while files are made":
        staging.Staging.create = counted(number, staging.Staging.create)
    elif moment == "before a document":
        run._write_document = counted(number, run._write_document)
    elif moment == "after a document":
        run._write_document = counted(number, run._write_document, after=True)
    elif moment == "before publishing":
        staging.Staging.publish = counted(number, staging.Staging.publish)
    elif moment == "before a rename":
        os.rename = counted(number, os.rename)
    elif moment == "after a rename":
        os.rename = counted(number, os.rename, after=True)
    elif moment == "while cleaning up":
        staging._remove = counted(number, staging._remove)
    elif moment == "at the very end":
        staging.Staging.remove = counted(number, staging.Staging.remove, after=True)
    else:
        raise SystemExit(f"no moment {moment!r}")


def _convert(
    source: str, destination: str, moment: str, number: int, name: str, leaf: int, arguments: dict[str, object]
) -> None:
    global by
    by = signal.Signals[name]
    arm(moment, number)
    if leaf:
        with pieces_of(leaf):
            convert(source, destination, **arguments)
        return
    if by == signal.SIGTERM:  # the command line turns it into an orderly end
        sys.exit(main(["convert", source, destination, *(f"--{name}={value}" for name, value in arguments.items())]))
    convert(source, destination, **arguments)
