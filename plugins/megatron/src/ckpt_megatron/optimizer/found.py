"""What was found of an optimizer, whichever files it lies in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from ckpt_core.sdk import StoredTensor, chunked, disk, errors, reading, schema
from ckpt_megatron.found import RankShare
from ckpt_megatron.optimizer.groups import DROP

KINDS: dict[str, reading.Kind] = {
    "param": reading.MASTER,
    "fp32_param": reading.MASTER,
    "exp_avg": reading.EXP_AVG,
    "exp_avg_sq": reading.EXP_AVG_SQ,
}
"""What a distributed optimizer keeps of a parameter, by its names."""


@schema.dataclass
class FoundOptimizer:
    """What was found of an optimizer, by the names of the tables: tensors by kind, and the groups with their members."""

    shares: dict[reading.Kind, list[RankShare]]
    bodies: list[Mapping[str, Any]]
    members: list[list[str]]
    step: int
    where: str
    files: list[disk.FileState] = field(default_factory=list)
    carried: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)


def check_precision(kind: str, name: str, tensor: StoredTensor | chunked.ChunkedTensor, file: str) -> None:
    """`NotCarried` for a tensor of a precision-aware optimizer, whose masters may be what a rounding left and whose moments have scales elsewhere."""
    if tensor.dtype.name != "fp32":
        raise errors.NotCarried(
            f"{kind} of {name!r} is kept in {tensor.dtype}, as --use-precision-aware-optimizer keeps it",
            file=file,
            expected="fp32",
            fix=DROP,
        )
