"""Output files in parts, as a store takes them: what each part waits for, and how much lies on this machine meanwhile.

Tensors are written to places anywhere in a file, but a part goes to the store whole. So it waits for every transfer that writes to it,
and, where a checksum stands in it, for those that the checksum is of: a torch file has one before each tensor, and all at its end.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ckpt_core.engine.completion import stored_checksums
from ckpt_core.engine.pieces import Transfer
from ckpt_core.storage.bytes.output import OutputFile
from ckpt_core.storage.bytes.space import BLOCK

PART = 16 << 20
MOST_PARTS = 10_000  # of one object, in S3
_GRAIN = 1 << 20


class Place(NamedTuple):
    """A part of an output file, by its number from 1."""

    path: str
    number: int


class Parts:
    """The parts of output files.

    `ahead` transfers may be at work at once, so that the order in which they end is not quite the one in which they begin.
    """

    def __init__(self, files: Iterable[OutputFile], ahead: int) -> None:
        self._files = {file.path: file for file in files}
        self._order = {path: number for number, path in enumerate(self._files)}
        self._sizes = {path: part_size(file.size) for path, file in self._files.items()}
        self._ahead = ahead
        self._together: bool | None = None  # the order, once it is chosen

    def count(self, path: str) -> int:
        """How many parts a file has: one, if it is empty."""
        return max(1, -(-self._files[path].size // self._sizes[path]))

    def extent(self, place: Place) -> tuple[int, int]:
        """The first byte of a part in its file, and how many there are."""
        size = self._sizes[place.path]
        start = (place.number - 1) * size
        return start, min(size, self._files[place.path].size - start)

    def all(self) -> Iterator[Place]:
        """Every part of every file."""
        return (Place(path, number) for path in self._files for number in range(1, self.count(path) + 1))

    @functools.cached_property
    def copied(self) -> frozenset[Place]:
        """The parts that have something of a file that is copied as it is."""
        return frozenset(
            place
            for file in self._files.values()
            for one in file.excerpts
            for place in self._between(file.path, one.offset, one.offset + one.size)
        )

    @functools.cached_property
    def _known(self) -> Counter[Place]:
        """The bytes of disk that each part takes from the beginning, for what is known of it in advance: in a torch file something stands before
        each tensor, and takes a block."""
        found: Counter[Place] = Counter()
        for file in self._files.values():
            blocks: set[int] = set()
            for offset, data in file.literals:
                blocks.update(range(offset // BLOCK, -(-(offset + len(data)) // BLOCK)))
            for block in blocks:
                for place in self._between(file.path, block * BLOCK, min((block + 1) * BLOCK, file.size)):
                    found[place] = min(found[place] + BLOCK, self.extent(place)[1])
        return found

    def of(self, transfer: Transfer) -> set[Place]:
        """The parts that wait for a transfer."""
        found = self.filled(transfer)
        for path, checksum in stored_checksums(transfer):
            for position in checksum.positions:
                found.update(self._between(path, position, position + 4))
        return found

    def filled(self, transfer: Transfer) -> set[Place]:
        """The parts that a transfer writes to. Checksums in others are written from the journal, too."""
        return {place for path, start, stop in _extents(transfer) for place in self._between(path, start, stop)}

    def _between(self, path: str, start: int, stop: int) -> Iterator[Place]:
        size = self._sizes[path]
        return (Place(path, number) for number in range(start // size + 1, -(-stop // size) + 1))

    def in_order(self, transfers: Iterable[Transfer]) -> list[Transfer]:
        """Transfers in the order of their places in the files, so that parts fill one after the other.

        The pieces of a tensor stay together where less lies on this machine then: where some lie in the files of all ranks and others in that of
        one, those of the last rank would otherwise come when all other files were full.
        """
        listed = list(transfers)
        if self._together is None:
            self.choose(listed)
        places = {transfer.key: self._place_of(transfer) for transfer in listed}
        return _pieces_together(listed, places) if self._together else _by_place(listed, places)

    def choose(self, transfers: Iterable[Transfer]) -> int:
        """Choose the order of all transfers of a run: the one in which less lies on this machine. Returns how much: the most bytes of parts that
        are begun and not whole, with what is known in advance of the others."""
        listed = list(transfers)
        places = {transfer.key: self._place_of(transfer) for transfer in listed}
        touched = {transfer.key: self.of(transfer) for transfer in listed}
        together, apart = (
            self._most_open([touched[transfer.key] for transfer in order(listed, places)])
            for order in (_pieces_together, _by_place)
        )
        self._together = together <= apart
        return min(together, apart)

    def _place_of(self, transfer: Transfer) -> tuple[int, int]:
        places = [(self._order[path], start) for path, start, _ in _extents(transfer)]
        if not places:  # another transfer writes what it would: it comes with that one
            blocks = (delivery.block for delivery in transfer.deliveries)
            places = [(self._order[block.path], block.offset) for block in blocks]
        return min(places, default=(0, 0))

    def _most_open(self, touched: Sequence[set[Place]]) -> int:
        """The most bytes of parts that are begun and not whole, while transfers that touch these parts are carried out in this order."""
        waiting = Counter(place for places in touched for place in places)
        open_ = most = sum(self._known.values())
        begun: set[Place] = set()
        for number, places in enumerate(touched):
            for later in touched[0 if number == 0 else number + self._ahead - 1 : number + self._ahead]:
                open_ += sum(self.extent(place)[1] - self._known[place] for place in later - begun)
                begun |= later
            most = max(most, open_)
            for place in places:
                waiting[place] -= 1
                if not waiting[place]:
                    open_ -= self.extent(place)[1]
        return most


def _by_place(transfers: Iterable[Transfer], places: Mapping[tuple[str, int], tuple[int, int]]) -> list[Transfer]:
    return sorted(transfers, key=lambda one: (places[one.key], one.name))


def _pieces_together(
    transfers: Sequence[Transfer], places: Mapping[tuple[str, int], tuple[int, int]]
) -> list[Transfer]:
    """The same, and the pieces of a tensor where its first one is."""
    first: dict[str, tuple[int, int]] = {}
    for transfer in transfers:
        place = places[transfer.key]
        first[transfer.name] = min(place, first.get(transfer.name, place))
    return sorted(transfers, key=lambda one: (first[one.name], one.name, places[one.key]))


def part_size(size: int) -> int:
    """The size of the parts of a file: 16 MiB, or as much as a file of 10,000 parts needs."""
    least = -(-size // MOST_PARTS)
    return PART if least <= PART else -(-least // _GRAIN) * _GRAIN


def _extents(transfer: Transfer) -> Iterator[tuple[str, int, int]]:
    """Where a transfer writes: path, first byte, and the one behind the last; what lies between rows of others is in it."""
    for delivery in transfer.deliveries:
        if delivery.encoded is None:
            block = delivery.block
            for tile in transfer.written(delivery):
                start = block.offset + tile.native_base[0] * block.dtype.size
                reach = sum((link.size - 1) * link.stride for link in tile.links)
                yield block.path, start, start + (reach + 1) * block.dtype.size
        else:  # a row of codes is written by the transfer that has its first value
            for operand in delivery.encoded.quantised.stored:
                stored = operand.stored
                yield stored.file, stored.offset, stored.offset + stored.elements * stored.dtype.size
