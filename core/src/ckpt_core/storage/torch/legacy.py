"""torch's file format before 1.6: five pickles, then the storages.

    pickle   magic number 0x1950a86a20f9469cfc6c
    pickle   protocol version 1001
    pickle   {"protocol_version": 1001, "little_endian": True, "type_sizes": {...}}
    pickle   the object; a storage is the persistent id
             ("storage", class, key, location, elements, None or (view key, offset, elements))
    pickle   the list of storage keys, in the order in which they follow
    per key  number of elements (8 bytes, little-endian), then the raw elements

Where a storage starts is known only after the object was read, so the object is
read twice: once to learn how large each storage is, once with the offsets.
"""

from __future__ import annotations

from typing import Any, BinaryIO, NoReturn

from ckpt_core.errors import FormatError
from ckpt_core.storage.bytes.byterange import ByteRange
from ckpt_core.storage.pickle.opaque import brief
from ckpt_core.storage.pickle.reader import Limits, read_pickle
from ckpt_core.storage.torch.tensors import TORCH_MAKERS, StoredStorage, check_count, storage_class

_MAGIC = 0x1950A86A20F9469CFC6C
_MAGIC_BYTES = _MAGIC.to_bytes(10, "little")
_PROTOCOL_VERSION = 1001


def starts_with_magic(head: bytes) -> bool:
    """Whether a file with these first bytes (16 or more) is in this format.

    Protocol 2 and later write the number as LONG1: `8a 0a` and ten bytes.
    """
    return head[:1] == b"\x80" and _MAGIC_BYTES in head[:32]


def read_legacy(stream: BinaryIO, file: str, start: int, end: int, limits: Limits) -> Any:
    """The object in bytes [`start`, `end`) of `stream`, with a `StoredTensor` for each tensor.

    `FormatError` for a file that is cut off or damaged, and for a pickle that asks for what is not data.
    """
    data = ByteRange(stream, file, start, end)
    if read_pickle(data, file, limits=limits) != _MAGIC:
        raise FormatError("the file does not start with torch's magic number", file=file)
    version = read_pickle(data, file, limits=limits)
    if version != _PROTOCOL_VERSION:
        raise FormatError("unknown torch file version", file=file, found=brief(version), expected=_PROTOCOL_VERSION)
    system = read_pickle(data, file, limits=limits)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise FormatError("the file was written on a big-endian machine", file=file, expected="little-endian")
    object_at = data.position
    storages = _Storages(file)
    read_pickle(data, file, persistent_load=storages.load, makers=TORCH_MAKERS, limits=limits)
    keys = read_pickle(data, file, limits=limits)
    storages.place(keys, data)
    return read_pickle(
        ByteRange(stream, file, object_at, end), file, persistent_load=storages.load, makers=TORCH_MAKERS, limits=limits
    )


class _Storages:
    """The storages that the object refers to, by key; at offset 0 until `place` finds them."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._known: dict[str, StoredStorage] = {}
        self._placed = False

    def load(self, key: Any) -> Any:
        """The value of a persistent id."""
        if not isinstance(key, tuple) or not key:
            self.fail("a persistent id that torch does not write", found=brief(key))
        kind, *parts = key
        if kind == "module" and parts:  # ("module", class, source file, source text)
            return parts[0]
        if kind != "storage" or len(parts) != 5 or not isinstance(parts[1], str):
            self.fail("a persistent id that torch does not write", found=brief(kind))
        reference, name, _, count, view = parts
        dtype, untyped = storage_class(reference, self)
        elements = check_count(count, "the size of a storage", self)
        known = self._known.get(name)
        if known is None:
            if self._placed:
                self.fail("a storage is missing", found=brief(name))
            known = self._known[name] = StoredStorage(self.file, dtype, 0, elements, untyped)
        if (known.dtype, known.elements) != (dtype, elements):
            self.fail("a storage is described in two ways", found=brief(name))
        if view is None:
            return known
        if not isinstance(view, tuple) or len(view) != 3:
            self.fail("a storage view that torch does not write", found=brief(view))
        first = check_count(view[1], "the offset of a storage view", self)
        size = check_count(view[2], "the size of a storage view", self)
        if first + size > elements:
            self.fail(
                "a storage view reaches past its storage", found=f"{size} elements from {first} on", expected=elements
            )
        return StoredStorage(self.file, dtype, known.offset + first * dtype.size, size, untyped)

    def place(self, keys: Any, data: ByteRange) -> None:
        """Walk over the storages behind the pickles and note where each one lies."""
        if not isinstance(keys, list) or len(keys) != len(self._known):
            self.fail("the list of storages is damaged", found=brief(keys), expected=f"{len(self._known)} keys")
        for key in keys:
            known = self._known.get(key) if isinstance(key, str) else None
            if known is None or known.offset:
                self.fail("the list of storages is damaged", found=brief(key), expected="each storage once")
            count = int.from_bytes(data.take(8), "little")
            if count != known.elements:
                self.fail(
                    f"storage {key!r} has another size than the tensors say", found=count, expected=known.elements
                )
            self._known[key] = StoredStorage(self.file, known.dtype, data.position, known.elements, known.untyped)
            data.skip(known.elements * known.dtype.size)
        self._placed = True

    def charge(self, size: int) -> None:
        """See `Reading.charge`: nothing is copied here."""

    def fail(self, problem: str, found: object = None, expected: object = None, fix: str | None = None) -> NoReturn:
        raise FormatError(problem, file=self.file, found=found, expected=expected, fix=fix)
