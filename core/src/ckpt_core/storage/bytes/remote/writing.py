"""Stores that are written to: a file goes there in numbered parts, in any order, and is seen by nobody before it is completed.

A part that is sent again replaces the first one. What is completed, and what is put whole, never replaces an object: a name is
given once (`Taken`); the claim alone is written anew by who holds it. Each object is marked with the plan that it was written by.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Sequence
from typing import Protocol

from ckpt_core.lean import dataclass

_PIECE = 1 << 20


class Taken(Exception):
    """There is an object of this name already."""


class Gone(Exception):
    """There is no such upload: it was completed, or it was aborted."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part as the store has it: its tag, which for most stores is the MD5 of its bytes, and its size."""

    tag: str
    size: int


@dataclass(frozen=True, slots=True)
class Written:
    """An object as it is now, and the hash of the plan that it was written by: "" for one that ckpt did not write."""

    size: int
    plan: str


@dataclass(frozen=True, slots=True)
class Read:
    """All bytes of a small object, and their version: a tag that changes whenever they do."""

    data: bytes
    version: str


class Body(io.RawIOBase):
    """`size` bytes of a file of this machine from `start` on, as a stream that may be read again."""

    def __init__(self, path: str, start: int, size: int) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._start, self.size, self._at = start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def __deepcopy__(self, memo: object) -> Body:
        # azure-core copies a request that failed, body and all: a second owner of the descriptor would close it when it is forgotten.
        return self

    def readinto(self, buffer: memoryview | bytearray) -> int:  # type: ignore[override]
        if self.closed:
            raise ValueError("the part is closed: its descriptor may be another file's by now")
        view = memoryview(buffer).cast("B")
        count = os.preadv(self._descriptor, [view[: max(0, self.size - self._at)]], self._start + self._at)
        self._at += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def __len__(self) -> int:
        return self.size

    @functools.cached_property
    def md5(self) -> bytes:
        """The MD5 of the bytes: stores check what arrives against it."""
        import hashlib  # OpenSSL, which takes a while to load

        digest = hashlib.md5(usedforsecurity=False)
        before, self._at = self._at, 0
        while piece := self.read(_PIECE):
            digest.update(piece)
        self._at = before
        return digest.digest()

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class WritableStore(Protocol):
    """Where files are written to. Its errors are `Hiccup` for what may pass, and `StoreError` for what will not."""

    def removal(self, address: str, single: bool = False) -> str:
        """The command that removes what lies in a folder, or the `single` object of that name, for who is told to; for a shell."""
        ...

    def below(self, address: str) -> Sequence[str]:
        """The names of the objects in a folder, as paths in it; some of them where there are very many."""
        ...

    def written(self, address: str) -> Written | None:
        """The object at an address; None if there is none."""
        ...

    def read(self, address: str) -> Read | None:
        """All of a small object; None if there is none."""
        ...

    def put(self, address: str, body: Body | bytes, plan: str, over: str | None = None) -> None:
        """Make an object in one step; `Taken` if there is one. With `over`, replace the one of that version; `Taken` if it is another one, or gone."""
        ...

    def remove(self, address: str) -> None:
        """Remove an object, if it is there."""
        ...

    def begin(self, address: str, plan: str) -> str:
        """Begin an upload; returns its name, which no other upload has."""
        ...

    def send(self, address: str, upload: str, number: int, body: Body) -> str:
        """Send a part, numbered from 1; returns its tag. `Gone` if there is no such upload."""
        ...

    def parts(self, address: str, upload: str) -> dict[int, Part]:
        """The parts that have arrived, by their numbers. `Gone` if there is no such upload."""
        ...

    def complete(self, address: str, upload: str, tags: Sequence[str], plan: str) -> None:
        """Make the object of its parts, in their order. `Taken` if there is one of this name, `Gone` if there is no such upload."""
        ...

    def abort(self, address: str, upload: str) -> None:
        """Drop an upload with all its parts, if it is there; no other upload to this address loses any."""
        ...
