"""Progress on stderr: a bar on a terminal, else a plain line every few seconds, and of what takes long every minute. Nobody waits for two seconds without a word."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from ckpt_core.cli.output import say
from ckpt_core.sizes import size_text

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from ckpt_core.engine.run import Listener, Progress
    from ckpt_core.errors import CkptError

T = TypeVar("T")

FIRST = 1.5
"""Seconds until the first word, where there is anything to tell by then."""
SILENCE = 1.9
"""Seconds until a word in any case."""
INTERVAL, LONGEST = 5.0, 60.0
"""Seconds between two plain lines: at first, and of a conversion that takes hours, whose log somebody is to read."""
_BAR = 24
"""Characters of the bar where rich is not installed."""


@contextlib.contextmanager
def announced(what: str, first: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Say `what ...` on stderr if the block takes longer than a moment, and this is the `first` word."""
    timer = threading.Timer(SILENCE, lambda: say(f"{what} ...", err=True) if first() else None)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def steadily_said(work: Callable[[], T]) -> T:
    """Do what reads a checkpoint, and again if a file was touched meanwhile and may be another one now: that is said on stderr."""
    from ckpt_core.storage.bytes.watch import steadily

    def tell(problem: CkptError) -> None:
        say(f"{problem.file} was touched while it was read: all is read again", err=True)

    return steadily(work, tell)()


@contextlib.contextmanager
def progress(
    verb: str, clock: Callable[[], float] = time.monotonic, before: str | None = None, *, of_bytes: bool = True
) -> Iterator[Listener]:
    """A listener for the engine's events, for as long as the block lasts; `before` says what is done before the first.

    `of_bytes`: events count bytes, whose rate is shown. Others count steps of a model.
    """
    if sys.stderr.isatty():
        try:
            import rich.progress
        except ImportError:
            pass
        else:
            with _bar(rich.progress, of_bytes) as bar:
                yield _BarListener(bar, verb)
            return
        drawn = DrawnListener(verb, clock, of_bytes=of_bytes)
        try:
            yield drawn
        finally:
            drawn.wipe()
        return
    plain = PlainListener(verb, clock, of_bytes=of_bytes)
    with announced(before or verb, plain.let_speak):
        yield plain


def _bar(module: ModuleType, of_bytes: bool) -> RichProgress:
    from rich.console import Console

    return module.Progress(
        module.TextColumn("{task.description}"),
        module.BarColumn(),
        module.TaskProgressColumn(),
        *((module.DownloadColumn(), module.TransferSpeedColumn()) if of_bytes else ()),
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
        if event.remark:
            say(event.remark, err=True)
            return
        if self._task is None or event.done < self._done:
            self._task = self._bar.add_task(self._verb, total=event.total)
        self._done = event.done
        self._bar.update(self._task, completed=event.done)


class PlainListener:
    """Prints `verb 42%  1.31 GB/s  12 s left` after `FIRST` seconds, and then at most every `INTERVAL`, and as rarely as twice as much time has passed, up to `LONGEST`.

    The rate counts from the first event on, so what an interrupted run had done before is not mistaken for speed.
    """

    def __init__(self, verb: str, clock: Callable[[], float], *, of_bytes: bool = True) -> None:
        self._verb, self._clock, self._of_bytes = verb, clock, of_bytes
        self._begun = clock()
        self._next = self._begun + FIRST
        self._start: tuple[float, int] | None = None
        self._done = 0
        self._said = False

    def let_speak(self) -> bool:
        """Let somebody else say the first word, if it is not said, and wait with the next."""
        if not self._said:
            self._next = self._clock() + INTERVAL
        return not self._said

    def __call__(self, event: Progress) -> None:
        if event.remark:
            self._said = True
            say(event.remark, err=True)
            return
        now = self._clock()
        if self._start is None or event.done < self._done:
            self._start = now, event.done
        self._done = event.done
        if now >= self._next:
            self._next, self._said = now + min(LONGEST, max(INTERVAL, now - self._begun)), True
            say(
                f"{self._verb} {100 * event.done // max(1, event.total)}%{self._pace(event, now, *self._start)}",
                err=True,
            )

    def _pace(self, event: Progress, now: float, began: float, first: int) -> str:
        """Speed and time left, if anything was done since `first` at `began`."""
        if event.done == first or now <= began:
            return ""
        rate = (event.done - first) / (now - began)
        speed = f"  {size_text(rate)}/s" if self._of_bytes else ""
        return f"{speed}  {duration_text((event.total - event.done) / rate)} left"


class DrawnListener(PlainListener):
    """A bar on one line of a terminal, for want of rich: `verb [#####...] 42%  1.31 GB/s  12 s left`."""

    _OFTEN = 0.2
    """Seconds between two drawings."""

    def __call__(self, event: Progress) -> None:
        if event.remark:
            self.wipe()
            super().__call__(event)
            return
        now = self._clock()
        if self._start is None or event.done < self._done:
            self._start, self._next = (now, event.done), now
        self._done = event.done
        if now >= self._next:
            self._next = now + self._OFTEN
            part = event.done / max(1, event.total)
            bar = "#" * round(part * _BAR)
            self._draw(f"{self._verb} [{bar.ljust(_BAR, '.')}] {part:4.0%}{self._pace(event, now, *self._start)}")

    def wipe(self) -> None:
        """Leave an empty line for what is printed next."""
        if self._start is not None:
            self._draw("")

    def _draw(self, text: str) -> None:
        """Print over the line, past `say`: there is nothing of a stranger's in it."""
        with contextlib.suppress(OSError):
            sys.stderr.write(f"\r{text}\x1b[K")
            sys.stderr.flush()


def duration_text(seconds: float) -> str:
    """Seconds in words.

    >>> duration_text(3725)
    '1 h 02 min'
    """
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
