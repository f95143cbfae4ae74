"""A pytest plugin: while workers import and collect, which takes a minute, the terminal says so every few seconds."""

from __future__ import annotations

import threading
import time

import pytest

_EVERY = 4.0


class Heartbeat:
    """Says how long it has been going on, until the first test is over."""

    def __init__(self, reporter: pytest.TerminalReporter) -> None:
        self._reporter, self._over, self._began = reporter, threading.Event(), time.monotonic()
        self._collected = 0
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while True:
            found = f", {self._collected:,} collected by the first worker" if self._collected else ""
            self._reporter.write_line(f"collecting tests, {time.monotonic() - self._began:.0f} s{found}")
            self._reporter.flush()  # a log shows it as it comes, too
            if self._over.wait(_EVERY):
                return

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: list[str]) -> None:
        self._collected = max(self._collected, len(ids))

    def pytest_runtest_logreport(self) -> None:
        self._over.set()

    def pytest_sessionfinish(self) -> None:
        self._over.set()


def pytest_sessionstart(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None and getattr(session.config.option, "dist", "no") != "no":
        session.config.pluginmanager.register(Heartbeat(reporter))
