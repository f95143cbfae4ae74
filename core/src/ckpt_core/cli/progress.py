"""Progress on stderr: a bar on a terminal, else one plain line every few seconds."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING

from ckpt_core.cli.output import say
from ckpt_core.sizes import size_text

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from ckpt_core.engine.run import Listener, Progress

INTERVAL = 5.0
"""Seconds between two plain lines."""


@contextlib.contextmanager
def progress(verb: str, clock: Callable[[], float] = time.monotonic) -> Iterator[Listener]:
    """A listener for the engine's events, for as long as the block lasts."""
    if sys.stderr.isatty():
        try:
            import rich.progress
        except ImportError:
            pass
        else:
            with _bar(rich.progress) as bar:
                yield _BarListener(bar, verb)
            return
    yield PlainListener(verb, clock)


def _bar(module: ModuleType) -> RichProgress:
    from rich.console import Console

    return module.Progress(
        module.TextColumn("{task.description}"),
        module.BarColumn(),
        module.TaskProgressColumn(),
        module.DownloadColumn(),
        module.TransferSpeedColumn(),
        module.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


class _BarListener:
    """Feeds a rich bar; a new pass over the data (a second checkpoint) starts a new one."""

    def __init__(self, bar: RichProgress, verb: str) -> None:
        self._bar, self._verb = bar, verb
        self._task: TaskID | None = None
        self._done = 0

    def __call__(self, event: Progress) -> None:
        if self._task is None or event.done < self._done:
            self._task = self._bar.add_task(self._verb, total=event.total)
        self._done = event.done
        self._bar.update(self._task, completed=event.done)


class PlainListener:
    """Prints `verb 42%  1.31 GB/s  12 s left` at most every `INTERVAL` seconds.

    The rate counts from the first event on, so what an interrupted run had done before is not mistaken for speed.
    """

    def __init__(self, verb: str, clock: Callable[[], float]) -> None:
        self._verb, self._clock = verb, clock
        self._printed = clock()
        self._start: tuple[float, int] | None = None
        self._done = 0

    def __call__(self, event: Progress) -> None:
        now = self._clock()
        if self._start is None or event.done < self._done:
            self._start = now, event.done
        self._done = event.done
        if now - self._printed >= INTERVAL:
            self._printed = now
            say(f"{self._verb} {100 * event.done // max(1, event.total)}%{_pace(event, now, *self._start)}", err=True)


def _pace(event: Progress, now: float, began: float, first: int) -> str:
    """Speed and time left, if anything was done since `first` bytes at `began`."""
    if event.done == first or now <= began:
        return ""
    rate = (event.done - first) / (now - began)
    return f"  {size_text(rate)}/s  {duration_text((event.total - event.done) / rate)} left"


def duration_text(seconds: float) -> str:
    """Seconds in words.

    >>> duration_text(3725)
    '1 h 02 min'
    """
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
