"""The workers of a Dask cluster. Their names are their addresses."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from ckpt_core.engine.cluster import Answer, Cluster, Placed

_PATIENCE, _FIRST = 5.0, 60.0  # seconds


class DaskCluster(Cluster):
    """Calls through a `distributed.Client`."""

    def __init__(self, client: Any) -> None:
        super().__init__()
        self._client = client
        self._pool = client.get_executor(pure=False)
        self._keys: dict[Future, str] = {}
        self._known: Mapping[str, int] = {}

    def workers(self) -> Mapping[str, int]:
        self._known = self._from_scheduler("ncores", self._known, _PATIENCE if self._known else _FIRST)
        return self._known

    @property
    def threads(self) -> int:
        return max(self.workers().values(), default=1)

    def submit(self, function: Callable, /, *arguments: Any, **_: Any) -> Placed:
        avoided = self.avoided()
        chosen = {"workers": sorted(self.workers().keys() - avoided)} if avoided else {}
        return self._called(None, function, arguments, chosen)

    def ask(self, worker: str, function: Callable, /, *arguments: object) -> Placed:
        return self._called(worker, function, arguments, {"workers": [worker], "priority": 1})

    def holders(self, futures: Iterable[Future]) -> set[str]:
        wanted = {self._keys[future] for future in futures if future in self._keys}
        held = self._from_scheduler("processing", {}, _PATIENCE)
        return {worker for worker, keys in held.items() if wanted & set(keys)}

    def _from_scheduler(self, question: str, otherwise: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
        """What the scheduler answers, if it does: the client itself would wait for it for ever."""
        if self._client.status != "running":  # it has lost the connection
            return otherwise
        ask = getattr(self._client.scheduler, question)(workers=None)
        asked = asyncio.run_coroutine_threadsafe(ask, self._client.loop.asyncio_loop)
        try:
            return dict(asked.result(seconds))
        except (OSError, TimeoutError):
            asked.cancel()
        return otherwise

    def _called(self, worker: str | None, function: Callable, arguments: tuple, how: Mapping[str, object]) -> Placed:
        from distributed import KilledWorker

        placed, key = Placed(), f"ckpt-{uuid.uuid4()}"
        inner = self._pool.submit(_call, function, arguments, key=key, **how)
        self._keys[placed] = key
        placed.follow(inner, worker, (KilledWorker,))
        placed.add_done_callback(lambda done: inner.cancel() if done.cancelled() else None)
        placed.add_done_callback(self._keys.pop)
        return placed


def _call(function: Callable, arguments: tuple) -> Answer:
    from distributed import get_worker

    return Answer.of(get_worker().address, function, arguments)
