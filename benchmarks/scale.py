"""How many workers the conversion of the largest open models keeps busy, from its plan alone.

    python benchmarks/scale.py [--only NAME] [--work FOLDER] [--check 0.8@512]

Nothing is downloaded, stored or moved: sources are headers over holes, as in plan_time.py. A piece costs what it reads and writes, and
workers take pieces in the order of the plan: latencies, and the limits of disks that all of them share, are not in it. `--check`
ends with 1 if any conversion is faster by less than that share of so many workers.
"""

from __future__ import annotations

import argparse
import heapq
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import plan_time
from ckpt_core.api import plan_conversion

WORKERS = (8, 64, 512)
CASES: dict[str, tuple[str, plan_time.Asked, plan_time.Asked]] = {
    "405B: hf to megatron tp8 pp16": ("405B", plan_time.HF, plan_time.MEGATRON_405B),
    "405B: megatron tp8 pp16 to hf": ("405B", plan_time.MEGATRON_405B, plan_time.HF),
    "405B: hf to nemo tp8, one file": ("405B", plan_time.HF, {"to": "nemo", "tp": 8, "pp": 1}),
    "671B: hf to megatron tp8 ep32": ("671B", plan_time.HF, plan_time.MEGATRON_671B),
    "671B: megatron tp8 ep32 to hf": ("671B", plan_time.MEGATRON_671B, plan_time.HF),
    "671B: hf FP8 to hf bf16": ("671B", plan_time.HF_FP8, plan_time.HF),
    "671B: hf to hf FP8": ("671B", plan_time.HF, plan_time.HF_FP8),
    "1T: hf to megatron tp8 ep64": ("1T", plan_time.HF, {"to": "megatron", "tp": 8, "ep": 64}),
    "1T: hf to ir": ("1T", plan_time.HF, {"to": "ir"}),
}


def speed_up(costs: Iterable[float], workers: int) -> float:
    """How much faster than one worker so many are, who take pieces of these costs in their order."""
    listed = list(costs)
    free = [0.0] * min(workers, len(listed))
    for cost in listed:
        heapq.heapreplace(free, free[0] + cost)
    return sum(listed) / max(free)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--work", type=Path, help="a folder on a file system with holes, where sources are kept")
    parser.add_argument("--check", default="0@512", help="EFFICIENCY@WORKERS")
    arguments = parser.parse_args()
    least, at = arguments.check.split("@")
    failed = False
    print(
        "| conversion | GB | tensors, the largest | pieces, the largest | KB of a task | s to cut | workers: 8 | 64 | 512 | of tensors: 512 |"
    )
    print("| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        os.makedirs(work, exist_ok=True)
        for name, (model, written, asked) in CASES.items():
            if arguments.only not in name:
                continue
            plan = plan_conversion(plan_time.source_of(model, written, work), work / "out", **asked)  # type: ignore[arg-type]
            begun = time.process_time()
            pieces = plan.transfers
            took = time.process_time() - begun
            costs, whole = ([one.bytes_read + one.bytes_written for one in some] for some in (pieces, plan.tensors))
            task = sum(len(pickle.dumps(one)) for one in pieces[:: len(pieces) // 100 + 1]) / len(
                pieces[:: len(pieces) // 100 + 1]
            )
            sizes = [f"{len(some):,}, {max(some) / 1e9:.2f} GB" for some in (whole, costs)]
            found = [f"{speed_up(costs, workers):.1f}" for workers in WORKERS]
            print(
                f"| {name} | {plan.bytes_written / 1e9:,.0f} | {' | '.join(sizes)} | {task / 1e3:.1f} | {took:.1f} "
                f"| {' | '.join(found)} | {speed_up(sorted(whole, reverse=True), WORKERS[-1]):.0f} |",
                flush=True,
            )
            failed |= speed_up(costs, int(at)) < float(least) * int(at)
    sys.exit(failed)


if __name__ == "__main__":
    main()
