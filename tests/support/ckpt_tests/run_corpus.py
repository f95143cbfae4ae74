"""Runs the program over every case of the corpus, in one process of bounded memory, and prints what it did as JSON.

An audit hook notes whatever the interpreter is asked to do that reading a checkpoint never needs. Run:
python -m ckpt_tests.run_corpus FOLDER GOLDEN, where FOLDER is empty and GOLDEN is a Nanotron checkpoint.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path

from ckpt_core import convert
from ckpt_core.cli.main import main
from ckpt_core.plugins.installed import format_names
from ckpt_tests.corpus import CASES, Case, make_strays

ADDRESS_SPACE = 3 << 30
FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.", "socket.", "pickle.", "ctypes.", "pty."),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "shutil.", "webbrowser."),
)
FORBIDDEN_IMPORTS = ("antigravity", "runpy", "pty", "ctypes", "torch", "transformers")
HOSTS = {
    "hf": {"to": "hf"},
    "hf-bin": {"to": "hf", "options": {"container": "bin"}},
    "hf-sharded": {"to": "hf", "options": {"max_shard_size": "60KB"}},
    "megatron": {"to": "megatron", "tp": 2, "options": {"container": "torch"}},
    "dist": {"to": "megatron", "tp": 2, "options": {"container": "torch_dist"}},
    "nanotron": {"to": "nanotron", "tp": 2},
    "nemo": {"to": "nemo", "tp": 2, "options": {"backend": "ranks"}},
    "deepspeed": {"to": "deepspeed"},
    "nemo2": {"to": "nemo2", "tp": 2},
    "nxdt": {"to": "nxdt", "tp": 2, "options": {"xser": "true"}},
    "zarr": {"to": "nemo", "tp": 2, "options": {"backend": "zarr"}},
}

watched: list[str] | None = None


def watch(event: str, arguments: tuple) -> None:
    """Note what must not happen while a checkpoint is read."""
    if watched is None:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            watched.append(f"open {path!r} for writing")
    elif event.startswith(FORBIDDEN) or (event == "import" and arguments[0] in FORBIDDEN_IMPORTS):
        watched.append(f"{event} {arguments!r}"[:200])


def make_hosts(folder: Path, golden: str) -> None:
    for name, how in HOSTS.items():
        convert(golden, folder / name, **how)
    (folder / "nemo-gz").write_bytes(gzip.compress((folder / "nemo").read_bytes(), 1))


def states(folder: Path) -> list[tuple]:
    """Everything below a folder, with size and time."""
    return sorted((str(path), (found := path.lstat()).st_size, found.st_mtime_ns) for path in folder.rglob("*"))


def run_program(*arguments: object) -> dict[str, object]:
    """Run `ckpt`: its exit code, what it printed, how long it took, and what the hook noted."""
    global watched
    out = io.StringIO()
    watched = []
    started = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main([str(argument) for argument in arguments])
    seconds = time.process_time() - started
    noted, watched = watched, None
    return {"code": code, "text": out.getvalue(), "seconds": seconds, "noted": noted}


def run_case(case: Case, hosts: Path, folder: Path) -> dict[str, object]:
    """Inspect and convert one case, and what came of it."""
    folder.mkdir()
    host = hosts / case.host
    copy = folder / (f"{case.host}.nemo" if host.is_file() else case.host)
    if host.is_file():
        shutil.copy(host, copy)
    else:
        shutil.copytree(host, copy, ignore=shutil.ignore_patterns("ckpt-receipt*"))
    path = case.damage(copy) or copy
    before = states(folder)
    runs = [run_program("inspect", path), run_program("convert", path, folder / "out", "--to", "ir")]
    untouched = states(folder) == before
    shutil.rmtree(folder)
    return {"folder": str(folder), "runs": runs, "untouched": untouched}


def run_strays(folder: Path) -> list[dict[str, object]]:
    """Every format made to read what is not a checkpoint of it, or nothing at all."""
    folder.mkdir()
    paths = make_strays(folder)
    return [
        {"path": str(path), "format": name, **run_program("inspect", path, "--from", name)}
        for path in [*paths, Path("/dev/zero"), folder / "nothing"]
        for name in format_names()
    ]


def run(folder: Path, golden: str) -> dict[str, object]:
    hosts = folder / "hosts"
    hosts.mkdir()
    make_hosts(hosts, golden)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    sys.addaudithook(watch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    records = {case.name: run_case(case, hosts, folder / "case") for case in CASES}
    strays = run_strays(folder / "strays")
    good = {
        name: run_case(Case(name, name, "", lambda copy: None), hosts, folder / "case") for name in [*HOSTS, "nemo-gz"]
    }
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"cases": records, "strays": strays, "good": good, "memory": (after - before) << 10}


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    print(json.dumps(run(Path(sys.argv[1]), sys.argv[2])))
