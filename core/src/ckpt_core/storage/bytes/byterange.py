"""A part of a file, or of a byte string, read in order and never past its end.

A length that a file declares is compared with the bytes that are there before
anything is allocated for it, so a lying length costs nothing.
"""

from __future__ import annotations

from typing import BinaryIO

from ckpt_core.errors import FormatError

_CHUNK = 1 << 18


class ByteRange:
    """The bytes [`start`, `end`) of a file, consumed from the front."""

    def __init__(self, source: BinaryIO | bytes, file: str, start: int = 0, end: int | None = None) -> None:
        self.file = file
        self._end = end if end is not None else len(source) if isinstance(source, bytes) else _size(source)
        if isinstance(source, bytes):
            self._stream: BinaryIO | None = None
            self._buffer, self._base, self._at = source[: self._end], 0, start
        else:
            self._stream = source
            self._buffer, self._base, self._at = b"", start, 0

    @property
    def position(self) -> int:
        """Offset in the file of the next byte."""
        return self._base + self._at

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return self._end - self.position

    def at_hand(self) -> tuple[bytes, int]:
        """The bytes that are in memory, and the place of the next one in them."""
        return self._buffer, self._at

    def go(self, at: int) -> None:
        """Go on at a place in the bytes at hand."""
        self._at = at

    def byte(self) -> int:
        """The next byte; `FormatError` at the end."""
        at = self._at
        if at >= len(self._buffer):
            self._need(1)
            at = self._at
        self._at = at + 1
        return self._buffer[at]

    def take(self, count: int) -> bytes:
        """The next `count` bytes; `FormatError` if there are not as many."""
        at = self._at
        if at + count > len(self._buffer):
            self._need(count)
            at = self._at
        self._at = at + count
        return self._buffer[at : self._at]

    def skip(self, count: int) -> None:
        """Go on `count` bytes later; `FormatError` if there are not as many."""
        if count > self.left:
            raise self._truncated(count)
        position = self.position + count
        if self._stream is None or position <= self._base + len(self._buffer):
            self._at += count
        else:
            self._buffer, self._base, self._at = b"", position, 0

    def line(self, limit: int) -> bytes:
        """The bytes up to the next newline, without it; `FormatError` if it is more than `limit` bytes away."""
        found = self._buffer.find(b"\n", self._at, self._at + limit + 1)
        if found < 0:
            self._need(min(limit + 1, self.left))
            found = self._buffer.find(b"\n", self._at, self._at + limit + 1)
        if found < 0:
            raise FormatError(
                "a line in the pickle does not end", file=self.file, expected=f"a newline within {limit} bytes"
            )
        line = self._buffer[self._at : found]
        self._at = found + 1
        return line

    def _need(self, count: int) -> None:
        if count > self.left:
            raise self._truncated(count)
        if self._stream is None or self._at + count <= len(self._buffer):
            return
        position = self.position
        self._stream.seek(position)
        wanted = min(max(count, _CHUNK), self._end - position)
        self._buffer, self._base, self._at = self._stream.read(wanted), position, 0
        if len(self._buffer) < count:
            raise self._truncated(count)

    def _truncated(self, count: int) -> FormatError:
        return FormatError(
            "the file ends too early",
            file=self.file,
            found=f"{max(self.left, 0)} bytes from byte {self.position} on",
            expected=f"{count} bytes",
            fix="copy the file again; it is cut off or damaged",
        )


def _size(stream: BinaryIO) -> int:
    return stream.seek(0, 2)
