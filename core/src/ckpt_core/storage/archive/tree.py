"""A checkpoint's files by name, wherever they are kept: in a folder, in a tar, or in a tar inside gzip.

    tree = open_tree("model.nemo")
    tree.read("model_config.yaml")
    extent = tree["mp_rank_00/model_weights.ckpt"]      # extent.file, extent.offset, extent.size

Names are relative, with forward slashes, and without `./`. What a folder holds is looked up when it is asked for;
an archive is listed whole, from its headers.
"""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping

from ckpt_core.errors import FormatError
from ckpt_core.storage.archive.extent import Extent
from ckpt_core.storage.archive.inflate import is_tar_in_gzip, open_stored
from ckpt_core.storage.archive.tar import BLOCK, is_tar, list_tar
from ckpt_core.storage.bytes.files import FileState, unreadable
from ckpt_core.storage.bytes.home import Home, home_of
from ckpt_core.storage.bytes.stored import open_file

_MAX_FILES = 1_000_000
_MAX_DEPTH = 64


class Tree(ABC):
    """The files below `path`; `tree[name]` is where one lies."""

    path: str
    files: Mapping[str, Extent]

    @property
    def states(self) -> list[FileState]:
        """The files on disk behind it: the archive, or every file of the folder."""
        return [FileState.of(path) for path in sorted({extent.file for extent in self.files.values()})]

    @property
    @abstractmethod
    def folders(self) -> list[str]:
        """The names of the folders directly in it, sorted."""

    @abstractmethod
    def below(self, prefix: str) -> Tree:
        """The tree of one folder in it; an empty one if there is no such folder."""

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def __getitem__(self, name: str) -> Extent:
        """Where the file called `name` lies; `FormatError` if there is none."""
        try:
            return self.files[name]
        except KeyError:
            raise FormatError("a file of the checkpoint is missing", file=self.place(name)) from None

    def place(self, name: str) -> str:
        """The file called `name` as errors name it: a path that goes through the archive as if it were a folder."""
        return f"{self.path}/{name}" if name else self.path

    def read(self, name: str, limit: int = 64 << 20) -> bytes:
        """A whole file that must be small (a config, an index); `FormatError` above `limit` bytes."""
        extent = self[name]
        if extent.size > limit:
            raise FormatError(
                "a metadata file is far too large",
                file=self.place(name),
                found=f"{extent.size} bytes",
                expected=f"at most {limit}",
            )
        return extent.read()


class _Folder(Tree):
    def __init__(self, path: str, home: Home) -> None:
        self.path, self._home = path, home
        self.files = _FolderFiles(path, home)

    @property
    def folders(self) -> list[str]:
        return [entry.name for entry in _entries(self.path) if os.path.isdir(entry.path)]

    def below(self, prefix: str) -> Tree:
        return _Folder(self.place(prefix), self._home)


class _Archive(Tree):
    def __init__(self, path: str, files: Mapping[str, Extent], folders: Collection[str]) -> None:
        self.path, self.files, self._folders = path, files, folders

    @property
    def folders(self) -> list[str]:
        return sorted(self._inner)

    def below(self, prefix: str) -> Tree:
        first, _, rest = prefix.partition("/")
        files, folders = self._inner.get(first, ({}, set()))
        inner = _Archive(self.place(first), files, folders)
        return inner.below(rest) if rest else inner

    @functools.cached_property
    def _inner(self) -> dict[str, tuple[dict[str, Extent], set[str]]]:
        """What is in each folder directly in it: an archive may have very many."""
        found: dict[str, tuple[dict[str, Extent], set[str]]] = {}
        for folder in self._folders:
            first, slash, rest = folder.partition("/")
            inner = found.setdefault(first, ({}, set()))
            if slash:
                inner[1].add(rest)
        for name, extent in self.files.items():
            first, slash, rest = name.partition("/")
            if slash:
                found[first][0][rest] = extent
        return found


def open_tree(path: str | os.PathLike[str]) -> Tree:
    """The files of a folder, or of a tar or tar.gz (told by content); a `FormatError` for anything else."""
    path = os.fspath(path)
    if os.path.isdir(path):
        return _Folder(path, home_of(path))
    FileState.of(path)  # that says what is wrong with a file that is none
    if not is_archive(path):
        raise FormatError(
            "this is neither a folder nor a tar archive", file=path, expected="a folder, a tar or a tar.gz"
        )
    with open_stored(path) as stream:
        listing = list_tar(stream, path, stream.seek(0, os.SEEK_END))
    files = {name: Extent(path, member.offset, member.size) for name, member in listing.files.items()}
    return _Archive(path, files, listing.folders)


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a tar or a tar.gz does; False for what is not a file. Only the head is read."""
    try:
        with open_file(path) as file:
            head = file.pread(BLOCK, 0)
        return is_tar(head) or is_tar_in_gzip(path)
    except (FormatError, OSError):
        return False


class _FolderFiles(Mapping[str, Extent]):
    """The files below a folder, looked up when they are asked for. Iterating walks it; linked folders are not entered.

    A link may only lead to a file at `home`.
    """

    def __init__(self, folder: str, home: Home) -> None:
        self._folder, self._home = folder, home

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _is_relative(name) and os.path.isfile(os.path.join(self._folder, name))

    def __getitem__(self, name: str) -> Extent:
        full = os.path.join(self._folder, name)
        if not _is_relative(name) or not os.path.lexists(full):
            raise KeyError(name)
        self._home.check(full)
        return Extent(full, 0, FileState.of(full).size)

    def __iter__(self) -> Iterator[str]:
        pending, count = [("", 0)], 0
        while pending:
            folder, depth = pending.pop()
            for entry in _entries(os.path.join(self._folder, folder)):
                count += 1
                if count > _MAX_FILES or depth > _MAX_DEPTH:
                    raise FormatError(
                        "the folder holds too much to be a checkpoint", file=self._folder, found=entry.path
                    )
                name = f"{folder}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    pending.append((f"{name}/", depth + 1))
                elif os.path.isfile(entry.path):  # unlike the entry's own method, False for a link to itself
                    yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _is_relative(name: str) -> bool:
    """Whether a name stays below the folder that it counts from."""
    return not {"", ".", ".."} & set(name.split("/")) and "\0" not in name and "\\" not in name


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, error) from error
