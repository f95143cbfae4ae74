"""Bytes of a file, or of a member of an archive, that are copied as they are."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_core.errors import FormatError
from ckpt_core.lean import dataclass
from ckpt_core.storage.bytes.files import naming

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Extent:
    """`size` bytes from byte `offset` of the file at `file` on: a whole file, or a member of an archive.

    Of a tar inside gzip, `offset` counts the inflated bytes. `made` are the bytes themselves, where they lie in no file.
    """

    file: str
    offset: int
    size: int
    made: bytes | None = None

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, some at a time."""
        if self.made is not None:
            yield self.made
            return
        from ckpt_core.storage.archive.inflate import open_stored

        with naming(self.file), open_stored(self.file) as stream:
            stream.seek(self.offset)
            left = self.size
            while left:
                data = stream.read(min(left, _PIECE))
                if not data:
                    raise FormatError("the file was truncated while it was being read", file=self.file)
                left -= len(data)
                yield data

    def read(self) -> bytes:
        """All of it."""
        return b"".join(self.pieces())
