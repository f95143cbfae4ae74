"""Marks: a file in the staging folder for each task that was handed over. Its worker writes who it is when it begins, and a secret
of its own when it has done it. Who reads that secret there sees what that worker writes.
"""

from __future__ import annotations

import contextlib
import os

from ckpt_core.storage.bytes.files import Folder

MARK = "mark-"
_LONGEST = 4096  # bytes
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def new_mark() -> str:
    """A name for a mark."""
    return f"{MARK}{os.urandom(8).hex()}"


def begin(staging: Folder, mark: str, who: str) -> None:
    """Say who begins a task."""
    _append(staging, mark, f"{who}\n", os.O_CREAT)


def end(staging: Folder, mark: str) -> str:
    """Say that it is done, by a secret that nobody had before; returns it."""
    secret = os.urandom(16).hex()
    _append(staging, mark, f"{secret}\n")
    return secret


def begun_by(staging: str, mark: str) -> str | None:
    """Who has begun a task; None if nobody has, as far as this machine sees."""
    return next(iter(_lines(staging, mark)), None)


def is_ended(staging: str, mark: str, secret: str) -> bool:
    """Whether this machine sees that a task is done. Its mark is removed."""
    lines = _lines(staging, mark)
    if not lines:
        with contextlib.suppress(FileNotFoundError):
            # It has a client of NFS forget that the file was not there when somebody asked who began the task.
            os.listdir(staging)
        lines = _lines(staging, mark)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(staging, mark))
    return secret in lines[1:]


def _append(staging: Folder, mark: str, text: str, flags: int = 0) -> None:
    descriptor = os.open(mark, os.O_WRONLY | os.O_APPEND | _FLAGS | flags, 0o600, dir_fd=staging.descriptor)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _lines(staging: str, mark: str) -> list[str]:
    """The lines of a mark. It is opened anew, for a client of NFS then asks the server."""
    try:
        descriptor = os.open(os.path.join(staging, mark), os.O_RDONLY | _FLAGS)
    except OSError:
        return []
    with os.fdopen(descriptor, "rb") as file:
        return file.read(_LONGEST).decode(errors="replace").splitlines()
