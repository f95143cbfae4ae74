"""Who carries out transfers: threads, processes, or a cluster, all behind `concurrent.futures.Executor`.

Other processes and machines open the files themselves, so they must see the same paths.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ckpt_core.engine.plan import Plan
from ckpt_core.errors import CkptError, UsageError

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from multiprocessing.context import BaseContext

_HOST_AND_PORT = re.compile(
    r"(?:tcp://|tls://)?([^/]+:\d+)"
)  # other addresses (auto, local, ray://HOST:PORT) do not match

_GREETING = 8  # bytes
_SETTINGS = 4  # a type of frame: RFC 9113, 6.5

_SAFE_PATH = "PYTHONSAFEPATH"

_EXAMPLES = {"dask": "tcp://HOST:8786", "ray": "HOST:6379"}
_SERVERS = {"dask": "the scheduler of Dask", "ray": "the head of Ray"}
_PORT = re.compile(r":\d+(/|$)")
_PLACES = ("auto", "local")  # of Ray: the cluster of this machine that runs, and one that is started

ENGINES = ("local", "processes", "ray", "dask")


@contextlib.contextmanager
def executor_for(engine: str, workers: int, address: str | None = None) -> Iterator[Executor | None]:
    """The executor of one of `ENGINES`; None stands for threads of the engine's own.

    `address` names a running Ray or Dask cluster; without it one is started on this machine, for the block.
    """
    check_engine(engine, address)
    if engine == "local":
        yield None
    elif engine == "processes":
        from concurrent.futures import ProcessPoolExecutor  # the import takes a while

        from ckpt_core.engine.worker import begin_process

        with _started_safely():
            try:
                processes = ProcessPoolExecutor(workers, _forked_from_a_server(), begin_process, (dict(os.environ),))
            except (OSError, ImportError) as error:  # without its semaphores, as where /dev/shm is missing or read-only
                raise CkptError(
                    "the engine processes can't start here",
                    found=str(error),
                    expected="room for a few processes, and semaphores, which need a /dev/shm that can be written",
                    fix="use --engine local",
                ) from error
            with processes:
                yield processes
    else:
        with {"ray": _ray, "dask": _dask}[engine](workers, address) as pool:
            yield pool


def check_engine(engine: str, address: str | None) -> None:
    """`UsageError` for an unknown engine, and for an address of an engine that takes none."""
    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}", expected=", ".join(ENGINES))
    if address is not None and engine not in ("ray", "dask"):
        raise UsageError(f"engine {engine} has no address", fix="use --engine ray or --engine dask")
    if address is not None and address not in _PLACES and not _PORT.search(address):
        raise UsageError(
            "the address of the cluster has no port",
            found=address,
            expected=_EXAMPLES[engine],
            fix=f"give the address that {_SERVERS[engine]} prints when it starts",
        )


def fitted(plan: Plan, executor: Executor | None, whole: bool) -> Plan:
    """The plan, spread over the workers of an executor: over all workers of a cluster, if `whole`.

    If a process carries out several transfers at a time, each transfer gets its share of the memory.
    """
    if executor is None:
        return plan
    from ckpt_core.engine.cluster import Cluster

    if not isinstance(executor, Cluster):
        return plan
    return plan.spread(max(1, executor.size) if whole else plan.workers, executor.threads, whole)


def _forked_from_a_server() -> BaseContext:
    """How processes are started: one process imports what a worker needs, and the others are forked from it.

    Ctrl-C goes to every process of the terminal. It is for the command to say what becomes of the run; the others would print
    tracebacks, and a worker that ends while another one starts breaks the pool. So the server has SIGINT blocked, and the workers as well.
    """
    import multiprocessing
    import signal
    from multiprocessing import forkserver, resource_tracker

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.worker"])
    resource_tracker.ensure_running()  # it is started with SIGINT blocked, and lets it through afterwards
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextlib.contextmanager
def _started_safely() -> Iterator[None]:
    """Keep child processes from importing from the current folder, as `python -c` does: a `random.py` may lie beside a checkpoint."""
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
    from ckpt_core.engine.dask_cluster import DaskCluster  # asyncio takes tens of milliseconds to import

    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None} if address is None else {}
    with _connected("dask", address):
        _check_listens("dask", address)
        client = Client(address, **local)
    with _quiet("distributed", "distributed.client", "tornado.application"), client:
        yield DaskCluster(client)


@contextlib.contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """Keep a library's log from the terminal: for a lost scheduler it prints 37 lines of tracebacks, and our error says it in one."""
    import logging

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
    import logging

    from ckpt_core.engine.ray_cluster import RayCluster

    mine = not ray.is_initialized()
    if mine:
        local = {"num_cpus": workers, "include_dashboard": False} if address is None else {"address": address}
        with _connected("ray", address):
            _check_listens("ray", address)
            ray.init(**local, log_to_driver=False, logging_level=logging.ERROR)
    deaths = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError)
    executor = RayCluster(ray.remote, deaths)
    try:
        with executor.watching(ray.get_runtime_context().gcs_address):
            yield executor
    finally:
        if mine and not executor.lost.is_set():  # without a head, shutdown waits for it, and then ends this process
            ray.shutdown()


def _check_listens(engine: str, address: str | None) -> None:
    """Raise soon if nothing listens at the address, or something else does, such as a dashboard. Dask and Ray themselves try for minutes, and log pages.

    Both send first. Dask's scheduler sends a message about itself, after its size, which is small. Ray's head sends the SETTINGS frame of
    HTTP/2.
    """
    from ckpt_core.engine.ray_cluster import answers, greeting

    if address is None or not (there := _HOST_AND_PORT.fullmatch(address)):
        return
    if not answers(there[1]):
        raise ConnectionError("nobody listens there")
    if not address.startswith("tls:") and "RAY_USE_TLS" not in os.environ:
        said = greeting(there[1], _GREETING)
        size = int.from_bytes(said, "little")
        if len(said) < _GREETING or not (size < 1 << 20 if engine == "dask" else said[3] == _SETTINGS):
            raise ConnectionError(f"what listens there is not {_SERVERS[engine]}")


@contextlib.contextmanager
def _connected(engine: str, address: str | None) -> Iterator[None]:
    """Say clearly that a cluster does not answer."""
    try:
        yield
    except (OSError, TimeoutError, ValueError, RuntimeError) as error:
        if address is None:
            raise
        raise CkptError(
            f"the {engine} cluster does not answer",
            found=str(error).partition("\n")[0],
            expected=f"{_SERVERS[engine]} at {address}",
            fix=f"start it, or give the address that it prints when it starts, such as {_EXAMPLES[engine]}: not that of its dashboard",
        ) from error


def _missing(engine: str, package: str) -> CkptError:
    return CkptError(
        f"--engine {engine} needs the package {package}",
        fix=f'pip install "ckpt-convert[{engine}]", or use --engine local',
    )
