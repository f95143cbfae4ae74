"""Who carries out transfers: threads, processes, or a cluster, all behind `concurrent.futures.Executor`.

Other processes and machines open the files themselves, so they must see the same paths.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor

from ckpt_core.errors import CkptError, UsageError

_BEAT, _MISSES = 3.0, 3  # seconds between two looks at a head, and how often it may be missed

_HOST_AND_PORT = re.compile(r"[^/]+:\d+")  # there are other addresses: auto, local, ray://HOST:PORT

_SAFE_PATH = "PYTHONSAFEPATH"

ENGINES = ("local", "processes", "ray", "dask")


@contextlib.contextmanager
def executor_for(engine: str, workers: int, address: str | None = None) -> Iterator[Executor | None]:
    """The executor of one of `ENGINES`; None stands for threads of the engine's own.

    `address` names a running Ray or Dask cluster; without it one is started on this machine, for the block.
    """
    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}", expected=", ".join(ENGINES))
    if address is not None and engine not in ("ray", "dask"):
        raise UsageError(f"engine {engine} has no address", fix="use --engine ray or --engine dask")
    if engine == "local":
        yield None
    elif engine == "processes":
        with _started_safely(), ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            yield pool
    else:
        with {"ray": _ray, "dask": _dask}[engine](workers, address) as pool:
            yield pool


def size_of(executor: Executor | None) -> int:
    """How many tasks the workers of a cluster carry out at once, as far as it says; 0 where it does not."""
    if isinstance(executor, RayExecutor):
        return executor.size()
    client = getattr(executor, "_client", None)  # of Dask's own executor
    return sum(client.ncores().values()) if client is not None else 0


@contextlib.contextmanager
def _started_safely() -> Iterator[None]:
    """Have no child of Python import from the current folder, as it does for `-c`: a `random.py` may lie beside a checkpoint."""
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before


@contextlib.contextmanager
def _dask(workers: int, address: str | None) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError:
        raise _missing("dask", "distributed") from None
    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None} if address is None else {}
    with _connected("dask", address):
        client = Client(address, **local)
    with _quiet("distributed", "distributed.client"), client:
        yield client.get_executor(pure=False)


@contextlib.contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """Keep what a library logs from the terminal: a lost scheduler is 37 lines of tracebacks, where we say what to do in one."""
    before = {logger: logger.level for logger in map(logging.getLogger, loggers)}
    for logger in before:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)


@contextlib.contextmanager
def _ray(workers: int, address: str | None) -> Iterator[Executor]:
    try:
        import ray
    except ImportError:
        raise _missing("ray", "ray") from None
    mine = not ray.is_initialized()
    if mine:
        local = {"num_cpus": workers, "include_dashboard": False} if address is None else {"address": address}
        with _connected("ray", address):
            if address is not None and _HOST_AND_PORT.fullmatch(address) and not _answers(address):
                raise ConnectionError("nobody listens there")  # Ray tries for minutes, and writes pages meanwhile
            ray.init(**local, log_to_driver=False, logging_level=logging.ERROR)
    executor = RayExecutor(ray.remote)
    try:
        with executor.watching(ray.get_runtime_context().gcs_address):
            yield executor
    finally:
        if mine and not executor.lost.is_set():  # without its head it would wait for it, and then end this process
            ray.shutdown()


class RayExecutor(Executor):
    """`concurrent.futures` over Ray tasks. When the head of the cluster is `lost`, what is awaited is cancelled."""

    def __init__(self, remote: Callable) -> None:
        self._call = remote(_call)
        self._awaited: set[Future] = set()
        self.lost = threading.Event()

    def size(self) -> int:
        """The CPUs of the cluster; a task takes one."""
        import ray

        return int(ray.cluster_resources().get("CPU", 0))

    def submit(self, function: Callable, /, *args: object, **kwargs: object) -> Future:
        future: Future = Future()
        self._awaited.add(future)

        def finish(done: Future) -> None:
            self._awaited.discard(future)
            if not future.set_running_or_notify_cancel():
                return
            error = done.exception()
            if error is None:
                future.set_result(done.result())
            else:  # Ray wraps what the function raised
                future.set_exception(getattr(error, "cause", None) or error)

        self._call.remote(function, args, kwargs).future().add_done_callback(finish)
        return future

    @contextlib.contextmanager
    def watching(self, head: str) -> Iterator[None]:
        """Look inside the block whether anyone listens at `head` (HOST:PORT): Ray itself says nothing for a minute, and then exits."""
        over = threading.Event()

        def watch() -> None:
            misses = 0
            while misses < _MISSES and not over.wait(_BEAT):
                misses = 0 if _answers(head) else misses + 1
            if misses == _MISSES:
                self.lost.set()
                for future in list(self._awaited):
                    future.cancel()
                    future.set_running_or_notify_cancel()  # or nobody who waits for it wakes up

        watcher = threading.Thread(target=watch, name="watch", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _BEAT).close()
    except OSError:
        return False
    return True


def _call(function: Callable, args: tuple, kwargs: dict) -> object:
    return function(*args, **kwargs)


@contextlib.contextmanager
def _connected(engine: str, address: str | None) -> Iterator[None]:
    """Say clearly that a cluster does not answer."""
    try:
        yield
    except (OSError, ConnectionError, TimeoutError, ValueError) as error:
        if address is None:
            raise
        raise CkptError(
            f"the {engine} cluster does not answer", found=str(error).splitlines()[0], expected=address
        ) from error


def _missing(engine: str, package: str) -> CkptError:
    return CkptError(
        f"--engine {engine} needs the package {package}", fix=f"pip install {package}, or use --engine local"
    )
