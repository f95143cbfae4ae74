"""Which bytes of an output file are written, and what they are of: no byte is written twice, and none beyond the end."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from ckpt_core.errors import CkptError
from ckpt_core.storage.bytes.output import OutputFile


class Extents:
    """The ranges of bytes of one file, those known in advance first: a byte that is written twice would be twice in the file's checksum.

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
