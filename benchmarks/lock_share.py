"""How much of a conversion's CPU time is Python's own, and so holds the interpreter's lock: it bounds what threads can gain.

    python benchmarks/lock_share.py [--size 0.5] [--rounds 6] [--only TEXT] [--work FOLDER]

Each transfer of a conversion is carried out in turn as it is, and with nothing in place of what moves bytes without the lock: reading, hashing,
checksums, packing of columns and writing. The least CPU time of each, over the rounds, is added up. What the journal and the
checksums of files take in the main thread is not in it.
So with n threads a transfer takes at least that share of the time that it takes with one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from ckpt_core.api import plan_conversion
from ckpt_core.engine import transfer
from ckpt_core.engine.staging import Staging
from ckpt_core.storage.bytes import crc32
from ckpt_core.storage.scratch import scratch
from ckpt_core.tensors import digest, strided
from ckpt_core.tensors.source import SourceFiles
from synthetic import write_hf

TARGETS: dict[str, dict[str, object]] = {
    "nanotron tp2": {"to": "nanotron", "tp": 2},
    "megatron torch tp8": {"to": "megatron", "tp": 8, "options": {"container": "torch"}},
    ".nemo tp2": {"to": "nemo", "tp": 2},
    "hf": {"to": "hf", "options": {"max_shard_size": "1GB"}},
}


def _nothing(*_: object, **__: object) -> None:
    """Moves no bytes."""


def _all_written(descriptor: int, data: memoryview, offset: int) -> int:
    """Says that all was written."""
    return len(data)


def _zero(data: object, before: int = 0) -> int:
    """The sum of nothing."""
    return 0


def _unpacked(values: np.ndarray, place: int) -> np.ndarray:
    """The buffer of packed values, without these."""
    return scratch("packed", values.shape, values.dtype, place)


class _Silent:
    """A hash that looks at nothing."""

    def __init__(self, data: object = b"") -> None:
        pass

    def update(self, data: object) -> None:
        pass

    def digest(self) -> bytes:
        return bytes(32)

    def hexdigest(self) -> str:
        return "00" * 32


@contextlib.contextmanager
def _nothing_moved(files: SourceFiles) -> Iterator[None]:
    """Nothing is read, hashed, summed up, packed and written."""
    with (
        mock.patch.object(files, "_read_into", _nothing),
        mock.patch.object(os, "pwrite", _all_written),
        mock.patch.object(crc32, "remainder", _zero),
        mock.patch.object(strided, "_packed", _unpacked),
        mock.patch.object(digest, "blake3", _Silent),
    ):
        yield


def shares(folder: Path, out: Path, options: dict[str, object], rounds: int) -> tuple[float, float]:
    """CPU seconds of all transfers of a conversion: with everything, and of Python alone."""
    plan = plan_conversion(str(folder), str(out), workers=1, **options)  # type: ignore[arg-type]
    with Staging(str(out), plan, sync=False) as staging:
        staging.create(plan.target.files, lambda remark: None)
        files = SourceFiles(plan.source.files)
        sink = transfer.TargetFiles(staging.out, sync=False)
        least: dict[tuple[str, int], list[float]] = {}
        for _ in range(rounds):
            for one in plan.transfers:
                known = least.setdefault(one.key, [float("inf")] * 2)
                for number, patched in enumerate((contextlib.nullcontext(), _nothing_moved(files))):
                    with patched:
                        begun = time.thread_time()
                        transfer.run_transfer(one, files, sink)
                        known[number] = min(known[number], time.thread_time() - begun)
        files.close()
        sink.close()
        staging.discard()
    return sum(whole for whole, _ in least.values()), sum(python for _, python in least.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=0.5, help="GB of bf16 weights")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", default="", help="targets whose name contains this")
    parser.add_argument("--work", type=Path, help="a folder with room for two copies")
    parser.add_argument("--json", type=Path, help="write the results here too")
    arguments = parser.parse_args()
    found = {}
    print("| hf to | CPU s of the transfers | Python alone | share | at most so many threads |")
    print("| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        model = Path(folder) / "hf"
        write_hf(model, "llama", arguments.size)
        for name, options in TARGETS.items():
            if arguments.only in name:
                whole, python = found[name] = shares(model, Path(folder) / "out", options, arguments.rounds)
                print(
                    f"| {name} | {whole:.3f} | {python:.4f} | {python / whole:.1%} | {whole / python:.0f} |", flush=True
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
