"""Carrying out one transfer: read a box, hash it, turn it into stored values, write it.

Writes of one transfer never touch the bytes of another; repeating a transfer writes the same bytes again.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ckpt_core.engine.encoding import Encoder, Stored
from ckpt_core.engine.plan import Transfer, Write
from ckpt_core.layout import ValueMap
from ckpt_core.storage.bytes import crc32
from ckpt_core.storage.bytes.files import Folder, OpenFiles, pwrite_all, start_writeback
from ckpt_core.storage.bytes.output import Checksum
from ckpt_core.storage.bytes.space import take_space
from ckpt_core.storage.dtypes import FP32, DType, decode
from ckpt_core.tensors.boxes import Box, boxes, tile_view
from ckpt_core.tensors.digest import Hash, TreeDigest
from ckpt_core.tensors.source import SourceFiles
from ckpt_core.tensors.stored import stored_values
from ckpt_core.tensors.strided import write_box

_DIRTY = 8 << 20


@dataclass(frozen=True, slots=True)
class Result:
    """What a transfer leaves for the receipt: the digest of the values as written, and of the source's if they differ.

    `remainders` are what it wrote below each checksum, a file's whole one included, and `records` what it read of each
    record of the source that is checked: see `storage.bytes.crc32`.
    """

    name: str
    digest: str
    source_digest: str | None
    bytes_written: int
    remainders: dict[str, int]
    records: dict[str, int]


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
    only the room of what is in them.
    """

    def __init__(self, out: str, sync: bool, spooled: bool = False) -> None:
        self.staging = Folder(os.path.dirname(out))
        self._out = out
        self._sync = sync
        self._spooled = spooled
        self._files = OpenFiles(self.staging)
        self._writing: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._dirty: Counter[str] = Counter()
        self._begun: set[str] = set()

    def write(self, delivery: Write, box: Box, values: np.ndarray, remainders: Counter[str]) -> int:
        """Write what belongs to one delivery out of a box of stored values; returns bytes written.

        What it is to the delivery's checksum is added to `remainders`.
        """
        block, checksum, written = delivery.block, delivery.checksum, 0
        tiles = block.within(box)
        if not tiles:
            return 0
        path = os.path.join(self._out, block.path)
        name = checksum_name(block.path, checksum)
        with self._files.descriptor(path) as descriptor:
            self._begin(path, descriptor)

            def write(view: memoryview, offset: int) -> None:
                nonlocal written
                behind = checksum.stop - offset - len(view)
                remainders[name] ^= crc32.shifted(crc32.remainder(view), behind)
                self._put(path, descriptor, view, offset)
                written += len(view)

            for tile in tiles:
                offset = block.offset + tile.native_base[0] * block.dtype.size
                write_box(write, offset, [link.stride for link in tile.links], tile_view(values, tile, box))
            self._dirty[path] += written
            if self._sync and self._dirty[path] >= _DIRTY:
                self._dirty[path] = 0
                start_writeback(descriptor)
        return written

    def write_stored(self, stored: Stored, remainders: Counter[str]) -> int:
        """Write a run of codes or scales; returns bytes written. What it is to its checksum is added to `remainders`."""
        checksum, file = stored.checksum, stored.operand.stored.file
        path = os.path.join(self._out, file)
        view = stored.data.reshape(-1).view(np.uint8).data
        with self._files.descriptor(path) as descriptor:
            self._begin(path, descriptor)
            behind = checksum.stop - stored.offset - len(view)
            remainders[checksum_name(file, checksum)] ^= crc32.shifted(crc32.remainder(view), behind)
            self._put(path, descriptor, view, stored.offset)
        return len(view)

    def _put(self, path: str, descriptor: int, view: memoryview, offset: int) -> None:
        with self._writing[path]:
            pwrite_all(descriptor, view, offset)

    def _begin(self, path: str, descriptor: int) -> None:
        """Take the space of a file before anything is written to it."""
        if path not in self._begun:
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


def run_transfer(
    transfer: Transfer, source: SourceFiles, sink: TargetFiles | None, hash_: type[Hash] = TreeDigest
) -> Result:
    """Move one tensor; without a sink only its digest is taken."""
    assembly = transfer.assembly
    read, stored = hash_(), hash_()
    value_dtype = assembly.value_dtype
    primary = transfer.deliveries[0] if transfer.deliveries else None
    changed = primary if primary is not None and not _keeps_values(primary, value_dtype) else None
    encoders = {
        number: Encoder(delivery.encoded, delivery.block.dtype, source)
        for number, delivery in enumerate(transfer.deliveries)
        if delivery.encoded is not None
    }
    rows = assembly.parameter.true_rows
    written, remainders, records = 0, Counter[str](), Counter[str]()
    for box in boxes(assembly.parameter.shape, transfer.chunk):
        values = source.read(assembly, box, transient=True, sums=records)
        read.update(_true(values, box, rows), value_dtype)
        ready: dict[tuple[DType, tuple[ValueMap, ...]], np.ndarray] = {}
        if encoders:
            again, count = _encoded(transfer, encoders, box, values, sink, remainders)
            stored.update(_true(again, box, rows), next(iter(encoders.values())).dtype)
            written += count
        for delivery in transfer.deliveries:
            if delivery.encoded is not None:
                continue
            kind = (delivery.block.dtype, delivery.maps)
            if kind not in ready:
                ready[kind] = _stored(values, value_dtype, delivery, assembly.parameter.name)
            if sink is not None:
                written += sink.write(delivery, box, ready[kind], remainders)
        if changed is not None and not encoders:
            back, dtype = ready[changed.block.dtype, changed.maps], changed.block.dtype
            if changed.maps:
                back, dtype = decode(back, dtype), FP32
                for value_map in changed.maps:
                    back = value_map.inverse().apply(back)
            stored.update(_true(np.ascontiguousarray(back, dtype.numpy), box, rows), dtype)
    digest, source_digest = read.hexdigest(), None
    if changed is not None or encoders:
        digest, source_digest = stored.hexdigest(), digest
    if encoders and digest == source_digest:  # codes that were kept
        source_digest = None
    return Result(transfer.name, digest, source_digest, written, dict(remainders), dict(records))


def _stored(values: np.ndarray, dtype: DType, delivery: Write, name: str) -> np.ndarray:
    """The values of a box as a delivery stores them: mostly `values` themselves."""
    target = delivery.block.dtype
    if target == dtype and not delivery.maps:
        return values
    return stored_values(values, dtype, target, delivery.maps, name)


def _encoded(
    transfer: Transfer,
    encoders: Mapping[int, Encoder],
    box: Box,
    values: np.ndarray,
    sink: TargetFiles | None,
    remainders: Counter[str],
) -> tuple[np.ndarray, int]:
    """Write what is stored as codes and scales of a box. The values of the box as readers will find them, and the bytes written."""
    assembly, written = transfer.assembly, 0
    dtype = next(iter(encoders.values())).dtype
    again = np.array(stored_values(values, assembly.value_dtype, dtype, (), assembly.parameter.name), copy=True)
    for number, encoder in encoders.items():
        for tile in transfer.deliveries[number].block.within(box):
            for part, found, groups in encoder.groups(tile, (assembly, box, values)):
                tile_view(again, part, box)[...] = found
                if sink is not None:
                    written += sum(sink.write_stored(one, remainders) for one in groups)
    return again, written


def _keeps_values(delivery: Write, dtype: DType) -> bool:
    """Whether what is stored has the digest of what was read: the same dtype, or float32, which holds all narrower ones."""
    target = delivery.block.dtype
    return not delivery.maps and (target == dtype or (target == FP32 and dtype.size < FP32.size))


def _true(values: np.ndarray, box: Box, rows: int | None) -> np.ndarray:
    """A box without the rows that only pad the vocabulary."""
    return values if rows is None else values[: max(0, rows - box[0][0])]
