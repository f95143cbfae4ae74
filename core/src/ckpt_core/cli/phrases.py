"""What several commands say of a checkpoint in a line: its ranks, and how its framework is started."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ckpt_core.text import plural

if TYPE_CHECKING:
    from ckpt_core.launch import Launch


def launch_lines(launch: Launch | None, path: str, asked: Sequence[str] = ()) -> list[str]:
    """What a framework has to be told to start with a checkpoint that is read by the options `asked`, in a line or two."""
    if launch is None:
        return []
    count = len(launch.silent)
    told = (
        f"does not take {plural(count, 'argument')} from the checkpoint"
        if count
        else "takes everything from the checkpoint"
    )
    return [f"{launch.framework} {told}: see ckpt launch {shlex.join([path, *asked])}"]


def parallel_text(parallel: Mapping[str, int]) -> str:
    """` tp=2 pp=4`, or nothing."""
    return "".join(f" {name}={ranks}" for name, ranks in parallel.items())
