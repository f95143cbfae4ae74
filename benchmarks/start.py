"""What it costs to start each command: CPU seconds, and multiples of `python -c "import numpy"`.

    python benchmarks/start.py [--only NAME] [--rounds N] [--python PYTHON] [--beside PYTHON]

Each command is a process of its own; its CPU time counts, the least of all rounds. The checkpoints have two layers, but for a Llama 405B,
which is headers and configs over files of holes. `--python` is the Python of an environment that has little more than ckpt; `--beside` is that
of another one, with the code before a change: they are measured in turns.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ckpt_core.api import plan_conversion
from ckpt_core.testing import example, write_ir
from plan_time import HF, LLAMA_405B, MEGATRON_405B, Asked
from synthetic import write_files

SMALL = {"layers": 2, "hidden": 96, "attention.heads": 12, "attention.groups": 4, "attention.head_dim": 8}
MEGATRON: Asked = {"to": "megatron", "tp": 2}
SOURCES = {
    # name: facts of a Llama, and how it is written
    "small-hf": (SMALL, HF),
    "small-megatron": (SMALL, MEGATRON),
    "405b-hf": (LLAMA_405B, HF),
    "405b-megatron": (LLAMA_405B, MEGATRON_405B),
}
ABSENT = "ckpt inspect absent"
COMPLETION = "completion of ckpt convert --to"
COMMANDS = [  # `python` or `ckpt`, and what follows; a word of SOURCES stands for its path
    "python -c import numpy",
    "python -c import ckpt_core.sdk",
    "ckpt --version",
    "ckpt --help",
    "ckpt convert --help",
    COMPLETION,
    "ckpt formats",
    "ckpt formats hf",
    ABSENT,
    "ckpt inspect small-hf",
    "ckpt inspect --all small-hf",
    "ckpt inspect small-megatron",
    "ckpt inspect 405b-hf",
    "ckpt inspect 405b-megatron",
    "ckpt convert small-hf out --to nanotron --dry-run",
    "ckpt convert small-megatron out --to hf --dry-run",
]
COMPLETED = {"_CKPT_COMPLETE": "bash_complete", "COMP_WORDS": "ckpt convert a b --to n", "COMP_CWORD": "5"}


def make_source(work: Path, name: str, facts: Asked, asked: Asked) -> None:
    """A checkpoint of this name in a folder, its values holes."""
    model = example("llama", **{path.replace(".", "__"): value for path, value in facts.items()})
    ir = write_ir(work / f"{name}-ir", model, dtype="bf16", sparse=True)
    write_files(plan_conversion(ir, work / name, **asked).target, work / name, data=False)  # type: ignore[arg-type]


def seconds(python: str, command: str, work: Path) -> float:
    """The CPU time of one process in `work`, of user and system."""
    program, *words = command.split(maxsplit=2) if command.startswith("python") else command.split()
    arguments = words if program == "python" else ["-m", "ckpt_core", *(words if program == "ckpt" else ())]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (COMPLETED if command == COMPLETION else {})
    with tempfile.TemporaryFile() as heard:
        running = subprocess.Popen([python, *arguments], cwd=work, env=environment, stdout=heard, stderr=heard)
        _, status, used = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
        if running.returncode != (command == ABSENT):
            heard.seek(0)
            sys.exit(f"{command} ended with {running.returncode}: {heard.read().decode()}")
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="commands that contain this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", default=sys.executable, help="the Python of the environment to measure")
    parser.add_argument("--beside", help="the Python of another environment")
    asked = parser.parse_args()
    pythons = [*filter(None, [asked.beside]), asked.python]
    heads = [f"{name}, {unit}" for name in ("before", "now")[-len(pythons) :] for unit in ("CPU s", "x NumPy")]
    print(f"| command | {' | '.join(heads)} |\n| --- |{' ---: |' * len(heads)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name, (facts, how) in SOURCES.items():
            make_source(work, name, facts, how)  # type: ignore[arg-type]
        numpy: list[float] = []
        for command in COMMANDS:
            if numpy and asked.only not in command:
                continue
            for python in pythons:
                seconds(python, command, work)  # what is imported is compiled
            rounds = [[seconds(python, command, work) for python in pythons] for _ in range(asked.rounds)]
            least = list(map(min, zip(*rounds, strict=True)))
            numpy = numpy or least
            cells = (f"{mine:.3f} | {mine / its:.1f}" for mine, its in zip(least, numpy, strict=True))
            print(f"| {command if command == COMPLETION else f'`{command}`'} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
