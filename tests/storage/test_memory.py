"""How much memory there is: of the machine, of control groups of both versions, and where nothing says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_core.storage.bytes.memory import memory

MIB = 1 << 20
MACHINE = {"proc/meminfo": "MemTotal:  65536 kB\nMemAvailable:  40960 kB\nHugePages_Total:       0\nOdd:\n"}
V1 = "sys/fs/cgroup/memory"
V2 = "sys/fs/cgroup"


def limited(group: str, limit: object, used: int, cached: int) -> dict[str, str]:
    """The files of a group of either version."""
    if group.startswith(V1):
        names, stat = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"
    else:
        names, stat = ("memory.max", "memory.current"), "inactive_file"
    texts = dict(zip(names, (f"{limit}\n", f"{used}\n"), strict=True))
    return {f"{group}/{name}": text for name, text in {**texts, "memory.stat": f"anon 3\n{stat} {cached}\n"}.items()}


CASES: dict[str, tuple[dict[str, str], tuple[int | None, int | None]]] = {
    "machine": (MACHINE, (64 * MIB, 40 * MIB)),
    "nothing": ({}, (None, None)),
    "a pod": (
        {**MACHINE, "proc/self/cgroup": "0::/\n", **limited(V2, 16 * MIB, 9 * MIB, 4 * MIB)},
        (16 * MIB, 11 * MIB),
    ),
    "a slice above": (
        {
            **MACHINE,
            "proc/self/cgroup": "0::/a.slice/b.scope\n",
            **limited(f"{V2}/a.slice/b.scope", "max", 1, 0),
            **limited(f"{V2}/a.slice", 32 * MIB, 30 * MIB, 0),
        },
        (32 * MIB, 2 * MIB),
    ),
    "a group that uses all": (
        {"proc/self/cgroup": "0::/\n", **limited(V2, 16 * MIB, 17 * MIB, 0)},
        (16 * MIB, 0),
    ),
    "version 1 without a limit": (
        {**MACHINE, "proc/self/cgroup": "4:memory:/\n1:cpu:/\n", **limited(V1, 9223372036854771712, MIB, 0)},
        (64 * MIB, 40 * MIB),
    ),
    "version 1 in a container that does not see its path": (
        {**MACHINE, "proc/self/cgroup": "4:cpu,memory:/docker/1f\n0::/\n", **limited(V1, 8 * MIB, 3 * MIB, MIB)},
        (8 * MIB, 6 * MIB),
    ),
    "nonsense": ({"proc/meminfo": "\0\n", "proc/self/cgroup": "\nx\n::::\n"}, (None, None)),
}


@pytest.mark.parametrize(("files", "expected"), CASES.values(), ids=CASES)
def test_memory(files: dict[str, str], expected: tuple[int | None, int | None], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory(str(tmp_path)) == expected


def test_this_machine_says_it() -> None:
    total, available = memory()
    assert total is None or available is None or 0 <= available <= total
