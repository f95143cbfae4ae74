"""SentencePiece models: protocol buffers (sentencepiece_model.proto), read field by field."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_core.sdk import FormatError

PIECES, TRAINER = 1, 2
"""The fields of a model: its pieces, one field each, and how it was trained, which says the ids of the roles."""

_FIXED = {1: 8, 5: 4}  # bytes of a value, by kind


def fields(data: bytes, file: str) -> Iterator[tuple[int, int | bytes]]:
    """The number and the value of every field: an integer, or bytes; `FormatError` for what is not a protocol buffer."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at, file)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at, file)
            yield tag >> 3, value
            continue
        size = _FIXED.get(kind)
        if kind == 2:
            size, at = _varint(data, at, file)
        if size is None or at + size > len(data):
            raise FormatError("this is not a SentencePiece model", file=file, found=f"a field of kind {kind}")
        yield tag >> 3, data[at : at + size]
        at += size


def piece_count(data: bytes, file: str) -> int:
    """How many pieces a model has; `FormatError` if it has none."""
    count = sum(field == PIECES for field, _ in fields(data, file))
    if not count:
        raise FormatError("this is not a SentencePiece model", file=file, found=f"no piece in {len(data)} bytes")
    return count


def _varint(data: bytes, at: int, file: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise FormatError("this is not a SentencePiece model", file=file, found="a number that does not end")
