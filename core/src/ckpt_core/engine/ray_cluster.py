"""The workers of a Ray cluster: its nodes, by their ids. On each, Ray starts a process for each call that is carried out at a time."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from ckpt_core.engine.cluster import Answer, Cluster, Placed

_BEAT, _MISSES = 1.0, 3  # seconds between two looks at a head, and how often in turn it may be missed
_COUNT = 3.0  # seconds between two counts of the nodes
_PATIENCE, _BUSY = 3.0, 15.0  # seconds
_NODE = "ray.io/node-id"  # a label that Ray gives to each node by itself


class RayCluster(Cluster):
    """Calls through `ray.remote`. When the head of the cluster is `lost`, what is awaited is given up."""

    def __init__(self, remote: Callable, deaths: tuple[type[Exception], ...] = ()) -> None:
        super().__init__()
        self._call, self._deaths = remote(_call), deaths
        self._awaited: set[Placed] = set()
        self._counted: Mapping[str, int] | None = None
        self.lost = threading.Event()

    def workers(self) -> Mapping[str, int]:
        return _nodes() if self._counted is None else self._counted

    @property
    def threads(self) -> int:
        return 1

    def submit(self, function: Callable, /, *arguments: Any, **_: Any) -> Placed:
        avoided = self.avoided()
        if not avoided:
            return self._called(None, function, arguments, {})
        how = {"label_selector": {_NODE: f"!in({','.join(sorted(avoided))})"}}
        try:
            return self._called(None, function, arguments, how)
        except (TypeError, ValueError):  # of a Ray without label selectors, before 2.49, a node can't be left out
            return self._called(None, function, arguments, {})

    def ask(self, worker: str, function: Callable, /, *arguments: object) -> Placed:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(worker, soft=False)
        return self._called(worker, function, arguments, {"scheduling_strategy": there, "num_cpus": 0})

    def holders(self, futures: Iterable[Future]) -> set[str]:
        return (
            set()
        )  # a process that stands still keeps its share of the node, so that others are given what comes next

    def _called(self, worker: str | None, function: Callable, arguments: tuple, how: Mapping[str, object]) -> Placed:
        call = self._call.options(**how) if how else self._call
        placed = Placed()
        self._awaited.add(placed)
        placed.add_done_callback(self._awaited.discard)
        placed.follow(call.remote(function, arguments).future(), worker, self._deaths)
        return placed

    @contextlib.contextmanager
    def watching(self, head: str) -> Iterator[None]:
        """Look inside the block whether anyone listens at `head` (HOST:PORT): Ray itself says nothing for a minute, and then exits.

        The nodes are counted by a thread of its own, for without its head Ray does not answer that either.
        """
        over = threading.Event()

        def count() -> None:
            while not over.wait(_COUNT):
                with contextlib.suppress(Exception):  # Ray says in many ways that it is disconnected
                    self._counted = _nodes()

        def watch() -> None:
            misses = 0
            while misses < _MISSES and not over.wait(_BEAT):
                misses = 0 if answers(head) else misses + 1
            if misses == _MISSES:
                self.lost.set()
                for future in list(self._awaited):
                    future.give_up()

        self._counted = _nodes()
        watcher, counter = (threading.Thread(target=work, daemon=True) for work in (watch, count))
        watcher.start()
        counter.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            counter.join(0 if self.lost.is_set() else _PATIENCE)
            if counter.is_alive():
                self.lost.set()


def _nodes() -> dict[str, int]:
    """The nodes that are there and may carry out calls, each with how many at a time."""
    import ray

    nodes = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}
    return {node: cpus for node, cpus in nodes.items() if cpus}


def answers(address: str) -> bool:
    """Whether anyone listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
    except OSError:
        return False
    return True


def greeting(address: str, count: int) -> bytes:
    """The first bytes that who listens at HOST:PORT says unasked, for as long as a busy one may take for it."""
    host, _, port = address.rpartition(":")
    said = b""
    with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), _BUSY) as connection:
        while len(said) < count and (more := connection.recv(count - len(said))):
            said += more
    return said


def _call(function: Callable, arguments: tuple) -> Answer:
    import ray

    return Answer.of(ray.get_runtime_context().get_node_id(), function, arguments)
