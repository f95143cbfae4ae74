"""Files to be written: their size, the bytes known in advance, those of other files, and the checksums only the data can tell."""

from __future__ import annotations

from ckpt_core.lean import dataclass


@dataclass(frozen=True, slots=True)
class Checksum:
    """A CRC-32 of `length` bytes from `start`, to be stored little-endian at each of `positions`, where zeros are until then."""

    start: int
    length: int
    positions: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Excerpt:
    """`size` bytes of the file at `source`, from byte `start` on, which an output file has as they are, from byte `offset` on."""

    offset: int
    source: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file of a target; `literals` are the bytes known in advance, as (offset, bytes), and `excerpts` those that are copied from other
    files. What nothing is written to is zeros. A file with excerpts stores no checksums."""

    path: str
    size: int
    literals: tuple[tuple[int, bytes], ...] = ()
    checksums: tuple[Checksum, ...] = ()
    excerpts: tuple[Excerpt, ...] = ()

    @property
    def whole(self) -> Checksum:
        """The checksum of all of it, which is stored nowhere in it."""
        return Checksum(0, self.size, ())
