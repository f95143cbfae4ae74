"""Files that are only read, wherever they lie: one on this machine by its descriptor, one in a store by ranges.

    with open_file("model.safetensors") as file:
        file.read_into(view, offset)

A path that stands for an object of a store is known by `storage.bytes.remote`; a `FileState` that has one takes it along, so that
a worker on another machine needs nothing else.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from ckpt_core.errors import FormatError
from ckpt_core.storage.bytes.files import FileState, naming, open_regular, pread_into
from ckpt_core.storage.bytes.home import check_at_home
from ckpt_core.storage.bytes.remote import object_at, ranges
from ckpt_core.storage.bytes.remote.objects import Object

_DIRECT = 1 << 20
_AHEAD = 8 << 20


class StoredFile(Protocol):
    """An open file: `size` bytes, read at any place by any number of threads."""

    path: str
    size: int

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` from `offset`; `FormatError` if the file ends before, or is another one now."""
        ...

    def pread(self, count: int, offset: int) -> bytes:
        """At most `count` bytes from `offset` on: fewer only at the end."""
        ...

    def stream(self) -> BinaryIO:
        """The file from its beginning, in order; it is closed with what this returns."""
        ...

    def close(self) -> None:
        """Nothing more is read."""
        ...


class LocalFile:
    """A file on this machine."""

    def __init__(self, path: str | os.PathLike[str], state: FileState | None = None) -> None:
        self.path, self._descriptor = os.fspath(path), open_regular(path)
        try:
            status = os.fstat(self._descriptor)
            if state is not None:
                state.check(status)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.size = status.st_size

    def read_into(self, view: memoryview, offset: int) -> None:
        """See `StoredFile`."""
        with naming(self.path):
            pread_into(self._descriptor, view, offset, self.path)

    def pread(self, count: int, offset: int) -> bytes:
        """See `StoredFile`."""
        try:
            return os.pread(self._descriptor, count, offset)
        except OSError as error:  # as `naming` does: this is called for each of very many torch files
            error.filename = error.filename or self.path
            raise

    def stream(self) -> BinaryIO:
        """See `StoredFile`."""
        return os.fdopen(self._descriptor, "rb")

    def close(self) -> None:
        """See `StoredFile`."""
        os.close(self._descriptor)


class RemoteFile:
    """An object of a store."""

    def __init__(self, object: Object) -> None:
        self.path, self.size, self._object = object.address, object.size, object

    def read_into(self, view: memoryview, offset: int) -> None:
        """See `StoredFile`."""
        ranges.read_into(self._object, view, offset)

    def pread(self, count: int, offset: int) -> bytes:
        """See `StoredFile`."""
        return ranges.read(self._object, offset, count)

    def stream(self) -> BinaryIO:
        """See `StoredFile`."""
        return io.BufferedReader(_RemoteStream(self))

    def close(self) -> None:
        """See `StoredFile`."""


class _RemoteStream(io.RawIOBase):
    """A remote file in order. Who reads it in large pieces, one after the other, gets them from one that is larger still."""

    def __init__(self, file: RemoteFile) -> None:
        self._file, self._at, self._ahead, self._from = file, 0, b"", -1

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview | bytearray) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        view = view[: max(0, min(len(view), self._file.size - self._at))]
        inside = self._at - self._from
        if not 0 <= inside < len(self._ahead) and len(view) >= _DIRECT and inside == len(self._ahead):
            self._ahead, self._from, inside = self._file.pread(_AHEAD, self._at), self._at, 0
        if 0 <= inside < len(self._ahead):
            view = view[: len(self._ahead) - inside]
            view[:] = memoryview(self._ahead)[inside : inside + len(view)]
        elif len(view):
            self._file.read_into(view, self._at)
            self._ahead, self._from = b"", self._at + len(view)
        self._at += len(view)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at


def opened(path: str | os.PathLike[str], state: FileState | None = None) -> StoredFile:
    """A file to be read; pair it with `close`. With `state`, it must be what it was then. The errors are those of `open_regular`."""
    object = object_at(path) if state is None else state.remote
    if object is None:
        return LocalFile(path, state)
    if state is None:
        check_at_home(path)
    return RemoteFile(object)


@contextlib.contextmanager
def open_file(path: str | os.PathLike[str], state: FileState | None = None) -> Iterator[StoredFile]:
    """A file to be read inside the block: see `opened`."""
    file = opened(path, state)
    try:
        yield file
    finally:
        file.close()


def open_stream(path: str | os.PathLike[str]) -> BinaryIO:
    """A file to be read in order, or sought in; it closes when the stream is closed."""
    return opened(path).stream()


def first_bytes(path: str | os.PathLike[str], count: int) -> bytes:
    """The first bytes of what lies at a path, whatever it is: a pointer to the file and what is not of the checkpoint too."""
    if (object := object_at(path)) is not None:
        return ranges.read(object, 0, count)
    with open(path, "rb") as file:
        return file.read(count)


def read_range(path: str, start: int, count: int) -> bytes:
    """`count` bytes of a file from `start`; `FormatError` if it has fewer."""
    with open_file(path) as file:
        data = file.pread(count, start)
    if len(data) != count:
        raise FormatError(
            "the file is truncated", file=path, found=f"{start + len(data)} bytes", expected=f"at least {start + count}"
        )
    return data


def read_small(path: str | os.PathLike[str], limit: int = 64 << 20) -> bytes:
    """A whole file that must be small (a config, an index); `FormatError` above `limit` bytes."""
    state = FileState.of(path)
    if state.size > limit:
        raise FormatError(
            "a metadata file is far too large", file=path, found=f"{state.size} bytes", expected=f"at most {limit}"
        )
    return read_range(state.path, 0, state.size)
