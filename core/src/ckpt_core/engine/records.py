"""The records of the source that have a CRC-32 of their own (members of torch's zip archives), checked while they are read.

A record is checked if the blocks that are read hold each of its bytes once: then its CRC adds up from what the transfers
read, in whatever order and by whatever process (see `storage.bytes.crc32`), and nothing is read a second time. Of a record that is
read in part (rows of padding that are left out, a tensor that nothing takes) nothing is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from ckpt_core.errors import CkptError
from ckpt_core.layout import Link
from ckpt_core.storage.tensor import Record
from ckpt_core.tensors.assembly import LazyParameter, StoredPart

if TYPE_CHECKING:
    from ckpt_core.tensors.source import SourceFiles

_PRIME = (1 << 61) - 1
_BASE = 0x1B9E3779B97F4A7C % _PRIME


def watched(tensors: Mapping[str, LazyParameter]) -> dict[str, LazyParameter]:
    """The tensors with a record on just those blocks from which its CRC adds up: each byte of it once, or none at all."""
    found: dict[Record, dict[StoredPart, None]] = {}
    for assembly in tensors.values():
        for block in _own_blocks(assembly):
            if block.record is not None:
                found.setdefault(block.record, {})[block] = None
    whole = {record for record, blocks in found.items() if _covers(record, blocks)}
    left = {block for record in whole for block in found[record]}

    def kept(blocks: tuple[StoredPart, ...]) -> tuple[StoredPart, ...]:
        """A block that two tensors read (a tied head, written out) is counted where it is read first."""
        if all(block.record is None for block in blocks):
            return blocks
        return tuple(block if _taken(block, left) else replace(block, record=None) for block in blocks)

    def watch(assembly: LazyParameter) -> LazyParameter:
        merged = assembly.merged
        return replace(
            assembly,
            blocks=kept(assembly.blocks),
            copies=kept(assembly.copies),
            rounded=kept(assembly.rounded),
            averaged=tuple(map(kept, assembly.averaged)),
            merged=None if merged is None else replace(merged, base=watch(merged.base)),
        )

    return {name: watch(assembly) for name, assembly in tensors.items()}


def _taken(block: StoredPart, left: set[StoredPart]) -> bool:
    if block not in left:
        return False
    left.remove(block)
    return True


def _own_blocks(assembly: LazyParameter) -> Iterable[StoredPart]:
    """What is read once while a tensor is put together; not what its factors and sums are made of, which is read again and again."""
    if assembly.merged is not None:
        return _own_blocks(assembly.merged.base)
    return (*assembly.blocks, *assembly.copies, *assembly.rounded, *(one for rank in assembly.averaged for one in rank))


def _covers(record: Record, blocks: Iterable[StoredPart]) -> bool:
    """Whether blocks hold each element of a record once.

    The sum of x**place over all places is that of the whole record only then, but for one chance in 2**50 or so. Over a tile
    it is a product of geometric series, so that no place is looked at by itself.
    """
    dtype, total = next(iter(blocks)).dtype, 0
    for block in blocks:
        start, rest = divmod(block.offset - record.offset, dtype.size)
        if block.dtype != dtype or rest:
            return False
        total += pow(_BASE, start + block.tile.native_base[0], _PRIME) * _sum_over(block.tile.links)
    elements, rest = divmod(record.size, dtype.size)
    return not rest and total % _PRIME == _series(1, elements)


@lru_cache(maxsize=4096)
def _sum_over(links: tuple[Link, ...]) -> int:
    product = 1
    for link in links:
        product = product * _series(link.stride, link.size) % _PRIME
    return product


def _series(step: int, count: int) -> int:
    """1 + x**step + x**(2 * step) + ..., `count` terms."""
    ratio = pow(_BASE, step, _PRIME)
    if ratio == 1:
        return count % _PRIME
    return (pow(ratio, count, _PRIME) - 1) * pow(ratio - 1, -1, _PRIME) % _PRIME


class RecordSums:
    """The sums of the records that tensors are read from; `source` is what this machine sees of them.

    `pieces` are the tensors that `watched` gives, or what each of their pieces knows of them.
    """

    def __init__(self, pieces: Iterable[LazyParameter], source: SourceFiles) -> None:
        self._source = source
        self._left: Counter[str] = Counter()
        self._records: dict[str, Record] = {}
        for assembly in pieces:
            records = {block.record for block in _own_blocks(assembly) if block.record is not None}
            self._records.update((record.key, record) for record in records)
            self._left.update(record.key for record in records)
        self._remainders: Counter[str] = Counter()

    def add(self, read: Mapping[str, int]) -> None:
        """Note what one piece read of each record; `FormatError` if a record is whole by now, and damaged.

        `CkptError` if it is only what was read that differs, by a worker that sees another file, or for want of a sound memory.
        """
        for key, remainder in read.items():
            self._remainders[key] ^= remainder
            self._left[key] -= 1
            if not self._left[key]:
                from ckpt_core.storage.bytes import crc32

                record = self._records[key]
                if crc32.of_remainder(self._remainders.pop(key), record.size) != record.crc:
                    self._source.check_record(record)
                    raise CkptError(
                        f"other bytes of the record {record.name!r} were read than are there",
                        file=record.file,
                        fix="see that all workers see the same file, and repeat the command: it starts over, for what was "
                        "written of this record can't be believed",
                    )
