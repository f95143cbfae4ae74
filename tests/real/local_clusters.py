"""Clusters of Dask and Ray on this machine, whose workers may have another environment or other file systems each."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Worker:
    """How a worker (of Ray: a node) is started: more environment, and the command that starts its command."""

    environment: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()


@dataclass
class Running:
    """A cluster, with its processes: the scheduler or head, and those of its workers."""

    address: str
    head: subprocess.Popen
    workers: list[subprocess.Popen]
    start: Callable[[Worker], subprocess.Popen]

    def join(self, worker: Worker) -> None:
        """Start one more worker."""
        self.workers.append(self.start(worker))

    def inside(self) -> list[int]:
        """The processes of all workers."""
        return [pid for worker in self.workers for pid in (worker.pid, *_children(worker.pid))]

    def busy(self) -> int:
        """A process that carries out tasks."""
        tasks = [pid for pid in self.inside() if b"ray::" in _command(pid) and b"IDLE" not in _command(pid)]
        return tasks[0] if tasks else self.workers[0].pid


class Processes(contextlib.ExitStack):
    """Process groups that are ended with the block."""

    def start(self, log: Path, worker: Worker, *command: object) -> subprocess.Popen:
        with log.open("ab") as out:
            process = subprocess.Popen(
                [*worker.prefix, *map(str, command)], env={**os.environ, **worker.environment}, start_new_session=True,
                stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.callback(self.end, process)
        return process

    def end(self, process: subprocess.Popen) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def dask(work: Path, workers: Sequence[Worker]) -> Iterator[Running]:
    """A scheduler, and a process of one thread for each worker."""
    from distributed import Client

    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    with Processes() as processes:
        scheduler = (sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--no-dashboard")
        head = processes.start(work / "head.log", Worker(), *scheduler, "--port", port)
        numbers = itertools.count()

        def started(worker: Worker) -> subprocess.Popen:
            name = f"worker{next(numbers)}"
            return processes.start(
                work / f"{name}.log", worker, sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", 1,
                "--no-nanny", "--no-dashboard", "--local-directory", work / name,
            )  # fmt: skip

        there = [started(worker) for worker in workers]
        with Client(address, timeout=60) as client:
            client.wait_for_workers(len(workers), timeout=120)
        yield Running(address, head, there, started)


READY = """
import ray, sys, time
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
while ray.cluster_resources().get("CPU", 0) < int(sys.argv[2]):
    time.sleep(0.2)
"""


def _agents() -> list[object]:
    """Ports of a node's agents. Of those that choose one themselves Ray wants to hear within half a minute, and else a node dies."""
    names = (
        "dashboard-agent-grpc-port",
        "dashboard-agent-listen-port",
        "runtime-env-agent-port",
        "metrics-export-port",
    )
    return [part for name in names for part in (f"--{name}", free_port())]


SOCKETS = Path("/tmp/ray/session_latest/sockets")


@contextlib.contextmanager
def ray(work: Path, workers: Sequence[Worker]) -> Iterator[Running]:
    """A head without processors, and a node of one for each worker."""
    calm = {
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120", "RAY_agent_register_timeout_ms": "120000",
    }  # fmt: skip
    start = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address", "127.0.0.1")
    small = ("--object-store-memory", "100000000")
    for _ in range(4):  # on a busy machine Ray gives up while it starts
        port = free_port()
        address = f"127.0.0.1:{port}"
        with Processes() as processes:
            first = ("--head", "--port", port, "--num-cpus", 0, "--include-dashboard", "false", *_agents())
            SOCKETS.parent.unlink(missing_ok=True)  # of an earlier session
            head = processes.start(work / "head.log", Worker(calm), *start, *small, *first)
            numbers = itertools.count()

            def started(
                worker: Worker,
                address: str = address,
                processes: Processes = processes,
                numbers: Iterator[int] = numbers,
            ) -> subprocess.Popen:
                # Two that start at once take the same name for their sockets, and one dies of it.
                number = next(numbers)
                _until(lambda: len(list(SOCKETS.glob("raylet*"))) > number)
                environment = {**calm, **worker.environment}
                node = (*start, *small, "--address", address, "--num-cpus", 1, *_agents())
                return processes.start(work / f"worker{number}.log", Worker(environment, worker.prefix), *node)

            there = [started(worker) for worker in workers]
            command = [sys.executable, "-c", READY, address, str(len(workers))]
            try:
                subprocess.run(command, capture_output=True, check=True, timeout=150, env={**os.environ, **calm})
            except subprocess.SubprocessError:
                continue
            yield Running(address, head, there, started)
            return
    sys.exit("no cluster of Ray starts here")


def _until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something holds, and a moment more; after `seconds` no longer."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(2)


CLUSTERS = {"dask": dask, "ray": ray}


def _children(process: int) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(entry.read_text().rpartition(")")[2].split()[1]) == process:
                child = int(entry.parent.name)
                yield child
                yield from _children(child)


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""
