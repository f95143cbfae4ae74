"""Reading a receipt back, and checking an output against it: its tensors here, its files in `verify.files`.

A receipt may come from anyone, so its fields are checked before they are used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ckpt_core.architecture import Architecture, from_json
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.engine.transfer import Result
from ckpt_core.errors import FormatError
from ckpt_core.receipt.places import receipt_path
from ckpt_core.receipt.seal import read_receipt

_ASKED = {"tp": int, "pp": int, "ep": int, "dtype": str}


@dataclass(frozen=True)
class Recorded:
    """The parts of a receipt that can be checked later.

    `source_digests` differ from `digests` where values were changed on the way. `files` are the sizes of data files and
    `crcs` their CRC-32, which receipts of older versions do not have; `documents` are the BLAKE3 of all others.
    `asked`, `options` and `weights` are the request that it answers, as `plan_conversion` takes it.
    """

    file: str
    format: str
    fingerprint: str
    architecture: Architecture
    digests: dict[str, str]
    source_digests: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    files: dict[str, int]
    crcs: dict[str, str]
    documents: dict[str, str]
    rewrites: list[str] = field(default_factory=list)
    losses: list[dict[str, str]] = field(default_factory=list)
    asked: dict[str, Any] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    weights: str = "auto"

    @property
    def count(self) -> int:
        """How many files it is about."""
        return len(self.files) + len(self.documents)


def find_receipt(output: str) -> Recorded | None:
    """The receipt of an output folder or file, None if it has none; `FormatError` if it is not one of ours."""
    path = receipt_path(output)
    if not os.path.lexists(path):
        return None
    body = read_receipt(path)
    try:
        tensors, target = body["tensors"], body["target"]
        rewrites = target["decisions"].get("rewrites", [])
        return Recorded(
            path,
            str(target["format"]),
            str(body["fingerprint"]),
            from_json(body["architecture"], path),
            {name: str(entry["digest"]) for name, entry in tensors.items()},
            {name: str(entry.get("source_digest", entry["digest"])) for name, entry in tensors.items()},
            {name: tuple(entry["shape"]) for name, entry in tensors.items()},
            {str(path): int(size) for path, size in target["files"].items()},
            {str(path): str(crc) for path, crc in target.get("crc32", {}).items()},
            {str(path): str(digest) for path, digest in target["documents"].items()},
            [str(rewrite) for rewrite in (rewrites if isinstance(rewrites, list) else [rewrites])],
            [{key: str(text) for key, text in loss.items()} for loss in body["losses"]],
            {name: kind(value) for name, kind in _ASKED.items() if (value := body["options"].get(name)) is not None},
            {str(key): str(value) for key, value in body["options"].get("options", {}).items()},
            str(body["options"].get("weights", "auto")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError("not a receipt of ckpt", file=path, found=f"{type(error).__name__}: {error}") from None


def changed_tensors(recorded: Recorded, checkpoint: Checkpoint, results: Mapping[str, Result]) -> list[tuple[str, str]]:
    """(canonical name, what is wrong) of every tensor of `checkpoint` that is not as it was written."""
    found = []
    for name in sorted(recorded.digests.keys() | results.keys()):
        if name not in results:
            found.append((name, "missing"))
        elif name not in recorded.digests:
            found.append((name, "not in the receipt"))
        elif (shape := checkpoint.tensors[name].parameter.true_shape) != recorded.shapes[name]:
            found.append((name, f"shape {shape} instead of {recorded.shapes[name]}"))
        elif results[name].digest != recorded.digests[name]:
            found.append((name, "values changed since the conversion"))
    return found
