"""Files of this machine, which may change, vanish or lie while we read.

Files are read with `pread`, never mapped: a mapped file that is truncated kills the process with
SIGBUS, a short `pread` is an error message. A file is identified when it is first seen; every later open looks again.

    size, modification time     another one: the file changed, which is an error
    inode, change of its state  another one: somebody touched it (a copy over it, a restored time, but also a hard link or
                                `chmod`): whoever reads it finds out whether its contents are the same
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import field

from ckpt_core.errors import FormatError
from ckpt_core.lean import dataclass
from ckpt_core.storage.bytes import watch
from ckpt_core.storage.bytes.home import check_at_home
from ckpt_core.storage.bytes.pointers import LONGEST, pointer_in
from ckpt_core.storage.bytes.remote import object_at, ranges
from ckpt_core.storage.bytes.remote.objects import Object, changed

# What is wrong with a path itself. Any other reason (a network file system that lost its server, no descriptor left, a disk
# that fails, no permission) is one of the machine: nothing is wrong with the file, and work that is done stays.
_WRONG_PATHS = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV}
_MOST_OPEN = 128
_FOLIO = 256 << 10
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True, slots=True)
class FileState:
    """What a file was when the plan was made; `remote` is the object that its path stands for, if it is not of this machine.

    `ctime_ns` and `inode` (0 where they are not known) tell more to the machine that saw them: see `is_untouched`. On another machine, or
    after a mount, they may be others.
    """

    path: str
    size: int
    mtime_ns: int
    remote: Object | None = None
    ctime_ns: int = field(default=0, compare=False)
    inode: int = field(default=0, compare=False)

    @classmethod
    def of(cls, path: str | os.PathLike) -> FileState:
        check_at_home(path)
        if (remote := object_at(path)) is not None:
            if remote.size <= LONGEST:
                _check_itself(ranges.read(remote, 0, remote.size), path)
            return cls(os.fspath(path), remote.size, remote.modified_ns, remote)
        try:
            status = watch.seen(path, os.stat, path)
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error
        _check_regular(status, path)
        if status.st_size <= LONGEST:  # it may be a pointer to the file: opening it tells
            os.close(open_regular(path))
        return cls(os.fspath(path), status.st_size, status.st_mtime_ns, None, status.st_ctime_ns, status.st_ino)

    def recheck(self) -> bool:
        """Whether the file is untouched; `FormatError` if it is not what it was any more."""
        if self.remote is None:
            status = _as_opened(self.path)
            self.check(status)
            return self.is_untouched(status)
        if (now := ranges.now(self.remote)) != self.remote:
            raise changed(self.remote, f"{now.size} bytes, version {now.version}")
        return True

    def check(self, status: os.stat_result) -> None:
        """Raise `FormatError` if the file is no longer what it was."""
        was, now = (self.size, self.mtime_ns), (status.st_size, status.st_mtime_ns)
        if now != was:
            raise watch.changed(self.path, was, now)

    def is_untouched(self, status: os.stat_result) -> bool:
        """Whether nobody put another file in its place, wrote to it, or changed anything about it, as far as that is known.

        No program can set the time of such a change back. So it tells of a file whose size and modification time were restored.
        """
        known = (self.ctime_ns, status.st_ctime_ns), (self.inode, status.st_ino)
        return all(now == was or not was for was, now in known)


def _as_opened(path: str) -> os.stat_result:
    """The state of a file as whoever opens it sees it: a client of NFS then asks the server, and for `stat` it may answer what it knew
    up to a minute ago."""
    descriptor = open_regular(path)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


class Folder:
    """A folder that stays the same one while it is open, whatever is mounted over its path, or gets its name, meanwhile."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.descriptor)


def open_regular(path: str | os.PathLike[str]) -> int:
    """A descriptor to read a regular file; `FormatError` for one that is not there or does not belong to the checkpoint, for
    a pipe or a device, and for a text that version control left in place of a file.

    Opening a pipe would wait for a writer for ever, so it is opened without waiting and then looked at. An error of the
    system stays an `OSError`.
    """
    check_at_home(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unreadable(path, error) from error
    try:
        status = watch.seen(path, os.fstat, descriptor)
        _check_regular(status, path)
        if status.st_size <= LONGEST or not stat.S_IMODE(
            status.st_mode
        ):  # root may open a stand-in, which nobody else may
            _check_itself(os.pread(descriptor, LONGEST, 0), path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_itself(head: bytes, path: str | os.PathLike[str]) -> None:
    pointer = pointer_in(head)
    if pointer is not None:
        raise FormatError(
            f"{pointer.name} lies in place of the file",
            file=path,
            found=f"a text of {len(head)} bytes",
            expected="the file that it points to",
            fix=pointer.fix,
        )


def _check_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise FormatError("not a regular file", file=path, found=kind)


def unreadable(path: str | os.PathLike[str], error: OSError | ValueError) -> FormatError | OSError:
    """What to raise for a path that can't be read: an error of the input, or, where the system fails, its own, with the path."""
    if isinstance(error, OSError) and error.errno not in _WRONG_PATHS:
        error.filename = error.filename or os.fspath(path)
        return error
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return FormatError("the file can't be read", file=path, found=reason)


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Have an `OSError` about a descriptor, which knows no name, say which file it is about."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or path
        raise


def open_written(path: str, flags: int = 0, folder: Folder | None = None) -> int:
    """A descriptor to write to an output file; a link in its place is not followed. Pair it with `close`.

    With `folder`, which the path leads into, it is looked for in that one.
    """
    flags |= os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    with naming(path):
        if folder is None:
            return os.open(path, flags, 0o666)
        return os.open(os.path.relpath(path, folder.path), flags, dir_fd=folder.descriptor)


def close(path: str, descriptor: int, folder: Folder | None = None) -> None:
    """Close a file that was written.

    Network file systems say only here that data is lost, and say so once. A file whose close fails is therefore removed, so
    that no later run believes what a journal says of it. The descriptor is gone in any case (close(2)).
    """
    try:
        os.close(descriptor)
    except OSError as error:
        error.filename = path
        with contextlib.suppress(OSError):
            if folder is None:
                os.unlink(path)
            else:
                os.unlink(os.path.relpath(path, folder.path), dir_fd=folder.descriptor)
        raise


@contextlib.contextmanager
def written(path: str, flags: int = 0) -> Iterator[int]:
    """A descriptor to write to an output file inside the block; every error, that of closing it too, names the file."""
    descriptor = open_written(path, flags)
    try:
        with naming(path):
            yield descriptor
    except BaseException:
        with contextlib.suppress(OSError):
            close(path, descriptor)
        raise
    close(path, descriptor)


class OpenFiles:
    """At most `limit` open descriptors, for many threads; the least recently used is closed first.

    They are of files that are only read or, with `written_in`, of output files in that folder. Without a `limit` it is a
    quarter of the descriptors a process may have, for there are two of these pools, and 128 at most.
    """

    def __init__(self, written_in: Folder | None = None, limit: int | None = None) -> None:
        self._written_in, self._limit = written_in, limit or _usual_limit()
        self.touched: set[str] = set()
        """The files that are what they were by size and modification time, and were touched before they were opened."""
        self._open: OrderedDict[str, list[int]] = OrderedDict()  # path -> [descriptor, users]
        self._lock = threading.Lock()

    def descriptor(self, path: str, state: FileState | None = None) -> Use:
        """A descriptor of `path` that stays open inside the block (`with`); checked against `state` when it is opened."""
        with self._lock:
            entry = self._open.get(path)
            if entry is None:
                entry = [self._open_checked(path, state), 0]
                self._open[path] = entry
            self._open.move_to_end(path)
            entry[1] += 1
        return Use(self, path, entry)

    def _release(self, entry: list[int]) -> None:
        with self._lock:
            entry[1] -= 1
            if len(self._open) > self._limit:
                idle = [key for key, (_, users) in self._open.items() if not users]
                for key in idle[: len(self._open) - self._limit]:
                    self._close(key)

    def _open_checked(self, path: str, state: FileState | None) -> int:
        if self._written_in is not None:
            return open_written(path, folder=self._written_in)
        descriptor = open_regular(path)
        if state is not None:
            status = os.fstat(descriptor)
            try:
                state.check(status)
            except FormatError:
                os.close(descriptor)
                raise
            if not state.is_untouched(status):
                self.touched.add(path)
        return descriptor

    def _close(self, path: str) -> None:
        """Forget a descriptor, and then close it: whatever that says, its number may be another file's from now on."""
        descriptor, _ = self._open.pop(path)
        if self._written_in is not None:
            close(path, descriptor, self._written_in)
        else:
            with contextlib.suppress(OSError):  # nothing is lost of what was only read
                os.close(descriptor)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            self.close()

    def close(self) -> None:
        """Close everything; no descriptor may be in use. Raises the first error, after all are closed."""
        failures: list[OSError] = []
        with self._lock:
            for path in list(self._open):
                try:
                    self._close(path)
                except OSError as error:
                    failures.append(error)
        if failures:
            raise failures[0]


class Use:
    """A descriptor in use by one block. It is a class, as every chunk has several, and a generator takes three times as long."""

    __slots__ = ("_entry", "_files", "_path")

    def __init__(self, files: OpenFiles, path: str, entry: list[int]) -> None:
        self._files, self._path, self._entry = files, path, entry

    def __enter__(self) -> int:
        return self._entry[0]

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):  # which knows no name
            error.filename = error.filename or self._path
        self._files._release(self._entry)


def _usual_limit() -> int:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_OPEN if allowed == resource.RLIM_INFINITY else max(1, min(_MOST_OPEN, allowed // 4))


def pread_into(descriptor: int, view: memoryview, offset: int, path: str) -> None:
    """Fill `view` from `offset`; `FormatError` if the file ends before."""
    while len(view):
        count = os.preadv(descriptor, [view], offset)
        if count == 0:
            raise FormatError("the file was truncated while it was being read", file=path, found=f"{offset} bytes")
        view, offset = view[count:], offset + count


def pwrite_all(descriptor: int, view: memoryview, offset: int) -> None:
    """Write all of `view` at `offset`, at most `_FOLIO` bytes of a long one at a time.

    The kernel makes folios of the page cache as large as a write, up to 2 MiB. Under a hypervisor that takes free memory back, large free blocks are those
    that it took, and each of their pages costs more than all else when it is written again: a GB in writes of 2 MiB took 1.8 s of CPU time, and 0.15 in these.
    """
    while len(view):
        count = os.pwrite(descriptor, view if len(view) < 2 * _FOLIO else view[: _FOLIO - offset % _FOLIO], offset)
        view, offset = view[count:], offset + count
