"""What the classes with Mamba-2 blocks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, configs, decided

# As Python's writer of JSON has it, and as transformers 5.12 does.
_WITHOUT_LIMIT = (float("inf"), {"__float__": "Infinity"})


def _read_limit(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    limit = config.get("time_step_limit")
    if limit is None:
        return
    if not isinstance(limit, list) or len(limit) != 2 or limit[0] != 0 or limit[1] not in _WITHOUT_LIMIT:
        raise CkptError(
            "key 'time_step_limit' cuts the steps of the state", found=str(limit)[:80], expected="0 and infinity"
        )


def step_limit() -> configs.Entry:
    """`time_step_limit`, which must leave the steps of the state as they are."""
    return decided(
        ["time_step_limit"], [], read=_read_limit, values={}, why="the steps of the state are not cut: 0 to infinity"
    )
