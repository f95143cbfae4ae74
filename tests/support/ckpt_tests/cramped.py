"""Conversions where there is no room, or no permission to write. Run: python -m ckpt_tests.cramped JSON; prints what happened as JSON.

disk        on a file system of its own (a tmpfs, in a mount namespace) that somebody else fills while it runs
file size   with a limit on the size of any file, which is then lifted
folder      beside a folder that can't be written to from a moment on, until it can again
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ckpt_core import CkptError, convert
from ckpt_core.engine import threads

MOVED: list[str] = []
ROOM, LARGE = 24 << 10, 64 << 20  # bytes: for some more of the tensors of the model, and for all of everything


def mount(folder: Path, *options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(folder)], check=True)


def obey_permissions() -> None:
    """Have root meet the permissions that others meet: without capabilities, 0555 is read-only for it too."""
    if os.geteuid() == 0:
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, none):
            raise OSError(ctypes.get_errno(), "capset")


def counted(transfer, source, sink, original=threads.run_transfer):
    MOVED.append(transfer.name)
    return original(transfer, source, sink)


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def attempt(destination: Path, conversion: Callable[[], object]) -> dict[str, object]:
    """What one call does: its error, which tensors it finished, and what lies about afterwards."""
    del MOVED[:]
    error: dict[str, object] = {}
    try:
        conversion()
    except (OSError, CkptError) as failure:
        system = failure if isinstance(failure, OSError) else failure.__cause__
        assert isinstance(system, OSError), failure
        error = {"errno": system.errno, "file": system.filename, "text": str(failure)}
    staging = destination.with_name(f"{destination.name}.ckpt-partial")
    return {
        "error": error, "moved": len(MOVED), "output": contents(destination) if destination.exists() else None, "staging": staging.exists()
    }  # fmt: skip


def main() -> None:
    asked = json.loads(sys.argv[1])
    folder = Path(asked["folder"])
    destination = folder / "run"
    threads.run_transfer = counted

    def conversion(listener: Callable[[object], None] | None = None) -> None:
        convert(asked["source"], destination, **asked["arguments"], workers=1, listener=listener)

    if asked["fault"] == "disk":
        mount(folder, f"size={LARGE}")
    elif asked["fault"] == "folder":
        obey_permissions()
    report = [attempt(destination, conversion)]
    shutil.rmtree(destination)

    if asked["fault"] == "disk":
        filler = folder / "somebody else's"

        def filling(_: object) -> None:
            if not filler.exists():
                now = os.statvfs(folder)
                with filler.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, now.f_bavail * now.f_frsize - ROOM)

        report.append(attempt(destination, lambda: conversion(filling)))
        filler.unlink()
    elif asked["fault"] == "file size":
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 10, unlimited[1]))
        report.append(attempt(destination, conversion))
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    else:
        shut = folder / asked["shut"]
        moment = asked["moment"]

        events: list[object] = []

        def shutting(event: object) -> None:
            events.append(event)
            if len(events) == moment:
                shut.chmod(0o555)

        if not moment:
            shut.chmod(0o555)
        report.append(attempt(destination, lambda: conversion(shutting)))
        with contextlib.suppress(FileNotFoundError):
            shut.chmod(0o755)
    report.append(attempt(destination, conversion))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
