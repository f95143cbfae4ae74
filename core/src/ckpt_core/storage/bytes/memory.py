"""The memory that a process may use: that of the machine, or less in a container or a batch job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_UNLIMITED = 1 << 60  # version 1 of control groups gives a number near 2**63 if there is no limit
# For each version: the folder of the groups, and the names of the limit, of the used bytes, and of those in file pages, which the kernel frees first.
_V1 = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
_V2 = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"


def memory(root: str = "/") -> tuple[int | None, int | None]:
    """The total and the available memory of this process, in bytes; None where the system does not say."""
    known = _numbers(Path(root, "proc/meminfo"))
    sizes, rooms = ([known[name] * 1024] if name in known else [] for name in ("MemTotal:", "MemAvailable:"))
    for limit, used in _groups(Path(root)):
        sizes.append(limit)
        rooms.append(max(0, limit - used))
    return min(sizes, default=None), min(rooms, default=None)


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """The limit and the used bytes of each control group of this process, and of the groups above.

    In a container the own group is often mounted as the root, so the path that the kernel gives does not exist.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, path = f"{line}::".split(":")[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        base, limit, usage, pages = _V1 if controllers else _V2
        inside = PurePosixPath(path.lstrip("/"))
        for group in (root / base / one for one in (inside, *inside.parents)):
            try:
                most, used = (int((group / name).read_text()) for name in (limit, usage))
            except (OSError, ValueError):  # no such group, or "max"
                continue
            if most < _UNLIMITED:
                yield most, max(0, used - _numbers(group / "memory.stat").get(pages, 0))


def _numbers(file: Path) -> dict[str, int]:
    """The first number of each line, by the word before it; nothing of a file that can't be read."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except (OSError, ValueError):
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
