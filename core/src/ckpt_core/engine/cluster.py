"""Executors of clusters: their workers have names, by which one can be asked, and left out."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future

from ckpt_core.lean import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker made of a call, and its name."""

    worker: str
    result: object = None
    error: Exception | None = None

    @classmethod
    def of(cls, worker: str, function: Callable, arguments: tuple) -> Answer:
        """Call a function in this process, which is that worker."""
        try:
            return cls(worker, function(*arguments))
        except Exception as error:
            return cls(worker, error=error)


class Placed(Future):
    """The future of a call on a cluster. `worker` is who answered, None until one did, or where nobody can tell."""

    worker: str | None = None

    def follow(self, answered: Future, asked: str | None = None, deaths: tuple[type[Exception], ...] = ()) -> None:
        """End as another future does, whose result is an `Answer`; `asked`: the one worker that was to give it.

        `deaths` are what the cluster raises where workers died of a call, each time that it tried: that breaks the executor.
        """
        self.worker, self._deaths = asked, deaths
        answered.add_done_callback(self._end)

    def give_up(self) -> None:
        """Cancel it, and wake whoever waits for it."""
        if not self.cancelled() and self.cancel():
            self.set_running_or_notify_cancel()

    def _end(self, answered: Future) -> None:
        if answered.cancelled():
            self.give_up()
        elif not self.cancelled() and self.set_running_or_notify_cancel():
            error = answered.exception()
            if error is None:
                answer: Answer = answered.result()
                self.worker, error = answer.worker, answer.error
            if error is None:
                self.set_result(answer.result)
            elif isinstance(error, self._deaths):
                self.set_exception(BrokenExecutor(str(error).partition("\n")[0]))
            else:  # Ray wraps what was raised
                self.set_exception(getattr(error, "cause", None) or error)


class Cluster(Executor):
    """`concurrent.futures` over the workers of a cluster, but for those that are left out.

    Its methods may be called by several threads.
    """

    def __init__(self) -> None:
        self._left_out: set[str] = set()
        self._doubted: set[str] = set()
        self._changing = threading.Lock()

    @abstractmethod
    def workers(self) -> Mapping[str, int]:
        """The workers that are there now, each with how many calls it carries out at a time."""

    @abstractmethod
    def ask(self, worker: str, function: Callable, /, *arguments: object) -> Placed:
        """Call a function in one worker, as soon as may be."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """How many calls are carried out at a time in one process, at most."""

    @property
    def size(self) -> int:
        """How many calls all workers carry out at a time."""
        return sum(self.workers().values())

    @abstractmethod
    def holders(self, futures: Iterable[Future]) -> set[str]:
        """The workers at which these calls are, as far as the cluster tells."""

    def leave_out(self, worker: str) -> bool:
        """Give a worker nothing more; whether it was given something until now."""
        with self._changing:
            new = worker not in self._left_out
            self._left_out.add(worker)
        return new

    def doubt(self, futures: Iterable[Future]) -> None:
        """Give those at which these calls are nothing more until they answer something."""
        holders = self.holders(futures)
        with self._changing:
            self._doubted |= holders

    def trust(self, worker: str) -> None:
        """Note that a worker answered."""
        with self._changing:
            self._doubted.discard(worker)

    def avoided(self) -> set[str]:
        """Those that are given nothing. If that were all, those that are only doubted are given something."""
        with self._changing:
            left_out, doubted = set(self._left_out), set(self._doubted)
        if not left_out | doubted:
            return set()
        return left_out | doubted if self.workers().keys() - left_out - doubted else left_out

    def left(self) -> set[str]:
        """The workers that are not left out."""
        return set(self.workers()) - self._left_out
