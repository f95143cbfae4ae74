"""What `ckpt inspect` costs beside a dry run of the same model, in CPU seconds of this process.

    python benchmarks/inspect_cost.py [LAYERS ...]

The model is a Llama in the `ir` format, over a file of holes; the dry run plans its conversion to HF. The best of three counts.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable

from ckpt_core.api import plan_conversion, read_checkpoint
from ckpt_core.cli.survey import possible_targets
from ckpt_core.testing import example, write_ir


def seconds(call: Callable[[], object]) -> float:
    """The CPU time of a call, the best of three."""
    taken = []
    for _ in range(3):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return min(taken)


def main() -> None:
    print("| layers | tensors | dry run s | inspect s | inspect : dry run |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for layers in [int(text) for text in sys.argv[1:]] or [32, 150]:
        with tempfile.TemporaryDirectory() as source:
            write_ir(source, example("llama", layers=layers), dtype="bf16", sparse=True)
            tensors = len(read_checkpoint(source).tensors)
            dry = seconds(lambda: plan_conversion(source, f"{source}-out", to="hf"))
            inspect = seconds(lambda: possible_targets(read_checkpoint(source)))
        print(f"| {layers} | {tensors:,} | {dry:.2f} | {inspect:.2f} | {inspect / dry:.2f} |", flush=True)


if __name__ == "__main__":
    main()
