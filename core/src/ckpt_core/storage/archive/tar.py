"""Tar archives as checkpoints use them: listed without unpacking, and planned before their data is known.

    header (512 bytes) | data, filled up to 512 bytes | header | data | ... | two blocks of zeros

Tools disagree about tars that are odd: which of two members of one name counts, what a member outside the folder
does, where an archive ends. An odd one is refused by name. What is left: files and folders, with names and sizes
from the header, from GNU's long names or from PAX records, each member inside the file, each name once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from typing import BinaryIO, NoReturn

from ckpt_core.errors import FormatError
from ckpt_core.lean import dataclass
from ckpt_core.storage.bytes.output import Checksum, OutputFile

BLOCK = 512
_RECORD = 20 * BLOCK  # tar writes archives in records of this size
_MAX_MEMBERS = 1_000_000
_MAX_EXTENSION = 1 << 20
_MAX_NAME = 4096
_MAX_DEPTH = 64
_MAX_MEMORY = 256 << 20  # of the listing
_FILE_MEMORY, _FOLDER_MEMORY = 320, 128  # of one entry without the characters of its name
_MAX_TRAILER = 1 << 20

_FILE, _OLD_FILE, _CONTIGUOUS, _FOLDER = b"0", b"\0", b"7", b"5"
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
    b"S": "a sparse file",
    b"M": "a part of a file",
    b"V": "a volume label",
    b"D": "a list of names",
}
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_POSIX, _GNU, _OLD = b"ustar\0", b"ustar ", b"\0\0\0\0\0\0"


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive: `size` bytes from byte `offset` on."""

    offset: int
    size: int


@dataclass
class Listing:
    """The files of an archive by normalised name (`mp_rank_00/model_weights.ckpt`, no `./`), and its folders."""

    files: dict[str, Member] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)


def is_tar(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a tar: its first header has the right checksum."""
    return len(head) >= BLOCK and any(head[:BLOCK]) and _checksum_fits(head[:BLOCK])


def list_tar(stream: BinaryIO, file: str, size: int) -> Listing:
    """The members of the archive of `size` bytes in `stream`; only headers are read.

    Raises `FormatError` naming `file` and the member unless the archive is whole and holds only files and folders.
    """
    return _Reader(stream, file, size).listing()


@dataclass
class _Extensions:
    """What headers say about the member that follows them."""

    name: str | None = None
    size: int | None = None

    def __bool__(self) -> bool:
        return self.name is not None or self.size is not None


class _Reader:
    def __init__(self, stream: BinaryIO, file: str, size: int) -> None:
        self._stream, self._file, self._size = stream, file, size
        self._found = Listing()
        self._memory = 0

    def listing(self) -> Listing:
        at, members = 0, 0
        extensions = _Extensions()
        while any(header := self._read(at, BLOCK, "a header")):
            if not _checksum_fits(header):
                self._fail("a tar header is damaged: its checksum is wrong", found=f"byte {at}")
            members += 1
            if members > _MAX_MEMBERS:
                self._fail("the tar has too many members", expected=f"at most {_MAX_MEMBERS}")
            at = self._member(header, at + BLOCK, extensions)
        if extensions:
            self._fail("the tar ends behind the long name of a member", found=f"byte {at}")
        self._check_end(at)
        for name in self._found.files:
            if clash := next((folder for folder in _folders_above(name) if folder in self._found.files), None):
                self._fail(f"the tar holds {clash!r} as a file and as a folder")
        return self._found

    def _member(self, header: bytes, data: int, extensions: _Extensions) -> int:
        """Take in the member of a header whose data begins at `data`; where the next header is."""
        kind, size = header[156:157], self._number(header[124:136], "size", data)
        if kind in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
            self._extend(extensions, kind, data, size)
            return data + _filled(size)
        raw = self._raw_name(header, data)
        # Where an extension has the name, the header has its first 100 bytes, cut anywhere: in a letter, too.
        name = self._normal(self._text(raw) if extensions.name is None else extensions.name)
        size = size if extensions.size is None else extensions.size
        if kind in _REFUSED:
            self._fail(f"the tar member {name!r} is {_REFUSED[kind]}", expected="files and folders")
        # Before POSIX a folder was a file whose name ends in a slash.
        if kind == _FOLDER or (kind == _OLD_FILE and raw.endswith(b"/")):
            if size:
                self._fail(f"the tar member {name!r} is a folder with data", found=f"{size} bytes")
            self._enter_folder(name)
        elif kind in (_FILE, _OLD_FILE, _CONTIGUOUS):
            if data + size > self._size:
                self._fail(
                    f"the tar member {name!r} is cut off",
                    found=f"{self._size - data} bytes",
                    expected=f"{size} bytes",
                    fix="copy the file again; it is cut off or damaged",
                )
            self._enter_file(name, Member(data, size))
        else:
            self._fail(f"the tar member {name!r} is of an unknown kind", found=repr(kind), expected="files and folders")
        extensions.name = extensions.size = None
        return data + _filled(size)

    def _enter_file(self, name: str, member: Member) -> None:
        if not name:
            self._fail("a file of the tar has no name", found=f"byte {member.offset - BLOCK}")
        if name in self._found.files or name in self._found.folders:
            self._fail(f"the tar holds {name!r} twice", fix="tools disagree which one counts: pack it again")
        self._charge(_FILE_MEMORY + len(name))
        self._found.files[name] = member
        self._enter_folders(_folders_above(name))

    def _enter_folder(self, name: str) -> None:
        if name in self._found.files:
            self._fail(f"the tar holds {name!r} as a file and as a folder")
        if name:
            self._enter_folders((name, *_folders_above(name)))

    def _enter_folders(self, upwards: Iterable[str]) -> None:
        for folder in upwards:
            if folder in self._found.folders:
                break  # so are those above it
            self._charge(_FOLDER_MEMORY + len(folder))
            self._found.folders.add(folder)

    def _charge(self, memory: int) -> None:
        self._memory += memory
        if self._memory > _MAX_MEMORY:
            self._fail(
                "the tar holds too much to be listed",
                found=f"{len(self._found.files)} files in {len(self._found.folders)} folders",
                expected=f"names that take at most {_MAX_MEMORY} bytes of memory",
            )

    def _extend(self, extensions: _Extensions, kind: bytes, data: int, size: int) -> None:
        """Take in a header that describes the next one."""
        if size > _MAX_EXTENSION:
            self._fail(
                "a tar header has too long an extension", found=f"{size} bytes", expected=f"at most {_MAX_EXTENSION}"
            )
        content = self._read(data, size, "an extended header")
        if kind == _LONG_NAME:
            self._name_once(extensions, self._text(content.split(b"\0", 1)[0]))
        for key, value in self._records(content) if kind in (_PAX, _PAX_GLOBAL) else ():
            if key.startswith("GNU.sparse"):
                self._fail("the tar holds a sparse file", found=key, expected="files and folders")
            if kind == _PAX_GLOBAL and key in ("path", "size", "hdrcharset"):
                self._fail("a global header of the tar describes single members", found=key)
            if key == "hdrcharset" and value != b"ISO-IR 10646 2000 UTF-8":
                self._fail("the names in the tar are not UTF-8", found=repr(value[:40]))
            if key == "path":
                self._name_once(extensions, self._text(value))
            elif key == "size":
                if not re.fullmatch(rb"\d{1,19}", value):
                    self._fail("a size in the tar is not a number", found=repr(value[:40]))
                extensions.size = int(value)

    def _name_once(self, extensions: _Extensions, name: str) -> None:
        if extensions.name is not None:
            self._fail("a member of the tar has two long names", found=repr(name[:60]))
        extensions.name = name

    def _records(self, content: bytes) -> Iterator[tuple[str, bytes]]:
        """The PAX records `LENGTH KEY=VALUE\\n` of an extended header."""
        at = 0
        while at < len(content):
            match = re.compile(rb"(\d{1,7}) ([^=\n]{1,256})=").match(content, at)
            end = at + int(match[1]) if match else 0
            if match is None or not match.end() < end <= len(content) or content[end - 1 : end] != b"\n":
                self._fail("an extended header of the tar is damaged", found=repr(content[at : at + 40]))
            yield self._text(match[2]), content[match.end() : end - 1]
            at = end

    def _raw_name(self, header: bytes, data: int) -> bytes:
        name = header[:100].split(b"\0", 1)[0]
        magic, prefix = header[257:263], header[345:500].split(b"\0", 1)[0]
        if magic not in (_POSIX, _GNU, _OLD) or (prefix and magic != _POSIX):
            self._fail("a tar header is of an unknown dialect", found=f"{magic!r} at byte {data - BLOCK}")
        return prefix + b"/" + name if prefix else name

    def _normal(self, raw: str) -> str:
        """A member's name without `./` and doubled slashes; the folder itself is the empty name."""
        parts = [part for part in raw.split("/") if part not in ("", ".")]
        if raw.startswith("/") or ".." in parts or "\\" in raw or "\0" in raw or re.match("[A-Za-z]:", raw):
            self._fail("a tar member has a name that points elsewhere", found=repr(raw[:80]))
        if len(raw) > _MAX_NAME or len(parts) > _MAX_DEPTH:
            self._fail("a tar member has an absurdly long name", found=repr(raw[:80]))
        return "/".join(parts)

    def _number(self, raw: bytes, what: str, data: int) -> int:
        """Octal digits, or GNU's form for large ones: a byte 0x80, then big-endian."""
        if raw[0] == 0x80:
            return int.from_bytes(raw[1:], "big")
        match = _OCTAL.fullmatch(raw)
        if match is None:
            self._fail(f"a {what} in the tar is not a number", found=f"{raw!r} in the header at byte {data - BLOCK}")
        return int(match[1] or b"0", 8)

    def _check_end(self, at: int) -> None:
        """Nothing but zeros may follow the first block of zeros: some tools would read on behind it."""
        left = self._size - at
        if left > _MAX_TRAILER or any(self._read(at, left, "the end")):
            self._fail("the tar has something behind its end", found=f"{left} bytes from byte {at} on")

    def _read(self, offset: int, count: int, what: str) -> bytes:
        if offset + count > self._size:
            self._fail(
                f"the tar ends in {what}",
                found=f"{max(0, self._size - offset)} bytes from byte {offset} on",
                expected=f"{count} bytes",
                fix="copy the file again; it is cut off or damaged",
            )
        self._stream.seek(offset)
        data = self._stream.read(count)
        if len(data) != count:
            self._fail("the file was truncated while it was being read", found=f"{offset + len(data)} bytes")
        return data

    def _text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self._fail("a name in the tar is not UTF-8", found=repr(raw[:60]))

    def _fail(self, problem: str, found: object = None, expected: object = None, fix: str | None = None) -> NoReturn:
        raise FormatError(problem, file=self._file, found=found, expected=expected, fix=fix)


def _checksum_fits(header: bytes) -> bool:
    """The sum of a header's bytes, its own field counted as spaces; old tars summed signed bytes."""
    match = _OCTAL.fullmatch(header[148:156])
    if match is None or not match[1]:
        return False
    rest = header[:148] + b" " * 8 + header[156:]
    stored, unsigned = int(match[1], 8), sum(rest)
    return stored == unsigned or stored == unsigned - 256 * sum(byte > 127 for byte in rest)


def _folders_above(name: str) -> Iterator[str]:
    while name := name.rpartition("/")[0]:
        yield name


def _filled(size: int) -> int:
    return size + -size % BLOCK


def plan_tar(path: str, members: Mapping[str, OutputFile | bytes]) -> tuple[OutputFile, dict[str, int]]:
    """A tar at `path` of `members`, by name and in that order, and where the data of each begins.

    Names are as in the archive (`./model_config.yaml`); the folders above each are written before it. A member
    whose data is not known yet is an `OutputFile`: what it knows is shifted to its place. The archive has no time,
    no user and no host in it.
    """
    literals: list[tuple[int, bytes]] = []
    checksums: list[Checksum] = []
    offsets: dict[str, int] = {}
    folders: set[str] = set()
    pending, start = bytearray(), 0  # literal bytes that begin at `start`

    def skip(count: int) -> None:
        """Go on behind `count` bytes that are written later."""
        nonlocal pending, start
        literals.append((start, bytes(pending)))
        start += len(pending) + count
        pending = bytearray()

    for name, member in members.items():
        for folder in reversed(list(_folders_above(name))):
            if folder not in folders:
                folders.add(folder)
                pending += _header(f"{folder}/", 0, _FOLDER, 0o755)
        size = len(member) if isinstance(member, bytes) else member.size
        pending += _header(name, size, _FILE, 0o644)
        offset = offsets[name] = start + len(pending)
        if isinstance(member, bytes):
            pending += member
        else:
            literals += [(offset + at, data) for at, data in member.literals]
            checksums += [
                Checksum(offset + one.start, one.length, tuple(offset + at for at in one.positions))
                for one in member.checksums
            ]
            skip(size)
        pending += bytes(-size % BLOCK)
    pending += bytes(2 * BLOCK)
    pending += bytes(-(start + len(pending)) % _RECORD)
    skip(0)
    literals.sort(key=lambda literal: literal[0])
    return OutputFile(path, start, tuple(literals), tuple(checksums)), offsets


def _header(name: str, size: int, kind: bytes, mode: int) -> bytes:
    """The header of a member, after a PAX header for what does not fit into it."""
    raw = name.encode()
    records = b""
    if len(raw) > 100 or not name.isascii():
        records += _record("path", raw)
    if size >= 1 << 33:  # eleven octal digits
        records += _record("size", str(size).encode())
    extended = _ustar(b"././@PaxHeader", len(records), _PAX, 0o644) + records + bytes(-len(records) % BLOCK)
    plain = _ustar(raw[:100], size if size < 1 << 33 else 0, kind, mode)
    return extended + plain if records else plain


def _record(key: str, value: bytes) -> bytes:
    """A PAX record, whose length counts its own digits."""
    rest = b" " + key.encode() + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def _ustar(name: bytes, size: int, kind: bytes, mode: int) -> bytes:
    numbers = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, 0, 0, size, 0)
    magic = b"ustar\x0000" + bytes(64) + b"%07o\0%07o\0" % (0, 0)
    header = name.ljust(100, b"\0") + numbers + b" " * 8 + kind + bytes(100) + magic
    header = header.ljust(BLOCK, b"\0")
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]
