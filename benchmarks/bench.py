"""Speed and memory of conversions, as ratios to `cp -r` of the same weights, beside what others offer.

    python benchmarks/bench.py [--sizes 0.5,2,8] [--rounds 3] [--only TEXT] [--work FOLDER] [--json FILE] [--machine WORDS]
                               [--mergekit PROGRAM] [--against NAME=WHERE ...]

Everything is measured side by side in one run. Each command is run twice in a row per round, and the second run
counts: the first one leaves the machine in the same state for every command (warm page cache, memory that the
kernel has already been given, compiled Python). Wall and CPU time are medians over rounds, memory is the peak over
them. Private memory is sampled from /proc/PID/smaps_rollup: pages that only this process has, so neither shared
libraries nor the page cache of the files it reads.

`cp` leaves its output in memory, ours is on the disk when it has its name. So conversions run twice: with `--no-sync`,
beside `cp -r`, and as they are, beside `cp -r` and a sync. Where one side is larger than the other (DeepSpeed keeps
float32 masters beside the model's weights), it is the larger that `cp` copies.
`--mergekit` names the program `mergekit-yaml` of an environment of its own, since it pins what it needs.

With `--against` it compares conversions with those of other versions, in turn, command by command: WHERE is a tree of the project, whose
sources are used in this environment, or the Python of an environment in which another version is installed.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple

from synthetic import write_hf, write_run

HERE = Path(__file__).parent
CONVERT = [sys.executable, "-m", "ckpt_core", "convert"]
SAMPLE_SECONDS = 0.02
CP = "cp -r"
CP_SYNC = "cp -r, sync"
NO_SYNC = ", no sync"


@dataclass(frozen=True)
class Format:
    """A format to convert to and back from: the model, `ckpt`'s options both ways, and the output's name."""

    model: str
    there: str
    back: str = "--to hf"
    output: str = "converted"


FORMATS = {
    "nanotron tp2": Format("llama", "--to nanotron --tp 2"),
    "megatron torch tp2": Format("llama", "--to megatron --tp 2 -o container=torch"),
    "megatron torch_dist": Format("llama", "--to megatron"),
    ".nemo tp2": Format("llama", "--to nemo --tp 2", output="model.nemo"),
    "nxdt tp8": Format("llama", "--to nxdt --tp 8 -o hw_backend=trn1"),
    "nxdt tp8 xser": Format("llama", "--to nxdt --tp 8 -o hw_backend=trn1 -o xser=true"),
    "deepspeed zero (fp32)": Format("llama", "--to deepspeed -o moments=false", "--to hf --dtype bf16"),
    "megatron-deepspeed tp2": Format("bloom", "--to megatron-deepspeed --tp 2"),
    "hf fp8 blocks": Format("llama", "--to hf -o quantise=fp8-block", output="fp8"),
    "T5 .nemo tp2": Format("t5", "--to nemo --tp 2", output="model.nemo"),
}
RUN = "run"
# From a run of Megatron, TP2, with `distrib_optim.pt`: the state of its training goes along.
RUNS = {
    "state to megatron torch_dist": "--to megatron --tp 2 -o container=torch_dist",
    "state to nanotron tp2 zero1 dp2": "--to nanotron --tp 2 -o zero=1 -o dp=2",
}
THREADS = ("nanotron tp2", "megatron torch tp2", "deepspeed zero (fp32)")


@dataclass(frozen=True)
class Command:
    """A command to measure, and what it writes. `kept`: later commands read that."""

    name: str
    words: list[str]
    output: Path
    kept: bool = False


@dataclass
class Measured:
    """One command at one size: medians of seconds, peak of private bytes."""

    group: str
    name: str
    size: float
    wall: float
    cpu: float
    private: int


def commands(group: str, source: Path, work: Path, mergekit: str | None) -> Iterator[Command]:
    """What is measured of a group: a format, a run's way, `threads` or `others`."""
    if group in FORMATS:
        kind = FORMATS[group]
        output, back = work / kind.output, work / "hf"
        there, again = [str(source), str(output), *kind.there.split()], [str(output), str(back), *kind.back.split()]
        yield Command(f"hf to {group}{NO_SYNC}", [*CONVERT, *there, "--no-sync"], output)
        yield Command(f"hf to {group}", [*CONVERT, *there], output, kept=True)
        yield from copies(max(source, output, key=bytes_of), work)
        yield Command(f"{group} to hf{NO_SYNC}", [*CONVERT, *again, "--no-sync"], back)
        yield Command(f"{group} to hf", [*CONVERT, *again], back)
    elif group in RUNS:
        output = work / "converted"
        words = [*CONVERT, str(source), str(output), *RUNS[group].split(), "--training-state", "keep"]
        yield Command(f"{group}{NO_SYNC}", [*words, "--no-sync"], output)
        yield Command(group, words, output, kept=True)
        yield from copies(max(source, output, key=bytes_of), work)
    elif group == "threads":
        yield from copies(source, work)
        yield from threads(source, work)
    else:
        yield from copies(source, work)
        yield from others(source, work, mergekit)


def copies(source: Path, work: Path) -> Iterator[Command]:
    """The two yardsticks."""
    copy = work / "copy"
    synced = 'cp -r "$0" "$1" && find "$1" -type f -exec sync {} +'
    yield Command(CP, ["cp", "-r", str(source), str(copy)], copy)
    yield Command(CP_SYNC, ["sh", "-c", synced, str(source), str(copy)], copy)


def threads(source: Path, work: Path) -> Iterator[Command]:
    """Both ways with one thread and with two. The disk is not waited for: it has no threads."""
    for name in THREADS:
        kind = FORMATS[name]
        output, back = work / kind.output, work / "hf"
        for count in (1, 2):
            there = [str(source), str(output), *kind.there.split(), "--no-sync", "--workers", str(count)]
            yield Command(
                f"hf to {name}, {count} thread{'s' * (count > 1)}", [*CONVERT, *there], output, kept=count == 2
            )
        for count in (1, 2):
            again = [str(output), str(back), *kind.back.split(), "--no-sync", "--workers", str(count)]
            yield Command(f"{name} to hf, {count} thread{'s' * (count > 1)}", [*CONVERT, *again], back)


def bytes_of(path: Path) -> int:
    """The size of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def others(source: Path, work: Path, mergekit: str | None) -> Iterator[Command]:
    """The plan alone, and public tools that load and save the same weights on a CPU."""
    out, file, dcp = work / "out", work / "model.pt", work / "dcp"
    peer = [sys.executable, str(HERE / "peers.py")]
    plan = [*CONVERT, str(source), str(out), *"--to nanotron --dry-run".split()]
    yield Command("ckpt: hf to nanotron, plan only", plan, out)
    yield Command("safetensors load + save", [*peer, "naive", str(source), str(out)], out)
    yield Command("transformers load + save", [*peer, "transformers", str(source), str(out)], out)
    yield Command("safetensors load, torch.save", [*peer, "torch_save", str(source), str(file)], file, kept=True)
    yield Command("torch_save_to_dcp", [*peer, "to_dcp", str(file), str(dcp)], dcp, kept=True)
    yield Command("dcp_to_torch_save", [*peer, "from_dcp", str(dcp), str(out)], out)
    if mergekit:
        recipe = work / "mergekit.yml"
        recipe.write_text(json.dumps({"merge_method": "passthrough", "models": [{"model": str(source)}]}))
        words = [mergekit, str(recipe), str(out), "--out-shard-size", "1B", "--no-copy-tokenizer"]
        yield Command("mergekit passthrough", words, out)


class Spent(NamedTuple):
    """Wall seconds, CPU seconds (with children) and peak private bytes of a command; `user` are those of the CPU outside the kernel."""

    wall: float
    cpu: float
    private: int
    user: float


def measure(command: list[str], environment: dict[str, str]) -> Spent:
    """Run a command; it must succeed."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        peak = 0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, _private(process.pid))
            time.sleep(SAMPLE_SECONDS)
        wall = time.perf_counter() - start
        if status:
            errors.seek(0)
            sys.exit(f"{command} failed:\n{errors.read().decode()}")
    return Spent(wall, usage.ru_utime + usage.ru_stime, peak, usage.ru_utime)


def _private(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))) * 1024


def run(group: str, size: float, rounds: int, work: Path, made: Callable[[], Iterator[Command]]) -> list[Measured]:
    """Measure the commands of a group, at one size: `made` makes them anew in each round, one when the one before has run."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(work / "compiled")  # as in an installed package, wherever the sources are
    samples: dict[str, list[Spent]] = {}
    for _ in range(rounds):
        written = []
        for command in made():
            for counts in (False, True):
                _remove(command.output)
                sample = measure(command.words, environment)
                if counts:
                    samples.setdefault(command.name, []).append(sample)
                    print(
                        f"  {command.name:36} wall {sample.wall:7.2f} s   CPU {sample.cpu:7.2f} s   private {sample.private / 1e6:7.1f} MB",
                        flush=True,
                    )
            written.append(command.output)
            if not command.kept:
                _remove(written.pop())
        for output in written:
            _remove(output)
    return [
        Measured(
            group,
            name,
            size,
            statistics.median(one.wall for one in all_),
            statistics.median(one.cpu for one in all_),
            max(one.private for one in all_),
        )
        for name, all_ in samples.items()
    ]


@dataclass(frozen=True)
class Side:
    """A version of the project: the Python that runs it, and where that finds its sources if it is not where it is installed."""

    name: str
    python: str
    sources: tuple[Path, ...] = ()

    @classmethod
    def of(cls, text: str) -> Side:
        """From NAME=WHERE, a tree or a Python."""
        name, _, where = text.partition("=")
        place = Path(where)
        if not place.is_dir():
            return cls(name, where)
        return cls(name, sys.executable, (place / "core/src", place / "page/src", *sorted(place.glob("plugins/*/src"))))

    def environment(self, work: Path) -> dict[str, str]:
        """Compiled Python is kept for each side apart."""
        own = {"PYTHONPYCACHEPREFIX": str(work / f"compiled {self.name}")}
        if self.sources:
            own["PYTHONPATH"] = os.pathsep.join(map(str, self.sources))
        return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"} | own


@dataclass
class Compared:
    """A conversion at one size: what each round took, of each side and of `cp`."""

    name: str
    size: float
    rounds: dict[str, list[Spent]]


def compare(group: str, size: float, rounds: int, source: Path, work: Path, sides: list[Side]) -> list[Compared]:
    """Measure a format there and back without sync, side by side: every side in each round, in turns forwards and backwards."""
    kind = FORMATS[group]
    output, back, copy = work / kind.output, work / "hf", work / "copy"
    ways = {
        f"hf to {group}": (output, [str(source), str(output), *kind.there.split(), "--no-sync"]),
        f"{group} to hf": (back, [str(output), str(back), *kind.back.split(), "--no-sync"]),
    }
    found = []
    for name, (made, words) in ways.items():
        samples: dict[str, list[Spent]] = {}
        for number in range(rounds):
            for side in sides if number % 2 else sides[::-1]:
                for counts in (False, True):
                    _remove(made)
                    command = [side.python, *CONVERT[1:], *words]
                    sample = measure(command, side.environment(work))
                    if counts:
                        samples.setdefault(side.name, []).append(sample)
            larger = max(source, made, key=bytes_of)
            for counts in (False, True):
                sample = measure(["cp", "-r", str(larger), str(copy)], dict(os.environ))
                _remove(copy)
                if counts:
                    samples.setdefault(CP, []).append(sample)
        found.append(Compared(name, size, samples))
        for who, all_ in samples.items():
            print(
                f"  {name:32} {who:12} "
                + "  ".join(f"{one.wall:.2f} ({one.cpu:.2f}, user {one.user:.2f})" for one in all_),
                flush=True,
            )
    _remove(output)
    _remove(back)
    return found


def compared_table(results: list[Compared], sides: list[Side]) -> str:
    """A Markdown table: for each side its seconds and how many times those of `cp` they are, and its CPU time for each second of the first.

    Seconds are medians. The last ratios are of the least of all rounds, which what else goes on changes least: of all CPU time, and of
    that outside the kernel, which has nothing of what it takes to get memory.
    """
    first, *others = sides
    lines = [
        "| weights | conversion |"
        + "".join(f" {side.name}: wall s, x cp | CPU s, x cp |" for side in sides)
        + "".join(f" CPU of {side.name} / {first.name}: all, user |" for side in others),
        "| ---: | --- |" + " ---: |" * (2 * len(sides) + len(others)),
    ]
    for one in results:
        walls = {name: statistics.median(spent.wall for spent in all_) for name, all_ in one.rounds.items()}
        cpus = {name: statistics.median(spent.cpu for spent in all_) for name, all_ in one.rounds.items()}
        least = {name: min(spent.cpu for spent in all_) for name, all_ in one.rounds.items()}
        users = {name: min(spent.user for spent in all_) for name, all_ in one.rounds.items()}
        cells = [
            f"{seconds[side.name]:.2f}, {seconds[side.name] / seconds[CP]:.2f}"
            for side in sides
            for seconds in (walls, cpus)
        ]
        cells += [
            f"{least[side.name] / least[first.name]:.2f}, {users[side.name] / users[first.name]:.2f}" for side in others
        ]
        lines.append(f"| {one.size:.2f} GB | {one.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _remove(path: Path) -> None:
    """Give the space of a file or a folder back, and that of the receipt beside it; the names go aside.

    An ext4 without a journal gives an inode to no new file for a minute or more after it was removed (`recently_deleted`), and looks at all such
    inodes first: among those of the rounds before, making the 400 files and folders of a Nanotron checkpoint took 0.2 s of CPU time.
    """
    aside = path.parent / "removed"
    aside.mkdir(exist_ok=True)
    for old in (path, path.with_name(f"{path.name}.ckpt-receipt.json")):
        if old.exists():
            for file in [old, *old.rglob("*")]:
                if file.is_file():
                    os.truncate(file, 0)
            old.rename(aside / str(len(os.listdir(aside))))


def table(results: list[Measured]) -> str:
    """A Markdown table: seconds, ratios to the two `cp` of the same group and size, memory."""
    lines = [
        "| weights | command | wall s | x cp | x cp, sync | CPU s | x cp | peak private MB |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    known = {(one.group, one.size, one.name): one for one in results}
    for one in results:
        cp, synced = known[one.group, one.size, CP], known[one.group, one.size, CP_SYNC]
        lines.append(
            f"| {one.size:.2f} GB | {one.name} | {one.wall:.2f} | {one.wall / cp.wall:.2f} "
            f"| {one.wall / synced.wall:.2f} | {one.cpu:.2f} | {one.cpu / cp.cpu:.2f} | {one.private / 1e6:.0f} |"
        )
    return "\n".join(lines)


def formats_table(results: list[Measured]) -> str:
    """A Markdown table of conversions: left to the kernel beside `cp`, and on the disk beside `cp` and a sync."""
    lines = [
        "| weights | conversion | wall s, no sync | x cp | CPU s, no sync | x cp | wall s | x cp, sync | peak private MB |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    known = {(one.group, one.size, one.name): one for one in results}
    for one in results:
        quick = known.get((one.group, one.size, one.name + NO_SYNC))
        if quick is None:
            continue
        cp, synced = known[one.group, one.size, CP], known[one.group, one.size, CP_SYNC]
        lines.append(
            f"| {one.size:.2f} GB | {one.name} | {quick.wall:.2f} | {quick.wall / cp.wall:.2f} | {quick.cpu:.2f} "
            f"| {quick.cpu / cp.cpu:.2f} | {one.wall:.2f} | {one.wall / synced.wall:.2f} "
            f"| {max(one.private, quick.private) / 1e6:.0f} |"
        )
    return "\n".join(lines)


def keeping(parser: argparse.ArgumentParser) -> None:
    """The options with which results are kept."""
    parser.add_argument("--json", type=Path, help="write the results here too")
    parser.add_argument(
        "--machine", default=f"{os.cpu_count()} cores", help="with --json: what was measured on, in words"
    )


def save(path: Path, machine: str, results: list[Measured | Compared]) -> None:
    """Keep results, with the day and the machine; `docs/measured.py` makes tables of those in `benchmarks/results`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"date": date.today().isoformat(), "machine": machine, "results": [asdict(one) for one in results]}
    path.write_text(json.dumps(kept, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="0.5,2,8", help="GB of bf16 weights, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only", default="", help="groups whose name contains this, or one of these (a,b): a format, threads, others"
    )
    parser.add_argument("--work", type=Path, help="a folder with room for five copies of the largest size")
    keeping(parser)
    parser.add_argument("--mergekit", help="the program mergekit-yaml")
    parser.add_argument(
        "--against", action="append", default=[], metavar="NAME=WHERE", help="another version; may be repeated"
    )
    arguments = parser.parse_args()
    sides = [Side("now", sys.executable), *map(Side.of, arguments.against)]
    known = FORMATS if arguments.against else ("others", "threads", *FORMATS, *RUNS)
    groups = [group for group in known if any(text in group for text in arguments.only.split(","))]
    results: list[Measured] = []
    compared: list[Compared] = []
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        work = Path(folder)
        for size in map(float, arguments.sizes.split(",")):
            models = {group: FORMATS[group].model if group in FORMATS else "llama" for group in groups}
            models |= {group: RUN for group in groups if group in RUNS}
            for model in dict.fromkeys(models.values()):
                source = work / "source"
                true = (write_run(source, size) if model == RUN else write_hf(source, model, size)) / 1e9
                for group in (group for group in groups if models[group] == model):
                    print(f"{true:.2f} GB of {model}: {group}", flush=True)
                    if arguments.against:
                        compared += compare(group, true, arguments.rounds, source, work, sides)
                    else:
                        made = functools.partial(commands, group, source, work, arguments.mergekit)
                        results += run(group, true, arguments.rounds, work, made)
                _remove(source)
    if compared:
        print(f"\n{compared_table(compared, sides)}")
    formats = [one for one in results if one.group in FORMATS or one.group in RUNS]
    if formats:
        print(f"\nformats:\n\n{formats_table(formats)}")
    for group in ("threads", "others"):
        chosen = [one for one in results if one.group == group]
        if chosen:
            print(f"\n{group}:\n\n{table(chosen)}")
    if arguments.json:
        save(arguments.json, arguments.machine, [*results, *compared])


if __name__ == "__main__":
    main()
