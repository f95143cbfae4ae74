"""Torch files that hold any nest of plain data and tensors, planned for writing."""

from __future__ import annotations

import os
from typing import Any

from ckpt_core.errors import CkptError
from ckpt_core.storage.output import Checksum, OutputFile
from ckpt_core.storage.pickle_writer import Path
from ckpt_core.storage.torchzip_write import plan_torch_file


def plan_nest(path: str, value: Any) -> tuple[OutputFile, dict[Path, int]]:
    """A file at `path` that `torch.load` reads as `value`, and where the data of each of its tensors begins.

    `value` is what `plan_torch_file` takes; a tensor is named by its path inside it: `("model", "w")`.
    """
    plan = plan_torch_file(value, os.path.basename(path))
    offsets = {inside: slot.offset for slot in plan.slots for inside in slot.paths}
    checksums = tuple(Checksum(slot.offset, slot.size, slot.crc_at) for slot in plan.slots)
    return OutputFile(path, plan.size, tuple(plan.literals), checksums), offsets


def torch_bytes(value: Any, name: str) -> bytes:
    """The whole of a torch file without tensors."""
    plan = plan_torch_file(value, name)
    if plan.slots:
        raise CkptError("a value with tensors is not known before its data is", file=name)
    return b"".join(data for _, data in plan.literals)
