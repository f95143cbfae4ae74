"""Who carries out transfers: threads, processes, or a cluster, all behind `concurrent.futures.Executor`.

Other processes and machines open the files themselves, so they must see the same paths.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor

from ckpt_core.errors import CkptError, UsageError

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
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            yield pool
    else:
        with {"ray": _ray, "dask": _dask}[engine](workers, address) as pool:
            yield pool


@contextlib.contextmanager
def _dask(workers: int, address: str | None) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError:
        raise _missing("dask", "distributed") from None
    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None} if address is None else {}
    with _connected("dask", address):
        client = Client(address, **local)
    with client:
        yield client.get_executor(pure=False)


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
            ray.init(**local, log_to_driver=False, logging_level="error")
    try:
        yield RayExecutor(ray.remote)
    finally:
        if mine:
            ray.shutdown()


class RayExecutor(Executor):
    """`concurrent.futures` over Ray tasks."""

    def __init__(self, remote: Callable) -> None:
        self._call = remote(_call)

    def submit(self, function: Callable, /, *args: object, **kwargs: object) -> Future:
        future: Future = Future()
        future.set_running_or_notify_cancel()  # a task that was handed over runs to its end

        def finish(done: Future) -> None:
            error = done.exception()
            if error is None:
                future.set_result(done.result())
            else:  # Ray wraps what the function raised
                future.set_exception(getattr(error, "cause", None) or error)

        self._call.remote(function, args, kwargs).future().add_done_callback(finish)
        return future


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
