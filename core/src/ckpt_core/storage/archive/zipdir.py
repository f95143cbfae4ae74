"""The directory of a zip archive whose members are stored, not compressed, as torch writes them.

    [local header | name | extra | data [| descriptor]] ...    one per member
    [central header | name | extra | comment] ...              the central directory
    [zip64 end record, zip64 locator]                          when 16 or 32 bits do not suffice
    [end record | comment]                                     found from the end of the file

A zip file tells everything twice, and tools disagree about which to believe. So
both must agree here: sizes, names, offsets and the number of members; members
may not overlap or reach into the directory.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, NoReturn

from ckpt_core.errors import FormatError
from ckpt_core.lean import dataclass

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR64 = struct.Struct("<4sIQI")
LOCAL_SIGNATURE, CENTRAL_SIGNATURE, END_SIGNATURE = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
END64_SIGNATURE, LOCATOR64_SIGNATURE = b"PK\x06\x06", b"PK\x06\x07"
ZIP64_FIELD = 0x0001
_SUM_IN_LOCAL, _SUM_IN_CENTRAL = 14, 16
U16, U32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED, _DESCRIPTOR = 0x2041, 0x0008  # bits 0, 6 and 13; bit 3: sizes follow the data

_MAX_MEMBERS = 500_000  # of 400 bytes of memory each
_MAX_DIRECTORY = 1 << 27


@dataclass(frozen=True, slots=True)
class Member:
    """One member: `size` bytes of data at byte `offset` of the file that holds the archive. `crc` 0: not recorded."""

    name: str
    offset: int
    size: int
    crc: int


def read_zip_directory(stream: BinaryIO, file: str, start: int, end: int) -> dict[str, Member]:
    """The members of the archive in bytes [`start`, `end`) of `stream`, by name and in file order.

    Raises `FormatError` naming `file` unless the archive is complete, consistent and uncompressed.
    """
    return Directory(stream, file, start, end).members()


class Directory:
    """The directory of one archive, and what it was read from: `looked_at` are ranges of bytes (offset, count) in the file, and `sums` are the
    two places that tell the CRC-32 of each member, in its own header and in the directory.
    """

    def __init__(self, stream: BinaryIO, file: str, start: int, end: int) -> None:
        self._stream, self._file, self._start, self._end = stream, file, start, end
        self.looked_at: list[tuple[int, int]] = []
        self.sums: dict[str, tuple[int, int]] = {}

    def members(self) -> dict[str, Member]:
        directory, size, count = self._locate()
        if count > _MAX_MEMBERS or size > _MAX_DIRECTORY:
            self._fail(
                "the zip archive has too many members",
                found=f"{count} in {size} bytes",
                expected=f"at most {_MAX_MEMBERS}",
            )
        if count * CENTRAL.size > size:
            self._fail("the zip directory is too small for its members", found=f"{count} in {size} bytes")
        listed = self._entries(self._read(directory, size), count)
        listed.sort(key=lambda entry: entry[0])
        found: dict[str, Member] = {}
        free_from = self._start
        for header, name, size, crc, flags, at in listed:
            where = self._start + header
            if where < free_from:
                self._fail(
                    f"the zip members overlap at {name!r}", found=f"byte {where}", expected=f"byte {free_from} or later"
                )
            data = self._data_offset(where, name, size, crc, flags)
            free_from = data + size
            if free_from > directory:
                self._fail(
                    f"the zip member {name!r} reaches into the directory", found=f"{size} bytes from byte {data} on"
                )
            if name in found:
                self._fail(f"the zip archive holds {name!r} twice")
            found[name] = Member(name, data, size, crc)
            self.sums[name] = where + _SUM_IN_LOCAL, directory + at + _SUM_IN_CENTRAL
        return found

    def _locate(self) -> tuple[int, int, int]:
        """(offset in the file, bytes, members) of the central directory."""
        length = min(self._end - self._start, END.size)
        tail = self._read(self._end - length, length)
        if not tail.startswith(END_SIGNATURE):  # there is a comment; torch writes none
            length = min(self._end - self._start, END.size + U16)
            tail = self._read(self._end - length, length)
        at = tail.rfind(END_SIGNATURE)
        # A signature inside the comment would be an end record that does not reach the end: not believed.
        if at < 0 or len(tail) - at < END.size or END.unpack_from(tail, at)[7] != len(tail) - at - END.size:
            self._fail("the zip archive has no end", fix="copy the file again; it is cut off or damaged")
        _, disk, first_disk, here, count, size, offset, _ = END.unpack_from(tail, at)
        end_record = self._end - length + at
        limit = end_record
        locator = end_record - LOCATOR64.size
        if locator >= self._start and self._read(locator, 4) == LOCATOR64_SIGNATURE:
            _, _, where, disks = LOCATOR64.unpack(self._read(locator, LOCATOR64.size))
            limit = self._start + where
            if limit + END64.size != locator:
                self._fail("the zip64 end record is not where it should be", found=f"byte {limit}")
            small = (here, count, size, offset)
            record = END64.unpack(self._read(limit, END64.size))
            signature, _, _, _, disk, first_disk, here, count, size, offset = record
            if signature != END64_SIGNATURE or disks > 1:
                self._fail("the zip64 end record is damaged")
            for short, long, unknown in zip(small, (here, count, size, offset), (U16, U16, U32, U32), strict=True):
                if short not in (unknown, long):
                    self._fail("the zip end records contradict each other", found=f"{short} and {long}")
        if disk or first_disk or here != count:
            self._fail("the zip archive is in several parts", found=f"part {disk}, {here} of {count} members")
        if self._start + offset + size != limit:
            self._fail(
                "the zip directory is not where it should be",
                found=f"{size} bytes from byte {offset} on",
                expected=f"an end at byte {limit - self._start}",
                fix="the file is damaged, or something was put before or behind it",
            )
        return self._start + offset, size, count

    def _entries(self, directory: bytes, count: int) -> list[tuple[int, str, int, int, int, int]]:
        """(header offset, name, size, crc, flags) of each member, and where in the directory it is told."""
        listed: list[tuple[int, str, int, int, int, int]] = []
        at = 0
        for _ in range(count):
            if at + CENTRAL.size > len(directory):
                self._fail("the zip directory is cut off", found=f"{len(listed)} members", expected=f"{count}")
            fields = CENTRAL.unpack_from(directory, at)
            signature, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length, comment_length = fields[
                :13
            ]
            disk, header = fields[13], fields[16]
            entry, name_at = at, at + CENTRAL.size
            extra_at = name_at + name_length
            at = extra_at + extra_length + comment_length
            if signature != CENTRAL_SIGNATURE or at > len(directory):
                self._fail("the zip directory is damaged", found=f"member {len(listed)}")
            name = self._name(directory[name_at:extra_at])
            if U32 in (packed, size, header):
                wide = _zip64(directory[extra_at : extra_at + extra_length])
                needed = [value for value in (size, packed, header) if value == U32]
                if wide is None or len(wide) < 8 * len(needed):
                    self._fail(f"the zip member {name!r} has no 64-bit sizes")
                values = iter(struct.unpack_from(f"<{len(needed)}Q", wide))
                size, packed, header = (next(values) if value == U32 else value for value in (size, packed, header))
            if flags & _ENCRYPTED:
                self._fail(f"the zip member {name!r} is encrypted")
            if method != 0 or packed != size:
                self._fail(
                    f"the zip member {name!r} is compressed",
                    found=f"method {method}, {packed} bytes for {size}",
                    expected="a stored member, as torch.save writes",
                    fix="load the file with torch and save it again, or repack it with `zip -0`",
                )
            if disk not in (0, U16):
                self._fail("the zip archive is in several parts", found=f"{name!r} in part {disk}")
            listed.append((header, name, size, crc, flags, entry))
        if at != len(directory):
            self._fail("the zip directory holds more than its members", found=f"{len(directory) - at} bytes")
        return listed

    def _data_offset(self, where: int, name: str, size: int, crc: int, flags: int) -> int:
        """Where the data of the member starts whose local header is at byte `where`; the header must agree."""
        fields = LOCAL.unpack(self._read(where, LOCAL.size))
        signature: bytes
        name_length: int
        extra_length: int
        signature, _, local_flags, method, _, _, local_crc, packed, local_size, name_length, extra_length = fields
        if signature != LOCAL_SIGNATURE:
            self._fail(f"the zip member {name!r} is not where the directory says", found=f"byte {where}")
        rest = self._read(where + LOCAL.size, name_length + extra_length)
        if self._name(rest[:name_length]) != name or method != 0 or (local_flags ^ flags) & (_ENCRYPTED | _DESCRIPTOR):
            self._fail(f"the zip member {name!r} has another name or kind in its own header", found=f"byte {where}")
        if U32 in (packed, local_size):
            wide = _zip64(rest[name_length:])
            if wide is not None and len(wide) >= 16:
                local_size, packed = struct.unpack_from("<2Q", wide)
        # With bit 3 set the sizes follow the data, and stand here as 0 (or as the mark for 64 bits).
        unknown = {0, U32} if flags & _DESCRIPTOR else set()
        if not {packed, local_size} <= {size} | unknown or local_crc not in {crc} | ({0} if unknown else set()):
            self._fail(
                f"the zip member {name!r} has another size or checksum in its own header",
                found=f"{local_size} bytes",
                expected=f"{size} bytes",
            )
        return where + LOCAL.size + name_length + extra_length

    def _name(self, raw: bytes) -> str:
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            self._fail("a zip member's name is not UTF-8", found=repr(raw[:60]))
        parts = name.split("/")
        if (
            not name
            or name.startswith("/")
            or ".." in parts
            or "\\" in name
            or "\0" in name
            or (len(name) > 1 and name[1] == ":")
        ):
            self._fail("a zip member has a name that points elsewhere", found=repr(name[:60]))
        return name

    def _read(self, offset: int, count: int) -> bytes:
        if offset < self._start or count < 0 or offset + count > self._end:
            self._fail("the zip archive points past its end", found=f"{count} bytes from byte {offset} on")
        self.looked_at.append((offset, count))
        self._stream.seek(offset)
        data = self._stream.read(count)
        if len(data) != count:
            self._fail(
                "the file ends too early", found=f"{len(data)} bytes from byte {offset} on", expected=f"{count} bytes"
            )
        return data

    def _fail(self, problem: str, found: object = None, expected: object = None, fix: str | None = None) -> NoReturn:
        raise FormatError(problem, file=self._file, found=found, expected=expected, fix=fix)


def _zip64(extra: bytes) -> bytes | None:
    """The zip64 field among the extra fields of a header."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == ZIP64_FIELD:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    return None
