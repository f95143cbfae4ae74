"""Where the files of a checkpoint may really lie: links must not carry what is not part of it into what is written.

A stranger's folder may hold a `tokenizer.json` that is a link to a private file, or a folder of templates that is a link to
`~/.ssh`. So every file is looked at where it really lies, with the links of all its folders followed:

    in the checkpoint                          read
    in `blobs` beside `snapshots/REVISION`     read: in the cache of the Hugging Face hub, home is that cache's repository
    named by the user (`-o tokenizer=FILE`)    read
    beside the checkpoint, where a format      read, if it really lies there
      looks (a config in the folder around it)
    anywhere else                              read only if it begins as a file of tensors does: weights may be links, to
                                               a download or to another disk, and no document can pass for them
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

from ckpt_core.errors import FormatError

_HASHES = (40, 64)  # hexadecimal digits of the name of a blob: of git's hash, or of SHA-256
_ZIP = b"PK\x03\x04"  # torch files, and the items of a .distcp
_TORCH = bytes.fromhex("8a0a6cfc9c46f9206aa85019")  # torch's files before 1.6 begin with a pickle of this number
_HEAD = 32


def plain(path: str) -> str:
    """The path as it is; without a `..` if that is behind a link.

    For the system `link/../out` is beside the folder that the link leads to. `os.path.abspath` looks at the text alone, and finds `out` beside
    the link: whatever lies there is somebody else's. What comes behind the last `..` stays, whether it is a link or not.
    """
    parts = path.split(os.sep)
    if os.pardir not in parts:
        return path
    last = len(parts) - parts[::-1].index(os.pardir)
    above = os.sep.join(parts[:last])
    real = os.path.realpath(above)
    if real == os.path.realpath(os.path.abspath(above)):
        return path
    return os.path.join(real, *parts[last:])


def absolute(path: str) -> str:
    """The path from the root, where the system finds it."""
    return os.path.abspath(plain(path))


class Home:
    """The place of the checkpoint at `path` (a folder, or a file in one); `named` are files that the user gave besides."""

    def __init__(self, path: str | os.PathLike[str], named: Iterable[str] = ()) -> None:
        given = os.path.abspath(path)
        self._folder = given if os.path.isdir(given) else os.path.dirname(given)
        self._named = {given, *map(os.path.abspath, named)}
        self._real_folders: dict[str, str] = {}
        self._held: set[str] = set()
        real = os.path.realpath(self._folder)
        self._roots = [real, *_blobs_of_cache(real)]
        self.refused: FormatError | None = None
        """The first file that was refused: a plugin that only looks whether it knows a path swallows such errors."""

    def holds(self, path: str | os.PathLike[str]) -> bool:
        """Whether a file or a folder belongs to the checkpoint, where it really lies."""
        lexical, real = os.path.abspath(path), self._real(os.fspath(path))
        if lexical in self._named or any(_inside(real, root) for root in self._roots) or _is_blob(real):
            return True
        if _inside(lexical, self._folder):
            return False
        return real == os.path.join(os.path.realpath(os.path.dirname(lexical)), os.path.basename(lexical))

    def check(self, path: str | os.PathLike[str], weights: bool = True) -> None:
        """Raise `FormatError` for what does not belong to the checkpoint; `weights`: unless it is a file of tensors."""
        if os.fspath(path) in self._held:
            return
        if self.holds(path):
            self._held.add(os.fspath(path))
        elif not (weights and _begins_with_tensors(path)):
            self.refused = FormatError(
                f"{os.path.basename(path)} is a link that leads out of the checkpoint",
                file=path,
                found=os.path.realpath(path),
                expected="a file in the checkpoint; only weights may be elsewhere",
                fix="copy it there if it belongs to the model, or remove the link",
            )
            raise self.refused

    def _real(self, path: str) -> str:
        folder, name = os.path.split(path)
        return _followed(os.path.join(self._real_folder(folder), name))

    def _real_folder(self, folder: str) -> str:
        """Each folder is looked at once, and then what lies in it from there: a checkpoint may be thousands of folders."""
        below: list[tuple[str, str]] = []
        inner = folder
        while inner not in self._real_folders:
            outer, name = os.path.split(inner)
            if not outer or outer == inner or name in ("", os.curdir, os.pardir):
                self._real_folders[inner] = os.path.realpath(inner)
                break
            below.append((inner, name))
            inner = outer
        real = self._real_folders[inner]
        for inner, name in reversed(below):
            real = self._real_folders[inner] = _followed(os.path.join(real, name))
        return real


def _followed(path: str) -> str:
    """Where a path leads whose folder is real."""
    return os.path.realpath(path) if os.path.islink(path) else path


_present: ContextVar[Home | None] = ContextVar("home", default=None)


@contextlib.contextmanager
def at_home(path: str | os.PathLike[str], named: Iterable[str] = ()) -> Iterator[Home]:
    """Have every file that is opened inside the block, in this thread, be one of the checkpoint at `path`."""
    home = Home(path, named)
    token = _present.set(home)
    try:
        yield home
    finally:
        _present.reset(token)


def home_of(path: str | os.PathLike[str]) -> Home:
    """The home that is being read, or, outside of any `at_home`, that of the checkpoint at `path`."""
    return _present.get() or Home(path)


def check_at_home(path: str | os.PathLike[str]) -> None:
    """Raise `FormatError` for a file that is not one of the checkpoint that is being read."""
    home = _present.get()
    if home is not None:
        home.check(path)


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _blobs_of_cache(real: str) -> list[str]:
    """Where links lead from a folder in `REPOSITORY/snapshots/REVISION`, if there are blobs beside `snapshots`."""
    repository, snapshots, _ = real.rpartition("/snapshots/")
    blobs = os.path.join(repository, "blobs")
    return [os.path.realpath(blobs)] if snapshots and os.path.isdir(blobs) else []


def _is_blob(real: str) -> bool:
    """Whether a file is a blob of a hub's cache, whose name is the hash of what is in it.

    A download into a folder of one's own (`local_dir`) was one of links to them until huggingface_hub 0.23.
    """
    folder, name = os.path.split(real)
    hashed = len(name) in _HASHES and not set(name) - set("0123456789abcdef")
    return (
        hashed
        and os.path.basename(folder) == "blobs"
        and os.path.isdir(os.path.join(os.path.dirname(folder), "snapshots"))
    )


def _begins_with_tensors(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as safetensors or a torch file do. What is not a file is left to whoever opens it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return True
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return True
        head = os.pread(descriptor, _HEAD, 0)
    finally:
        os.close(descriptor)
    header = int.from_bytes(head[:8], "little")
    is_safetensors = head[8:9] == b"{" and 2 <= header <= status.st_size - 8
    return is_safetensors or head.startswith(_ZIP) or (head.startswith(b"\x80") and _TORCH in head)
