"""Torch files that hold any nest of plain data and tensors, planned for writing."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from typing import Any

from ckpt_core.errors import CkptError
from ckpt_core.storage.bytes.output import Checksum, OutputFile
from ckpt_core.storage.pickle.writer import Path
from ckpt_core.storage.torch.writing import patch_crc, plan_torch_file


def plan_nest(path: str, value: Any) -> tuple[OutputFile, dict[Path, int]]:
    """A file at `path` that `torch.load` reads as `value`, and where the data of each of its tensors begins.

    `value` is what `plan_torch_file` takes; a tensor is named by its path inside it: `("model", "w")`.
    """
    plan = plan_torch_file(value, os.path.basename(path))
    offsets = {inside: slot.offset for slot in plan.slots for inside in slot.paths}
    checksums = tuple(Checksum(slot.offset, slot.size, slot.crc_at) for slot in plan.slots)
    return OutputFile(path, plan.size, tuple(plan.literals), checksums), offsets


def torch_bytes(value: Any, name: str, data: Mapping[Path, bytes] | None = None) -> bytes:
    """The whole of a torch file that is known: `data` has the bytes of each tensor by its path inside `value`."""
    plan, known = plan_torch_file(value, name), data or {}
    literals = list(plan.literals)
    for slot in plan.slots:
        held = next((known[path] for path in slot.paths if path in known), None)
        if held is None or len(held) != slot.size:
            raise CkptError("a value with tensors is not known before its data is", file=name)
        literals += [(slot.offset, held), *patch_crc(slot, zlib.crc32(held))]
    body = bytearray(plan.size)
    for offset, part in literals:
        body[offset : offset + len(part)] = part
    return bytes(body)
