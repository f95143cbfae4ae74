"""Files to be written: their size, the bytes known in advance, those of other files, and the checksums only the data can tell."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from ckpt_core.errors import CkptError
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


class Extents:
    """Which bytes of a file are written, and what they are of, those known in advance first: none may be written twice, for it would be
    twice in the file's checksum.

    They are kept as bare numbers, for a plan may have a hundred thousand.
    """

    def __init__(self, file: OutputFile) -> None:
        self._file = file
        self._starts, self._stops = array("q"), array("q")
        self._names: list[str] = []
        for offset, data in file.literals:
            self.add(offset, len(data), "the bytes known in advance")
        for one in file.excerpts:
            self.add(one.offset, one.size, f"the bytes of {one.source}")

    def add(self, start: int, size: int, name: str) -> None:
        """`size` bytes from `start` on are written, of what is called so."""
        self._starts.append(start)
        self._stops.append(start + size)
        self._names.append(name)

    def problems(self) -> Iterator[CkptError]:
        """What does not fit beside what lies before it, or into the file."""
        end, last = 0, "the header"
        starts, stops, names = self._starts, self._stops, self._names
        for number in sorted(range(len(names)), key=lambda one: (starts[one], stops[one])):
            if starts[number] < end or stops[number] > self._file.size:
                yield CkptError(f"{names[number]!r} does not fit beside {last!r} in {self._file.path!r}")
            end, last = stops[number], names[number]
