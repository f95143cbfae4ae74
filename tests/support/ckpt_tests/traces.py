"""A pytest plugin: a test that leaves something behind in its process fails by name, and not the test that trips over it.

Which tests share a process is up to chance: pytest-xdist hands them out as workers come free. What one of them leaves behind is met by
another, on some machines, on some days. So the process is compared with itself: what it is after the fixtures of a test are torn down, it was
after those of the test before. What a fixture of a module does belongs to the first test that asks for it.
"""

from __future__ import annotations

import contextvars
import gc
import locale
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from ckpt_core.plugins import discovery, installed

_OF_OTHERS = {"PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR"}  # pytest sets it for each phase of a test; torch once
_OF_STARTING = _OF_OTHERS | {
    "PYTHONSAFEPATH",
    "COLUMNS",
    "LINES",
}  # we, and readline, start a server of processes with them
_SIGNALS = [getattr(signal, f"SIG{name}") for name in "HUP INT QUIT TERM ALRM CHLD PIPE USR1 USR2 XFSZ".split()]
_LIMITS = ["RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_NOFILE"]
_USUAL = multiprocessing.get_all_start_methods()[0]  # what it is where nobody has set it
_TEMPORARY = os.path.realpath(tempfile.gettempdir()) + os.sep
_ABSENT = object()


def _environment() -> Mapping[str, object]:
    return {f"os.environ[{name!r}]": value for name, value in os.environ.items() if name not in _OF_OTHERS}


def _mask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _process() -> Mapping[str, object]:
    return {
        "current folder": os.getcwd(),
        "umask": _mask(),
        "locale": locale.setlocale(locale.LC_ALL),
        "multiprocessing.get_start_method": multiprocessing.get_start_method(allow_none=True) or _USUAL,
        "socket.getdefaulttimeout": socket.getdefaulttimeout(),
        **{f"handler of {one.name}": signal.getsignal(one) for one in _SIGNALS},
        **{name: resource.getrlimit(getattr(resource, name)) for name in _LIMITS},
    }


def _interpreter() -> Mapping[str, object]:
    return {
        "sys.path": [*sys.path],
        "sys.argv": [*sys.argv],
        "sys.excepthook": sys.excepthook,
        "sys.getrecursionlimit": sys.getrecursionlimit(),
        "gc.get_threshold": (gc.isenabled(), *gc.get_threshold()),
        "logging.root": (logging.root.level, [*logging.root.handlers], logging.root.manager.disable),
    }


def _context() -> Mapping[str, object]:
    found, empty = contextvars.copy_context().items(), contextvars.Context()
    return {f"context variable {one.name!r}": value for one, value in found if value is not empty.run(_default, one)}


def _default(variable: contextvars.ContextVar[object]) -> object:
    try:
        return variable.get()
    except LookupError:
        return _ABSENT


def _torch() -> Mapping[str, object]:
    torch: Any = sys.modules.get("torch")
    names = "get_num_threads get_default_dtype is_grad_enabled".split() if hasattr(torch, "get_num_threads") else []
    return {f"torch.{name}": getattr(torch, name)() for name in names}


_STATES: list[Callable[[], Mapping[str, object]]] = [_environment, _process, _interpreter, _context, _torch]


class Process:
    """What this process is at one moment, as far as one test can change it for another."""

    def __init__(self) -> None:
        self.states = [state() for state in _STATES]
        self.modules = sys.modules.copy()
        self.server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]

    def traces(self, before: Process, formats: Formats) -> Iterator[str]:
        """What a test left behind that ran since `before`, each in one line."""
        for now, then in zip(self.states, before.states, strict=True):
            if now != then:
                yield from _differences(now, then)
        if self.modules != before.modules:
            yield from _replaced(self.modules, before.modules)
        if self.server is not None and self.server != before.server:
            yield from _kept_by_server(self.server)
        yield from formats.traces()


def _differences(now: Mapping[str, object], then: Mapping[str, object]) -> Iterator[str]:
    for name in sorted({*now, *then}):
        one, other = now.get(name, _ABSENT), then.get(name, _ABSENT)
        if one is other or one == other or (other is _ABSENT and name.startswith("torch.")):  # torch was imported
            continue
        yield f"{name} is {_said(one)}, and was {_said(other)}"


def _said(value: object) -> str:
    return "not there" if value is _ABSENT else f"{value!r:.300}"


def _replaced(now: Mapping[str, object], then: Mapping[str, object]) -> Iterator[str]:
    """Modules may come; none may go or become another, and none that comes may lie in a folder that will be gone."""
    for name, module in then.items():
        found = now.get(name, _ABSENT)
        itself = (
            not name.startswith("ckpt_") and _file(found) == _file(module) is not None
        )  # transformers executes itself again
        if found is not module and not itself:
            yield f"sys.modules[{name!r}] is {_said(found)}, and was {_said(module)}"
    for name in now.keys() - then.keys():
        file = _file(now[name])
        if now[name] is None or (file is not None and os.path.realpath(file).startswith(_TEMPORARY)):
            yield f"sys.modules[{name!r}] stays, of {file}"


def _file(module: object) -> str | None:
    return getattr(module, "__file__", None)


def _kept_by_server(process: int) -> Iterator[str]:
    """multiprocessing's server gives to all that later tests start the environment that it was started in."""
    lines = Path(f"/proc/{process}/environ").read_bytes().rstrip(b"\0").split(b"\0")
    now, then = (dict(os.environ), dict(os.fsdecode(line).split("=", 1) for line in lines))
    for name in sorted({*now, *then} - _OF_STARTING):
        if now.get(name) != then.get(name):
            yield f"the server of multiprocessing stays, and was started with {name}={then.get(name)}"


class Formats:
    """The formats that are installed, and what discovery remembers of them: none may be forgotten, added, or broken."""

    def __init__(self) -> None:
        self._whole = installed.entry_points.__wrapped__()
        self._good: dict[str, discovery.Plugin] = {}

    def traces(self) -> list[str]:
        """What is remembered and is not so. It is forgotten, so that it is told of one test alone."""
        known = _remembered(installed.entry_points).values()
        found = [f"entry_points() is kept, of: {', '.join(one) or 'none'}" for one in known if one != self._whole]
        found += [line for name, plugin in _remembered(discovery.load).items() if (line := self._trace(name, plugin))]
        if found:
            forget()
        return found

    def _trace(self, name: str, plugin: discovery.Plugin) -> str | None:
        if self._good.get(name) is plugin:
            return None
        if plugin.broken is not None and name in self._whole and discovery.load.__wrapped__(name).broken is None:
            return f"load({name!r}) is kept, and broken: {plugin.broken}"
        if plugin.entries != self._whole.get(name):
            return f"load({name!r}) is kept, of {plugin.distribution}"
        self._good[name] = plugin
        return None


def forget() -> None:
    """Let discovery look at the entry points, and load formats, anew."""
    installed.entry_points.cache_clear()
    discovery.load.cache_clear()


def _remembered(cached: Any) -> dict[Any, Any]:
    """What a function of `functools.cache` with one argument or none has in its cache, which it does not show."""
    (cache,) = (one for one in gc.get_referents(cached) if isinstance(one, dict) and one is not vars(cached))
    return cache


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    stash = item.config.stash
    if _FORMATS not in stash:
        stash[_FORMATS], stash[_BEFORE] = Formats(), Process()
    if isinstance(item, pytest.Function) and "monkeypatch" in item.function.__code__.co_varnames:
        forget()  # what it loads is then what it remembers, whichever tests came before
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    stash = item.config.stash
    before = stash[_BEFORE]
    try:
        result = yield
    finally:
        stash[_BEFORE] = Process()
    if found := [*stash[_BEFORE].traces(before, stash[_FORMATS])]:
        pytest.fail("this test leaves a trace in its process:\n" + "\n".join(found), pytrace=False)
    return result


_BEFORE, _FORMATS = pytest.StashKey[Process](), pytest.StashKey[Formats]()
