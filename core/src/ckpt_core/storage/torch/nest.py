"""Torch files that hold any nest of plain data and tensors, planned for writing."""

from __future__ import annotations

import bisect
import os
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ckpt_core.errors import CkptError
from ckpt_core.storage.bytes.output import Checksum, OutputFile
from ckpt_core.storage.pickle.writer import Path
from ckpt_core.storage.torch.writing import patch_crc, plan_torch_file


def plan_nest(
    path: str, value: Any, known: Mapping[Path, bytes] = MappingProxyType({})
) -> tuple[OutputFile, dict[Path, int]]:
    """A file at `path` that `torch.load` reads as `value`, and where the data of each of its tensors begins.

    `value` is what `plan_torch_file` takes; a tensor is named by its path inside it: `("model", "w")`. `known` has the bytes of
    tensors that are known already, each of which has a storage of its own; they are among what is written, and have no place.
    """
    plan = plan_torch_file(value, os.path.basename(path))
    literals, left, patches = list(plan.literals), [], []
    for slot in plan.slots:
        data = known.get(slot.paths[0])
        if data is None:
            left.append(slot)
        else:
            literals.append((slot.offset, data))
            patches += patch_crc(slot, zlib.crc32(data))
    literals = _patched(literals, patches)
    offsets = {inside: slot.offset for slot in left for inside in slot.paths}
    checksums = tuple(Checksum(slot.offset, slot.size, slot.crc_at) for slot in left)
    return OutputFile(path, plan.size, tuple(literals), checksums), offsets


def _patched(literals: list[tuple[int, bytes]], patches: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Literals, by offset, with `patches` written over bytes of them: no byte of a file is said twice."""
    if not patches:
        return literals
    bodies = [(start, bytearray(data)) for start, data in sorted(literals)]
    starts = [start for start, _ in bodies]
    for offset, data in patches:
        start, body = bodies[bisect.bisect_right(starts, offset) - 1]
        body[offset - start : offset - start + len(data)] = data
    return [(start, bytes(body)) for start, body in bodies]


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
