"""Carrying out one transfer: read a box of a piece, hash it, turn it into stored values, write it.

Writes of one transfer never touch the bytes of another; repeating a transfer writes the same bytes again.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ckpt_core import numpy as np
from ckpt_core.engine.encoding import Encoder, Stored
from ckpt_core.engine.pieces import StoredAs, Transfer, Write
from ckpt_core.engine.results import Result
from ckpt_core.engine.weaving import Beside
from ckpt_core.layout import ValueMap
from ckpt_core.storage.bytes import crc32
from ckpt_core.storage.bytes.files import Folder, OpenFiles, pwrite_all
from ckpt_core.storage.bytes.output import Checksum
from ckpt_core.storage.bytes.pagecache import Kept, start_writeback
from ckpt_core.storage.bytes.space import take_space
from ckpt_core.storage.dtypes import FP32, DType, decode
from ckpt_core.tensors.assembly import StoredPart
from ckpt_core.tensors.box import Box, Loops, tile_view
from ckpt_core.tensors.digest import VERSION, Digests, Hash, TreeDigest, of_leaves
from ckpt_core.tensors.pieces import cuts
from ckpt_core.tensors.source import SourceFiles
from ckpt_core.tensors.stored import stored_values
from ckpt_core.tensors.strided import runs, woven

_DIRTY = 8 << 20


def digests_of(results: Iterable[Result], version: int = VERSION) -> dict[str, Digests]:
    """The digests of tensors, by their names, of the results of all their pieces."""
    pieces: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda one: one.start):
        pieces.setdefault(result.name, []).append(result)
    return {name: _digests(of_tensor, version) for name, of_tensor in pieces.items()}


def _digests(pieces: list[Result], version: int) -> Digests:
    written = of_leaves([leaf for piece in pieces for leaf in piece.leaves], version)
    if all(piece.source_leaves is None for piece in pieces):
        return Digests(written)
    read = [leaf for piece in pieces for leaf in (piece.leaves if piece.source_leaves is None else piece.source_leaves)]
    return Digests(written, of_leaves(read, version))


def checksum_name(path: str, checksum: Checksum) -> str:
    """How `Result.remainders` names a checksum of an output file."""
    return f"{checksum.start}-{checksum.stop} {path}"


class TargetFiles:
    """Open output files in the folder `out` of a staging folder, where they exist; each is written by one thread at a time.

    They are opened for writing alone: a client of NFS that may also read fetches a whole page before it changes a part of
    it, and then sends back the whole page, with what others wrote there meanwhile as it was before.

    Two threads in `write` on one file would not gain anything: the kernel lets one in and has the other spin
    (ext4 takes the inode's lock exclusively; measured at ten times the CPU time). Where a sync is to come (`sync`), what
    is written goes on to the disk soon after, while more is written, so that it finds little left to do. `spooled` files take
    only the room of what is in them. `kept` says whether pages that are on the disk stay in the kernel's cache.
    """

    def __init__(self, out: str, sync: bool, spooled: bool = False, kept: Kept = Kept()) -> None:
        self.staging = Folder(os.path.dirname(out))
        self._out = out
        self._sync = sync
        self._spooled = spooled
        self._drop = not kept.output
        self._files = OpenFiles(self.staging)
        self._writing: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._dirty: Counter[str] = Counter()
        self._begun: set[str] = set()

    def write(self, path: str, runs: Iterable[tuple[memoryview, int]]) -> int:
        """Write runs of bytes, each with the place of its first, to the file at `path` (`path_of`); returns how many bytes."""
        written = 0
        with self._files.descriptor(path) as descriptor:
            if path not in self._begun:
                self._begin(path, descriptor)
            for view, offset in runs:
                self._put(path, descriptor, view, offset)
                written += len(view)
            if self._sync or self._drop:
                self._dirty[path] += written
                if self._dirty[path] >= _DIRTY:
                    self._dirty[path] = 0
                    start_writeback(descriptor, drop=self._drop)
        return written

    def write_stored(self, stored: Stored, remainders: Counter[str]) -> int:
        """Write a run of codes or scales; returns bytes written. What it is to its checksum is added to `remainders`."""
        checksum, file = stored.checksum, stored.operand.stored.file
        view = stored.data.reshape(-1).view(np.uint8).data
        behind = checksum.stop - stored.offset - len(view)
        remainders[checksum_name(file, checksum)] ^= crc32.shifted(crc32.remainder(view), behind)
        return self.write(self.path_of(file), [(view, stored.offset)])

    def path_of(self, relative: str) -> str:
        """Where an output file is."""
        return f"{self._out}{os.sep}{relative}"

    def _put(self, path: str, descriptor: int, view: memoryview, offset: int) -> None:
        with self._writing[path]:
            pwrite_all(descriptor, view, offset)

    def _begin(self, path: str, descriptor: int) -> None:
        """Take the space of a file before anything is written to it."""
        with self._writing[path]:
            if path not in self._begun:
                if not self._spooled:
                    take_space(descriptor)
                self._begun.add(path)

    def to_disk(self) -> None:
        """Force what was written to the disk."""
        for path in sorted(self._begun):
            with self._files.descriptor(path) as descriptor:
                os.fsync(descriptor)

    def close(self) -> None:
        """Close all files. Those whose close fails are removed: see `storage.bytes.files.close`."""
        try:
            self._files.close()
        finally:
            self.staging.close()


class Outlet:
    """A block of an output file that a transfer writes box by box, and what it wrote there is to the file's checksum.

    What does not change from box to box is looked up once; and runs that follow one another in the file are summed up as one.
    """

    __slots__ = ("_block", "_end", "_name", "_path", "_sink", "_stop", "_sum", "_turn")

    def __init__(self, sink: TargetFiles, delivery: Write) -> None:
        self._sink, self._block = sink, delivery.block
        self._path = sink.path_of(delivery.block.path)
        self._turn = None if delivery.strand is None else delivery.strand.turn
        self._name, self._stop = checksum_name(delivery.block.path, delivery.checksum), delivery.checksum.stop
        self._sum = self._end = 0

    def write(
        self, parts: Sequence[Loops], values: np.ndarray, others: Sequence[np.ndarray], sums: Counter[str]
    ) -> int:
        """Write the `parts` of a box of stored values that belong to the block, and of the `others` that take turns with them;
        returns bytes written. What it is to checksums may be in `sums` only after `close`.
        """
        return self._sink.write(self._path, self._runs(parts, values, others, sums))

    def _runs(
        self, parts: Sequence[Loops], values: np.ndarray, others: Sequence[np.ndarray], sums: Counter[str]
    ) -> Iterator[tuple[memoryview, int]]:
        size = self._block.dtype.size
        for loops in parts:
            ours, strides = loops.view(values), loops.strides
            if self._turn is not None:
                ours, strides = woven([ours, *map(loops.view, others)], strides, self._turn)
            for run in runs(ours, strides, self._block.offset + loops.offset * size):
                view, offset = run
                if offset != self._end:
                    self.close(sums)
                self._sum, self._end = crc32.remainder(view, self._sum), offset + len(view)
                yield run

    def close(self, sums: Counter[str]) -> None:
        """Add the bytes that have followed one another so far to the sum of their checksum."""
        if self._sum:
            sums[self._name] ^= crc32.shifted(self._sum, self._stop - self._end)
            self._sum = 0


def run_transfer(
    transfer: Transfer, source: SourceFiles, sink: TargetFiles | None, hash_: type[Hash] = TreeDigest
) -> Result:
    """Move one piece of a tensor; without a sink only its digest is taken."""
    assembly, kept = transfer.assembly, transfer.stored
    read, stored = hash_(), hash_()
    value_dtype = assembly.value_dtype
    changed = kept if kept is not None and not _keeps_values(kept, value_dtype) else None
    encoders = {
        number: Encoder(delivery.encoded, delivery.block.dtype, source)
        for number, delivery in enumerate(transfer.deliveries)
        if delivery.encoded is not None
    }
    rows = assembly.parameter.true_rows
    written, remainders, records = 0, Counter[str](), Counter[str]()
    piece = transfer.chunk, transfer.start, transfer.stop
    kinds: dict[tuple[str, tuple[ValueMap, ...]], int] = {}  # what is alike in the dtype's name and the maps
    plain = [
        (
            delivery,
            cuts(delivery.block.tile, assembly.parameter.shape, *piece),
            kinds.setdefault((delivery.block.dtype.name, delivery.maps), len(kinds)),
            None if sink is None else Outlet(sink, delivery),
        )
        for delivery in transfer.deliveries
        if delivery.encoded is None and not delivery.left
    ]
    targets = _targets([(delivery.block, cut) for delivery, cut, *_ in plain])
    for number, (box, values) in enumerate(source.chunks(assembly, *piece, records, targets)):
        read.update(_true(values, box, rows), value_dtype)
        ready: dict[int, np.ndarray] = {}
        beside = Beside(source, box)
        if kept is not None and encoders:
            again = np.array(stored_values(values, value_dtype, kept.dtype, (), assembly.parameter.name), copy=True)
            written += _encode(transfer, encoders, box, values, again, sink, remainders)
            stored.update(_true(again, box, rows), kept.dtype)
        for delivery, cut, kind, outlet in plain:
            if not (parts := cut[number]):
                continue
            if kind not in ready:
                ready[kind] = _stored(values, value_dtype, delivery, assembly.parameter.name)
            if outlet is not None:
                others = (
                    ()
                    if delivery.strand is None
                    else beside.stored(delivery.strand, delivery.block.dtype, delivery.maps, kind)
                )
                written += outlet.write(parts, ready[kind], others, remainders)
        if changed is not None and not encoders:
            dtype = changed.dtype
            back = ready.get(kinds.get((dtype.name, changed.maps), -1))
            if back is None:  # the first of the tensor is stored otherwise than this piece of it
                back = stored_values(values, value_dtype, dtype, changed.maps, assembly.parameter.name)
            if changed.maps:
                back, dtype = decode(back, dtype), FP32
                for value_map in changed.maps:
                    back = value_map.inverse().apply(back)
            stored.update(_true(np.ascontiguousarray(back, dtype.numpy), box, rows), dtype)
    for *_, outlet in plain:
        if outlet is not None:
            outlet.close(remainders)
    leaves, source_leaves = read.leaves, None
    if changed is not None or encoders:
        leaves, source_leaves = stored.leaves, leaves
    if kept is not None and kept.encoded and leaves == source_leaves:  # codes that were kept
        source_leaves = None
    return Result(*transfer.key, leaves, source_leaves, written, dict(remainders), dict(records))


def _targets(written: Sequence[tuple[StoredPart, Sequence[list[Loops]]]]) -> Iterator[int]:
    """For each box of a piece, the byte of a file that its first value goes to: of the first file that has some of the box."""
    for number in itertools.count():
        yield next((block.byte_of(cut[number][0]) for block, cut in written if cut[number]), 0)


def _stored(values: np.ndarray, dtype: DType, delivery: Write, name: str) -> np.ndarray:
    """The values of a box as a delivery stores them: mostly `values` themselves."""
    target = delivery.block.dtype
    if target == dtype and not delivery.maps:
        return values
    return stored_values(values, dtype, target, delivery.maps, name)


def _encode(
    transfer: Transfer,
    encoders: Mapping[int, Encoder],
    box: Box,
    values: np.ndarray,
    again: np.ndarray,
    sink: TargetFiles | None,
    remainders: Counter[str],
) -> int:
    """Write what is stored as codes and scales of a box, and put the values that readers will find of it into `again`; returns the
    bytes written."""
    written = 0
    for number, encoder in encoders.items():
        for tile in transfer.deliveries[number].block.within(box):
            for part, found, groups in encoder.groups(tile, (transfer.assembly, box, values)):
                tile_view(again, part, box)[...] = found
                if sink is not None:
                    written += sum(sink.write_stored(one, remainders) for one in groups)
    return written


def _keeps_values(stored: StoredAs, dtype: DType) -> bool:
    """Whether what is stored has the digest of what was read: the same dtype, or float32, which holds all narrower ones."""
    target = stored.dtype
    return not stored.maps and (target == dtype or (target == FP32 and dtype.size < FP32.size))


def _true(values: np.ndarray, box: Box, rows: int | None) -> np.ndarray:
    """A box without the rows that only pad the vocabulary."""
    return values if rows is None else values[: max(0, rows - box[0][0])]
