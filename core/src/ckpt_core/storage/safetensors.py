"""The safetensors container: 8 bytes of header length, a JSON header, then the tensors.

    u64 little-endian N | N bytes JSON {"name": {"dtype", "shape", "data_offsets": [start, stop]}, "__metadata__": {str: str}} | data

Offsets count from the end of the header; together they must cover the data without gap or overlap.
Reading is header-only. Writing is planned: the header depends on names, dtypes and shapes alone, so the
file's bytes can then arrive in any order. Header text and order are those of the safetensors library
(tensors by descending rank of their dtype, then by name), so equal tensors give equal files.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from ckpt_core.errors import FormatError
from ckpt_core.lean import dataclass
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.bytes.stored import read_range
from ckpt_core.storage.documents import parse_json
from ckpt_core.storage.dtypes import BY_SAFETENSORS, DType
from ckpt_core.storage.tensor import StoredTensor

__all__ = [
    "Header",
    "SafetensorsPlan",
    "plan_file",
    "read_header",
]

_MAX_HEADER = 100_000_000  # the library's own limit
_MAX_DIMENSIONS = 32

# The library orders tensors by its enum of dtypes, largest first (safetensors 0.8, `enum Dtype`).
_RANK = {
    code: rank
    for rank, code in enumerate(
        [
            "BOOL",
            "U8",
            "I8",
            "F8_E5M2",
            "F8_E4M3",
            "F8_E8M0",
            "I16",
            "U16",
            "F16",
            "BF16",
            "I32",
            "U32",
            "F32",
            "F64",
            "I64",
            "U64",
        ]
    )
}


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says about itself."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]


def read_header(path: str | os.PathLike, begin: int = 0, stop: int | None = None) -> Header:
    """The lazy tensors and the metadata of a file, or of the container from byte `begin` to `stop` of one, every offset checked against its real size.

    `FormatError` for a file that is cut off, and for tensors that overlap, leave the file or have an unknown dtype.
    """
    state = FileState.of(path)
    stop = state.size if stop is None else min(stop, state.size)
    if stop - begin < 8:
        raise FormatError("not a safetensors file: too short", file=path, found=f"{max(stop - begin, 0)} bytes")
    length = int.from_bytes(read_range(state.path, begin, 8), "little")
    if not 2 <= length <= min(_MAX_HEADER, stop - begin - 8):
        raise FormatError(
            "safetensors header does not fit the file",
            file=path,
            found=f"{length} bytes in a file of {stop - begin}",
            expected="a whole file",
        )
    header = parse_json(read_range(state.path, begin + 8, length), state.path)
    if not isinstance(header, dict):
        raise FormatError("the safetensors header is not an object", file=path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError("safetensors metadata must map strings to strings", file=path)
    start = begin + 8 + length
    tensors = {name: _tensor(state.path, name, entry, start, stop) for name, entry in header.items()}
    _check_cover(state.path, tensors, start, stop)
    return Header(tensors, metadata)


def _tensor(path: str, name: str, entry: Any, start: int, stop: int) -> StoredTensor:
    try:
        code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise FormatError(
            f"tensor {name!r} lacks dtype, shape or data_offsets", file=path, found=str(entry)[:80]
        ) from None
    if not isinstance(code, str) or code not in BY_SAFETENSORS:
        raise FormatError(
            f"tensor {name!r} has an unknown dtype",
            file=path,
            found=str(code)[:80],
            expected=", ".join(BY_SAFETENSORS),
        )
    numbers: list[Any] = [*shape, begin, end] if isinstance(shape, list) else [None]
    whole = len(numbers) <= _MAX_DIMENSIONS + 2 and {int}.issuperset(map(type, numbers))
    if not whole or min(numbers) < 0 or max(numbers) >= 1 << 60:
        raise FormatError(f"tensor {name!r} has an impossible shape or offset", file=path, found=str(entry)[:80])
    dtype = BY_SAFETENSORS[code]
    size = math.prod(shape) * dtype.size
    if end - begin != size or start + end > stop:
        raise FormatError(
            f"tensor {name!r} does not fit its bytes",
            file=path,
            found=f"shape {shape} of {dtype} in bytes {begin}..{end} of a data section of {stop - start}",
            expected=f"{size} bytes inside the file",
        )
    return StoredTensor.contiguous(path, dtype, tuple(shape), start + begin)


def _check_cover(path: str, tensors: Mapping[str, StoredTensor], start: int, stop: int) -> None:
    position = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].elements)):
        if tensor.offset != position:
            raise FormatError(
                f"tensor {name!r} leaves a gap or overlaps its neighbour",
                file=path,
                found=tensor.offset,
                expected=position,
            )
        position += tensor.elements * tensor.dtype.size
    if position != stop:
        raise FormatError("safetensors data section has a wrong length", file=path, found=stop, expected=position)


@dataclass(frozen=True, slots=True)
class SafetensorsPlan:
    """A file that is known but for its data: its size, its header bytes, and where each tensor goes."""

    size: int
    header: bytes
    offsets: dict[str, int]


def plan_file(
    tensors: Mapping[str, tuple[DType, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> SafetensorsPlan:
    """Lay out a file for `tensors` (name -> dtype, shape). `metadata` {} is written, None is left out."""
    order = sorted(tensors, key=lambda name: (-_RANK[tensors[name][0].safetensors], name.encode()))
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(sorted(metadata.items()))}
    position, starts = 0, {}
    for name in order:
        dtype, shape = tensors[name]
        starts[name] = position
        stop = position + math.prod(shape) * dtype.size
        header[name] = {"dtype": dtype.safetensors, "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    prefix = len(text).to_bytes(8, "little") + text
    return SafetensorsPlan(
        len(prefix) + position, prefix, {name: len(prefix) + start for name, start in starts.items()}
    )
