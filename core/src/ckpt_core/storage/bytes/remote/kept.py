"""A cache of ranges, for who asks for one (`--cache`): a file with holes for each version of an object, and a list of what is there.

DIR/HASH.data     the bytes, at their places
DIR/HASH.have     a line "START STOP" for each range that is there, added after the bytes were synced; a line that a
                      crash cut off is ended by the next one
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from ckpt_core.storage.bytes.remote.objects import Object

_LARGE = 1 << 20  # bytes of a list that is no longer read: many small reads


class Cache:
    """The ranges of one version of one object that are on this machine. Any number of processes may share it."""

    def __init__(self, folder: str, object: Object) -> None:
        from blake3 import blake3

        name = blake3(
            f"{object.address}\0{object.version}\0{object.size}".encode("utf-8", "surrogatepass")
        ).hexdigest()[:32]
        self._data, self._have = os.path.join(folder, f"{name}.data"), os.path.join(folder, f"{name}.have")
        os.makedirs(folder, mode=0o700, exist_ok=True)

    def read_into(self, view: memoryview, offset: int, fetch: Callable[[memoryview, int], None]) -> None:
        """Fill `view` from `offset`; what is not here is fetched, and kept."""
        if self._holds(offset, offset + len(view)) and self._read(view, offset):
            return
        fetch(view, offset)
        self._keep(view, offset)

    def _holds(self, start: int, stop: int) -> bool:
        reached = start
        for first, last in sorted(self._ranges()):
            if first > reached:
                break
            reached = max(reached, last)
        return reached >= stop

    def _ranges(self) -> list[tuple[int, int]]:
        try:
            with open(self._have, "rb") as file:
                lines = file.read(_LARGE).split(b"\n")[:-1]  # the last one may not be whole yet
        except FileNotFoundError:
            return []
        found = [line.split() for line in lines]
        return [(int(pair[0]), int(pair[1])) for pair in found if len(pair) == 2 and all(map(bytes.isdigit, pair))]

    def _read(self, view: memoryview, offset: int) -> bool:
        with contextlib.suppress(FileNotFoundError), open(self._data, "rb", buffering=0) as file:
            return os.preadv(file.fileno(), [view], offset) == len(view)
        return False

    def _keep(self, view: memoryview, offset: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        data = os.open(self._data, flags, 0o600)
        try:
            left, at = view, offset
            while len(left):
                count = os.pwrite(data, left, at)
                left, at = left[count:], at + count
            os.fdatasync(data)
        finally:
            os.close(data)
        have = os.open(self._have, flags | os.O_APPEND, 0o600)
        try:
            os.write(have, f"\n{offset} {offset + len(view)}\n".encode())
        finally:
            os.close(have)
