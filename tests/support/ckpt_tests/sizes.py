"""Files that are hostile by their size alone: each of a few bytes per entry, and of very many entries."""

from __future__ import annotations

import struct
from pathlib import Path

from ckpt_core.storage.archive.tar import BLOCK, _header

_MODULE = b"torch.distributed.checkpoint."


def pickled_text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def metadata_of_keys(count: int) -> bytes:
    """A `.metadata` that describes `count` tensors as nothing."""
    body = b"".join(pickled_text(f"k{number}") + b"N" for number in range(count))
    described = pickled_text("state_dict_metadata") + b"}(" + body + b"u"
    return (
        b"\x80\x02c"
        + _MODULE
        + b"metadata\nMetadata\n)\x81}("
        + described
        + pickled_text("storage_data")
        + b"}"
        + b"ub."
    )


def write_tar(path: Path, members: int) -> None:
    """An archive of empty files."""
    with path.open("wb") as file:
        for number in range(members):
            file.write(_header(f"member-{number}", 0, b"0", 0o644))
        file.write(bytes(2 * BLOCK))


def slices(count: int) -> str:
    """What a shard of Nanotron says about its parts, each of one element."""
    return ";".join(f"{number},{number + 1},None#{number},{number + 1},None" for number in range(count))
