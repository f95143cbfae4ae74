"""What reading, hashing and writing take at least, beside `cp`: one thread, one buffer, and nothing of the engine.

    python benchmarks/floor.py [--gigabytes 1] [--rounds 5] [--pause 0] [--work FOLDER]

Each row is a loop of `preadv`, BLAKE3, CRC-32 and `pwrite` over a file, in steps of 2 MiB, to files of 10 MB. It says where the data begin in both, where in
a page the buffer begins, and how many bytes a `pwrite` has. The least CPU seconds of all rounds, in which the rows come in another order each time. With
`--pause`, it waits so many seconds before each row, in which a virtual machine may give free memory back to its host.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from ckpt_core.storage.bytes import crc32
from ckpt_core.storage.bytes.space import take_space

STEP = 2 << 20
FILE = 5 * STEP


class Row(NamedTuple):
    """Bytes: where data begin in the source and in the target, where in a page the buffer begins, and the most of a `pwrite`."""

    source: int
    target: int
    place: int
    most: int


ROWS = (
    Row(0, 0, 0, 512 << 10),
    Row(0, 0, 0, 2 << 20),
    Row(24, 248, 56, 512 << 10),
    Row(24, 248, 16, 512 << 10),  # 16: as NumPy's memory begins
    Row(24, 24, 16, 512 << 10),
    Row(8, 248, 16, 512 << 10),
)


def spent(row: Row, source: Path, folder: Path) -> list[float]:
    """CPU seconds of reading, hashing, summing up and writing."""
    times = [0.0] * 4
    buffer = memoryview(mmap.mmap(-1, STEP + mmap.PAGESIZE))[row.place : row.place + STEP]
    buffer[:] = bytes(STEP)
    folder.mkdir()
    reading = os.open(source, os.O_RDONLY)
    for number, start in enumerate(range(0, os.fstat(reading).st_size - FILE, FILE)):
        writing = os.open(folder / str(number), os.O_CREAT | os.O_WRONLY)
        os.ftruncate(writing, row.target + FILE)
        begun = time.thread_time()
        take_space(writing)
        times[3] += time.thread_time() - begun
        for at in range(0, FILE, STEP):
            marks = [time.thread_time()]
            os.preadv(reading, [buffer], row.source + start + at)
            marks.append(time.thread_time())
            blake3(buffer).digest()
            marks.append(time.thread_time())
            crc32.remainder(buffer)
            marks.append(time.thread_time())
            for part in range(0, STEP, row.most):
                os.pwrite(writing, buffer[part : part + row.most], row.target + at + part)
            marks.append(time.thread_time())
            times = [sum_ + end - begin for sum_, begin, end in zip(times, marks, marks[1:], strict=False)]
        os.close(writing)
    os.close(reading)
    shutil.rmtree(folder)
    return times


def copied(source: Path, copy: Path) -> float:
    """CPU seconds of `cp`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["cp", str(source), str(copy)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    copy.unlink()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0)
    parser.add_argument("--work", type=Path, help="a folder with room for twice as much")
    arguments = parser.parse_args()
    found: dict[Row, list[list[float]]] = {row: [] for row in ROWS}
    cp = []
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        source = Path(work) / "source"
        with source.open("wb") as file:
            for _ in range(max(1, round(arguments.gigabytes * 1e9 / FILE)) + 1):
                file.write(random.randbytes(FILE))
        for _ in range(arguments.rounds):
            cp.append(copied(source, Path(work) / "copy"))
            for row in random.sample(ROWS, len(ROWS)):
                time.sleep(arguments.pause)
                found[row].append(spent(row, source, Path(work) / "out"))
    print(f"cp: {min(cp):.3f} CPU s, median {sorted(cp)[len(cp) // 2]:.3f}\n")
    print(
        "| source, target, buffer | KiB of a write | reading | hashing | CRC-32 | writing | all | x cp | median, x cp |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row, times in found.items():
        least = [min(column) for column in zip(*times, strict=True)]
        median = sorted(map(sum, times))[len(times) // 2] / sorted(cp)[len(cp) // 2]
        cells = [f"{one:.3f}" for one in (*least, sum(least))]
        print(
            f"| {row.source}, {row.target}, {row.place} | {row.most >> 10} | {' | '.join(cells)} "
            f"| {sum(least) / min(cp):.2f} | {median:.2f} |"
        )


if __name__ == "__main__":
    main()
