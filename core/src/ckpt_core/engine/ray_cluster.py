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
_PATIENCE = 3.0  # seconds
_NODE = "ray.io/node-id"  # a label that Ray gives to each node by itself


class RayCluster(Cluster):
    """Calls through `ray.remote`. When the head of the cluster is `lost`, what is awaited is given up."""

    def __init__(self, remote: Callable, deaths: tuple[type[Exception], ...] = ()) -> None:
        super().__init__()
        self._call, self._deaths = remote(_call), deaths
        self._awaited: set[Placed] = set()
        self.lost = threading.Event()

    def workers(self) -> Mapping[str, int]:
        import ray

        nodes = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}
        return {node: cpus for node, cpus in nodes.items() if cpus}

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
        """Look inside the block whether anyone listens at `head` (HOST:PORT): Ray itself says nothing for a minute, and then exits."""
        over = threading.Event()

        def watch() -> None:
            misses = 0
            while misses < _MISSES and not over.wait(_BEAT):
                misses = 0 if answers(head) else misses + 1
            if misses == _MISSES:
                self.lost.set()
                for future in list(self._awaited):
                    future.give_up()

        watcher = threading.Thread(target=watch, name="watch", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def answers(address: str) -> bool:
    """Whether anyone listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
    except OSError:
        return False
    return True


def _call(function: Callable, arguments: tuple) -> Answer:
    import ray

    return Answer.of(ray.get_runtime_context().get_node_id(), function, arguments)
