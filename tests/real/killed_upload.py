"""A conversion to a bucket, in a process of its own that is killed (SIGKILL) at a chosen request to the store."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

from object_servers import SINKS

from ckpt_core import convert
from ckpt_core.engine import parts
from ckpt_core.storage.bytes.remote.schemes import scheme_of

PART = 4096
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["killed_upload", "object_servers", "ckpt_core.engine.run", "ckpt_hf", "ckpt_nemo", "ckpt_megatron"]
)


def killed(source: Path, address: str, request: str, number: int, after: bool, spool: Path, **asked: object) -> int:
    """The exit code of the conversion, killed at its `number`-th call of `request`, before that was sent or after its answer."""
    arguments = (str(source), address, request, number, after, str(spool), asked, dict(os.environ))
    victim = SERVER.Process(target=_convert, args=arguments)
    victim.start()
    victim.join(120)
    assert victim.exitcode is not None
    return victim.exitcode


def _convert(
    source: str, address: str, request: str, number: int, after: bool, spool: str, asked: dict, environment: dict
) -> None:
    os.environ.update(environment)
    parts.PART = PART
    sink = SINKS[scheme_of(address) or ""]
    plain, calls = getattr(sink, request), 0

    def counted(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        mine = calls == number
        if mine and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        found = plain(*arguments)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(sink, request, counted)
    convert(source, address, spool=spool, **asked)
