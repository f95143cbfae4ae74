"""Speed and memory of conversions, as ratios to `cp -r` of the same bytes, to transformers and to a naive copy.

    python benchmarks/bench.py [--sizes 0.5,2,8] [--rounds 3] [--work FOLDER] [--json FILE]

Everything is measured side by side in one run. Each command is run twice in a row per round, and the second run
counts: the first one leaves the machine in the same state for every command (warm page cache, memory that the
kernel has already been given). Wall and CPU time are medians over rounds, memory is the peak over them.
Private memory is sampled from /proc/PID/smaps_rollup: pages that only this process has, so neither shared
libraries nor the page cache of the files it reads.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from synthetic import write_llama

HERE = Path(__file__).parent
SAMPLE_SECONDS = 0.02


@dataclass
class Measured:
    """One command at one size: medians of seconds, peak of private bytes."""

    name: str
    size: float
    wall: float
    cpu: float
    private: int


def measure(command: list[str]) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds (with children) and peak private bytes of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        peak = max(peak, _private(process.pid))
        time.sleep(SAMPLE_SECONDS)
    wall = time.perf_counter() - start
    if status:
        sys.exit(f"{command} failed:\n{process.stderr.read().decode()}")
    return wall, usage.ru_utime + usage.ru_stime, peak


def _private(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))) * 1024


def commands(source: Path, out: Path) -> dict[str, tuple[list[str], Path]]:
    """Every measured command and its output; some read what others wrote."""
    ckpt = [sys.executable, "-m", "ckpt_core", "convert"]
    peer = [sys.executable, str(HERE / "peers.py")]
    targets = {
        "nanotron tp2": (out / "nanotron", ["--to", "nanotron", "--tp", "2"]),
        "megatron torch_dist": (out / "torch_dist", ["--to", "megatron"]),
        "megatron torch tp2": (out / "torch", ["--to", "megatron", "--tp", "2", "-o", "container=torch"]),
        ".nemo tp2": (out / "model.nemo", ["--to", "nemo", "--tp", "2"]),
        "nxdt tp8 xser": (out / "nxdt", ["--to", "nxdt", "--tp", "8", "-o", "xser=true", "-o", "hw_backend=trn1"]),
    }
    return {
        "cp -r": (["cp", "-r", str(source), str(out / "cp")], out / "cp"),
        **{
            f"ckpt: hf to {name}": ([*ckpt, str(source), str(path), *arguments], path)
            for name, (path, arguments) in targets.items()
        },
        "ckpt: nanotron tp2 to hf": ([*ckpt, str(out / "nanotron"), str(out / "hf"), "--to", "hf"], out / "hf"),
        "ckpt: .nemo tp2 to hf": ([*ckpt, str(out / "model.nemo"), str(out / "hf"), "--to", "hf"], out / "hf"),
        "naive: safetensors load + save": ([*peer, "naive", str(source), str(out / "naive")], out / "naive"),
        "transformers load + save": ([*peer, "transformers", str(source), str(out / "peer")], out / "peer"),
    }


def run(size: float, rounds: int, work: Path, say: Callable[[str], None]) -> list[Measured]:
    """Measure every command at one size."""
    source = work / "source"
    total = write_llama(str(source), size)
    say(f"{total / 1e9:.2f} GB of weights")
    samples: dict[str, list[tuple[float, float, int]]] = {}
    for _ in range(rounds):
        for name, (command, output) in commands(source, work).items():
            for counts in (False, True):
                _remove(output)
                sample = measure(command)
                if counts:
                    samples.setdefault(name, []).append(sample)
                    say(
                        f"  {name:32} wall {sample[0]:7.2f} s   CPU {sample[1]:7.2f} s   private {sample[2] / 1e6:7.1f} MB"
                    )
    for path in work.iterdir():
        _remove(path)
    return [
        Measured(
            name,
            total / 1e9,
            statistics.median(s[0] for s in all_),
            statistics.median(s[1] for s in all_),
            max(s[2] for s in all_),
        )
        for name, all_ in samples.items()
    ]


def _remove(path: Path) -> None:
    """A folder, or a file with the receipt beside it."""
    shutil.rmtree(path, ignore_errors=True)
    if path.is_file():
        path.unlink()
    path.with_name(f"{path.name}.ckpt-receipt.json").unlink(missing_ok=True)


def table(results: list[Measured]) -> str:
    """The Markdown table: seconds, ratios to cp, memory."""
    lines = [
        "| weights | command | wall s | x cp | CPU s | x cp | peak private MB |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        base = next(other for other in results if other.size == result.size and other.name == "cp -r")
        lines.append(
            f"| {result.size:.2f} GB | {result.name} | {result.wall:.2f} | {result.wall / base.wall:.2f} "
            f"| {result.cpu:.2f} | {result.cpu / base.cpu:.2f} | {result.private / 1e6:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="0.5,2,8", help="GB of bf16 weights, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="a folder with room for five copies of the largest size")
    parser.add_argument("--json", type=Path, help="write the results here too")
    arguments = parser.parse_args()
    results: list[Measured] = []
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        for size in map(float, arguments.sizes.split(",")):
            results += run(size, arguments.rounds, Path(work), lambda line: print(line, flush=True))
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
