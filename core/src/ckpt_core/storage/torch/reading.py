"""Files that `torch.save` wrote, read without torch and without their tensor data.

Since torch 1.6 a file is a zip archive of stored (uncompressed) members in one folder:

    NAME/data.pkl       the object; a tensor's storage is the persistent id
                        ("storage", class, key, location, number of elements)
    NAME/byteorder      "little" (absent in older files, which are little-endian too)
    NAME/data/KEY       the raw elements of one storage, aligned to 64 bytes
    NAME/version        "3\\n"; besides it .format_version, .storage_alignment, .data/serialization_id

Older files are a row of pickles with the storages behind them; see `torch_legacy`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, BinaryIO, NoReturn

from ckpt_core.errors import FormatError
from ckpt_core.lean import dataclass
from ckpt_core.storage.archive.inflate import open_stored
from ckpt_core.storage.archive.tar import BLOCK, is_tar
from ckpt_core.storage.archive.tree import Tree
from ckpt_core.storage.archive.zipdir import LOCAL_SIGNATURE, Directory, Member
from ckpt_core.storage.bytes import crc32
from ckpt_core.storage.bytes.byterange import ByteRange
from ckpt_core.storage.bytes.files import unreadable
from ckpt_core.storage.bytes.pointers import pointer_in
from ckpt_core.storage.bytes.stored import first_bytes
from ckpt_core.storage.pickle.opaque import brief
from ckpt_core.storage.pickle.reader import Limits, read_pickle
from ckpt_core.storage.tensor import Record, StoredTensor
from ckpt_core.storage.torch import alike
from ckpt_core.storage.torch.legacy import read_legacy, starts_with_magic
from ckpt_core.storage.torch.tensors import TORCH_MAKERS, StoredStorage, storage_class

_MAX_SMALL_RECORD = 1 << 10
_TAR_MAGIC_AT = 257


def may_be_torch_file(path: str | os.PathLike[str]) -> bool:
    """Whether the first bytes of a file are those of `torch.save`, or the file is one whose bytes never came: empty, or a
    pointer to them. False for what is not a file; never raises."""
    try:
        head = first_bytes(path, BLOCK)
    except OSError:
        return False
    return not head or head.startswith((LOCAL_SIGNATURE, b"\x80")) or is_tar(head) or pointer_in(head) is not None


def read_torch_file(
    path: str | os.PathLike[str],
    base_offset: int = 0,
    length: int | None = None,
    *,
    limits: Limits = Limits(),
) -> Any:
    """The object that `torch.save` wrote to `path`, with a `StoredTensor` for each tensor.

    `base_offset` and `length` (bytes) pick a torch file inside another file, such as
    a member of a tar; the offsets of the tensors count from the start of `path`, or, of a tar inside gzip,
    in its inflated bytes.
    Only headers and the pickle are read. Raises `FormatError` naming `path`.
    """
    file = os.fspath(path)
    if length is not None and (tensor := alike.known(file, base_offset, length, limits)) is not None:
        return tensor
    try:
        with open_stored(file) as stream:
            size = stream.seek(0, os.SEEK_END)
            end = size if length is None else base_offset + length
            if not 0 <= base_offset <= end <= size:
                raise FormatError(
                    "the torch file lies outside the file that holds it",
                    file=file,
                    found=f"bytes {base_offset} to {end} of {size}",
                )
            stream.seek(base_offset)
            head = stream.read(min(512, end - base_offset))
            if head[:4] == LOCAL_SIGNATURE:
                return _ZipFile(stream, file, base_offset, end).read(limits)
            if starts_with_magic(head):
                return read_legacy(stream, file, base_offset, end, limits)
    except OSError as error:
        raise unreadable(file, error) from error
    is_tar = head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar"
    raise FormatError(
        "this is not a torch file",
        file=file,
        found="a tar archive" if is_tar else "a bare pickle" if head[:1] == b"\x80" else f"first bytes {head[:8]!r}",
        expected="a zip archive, or a pickle with torch's magic number",
        fix="very old torch files (tar) must be saved again with torch" if is_tar else None,
    )


def read_torch_member(tree: Tree, name: str, limits: Limits = Limits()) -> Any:
    """The object in a torch file of a folder or archive, with a `StoredTensor` for each tensor.

    `FormatError` names the file, not the archive.
    """
    extent = tree[name]
    try:
        return read_torch_file(extent.file, extent.offset, extent.size, limits=limits)
    except FormatError as problem:
        problem.file = tree.place(name)
        raise


@dataclass(frozen=True, slots=True)
class _Alone:
    """What a pickle says that holds nothing but one tensor: the persistent id of its storage, and the tensor over a storage that began
    at byte `start`."""

    key: Any
    tensor: StoredTensor
    start: int

    def tensor_on(self, storage: StoredStorage) -> StoredTensor:
        """The tensor over the storage of this id in another file."""
        offset = storage.offset + self.tensor.offset - self.start
        return replace(self.tensor, file=storage.file, offset=offset, record=storage.record)


# A distributed checkpoint has tens of thousands of torch files of one tensor each, and their pickles are of a few kinds.
_ALIKE: dict[tuple[bytes, Limits], _Alone] = {}
_MOST_ALIKE = 1 << 10
_MAX_ALIKE = 1 << 10
_READ = ("data.pkl", "byteorder")  # members whose content is read


class _ZipFile:
    """One torch zip archive in bytes [`start`, `end`) of an open file."""

    def __init__(self, stream: BinaryIO, file: str, start: int, end: int) -> None:
        self.file = file
        self._stream = stream
        self._directory, self._start, self._length = Directory(stream, file, start, end), start, end - start
        self._members = self._directory.members()
        self._folder = self._find_folder()
        self._storages: dict[str, StoredStorage] = {}

    def read(self, limits: Limits) -> Any:
        """The object in data.pkl."""
        order = self._small_record("byteorder")
        if order not in (None, b"little"):
            self.fail("the file was written on a big-endian machine", found=brief(order), expected="little")
        pickle = self._members[f"{self._folder}/data.pkl"]
        self._check_sum(pickle)
        if pickle.size > _MAX_ALIKE:
            return self._object(pickle, limits, self._load)
        content = self._range(pickle).take(pickle.size)
        read = [member for name in _READ if (member := self._members.get(f"{self._folder}/{name}")) is not None]
        known = _ALIKE.get((content, limits))
        if known is not None:
            tensor = known.tensor_on(self._load(known.key))
            storage = self._members[f"{self._folder}/data/{known.key[2]}"]
            alike.remember(tensor, storage, self._stream, self._directory, read, self._start, self._length, limits)
            return tensor
        keys: list[Any] = []

        def load(key: Any) -> StoredStorage:
            keys.append(key)
            return self._load(key)

        result = self._object(pickle, limits, load)
        if isinstance(result, StoredTensor) and len(keys) == 1:
            if len(_ALIKE) >= _MOST_ALIKE:
                _ALIKE.clear()
            _ALIKE[content, limits] = _Alone(keys[0], result, self._load(keys[0]).offset)
        return result

    def _object(self, pickle: Member, limits: Limits, load: Callable[[Any], StoredStorage]) -> Any:
        """The object in a pickle, with what `load` gives for each persistent id."""
        data = self._range(pickle)
        result = read_pickle(data, self.file, persistent_load=load, makers=TORCH_MAKERS, limits=limits)
        if data.left:
            self.fail("data.pkl holds more than one pickle", found=f"{data.left} bytes behind it")
        return result

    def _range(self, member: Member) -> ByteRange:
        return ByteRange(self._stream, self.file, member.offset, member.offset + member.size)

    def _find_folder(self) -> str:
        folders = [
            name.removesuffix("/data.pkl")
            for name in self._members
            if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if len(folders) != 1:
            self.fail(
                "the zip archive is not a torch file",
                found=f"{len(folders)} members called NAME/data.pkl",
                expected="one",
            )
        (folder,) = folders
        if f"{folder}/constants.pkl" in self._members:
            self.fail(
                "this is a TorchScript program, not a checkpoint", fix="save the model's state_dict with torch.save"
            )
        return folder

    def _load(self, key: Any) -> StoredStorage:
        """The storage of a persistent id."""
        if not isinstance(key, tuple) or len(key) != 5 or key[0] != "storage" or not isinstance(key[2], str):
            self.fail("a persistent id that torch does not write", found=brief(key))
        _, reference, name, _, count = key
        dtype, untyped = storage_class(reference, self)
        member = self._members.get(f"{self._folder}/data/{name}")
        if member is None:
            self.fail(f"the storage {name[:60]!r} is missing from the archive")
        # A storage that views of another element size share may end in part of an element.
        if type(count) is not int or not 0 <= member.size - count * dtype.size < dtype.size:
            self.fail(
                f"the storage {name!r} has another size than the pickle says",
                found=f"{member.size} bytes",
                expected=f"{brief(count)} elements of {dtype}",
            )
        known = self._storages.get(name)
        if known is None or known.dtype != dtype or known.elements != count:
            # torch can be told to write no checksums: 0
            record = Record(self.file, member.name, member.offset, member.size, member.crc) if member.crc else None
            known = self._storages[name] = StoredStorage(self.file, dtype, member.offset, count, untyped, record)
        return known

    def _small_record(self, name: str) -> bytes | None:
        member = self._members.get(f"{self._folder}/{name}")
        if member is None:
            return None
        if member.size > _MAX_SMALL_RECORD:
            self.fail(f"the record {name!r} is too large", found=f"{member.size} bytes")
        self._check_sum(member)
        return self._range(member).take(member.size)

    def _check_sum(self, member: Member) -> None:
        """Compare the checksum of a record that is read whole; torch can be told to write none (0)."""
        if member.crc and crc32.of_range(self._stream, member.offset, member.size) != member.crc:
            self.fail(f"the record {member.name!r} is damaged: its checksum is wrong", fix="copy the file again")

    def charge(self, size: int) -> None:
        """See `Reading.charge`: nothing is copied here."""

    def fail(self, problem: str, found: object = None, expected: object = None, fix: str | None = None) -> NoReturn:
        """See `Reading.fail`."""
        raise FormatError(problem, file=self.file, found=found, expected=expected, fix=fix)
