"""What is left of a transfer that is done: for the receipt, and for the journal."""

from __future__ import annotations

from ckpt_core.lean import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """What a transfer leaves for the receipt: the leaves of the digest of the values as written, and of the source's if they may differ.

    `start` is the first element of the piece. `remainders` are what it wrote below each checksum, a file's whole one included, and
    `records` what it read of each record of the source that is checked: see `storage.bytes.crc32`.
    """

    name: str
    start: int
    leaves: list[str]
    source_leaves: list[str] | None
    bytes_written: int
    remainders: dict[str, int]
    records: dict[str, int]

    @property
    def key(self) -> tuple[str, int]:
        """That of the transfer."""
        return self.name, self.start
