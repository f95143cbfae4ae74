"""What a run used of the machine."""

from __future__ import annotations

import resource
import sys


def peak_memory() -> int | None:
    """The most memory in bytes that this process, or the largest one that it started and has ended, had in use; None where that is not known."""
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts KiB, macOS bytes
    return max(resource.getrusage(who).ru_maxrss for who in both) * unit or None
