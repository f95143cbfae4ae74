"""Transfers: the units of work. Each moves a piece of one canonical tensor, from where it is read to every place where it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ckpt_core.engine.encoding import Encoded
from ckpt_core.engine.weaving import Strand, others_of
from ckpt_core.layout import Tile, ValueMap
from ckpt_core.lean import dataclass
from ckpt_core.storage.bytes.output import Checksum
from ckpt_core.storage.dtypes import DType
from ckpt_core.tensors.assembly import LazyParameter, StoredPart
from ckpt_core.tensors.pieces import cut, dealt, parts_of, ranges, share, step_of


@dataclass(frozen=True, slots=True)
class Write:
    """One part of a transfer: a block in an output file, and the maps from canonical to stored values.

    `copy`: it only repeats what another delivery writes, all of it or some. `checksum`: the one of the bytes it is among,
    that of the whole file if no narrower one is stored. `encoded`: the block is of a tensor that is stored as codes and scales.
    `strand`: its elements take turns with those of other tensors, and one transfer writes those of all.
    """

    block: StoredPart
    maps: tuple[ValueMap, ...]
    copy: bool
    checksum: Checksum
    encoded: Encoded | None = None
    strand: Strand | None = None

    @property
    def left(self) -> bool:
        """Whether the transfer of another tensor writes it."""
        return self.strand is not None and not self.strand.others

    @property
    def tensors(self) -> int:
        """Of how many tensors elements are written with it: of none, if another transfer does."""
        if self.strand is None:
            return 1
        return 1 + len(self.strand.others) if self.strand.others else 0


@dataclass(frozen=True, slots=True)
class StoredAs:
    """As what the values of a tensor are found again in the output: in a dtype, after maps; some of them `encoded` as codes and scales."""

    dtype: DType
    maps: tuple[ValueMap, ...]
    encoded: bool

    @classmethod
    def of(cls, deliveries: Sequence[Write]) -> StoredAs | None:
        """By the first delivery that is encoded, or else by the first; None without any."""
        encoded = [delivery for delivery in deliveries if delivery.encoded is not None]
        if encoded:
            return cls(encoded[0].block.dtype, (), True)
        return cls(deliveries[0].block.dtype, deliveries[0].maps, False) if deliveries else None


@dataclass(frozen=True, slots=True)
class Transfer:
    """A piece of one canonical tensor on its way: its elements from `start` up to `stop`, in row-major order.

    `assembly` and `deliveries` have the blocks that hold some of them. `chunk` elements are moved at a time. `stored` is that of the
    whole tensor. It reads `bytes_read`, its share of what is read to compute values included; `files` are the bytes that it writes to
    each output file.
    """

    assembly: LazyParameter
    deliveries: tuple[Write, ...]
    chunk: int
    start: int
    stop: int
    stored: StoredAs | None
    bytes_read: int
    files: Mapping[str, int]

    @property
    def name(self) -> str:
        """The canonical name of the tensor."""
        return self.assembly.parameter.name

    @property
    def key(self) -> tuple[str, int]:
        """Which piece of which tensor it is."""
        return self.name, self.start

    @property
    def bytes_written(self) -> int:
        return sum(self.files.values())

    @property
    def file(self) -> str:
        """The output file that most of it goes to."""
        return max(self.files, key=self.files.__getitem__, default="")

    def written(self, delivery: Write) -> list[Tile]:
        """What this piece writes of a delivery, as flat tiles: the parts of its own tile, or those of all tensors that take turns there."""
        parts = parts_of(self.assembly.parameter.shape, delivery.block.tile, self.start, self.stop)
        strand = delivery.strand
        return parts if strand is None else [one for part in parts for one in strand.written(part)]

    @property
    def others(self) -> Mapping[str, LazyParameter]:
        """The tensors that it reads to write them with its own, by name."""
        return others_of(delivery.strand for delivery in self.deliveries)

    @property
    def paths(self) -> set[str]:
        """The files that it is read from."""
        encoded = (delivery.encoded for delivery in self.deliveries if delivery.encoded is not None)
        pieces = (piece for one in encoded for piece, _ in one.pieces)
        return self.assembly.paths().union(*(one.paths() for one in (*pieces, *self.others.values())))


def uncut(assembly: LazyParameter, deliveries: Iterable[Write], chunk: int) -> Transfer:
    """The transfer of all of a tensor."""
    found: Counter[str] = Counter()
    listed = tuple(deliveries)
    read = sum(block.stored_bytes for block in assembly.all_blocks)
    for delivery in (one for one in listed if not one.left):
        block = delivery.block
        found.update(dict.fromkeys(block.paths, 0))
        found[block.path] += delivery.tensors * block.stored_bytes
    for other in others_of(delivery.strand for delivery in listed).values():
        read += sum(block.stored_bytes for block in other.all_blocks)
    return Transfer(assembly, listed, chunk, 0, assembly.parameter.elements, StoredAs.of(listed), read, dict(found))


def pieces(transfer: Transfer) -> list[Transfer]:
    """The transfer of a whole tensor as those of its pieces."""
    assembly, shape = transfer.assembly, transfer.assembly.parameter.shape
    tiles = [delivery.block.tile for delivery in transfer.deliveries]
    if _is_one(assembly) or (step := step_of(shape, assembly.dtype.size, tiles)) >= transfer.stop:
        return [transfer]
    assembled = cut(assembly, step)
    # Other tensors that it is made of are read in equal shares.
    others = transfer.bytes_read - sum(read for _, read in assembled)
    found = []
    for (start, stop), (known, read), written in zip(
        ranges(transfer.stop, step), assembled, dealt(shape, tiles, step), strict=True
    ):
        files: Counter[str] = Counter()
        for delivery, elements in ((transfer.deliveries[number], elements) for number, elements in written):
            if not delivery.left:
                block = delivery.block
                files.update(dict.fromkeys(block.paths, 0))
                files[block.path] += delivery.tensors * share(block, elements)
        found.append(
            replace(
                transfer,
                assembly=known,
                deliveries=tuple(transfer.deliveries[number] for number, _ in written),
                start=start,
                stop=stop,
                bytes_read=read + others * (stop - start) // transfer.stop,
                files=dict(files),
            )
        )
    return found


def _is_one(assembly: LazyParameter) -> bool:
    """Whether a tensor is moved whole: a mean over ranks, and a DoRA, whose norms may take all of the tensor."""
    updates = () if assembly.merged is None else assembly.merged.updates
    return bool(assembly.averaged) or any(update.magnitude is not None for update in updates)
