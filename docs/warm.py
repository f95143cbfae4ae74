"""`ckpt` and `python` that start at once, for pages with very many commands.

One process imports what commands need, transformers included, and forks for each of them. The programs in the folder that `programs`
gives send it their arguments, their environment and their open files, and end as the fork does.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

CLIENT = """\
#!{python} -IS
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
asked = [{name!r}, *sys.argv[1:]], os.getcwd(), dict(os.environ)
socket.send_fds(connection, [json.dumps(asked).encode() + b"\\n"], [0, 1, 2])
sys.exit(int(connection.makefile().read() or 1))
"""


@contextlib.contextmanager
def programs() -> Iterator[str]:
    """A folder with a `ckpt` and a `python`, for the front of a PATH, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        address = os.path.join(folder, "socket")
        for name in ("ckpt", "python"):
            program = Path(folder, name)
            program.write_text(CLIENT.format(python=sys.executable, address=address, name=name))
            program.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            command = [sys.executable, __file__, str(listener.fileno())]
            with subprocess.Popen(command, pass_fds=[listener.fileno()]) as server:
                try:
                    yield folder
                finally:
                    server.terminate()


def serve(listener: socket.socket) -> None:
    """Answer each connection with the exit code of a fork that did what was asked."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks leave nothing behind
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            atexit._clear()  # what the server would do at its end
            code = _done(connection)
            atexit._run_exitfuncs()  # a command removes its temporary folder there, and `_exit` would leave it
            connection.sendall(str(code).encode())
            os._exit(code)
        connection.close()


def _done(connection: socket.socket) -> int:
    message, files, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while not message.endswith(b"\n"):
        message += connection.recv(1 << 16)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    (name, *arguments), folder, environment = json.loads(message)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, code = ["ckpt", *arguments] if name == "ckpt" else arguments, 0
    try:
        if name == "ckpt":
            code = main()
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code


if __name__ == "__main__":
    import transformers

    import ckpt_core.verify.conversion
    import ckpt_hf.model
    from ckpt_core.cli.main import main

    _ = transformers.LlamaForCausalLM, ckpt_core, ckpt_hf
    serve(socket.socket(fileno=int(sys.argv[1])))
