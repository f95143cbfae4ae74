"""Reading a tar inside gzip at any place, without unpacking it anywhere.

Deflate can only be followed from its beginning. So one pass over the file keeps copies of the decompressor, some
megabytes apart: a range is read from the copy before it. The pass also checks every checksum. Nothing that is
inflated is kept, so a bomb costs time alone, and not much of that: what shrinks to nothing is not weights.

What is read this way is told by its content, alike at planning, when copying, and in every process: a gzip file
that holds a tar. No other format that is read here is that.
"""

from __future__ import annotations

import functools
import io
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import BinaryIO

from ckpt_core.errors import FormatError
from ckpt_core.storage.archive.tar import BLOCK, is_tar
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.bytes.stored import StoredFile, open_file, open_stream, opened

_MAGIC = b"\x1f\x8b\x08"  # of gzip, and its only method
_GZIP = 31  # zlib's code for gzip: it reads the header, and checks length and CRC at the end
_INPUT = 16 << 10
_PIECE = 1 << 20
_SPACING = 4 << 20
_MOST_ENTRIES = 256  # of about 60 KiB each
_MOST_CURSORS = 8
_LARGE = 256 << 20
_HIGHEST_RATIO = 200


class _Cursor:
    """A place in the inflated bytes from which they can be read on: `position` there, `at` in the file."""

    __slots__ = ("_inflater", "_started", "at", "file", "position")

    def __init__(self, file: StoredFile) -> None:
        self.file = file
        self.position = self.at = 0
        self._inflater = zlib.decompressobj(_GZIP)
        self._started = False  # whether a part of a member (gzip files may be several in a row) was read

    def copy(self) -> _Cursor:
        twin = _Cursor.__new__(_Cursor)
        twin.file, twin.position, twin.at = self.file, self.position, self.at
        twin._inflater, twin._started = self._inflater.copy(), self._started
        return twin

    def read(self, most: int) -> bytes:
        """Up to `most` of the next inflated bytes; none at the end."""
        while True:
            if self._inflater.eof:
                if self._only_zeros_follow():
                    return b""
                self._inflater, self._started = zlib.decompressobj(_GZIP), False
            data = self.file.pread(_INPUT, self.at)
            if not data and not self._started:
                return b""
            try:
                inflated = self._inflater.decompress(data, most)
            except zlib.error as error:
                raise FormatError(
                    "the gzip file is damaged",
                    file=self.file.path,
                    found=f"{error} (byte {self.at}, {self.position} inflated)",
                    fix="copy the file again",
                ) from None
            left = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            self.at += len(data) - len(left)
            self._started = True
            self.position += len(inflated)
            if inflated:
                return inflated
            if not data and not self._inflater.eof:
                raise FormatError(
                    "the gzip file is cut off",
                    file=self.file.path,
                    found=f"{self.at} bytes, {self.position} inflated",
                    fix="copy the file again",
                )

    def _only_zeros_follow(self) -> bool:
        """Whether the file ends here, as far as gzip tools care: zeros fill up the last block of a tape."""
        data = self.file.pread(_INPUT, self.at)
        return not any(data) and len(data) < _INPUT


class Inflated:
    """The inflated bytes of one gzip file: `size` of them, read at any place, by many threads.

    It is pickled as the file's state: another process makes an index of its own.
    """

    def __init__(self, state: FileState) -> None:
        self.state, self.size = state, 0
        self._file = opened(state.path, state)
        self._lock = threading.Lock()
        self._cursors: OrderedDict[int, _Cursor] = OrderedDict()  # where reading stopped: most reads go on there
        self._entries = self._index()

    def _index(self) -> list[_Cursor]:
        """Places at equal distances, found in one pass over the file; sets `size`."""
        cursor = _Cursor(self._file)
        entries, spacing = [cursor.copy()], _SPACING
        while cursor.read(_PIECE):
            if cursor.position - entries[-1].position >= spacing:
                entries.append(cursor.copy())
                if len(entries) > _MOST_ENTRIES:
                    del entries[1::2]
                    spacing *= 2
            if cursor.position > max(_LARGE, _HIGHEST_RATIO * cursor.at):
                raise FormatError(
                    "the gzip file inflates without end, as a bomb does",
                    file=self.state.path,
                    found=f"{cursor.position} bytes from {cursor.at}",
                    expected=f"at most {_HIGHEST_RATIO} times as many: weights do not shrink like that",
                    fix="if it is not an attack, unpack it and give the folder",
                )
        self.size = cursor.position
        return entries

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` from byte `offset` on; `FormatError` if there are not as many."""
        if offset + len(view) > self.size:
            raise FormatError(
                "the gzip file ends too early",
                file=self.state.path,
                found=f"{self.size} bytes inflated",
                expected=f"at least {offset + len(view)}",
            )
        cursor = self._cursor_before(offset)
        filled = 0
        while filled < len(view):
            ahead = offset - cursor.position
            inflated = cursor.read(min(_PIECE, ahead if ahead > 0 else len(view) - filled))
            if not inflated:
                raise FormatError("the file was truncated while it was being read", file=self.state.path)
            if ahead <= 0:
                view[filled : filled + len(inflated)] = inflated
                filled += len(inflated)
        with self._lock:
            self._cursors[cursor.position] = cursor
            if len(self._cursors) > _MOST_CURSORS:
                self._cursors.popitem(last=False)

    def _cursor_before(self, offset: int) -> _Cursor:
        """The nearest place to read on from; it is the caller's alone."""
        entry = max((entry for entry in self._entries if entry.position <= offset), key=lambda entry: entry.position)
        with self._lock:
            nearest = max((position for position in self._cursors if position <= offset), default=-1)
            if nearest >= entry.position:
                return self._cursors.pop(nearest)
        return entry.copy()

    def __reduce__(self) -> tuple[Callable[[FileState], Inflated], tuple[FileState]]:
        return _of_state, (self.state,)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


@functools.lru_cache(maxsize=2)
def _indexed(state: FileState, ctime_ns: int) -> Inflated | FormatError:
    """The index of a file, or why there is none: several formats ask for it, and it takes a pass over the file.

    A file that was changed and put back has its old state, but a later `ctime_ns`: it is indexed again.
    """
    try:
        return Inflated(state)
    except FormatError as problem:
        return problem


def _of_state(state: FileState) -> Inflated:
    found = _indexed(state, 0 if state.remote is not None else os.stat(state.path).st_ctime_ns)
    if isinstance(found, FormatError):
        raise found
    return found


def inflated(path: str | os.PathLike[str], state: FileState | None = None) -> Inflated | None:
    """The inflated bytes of a tar in gzip; None for any other file. The first call in a process reads all of it.

    `state` is what the file must still be.
    """
    return _of_state(state or FileState.of(path)) if is_tar_in_gzip(path, state) else None


def is_tar_in_gzip(path: str | os.PathLike[str], state: FileState | None = None) -> bool:
    """Whether a file begins as a gzip file does whose contents begin as a tar does."""
    with open_file(path, state) as file:
        return holds_tar_in_gzip(file)


def holds_tar_in_gzip(file: StoredFile) -> bool:
    """The same of an open file."""
    return file.pread(len(_MAGIC), 0) == _MAGIC and is_tar(_inflated_head(file))


def _inflated_head(file: StoredFile) -> bytes:
    cursor, head = _Cursor(file), b""
    try:
        while len(head) < BLOCK and (more := cursor.read(BLOCK - len(head))):
            head += more
    except FormatError:
        return b""
    return head


class _InflatedStream(io.RawIOBase):
    """The inflated bytes as a file."""

    def __init__(self, source: Inflated) -> None:
        self._source, self._at = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview | bytearray) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        view = view[: max(0, min(len(view), self._source.size - self._at))]
        self._source.read_into(view, self._at)
        self._at += len(view)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._source.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at


def open_stored(path: str | os.PathLike[str]) -> BinaryIO:
    """A file as offsets into it count: its own bytes, or, of a tar in gzip, the inflated ones.

    `FormatError` for what is not a regular file, and for a gzip file that is damaged or inflates without end.
    """
    source = inflated(path)
    if source is None:
        return open_stream(path)
    return _InflatedStream(source)  # type: ignore[return-value]
