"""What one output file allows: how fast several threads write to one file, and to one each, with and without the engine's lock.

    python benchmarks/one_file.py [--threads 1,2] [--gigabytes 1] [--piece 2] [--rounds 5] [--work FOLDER]

Each thread reads a piece from memory and writes it where it belongs in a file whose space was taken before, as the engine does. The file system lets
one thread at a time into a file (ext4, XFS), so that the seconds of a thread alone are those under the file's lock: a conversion to one file takes at
least as long, whatever the number of threads. `hashed`: every piece is hashed before it is written, which is done side by side.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

from blake3 import blake3

from ckpt_core.storage.bytes.files import pwrite_all
from ckpt_core.storage.bytes.space import take_space


def write(paths: list[Path], size: int, piece: int, hashed: bool) -> tuple[float, float]:
    """Wall and CPU seconds of a thread for each path, all of which together write `size` bytes; a file that several name is shared."""
    threads, files = len(paths), {}
    for path in dict.fromkeys(paths):
        files[path] = os.open(path, os.O_CREAT | os.O_WRONLY)
        os.ftruncate(files[path], size * paths.count(path) // threads)
        take_space(files[path])
    locks = {path: threading.Lock() for path in files}
    data = [os.urandom(piece) for _ in paths]

    def work(number: int) -> None:
        path, view = paths[number], memoryview(data[number])
        place, sharing = paths[:number].count(path), paths.count(path)
        for start in range(place * piece, size * sharing // threads - piece + 1, sharing * piece):
            if hashed:
                blake3(view).digest()
            with locks[path]:
                pwrite_all(files[path], view, start)

    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    wall, cpu = time.perf_counter(), time.process_time()
    for one in running:
        one.start()
    for one in running:
        one.join()
    found = time.perf_counter() - wall, time.process_time() - cpu
    for path, descriptor in files.items():
        os.close(descriptor)
        path.unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,2", help="numbers of threads, separated by commas")
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--piece", type=float, default=2, help="MiB of a write")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, help="a folder on the file system that is measured")
    arguments = parser.parse_args()
    size, piece = int(arguments.gigabytes * 1e9), int(arguments.piece * (1 << 20))
    print("| threads | files | hashed | wall s | CPU s | GB/s |")
    print("| ---: | ---: | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        for threads in map(int, arguments.threads.split(",")):
            for number in dict.fromkeys((1, threads)):
                for hashed in (False, True):
                    paths = [Path(folder) / str(thread % number) for thread in range(threads)]
                    write(paths, size, piece, hashed)
                    rounds = [write(paths, size, piece, hashed) for _ in range(arguments.rounds)]
                    wall, cpu = (min(column) for column in zip(*rounds, strict=True))
                    print(
                        f"| {threads} | {number} | {'yes' if hashed else 'no'} | {wall:.3f} | {cpu:.3f} | {size / wall / 1e9:.1f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
