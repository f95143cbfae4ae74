"""The program: `ckpt`, and `python -m ckpt_core`."""

from __future__ import annotations

import gc
import sys

from ckpt_core.cli import COLLECTION


def run() -> int:
    """The command that the arguments of this process say, which ends with it; returns its exit code."""
    gc.set_threshold(COLLECTION)  # before click is imported: Python would search twenty times meanwhile
    from ckpt_core.cli.main import main

    try:
        return main()
    finally:
        gc.freeze()  # Python would look for cycles among all that it frees: a tenth of the time of a short command


if __name__ == "__main__":
    if not sys.flags.safe_path:
        # For `-m`, Python looks for modules in the current folder first. It may be a stranger's checkpoint, and hold modules and
        # plugins (`*.dist-info`).
        del sys.path[0]
    sys.exit(run())
