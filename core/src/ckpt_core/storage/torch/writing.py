"""Planning a file for `torch.load`: every byte but the tensor data, before any data is there.

`plan_torch_file` lays out the zip archive that `torch.save` would write (see
`torchzip`), with each storage aligned to 64 bytes by padding in the "FB" extra
field of its local header. The plan holds all bytes that don't depend on data;
the data of each `Slot` can then be written in any order, by any writer:

    plan = plan_torch_file({"w": TensorSpec(BF16, (4, 8))}, "model.pt")
    for offset, data in plan.literals: write(offset, data)
    for slot in plan.slots:
        write(slot.offset, data of slot.size bytes)
        for offset, data in patch_crc(slot, crc): write(offset, data)

Sizes stand in the local headers, so there are no data descriptors, and hence no
`.format_version` record: that one tells torch (2.7 and later) to compute offsets
as if descriptors were there. The checksums are known only with the data; they
are 0, "not computed", until patched.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Hashable
from typing import Any

from ckpt_core.lean import dataclass
from ckpt_core.storage.archive import zipdir
from ckpt_core.storage.dtypes import DType
from ckpt_core.storage.pickle.writer import Path, PickleWriter
from ckpt_core.storage.tensor import contiguous_strides
from ckpt_core.storage.torch.tensors import STORAGE_CLASSES

_ALIGNMENT = 64
_PADDING_FIELD = b"FB"
_UTF8_NAMES = 0x0800
_DATE_1980 = 0x0021  # the first day that a zip file can name: output must not depend on the clock
_CRC_IN_LOCAL, _CRC_IN_CENTRAL = 14, 16
_VERSION_64, _VERSION_PLAIN = 45, 20
_CLASS_NAMES = {dtype: name for name, dtype in STORAGE_CLASSES.items() if name != "UntypedStorage"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written: row-major, `shape` of `dtype`.

    Tensors with the same `storage` key share one storage, as tied weights do; they
    must agree in dtype and number of elements. None means a storage of its own.
    """

    dtype: DType
    shape: tuple[int, ...]
    storage: Hashable = None


@dataclass(frozen=True, slots=True)
class Slot:
    """One storage: `size` bytes at byte `offset`, the tensors at `paths` of the value, and where its CRC-32 goes."""

    paths: tuple[Path, ...]
    offset: int
    size: int
    crc_at: tuple[int, int]


@dataclass(frozen=True, slots=True)
class TorchFilePlan:
    """A torch file of `size` bytes: what is known of it, and the slots for tensor data, both by offset."""

    size: int
    literals: list[tuple[int, bytes]]
    slots: list[Slot]


def patch_crc(slot: Slot, crc: int) -> list[tuple[int, bytes]]:
    """The (offset, bytes) to write once the CRC-32 of the slot's data is known."""
    return [(offset, struct.pack("<I", crc)) for offset in slot.crc_at]


def plan_torch_file(value: Any, name: str) -> TorchFilePlan:
    """The plan of a file called `name` that `torch.load` reads as `value`.

    `value` is any nest of dict, OrderedDict, list, tuple, str, int, float, bool, None,
    bytes, DType and `Opaque`, with a `TensorSpec` for each tensor. Raises `FormatError`
    with the path of a value that can't be written.
    """
    writer = _TorchPickle(name)
    pickle = writer.pickle(value)
    archive = _Archive(_folder(name))
    archive.add("data.pkl", pickle)
    archive.add("byteorder", b"little")
    reserved = [(storage, archive.reserve(f"data/{key}", storage.size)) for key, storage in enumerate(writer.storages)]
    archive.add("version", b"3\n")
    size = archive.close()
    slots = [
        Slot(
            tuple(storage.paths),
            member.offset,
            member.size,
            (member.header + _CRC_IN_LOCAL, member.central + _CRC_IN_CENTRAL),
        )
        for storage, member in reserved
    ]
    return TorchFilePlan(size, archive.literals, slots)


def _folder(name: str) -> str:
    """The folder inside the archive: the file's stem, as torch has it, where a zip member may be called so."""
    from pathlib import PurePath

    stem = PurePath(name).stem
    return stem if re.fullmatch(r"[\w.,=+@%~ -]+", stem, re.ASCII) and stem.strip(".") else "archive"


@dataclass(slots=True)
class _Storage:
    """A storage to be written, and the tensors that view it."""

    dtype: DType
    elements: int
    paths: list[Path]

    @property
    def size(self) -> int:
        return self.elements * self.dtype.size


class _TorchPickle(PickleWriter):
    """The pickle of a value with tensors; `storages` are those that it refers to, by number."""

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self.storages: list[_Storage] = []
        self._shared: dict[Hashable, int] = {}

    def special(self, value: Any) -> bool:
        if type(value) is not TensorSpec:
            return False
        if (
            not all(type(size) is int and size >= 0 for size in value.shape)
            or math.prod(value.shape) * value.dtype.size >= 1 << 62
        ):
            raise self._refused("a tensor has an impossible shape", "sizes from 0 on")
        key = self._storage(value)
        # dtypes without a storage class: see `torch_tensors`.
        class_name = _CLASS_NAMES.get(value.dtype)
        self.reference("torch._utils", "_rebuild_tensor_v2" if class_name else "_rebuild_tensor_v3")
        self.opcodes(b"((")
        self.text("storage")
        self.reference("torch" if class_name else "torch.storage", class_name or "UntypedStorage")
        self.text(str(key))
        self.text("cpu")
        storage = self.storages[key]
        self.value(storage.elements if class_name else storage.size)
        self.opcodes(b"tQ")
        self.value(0)
        self.tuple_of(value.shape)
        self.tuple_of(contiguous_strides(value.shape))
        self.value(False)
        self.new_ordered_dict()
        if not class_name:
            self.reference("torch", value.dtype.torch)
        self.opcodes(b"tR")
        return True

    def _storage(self, spec: TensorSpec) -> int:
        """The number of the storage of `spec`: a new one, or the one that it shares."""
        elements = math.prod(spec.shape)
        key = None if spec.storage is None else self._shared.get(spec.storage)
        if key is None:
            key = len(self.storages)
            self.storages.append(_Storage(spec.dtype, elements, [self.path]))
            if spec.storage is not None:
                self._shared[spec.storage] = key
            return key
        storage = self.storages[key]
        if (storage.dtype, storage.elements) != (spec.dtype, elements):
            raise self._refused(
                "tensors that share a storage differ in dtype or size",
                f"{storage.elements} elements of {storage.dtype}",
            )
        storage.paths.append(self.path)
        return key


@dataclass(slots=True)
class _Member:
    """A member of the archive: offsets of its local header, data and directory entry."""

    name: bytes
    header: int
    offset: int
    size: int
    crc: int
    central: int = 0


class _Archive:
    """Lays out members one after the other, then the directory."""

    def __init__(self, folder: str) -> None:
        self.literals: list[tuple[int, bytes]] = []
        self._folder = folder
        self._members: list[_Member] = []
        self._pending = bytearray()  # literal bytes that end at `_at`
        self._at = 0

    def add(self, name: str, data: bytes) -> None:
        """A member whose data is known."""
        self._open(name, len(data), zlib.crc32(data))
        self._write(data)

    def reserve(self, name: str, size: int) -> _Member:
        """A member of `size` bytes that are written later."""
        member = self._open(name, size, 0)
        if size:
            self._flush()
            self._at += size
        return member

    def close(self) -> int:
        """Write the directory; the size of the whole file. Fills `central` of every member."""
        start = self._at
        for member in self._members:
            member.central = self._at
            self._write(_central_header(member))
        size, count = self._at - start, len(self._members)
        # Always with zip64 end records, as torch writes: readers need them beyond 65,535 members or 4 GiB.
        end64 = zipdir.END64.pack(
            zipdir.END64_SIGNATURE, zipdir.END64.size - 12, _VERSION_64, _VERSION_64, 0, 0, count, count, size, start
        )
        locator = zipdir.LOCATOR64.pack(zipdir.LOCATOR64_SIGNATURE, 0, self._at, 1)
        short, long = min(count, zipdir.U16), [min(value, zipdir.U32) for value in (size, start)]
        self._write(end64 + locator + zipdir.END.pack(zipdir.END_SIGNATURE, 0, 0, short, short, *long, 0))
        self._flush()
        return self._at

    def _open(self, name: str, size: int, crc: int) -> _Member:
        raw = f"{self._folder}/{name}".encode()
        wide = size >= zipdir.U32
        extra = struct.pack("<2H2Q", zipdir.ZIP64_FIELD, 16, size, size) if wide else b""
        bare = self._at + zipdir.LOCAL.size + len(raw) + len(extra) + 4
        padding = -bare % _ALIGNMENT
        extra += struct.pack("<2sH", _PADDING_FIELD, padding) + b"Z" * padding
        shown = zipdir.U32 if wide else size
        member = _Member(raw, self._at, bare + padding, size, crc)
        self._members.append(member)
        header = (
            zipdir.LOCAL_SIGNATURE,
            _version(wide),
            _UTF8_NAMES,
            0,
            0,
            _DATE_1980,
            crc,
            shown,
            shown,
            len(raw),
            len(extra),
        )
        self._write(zipdir.LOCAL.pack(*header) + raw + extra)
        return member

    def _write(self, data: bytes) -> None:
        self._pending += data
        self._at += len(data)

    def _flush(self) -> None:
        if self._pending:
            self.literals.append((self._at - len(self._pending), bytes(self._pending)))
            self._pending.clear()


def _version(wide: bool) -> int:
    """The version of the zip format that a reader needs."""
    return _VERSION_64 if wide else _VERSION_PLAIN


def _central_header(member: _Member) -> bytes:
    # In the zip64 field stand only the values that do not fit, in this order.
    wide_size, wide_offset = member.size >= zipdir.U32, member.header >= zipdir.U32
    wide = [member.size] * 2 * wide_size + [member.header] * wide_offset
    extra = struct.pack(f"<2H{len(wide)}Q", zipdir.ZIP64_FIELD, 8 * len(wide), *wide) if wide else b""
    size, header = min(member.size, zipdir.U32), min(member.header, zipdir.U32)
    version = _version(bool(wide))
    fields = (version, version, _UTF8_NAMES, 0, 0, _DATE_1980, member.crc, size, size, len(member.name), len(extra))
    return zipdir.CENTRAL.pack(zipdir.CENTRAL_SIGNATURE, *fields, 0, 0, 0, 0, header) + member.name + extra
