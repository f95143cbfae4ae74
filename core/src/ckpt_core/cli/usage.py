"""What a run used of the machine."""

from __future__ import annotations

import resource
import sys


def peak_memory() -> int | None:
    """The most memory in bytes that this process, or the largest one that it started and has ended, had in use; None where that is not known."""
    return max(_own_peak() or _peak(resource.RUSAGE_SELF), _peak(resource.RUSAGE_CHILDREN)) or None


def _own_peak() -> int:
    """The peak of this program alone. Linux's `ru_maxrss` begins with the memory of the program that started it: `exec` keeps it (getrusage(2), fs/exec.c)."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return next((int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:")), 0)
    except OSError:
        return 0


def _peak(who: int) -> int:
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts KiB, macOS bytes
    return resource.getrusage(who).ru_maxrss * unit
