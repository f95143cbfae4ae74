"""Completing output files: the checksums that only their data can tell, in them and of them, once the last tensor is in a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from ckpt_core.engine.pieces import Transfer
from ckpt_core.engine.transfer import Result, checksum_name
from ckpt_core.storage.bytes import crc32
from ckpt_core.storage.bytes.files import pwrite_all, start_writeback, written
from ckpt_core.storage.bytes.output import Checksum, OutputFile


class Completion:
    """Counts the transfers that each of `files` still waits for, and completes those that wait for none.

    `done` are the results of an earlier run, `copied` what was copied to each file from others, as a remainder. Completing a file again writes the same bytes again. `sync`: it will be synced.
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
    ) -> None:
        self._files = {file.path: file for file in files}
        self._path = path
        self._sync = sync
        self._left = Counter(name for transfer in todo for name in transfer.files)
        self._remainders: Counter[str] = Counter()
        self._copied = copied
        self.crcs: dict[str, int] = {}
        for result in done:
            self._add(result)
        for name in self._files.keys() - self._left.keys():
            self._complete(name)

    def written(self, transfer: Transfer, result: Result) -> None:
        """Note that a transfer is in its files."""
        self._add(result)
        for name in transfer.files:
            self._left[name] -= 1
            if not self._left[name]:
                self._complete(name)

    def _add(self, result: Result) -> None:
        for name, remainder in result.remainders.items():
            self._remainders[name] ^= remainder

    def _complete(self, name: str) -> None:
        file, path = self._files[name], self._path(name)
        whole = self._remainder(file, file.whole) ^ self._copied.get(name, 0)
        for offset, data in file.literals:
            whole ^= crc32.shifted(crc32.remainder(data), file.size - offset - len(data))
        with written(path) as descriptor:
            for checksum in file.checksums:
                remainder = self._remainder(file, checksum)
                whole ^= crc32.shifted(remainder, file.size - checksum.stop)
                stored = crc32.of_remainder(remainder, checksum.length).to_bytes(4, "little")
                for position in checksum.positions:
                    pwrite_all(descriptor, memoryview(stored), position)
                    whole ^= crc32.shifted(crc32.remainder(stored), file.size - position - len(stored))
            if self._sync:
                start_writeback(descriptor)
        self.crcs[name] = crc32.of_remainder(whole, file.size)

    def _remainder(self, file: OutputFile, checksum: Checksum) -> int:
        return self._remainders[checksum_name(file.path, checksum)]
