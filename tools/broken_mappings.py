"""Every axis of every tensor of every golden, turned round: how many there are, and which of them move no logits.

python tools/broken_mappings.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from ckpt_core.testing.hearing import axes
from ckpt_tests.broken import still
from ckpt_tests.goldens import every_golden


def main() -> None:
    torch.set_num_threads(1)
    tried = unmoved = 0
    for golden in every_golden():
        with tempfile.TemporaryDirectory() as folder:
            axes_of_one, found, inert = still(golden, Path(folder), axes)
        tried += len(axes_of_one)
        unmoved += len(found)
        print(
            golden,
            len(axes_of_one),
            "axes; inert:",
            *sorted(inert),
            "; WRONG:" if found != inert else "",
            *sorted(found ^ inert),
        )
    print(f"{tried} axes of the tensors of {len(every_golden())} goldens; {unmoved} tensors move nothing")


if __name__ == "__main__":
    main()
