"""Completing output files: the checksums that only their data can tell, in them and of them, once the last tensor is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from ckpt_core.engine.pieces import Transfer
from ckpt_core.engine.results import Result
from ckpt_core.engine.transfer import checksum_name
from ckpt_core.storage.bytes import crc32
from ckpt_core.storage.bytes.files import pwrite_all, written
from ckpt_core.storage.bytes.output import Checksum, OutputFile
from ckpt_core.storage.bytes.pagecache import Kept, start_writeback


class Completion:
    """Counts the transfers that each of `files`, and each checksum in them, still waits for, and completes those that wait for none.

    `done` are the results of an earlier run, `copied` what was copied to each file from others, as a remainder. Completing a file again writes the same bytes again. `sync`: it will be synced,
    and `kept` says whether its pages stay in the kernel's cache.
    `crcs` are the CRC-32 of whole files, of what was meant to be written: no file is read for them.
    """

    def __init__(
        self,
        files: Iterable[OutputFile],
        todo: Iterable[Transfer],
        done: Iterable[Result],
        copied: Mapping[str, int],
        path: Callable[[str], str],
        sync: bool,
        kept: Kept = Kept(),
    ) -> None:
        self._files = {file.path: file for file in files}
        self._path = path
        self._sync = sync
        self._kept = kept
        todo = list(todo)
        self._left = Counter(name for transfer in todo for name in transfer.files)
        self._unknown = Counter(one for transfer in todo for one in stored_checksums(transfer))
        self._remainders: Counter[str] = Counter()
        self._copied = copied
        self.crcs: dict[str, int] = {}
        for result in done:
            self._add(result)
        for file in self._files.values():
            for checksum in file.checksums:
                if (file.path, checksum) not in self._unknown:
                    self._store(file, checksum)
        for name in self._files.keys() - self._left.keys():
            self._complete(name)

    def written(self, transfer: Transfer, result: Result) -> None:
        """Note that a transfer is in its files."""
        self._add(result)
        for name, checksum in stored_checksums(transfer):
            self._unknown[name, checksum] -= 1
            if not self._unknown[name, checksum]:
                self._store(self._files[name], checksum)
        for name in transfer.files:
            self._left[name] -= 1
            if not self._left[name]:
                self._complete(name)

    def _add(self, result: Result) -> None:
        for name, remainder in result.remainders.items():
            self._remainders[name] ^= remainder

    def _store(self, file: OutputFile, checksum: Checksum) -> None:
        """Write a checksum to its places in the file."""
        with written(self._path(file.path)) as descriptor:
            for position in checksum.positions:
                pwrite_all(descriptor, memoryview(self._bytes(file, checksum)), position)

    def _complete(self, name: str) -> None:
        file = self._files[name]
        whole = self._remainder(file, file.whole) ^ self._copied.get(name, 0)
        for offset, data in file.literals:
            whole ^= crc32.shifted(crc32.remainder(data), file.size - offset - len(data))
        for checksum in file.checksums:
            whole ^= crc32.shifted(self._remainder(file, checksum), file.size - checksum.stop)
            stored = self._bytes(file, checksum)
            for position in checksum.positions:
                whole ^= crc32.shifted(crc32.remainder(stored), file.size - position - len(stored))
        if self._sync:
            with written(self._path(name)) as descriptor:
                start_writeback(descriptor, drop=not self._kept.output)
        self.crcs[name] = crc32.of_remainder(whole, file.size)

    def _bytes(self, file: OutputFile, checksum: Checksum) -> bytes:
        return crc32.of_remainder(self._remainder(file, checksum), checksum.length).to_bytes(4, "little")

    def _remainder(self, file: OutputFile, checksum: Checksum) -> int:
        return self._remainders[checksum_name(file.path, checksum)]


def stored_checksums(transfer: Transfer) -> set[tuple[str, Checksum]]:
    """The checksums in output files, by path, that what a transfer writes is among."""
    found = set()
    for delivery in transfer.deliveries:
        if delivery.left:
            continue
        if delivery.encoded is None:
            found.add((delivery.block.path, delivery.checksum))
        else:
            operands = zip(delivery.encoded.quantised.stored, delivery.encoded.checksums, strict=True)
            found |= {(operand.stored.file, checksum) for operand, checksum in operands}
    return {(path, checksum) for path, checksum in found if checksum.positions}
