"""A cache of ranges, for who asks for one (`--cache`): a file with holes for each version of an object, and a list of what is there.

DIR/HASH.data     the bytes, at their places
DIR/HASH.have     a line "START STOP" for each range that is there, added after the bytes were synced; a line that a
                      crash cut off is ended by the next one

Where the data is shorter than its list says, somebody removed it or cut it. The list is then not believed, and is begun anew.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

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
        with contextlib.ExitStack() as stack:
            # The size is looked at before the list is read: where data was lost, the list is emptied before other data is written, so that no list of
            # the old data is held against the size of the new.
            data, size = -1, 0
            with contextlib.suppress(FileNotFoundError):
                data = os.open(self._data, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, data)
                size = os.fstat(data).st_size
            ranges = self._ranges()
            listed = max((last for _, last in ranges), default=0)
            held = listed <= size and _holds(ranges, offset, offset + len(view))
            if held and os.preadv(data, [view], offset) == len(view):
                return
        fetch(view, offset)
        self._keep(view, offset, listed)

    def _ranges(self) -> list[tuple[int, int]]:
        try:
            with open(self._have, "rb") as file:
                lines = file.read(_LARGE).split(b"\n")[:-1]  # the last one may not be whole yet
        except FileNotFoundError:
            return []
        found = [line.split() for line in lines]
        return [(int(pair[0]), int(pair[1])) for pair in found if len(pair) == 2 and all(map(bytes.isdigit, pair))]

    def _keep(self, view: memoryview, offset: int, listed: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with _open(self._data, flags) as data:
            # The data was removed or cut, and what is listed of it would read as zeros. The list may also have what another process put into the data
            # meanwhile: that is fetched again.
            if os.fstat(data).st_size < max(listed, 1):
                with contextlib.suppress(FileNotFoundError):
                    os.truncate(self._have, 0)
            left, at = view, offset
            while len(left):
                count = os.pwrite(data, left, at)
                left, at = left[count:], at + count
            os.fdatasync(data)
            there = _is_there(self._data, data)
        if there:  # else the file was removed meanwhile, and a new one of its name has holes there
            with _open(self._have, flags | os.O_APPEND) as have:
                os.write(have, f"\n{offset} {offset + len(view)}\n".encode())


@contextlib.contextmanager
def _open(path: str, flags: int) -> Iterator[int]:
    """A descriptor inside the block, in which an error of the system, such as a full disk, names the file."""
    descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    except OSError as error:
        error.filename = error.filename or path
        raise
    finally:
        os.close(descriptor)


def _holds(ranges: Iterable[tuple[int, int]], start: int, stop: int) -> bool:
    """Whether ranges together have all from `start` to `stop`."""
    reached = start
    for first, last in sorted(ranges):
        if first > reached:
            break
        reached = max(reached, last)
    return reached >= stop


def _is_there(path: str, descriptor: int) -> bool:
    """Whether a path leads to the file that is open."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False
