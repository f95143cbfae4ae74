"""What `./ckpt-dev` does: one environment for all tasks, made with a word on every step, then the task.

It runs before anything is installed, so it imports the standard library alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".ckpt-venv"
STAMP = VENV / "installed-for"
CPU_TORCH = "https://download.pytorch.org/whl/cpu"
WORD = 10.0
"""Seconds after which a step that is still going on says so."""
LARGE = 5.0
"""Megabytes from which on a download is worth a line."""


def say(text: str) -> None:
    print(text, flush=True)


def main(arguments: list[str]) -> int:
    task, *rest = arguments or [""]
    if task in ("", "-h", "--help", "help"):
        say(
            (ROOT / "ckpt-dev")
            .read_text()
            .partition("set -eu")[0]
            .replace("# ", "")
            .replace("#!/bin/sh\n", "")
            .rstrip()
        )
        return 0 if task else 2
    prepare()
    python = str(VENV / "bin" / "python")
    if task == "demo":
        command = [python, "tools/demo.py", *rest]
    elif task == "test":
        say(
            "test: pytest on every core; a dot is a test that passed. The whole suite takes about 25 minutes on two cores."
        )
        command = [python, "-m", "pytest", *rest]
        if not {"-n", "-n0"} & {*rest}:
            command[3:3] = ["-n", "auto", "--dist", "loadscope"]
        # Else every one of very many processes compiles ckpt anew; and there is a worker on each core, so more threads would wait for one another.
        os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "", "PYTHONUNBUFFERED": "1"}
    else:
        command = [python, "-m", "nox", "-s", task, *(["--", *rest] if rest else [])]
    os.environ["PATH"] = f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    os.chdir(ROOT)
    os.execv(python, command)


def packages() -> list[str]:
    """The folders of our distributions, those that others build on first."""
    return [
        "core",
        "page",
        *sorted(str(file.parent.relative_to(ROOT)) for file in ROOT.glob("plugins/*/pyproject.toml")),
    ]


def requirements() -> list[str]:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    return [*groups["test"], *groups["dev"]]


def fresh() -> str:
    """A hash of all that says what has to be installed."""
    files = [ROOT / "pyproject.toml", ROOT / "constraints.txt", *(ROOT / one / "pyproject.toml" for one in packages())]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files) + sys.version.encode()).hexdigest()


def prepare() -> None:
    """Make the environment, unless it is there as it should be: then nothing is said, and no network is needed."""
    if STAMP.is_file() and STAMP.read_text() == fresh():
        return
    began = time.monotonic()
    say(f"Setting up {VENV.name}, once (about 1.3 GB, mostly torch for the CPU; the next start is immediate)")
    if not (VENV / "bin" / "python").exists():
        say(f"1/3  a virtual environment of Python {sys.version.split()[0]}")
        venv.create(VENV, with_pip=True)
    say("2/3  torch for the CPU, transformers and what the tests need")
    constraints = ["-c", "constraints.txt"]
    torch = [*constraints, next(one for one in requirements() if one.startswith("torch"))]
    if brings_cuda(torch):
        say("     the index offers torch for CUDA: taking the CPU build of download.pytorch.org instead")
        pip("install", *torch, "--index-url", CPU_TORCH)
    pip("install", *constraints, *requirements())
    say(f"3/3  ckpt itself, editable: {', '.join(packages())}")
    editable = [argument for one in [*packages(), "tests/support"] for argument in ("-e", one)]
    pip(
        "install", *constraints, "--no-build-isolation", *editable
    )  # else each would get a build environment of its own
    STAMP.write_text(fresh())
    say(f"Ready after {time.monotonic() - began:.0f} s")


def brings_cuda(requirement: list[str]) -> bool:
    """Whether pip would take a build of torch with gigabytes of CUDA."""
    command = [
        str(VENV / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--quiet",
        "--disable-pip-version-check",
        "--report",
        "-",
    ]
    done = subprocess.run([*command, *requirement], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    chosen = json.loads(done.stdout)["install"]
    return any(re.match(r"(nvidia|cuda)-", one["metadata"]["name"]) for one in chosen)


def pip(*arguments: str) -> None:
    """Run pip; of what it says, large downloads and a word every few seconds are shown, and all of it where it fails."""
    command = [
        str(VENV / "bin" / "python"),
        "-m",
        "pip",
        *arguments,
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
    ]
    said: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        with heartbeat(said):
            for line in process.stdout:
                said.append(line)
                size = re.search(r"Downloading (\S+) \(([\d.]+) MB\)", line)
                if size and float(size[2]) >= LARGE:
                    name = re.match(r"[^-]+-[^-]+", size[1].rpartition("/")[2])
                    say(f"     downloading {name[0] if name else size[1]}, {size[2]} MB")
    if process.returncode:
        sys.exit("".join(said) + f"\npip failed: {' '.join(command)}")


class heartbeat:
    """While a step lasts: every few seconds, how long it has taken and what pip does."""

    def __init__(self, said: list[str]) -> None:
        self._said, self._over, self._began = said, threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _beat(self) -> None:
        while not self._over.wait(WORD):
            doing = next(self._doing(), "starting")
            say(f"     {time.monotonic() - self._began:4.0f} s  {doing[:90]}")

    def _doing(self) -> Iterator[str]:
        for line in reversed(self._said):
            if line.startswith("Installing collected packages"):
                there = sum(1 for _ in VENV.glob("lib/*/site-packages/*.dist-info"))
                yield f"Installing {line.count(',') + 1} packages, {there} are there"
            elif line.startswith(("Collecting", "Building", "Obtaining")):
                yield line.strip().partition(" (from")[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
