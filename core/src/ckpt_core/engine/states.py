"""The states of all source files of a run, as a file in its staging folder: 24,288 files are 3 MB, too much to go with every task.

Lines of JSON, each `[path, size, mtime_ns, ctime_ns]`. What lies in a store is not among them, for its address may be signed, and a
signature is written to no file.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping

from blake3 import blake3

from ckpt_core.storage.bytes.files import FileState, Folder, pwrite_all, written

STATES = "sources"


def write_states(folder: str, states: Iterable[FileState]) -> str:
    """Write the states into a staging folder; the digest by which workers know them."""
    local = (state for state in states if state.remote is None)
    data = "".join(
        json.dumps([state.path, state.size, state.mtime_ns, state.ctime_ns]) + "\n" for state in local
    ).encode()
    with written(os.path.join(folder, STATES), os.O_CREAT | os.O_TRUNC) as descriptor:
        pwrite_all(descriptor, memoryview(data), 0)
    return blake3(data).hexdigest()


class KnownStates:
    """The states of the run that this process works for, read once."""

    def __init__(self) -> None:
        self._digest = ""
        self._states: Mapping[str, FileState] = {}
        self._reading = threading.Lock()

    def of(self, folder: Folder, digest: str) -> Mapping[str, FileState] | None:
        """The states by their paths, out of the staging folder; None if others lie there. `OSError` if none do."""
        with self._reading:
            if self._digest != digest:
                descriptor = os.open(STATES, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder.descriptor)
                with os.fdopen(descriptor, "rb") as file:
                    data = file.read()
                if blake3(data).hexdigest() != digest:
                    return None
                found = (_state(*json.loads(line)) for line in data.splitlines())
                self._digest, self._states = digest, {state.path: state for state in found}
            return self._states


def _state(path: str, size: int, mtime_ns: int, ctime_ns: int) -> FileState:
    return FileState(path, size, mtime_ns, ctime_ns=ctime_ns)
