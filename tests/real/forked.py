"""One process that has imported a framework, and judges case after case: every rank of a case is a fork of it.

NeMo takes a minute to import, so a check starts its judge once (`started`), and the judge answers (`answer`).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Case = dict[str, Any]


@contextlib.contextmanager
def started(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[Callable[[Case], str | None]]:
    """The judge of `command`, as a function that gives it a case and returns None, or why the case failed."""
    with log.open("w") as errors:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        judge = subprocess.Popen(command, text=True, env=os.environ | environment, **pipes)
    assert judge.stdin and judge.stdout

    def ask(case: Case) -> str | None:
        print(json.dumps(case), file=judge.stdin, flush=True)
        answer = judge.stdout.readline()
        return json.loads(answer) if answer else f"the judge has ended:\n{log.read_text()[-4000:]}"

    try:
        yield ask
    finally:
        judge.stdin.close()
        judge.wait()


def answer(judge: Callable[[Case], None]) -> None:
    """Judge the case of every line of standard input, on `world` ranks; print null, or why it failed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the framework prints is no answer
    for line in sys.stdin:
        print(json.dumps(_failure(judge, json.loads(line))), file=answers, flush=True)


def _failure(judge: Callable[[Case], None], case: Case) -> str | None:
    """Why a rank failed; the others, which would wait for it, are ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    error = Path(f"{case['out']}.error")
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0", "WORLD_SIZE": str(case["world"])}
    running = {_rank(judge, case, told | {"LOCAL_RANK": str(rank)}, error) for rank in range(case["world"])}
    failure = None
    while running:
        ended, status = os.wait()
        running.remove(ended)
        if status and failure is None:
            failure = error.read_text() if error.exists() else f"a rank ended with status {status}"
            for other in running:
                os.kill(other, 9)
    return failure


def _rank(judge: Callable[[Case], None], case: Case, told: dict[str, str], error: Path) -> int:
    """The id of a process that is one rank of the case."""
    process = os.fork()
    if process:
        return process
    os.environ.update(told)
    status = 1
    try:
        judge(case)
        status = 0
    except BaseException:  # CheckpointingException of Megatron is not an Exception
        error.write_text(traceback.format_exc())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
