"""A run of two models that watches its own private memory. Prints JSON: bytes before, and the peak. Run: python -m ckpt_tests.thirsty SRC DST BYTES."""

from __future__ import annotations

import json
import sys

import torch

from ckpt_core.api import read_checkpoint
from ckpt_core.reference import given_inputs
from ckpt_core.verify.logits import compare_logits
from ckpt_tests.memory import watched

if __name__ == "__main__":
    torch.set_num_threads(1)
    (torch.ones(64, 64) @ torch.ones(64, 64)).sum()  # what torch itself sets up
    sides = [read_checkpoint(path) for path in sys.argv[1:3]]
    with watched(0.005) as seen:
        inputs = given_inputs([3, 1, 4, 1, 5, 9], [side.architecture for side in sides])
        report = compare_logits(*sides, inputs, int(sys.argv[3]))
    print(json.dumps({"before": seen[0], "peak": max(seen), "steps": len(report.steps), "judges": len(report.judges)}))
