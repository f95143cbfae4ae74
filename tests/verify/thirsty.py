"""A run of two models that watches its own private memory. Prints JSON: bytes before, and the peak. Run: thirsty.py SRC DST BYTES."""

from __future__ import annotations

import json
import re
import sys
import threading

import torch

from ckpt_core.api import read_checkpoint
from ckpt_core.reference import given_inputs
from ckpt_core.verify.logits import compare_logits


def private() -> int:
    """Bytes of this process that are its own: the page cache and shared libraries do not count."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(size) << 10 for size in re.findall(r"^Private_\w+:\s+(\d+) kB", file.read(), re.MULTILINE))


def watch(peak: list[int], done: threading.Event) -> None:
    while not done.wait(0.005):
        peak.append(private())


if __name__ == "__main__":
    torch.set_num_threads(1)
    (torch.ones(64, 64) @ torch.ones(64, 64)).sum()  # what torch itself sets up
    sides = [read_checkpoint(path) for path in sys.argv[1:3]]
    seen, done = [private()], threading.Event()
    thread = threading.Thread(target=watch, args=(seen, done))
    thread.start()
    inputs = given_inputs([3, 1, 4, 1, 5, 9], [side.architecture for side in sides])
    report = compare_logits(*sides, inputs, int(sys.argv[3]))
    done.set()
    thread.join()
    print(json.dumps({"before": seen[0], "peak": max(seen), "steps": len(report.steps), "judges": len(report.judges)}))
