"""A remote folder as a folder of stand-ins, so that every format finds it as it finds one on disk.

A stand-in has the name and the size of an object, holds no data (it is a hole behind one line of text), and may be opened by
nobody. `storage.bytes` knows the objects by the paths of their stand-ins and reads from the store. Code that opened a stand-in by
itself would be refused by the system or, as root, meet a text that no format takes for one of its files.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from contextvars import ContextVar
from dataclasses import replace

from ckpt_core import addresses
from ckpt_core.errors import CkptError, FormatError, StoreError, nearest
from ckpt_core.storage.bytes.home import plain
from ckpt_core.storage.bytes.names import RECEIPT, UNFINISHED
from ckpt_core.storage.bytes.pointers import STAND_IN
from ckpt_core.storage.bytes.remote import ranges
from ckpt_core.storage.bytes.remote.objects import Listing, Object, without_secrets
from ckpt_core.storage.bytes.remote.ranges import again
from ckpt_core.storage.bytes.remote.schemes import BUCKETS, address_of, check_names, scheme_of
from ckpt_core.storage.bytes.remote.stores import store_of

_MOST = 1_000_000
_ATTEMPTS = 3  # to list, when nothing is done yet: a wrong name of a server is said soon
_LONGEST_NAME = 255

cache: ContextVar[str | None] = ContextVar("cache", default=None)
"""A folder in which to keep what is read of remote files; None to keep nothing."""

_objects: dict[str, Object] = {}  # path of the stand-in -> the object
_tops: list[str] = []
_lock = threading.Lock()


def localised(path: str) -> str:
    """The path on this machine to read for `path`: itself, or the stand-in of what lies at an address, as it is now."""
    path = address_of(path)
    scheme = scheme_of(path)
    if scheme is None:
        return plain(path)
    if scheme == "hf":
        from ckpt_core.storage.bytes.remote import hub

        if hub.offline():
            return hub.snapshot(path)
    if scheme in BUCKETS:
        check_names(path)
    store = store_of(path)
    listing = again(without_secrets(path), lambda: store.listing(path), _ATTEMPTS)
    _check_finished(listing)
    if not any(_is_in(listing, one) for one in listing.objects):
        raise _absent(listing, path)
    if len(listing.objects) > _MOST:
        raise CkptError("too many objects to be a checkpoint", file=without_secrets(path), found=len(listing.objects))
    with _lock:
        return os.path.join(_stood(listing), listing.path).rstrip("/")


def _absent(listing: Listing, path: str) -> CkptError:
    """The error about an address where nothing is: what lies beside may be meant."""
    above = f"{listing.root}/{listing.path}".rpartition("/")[0] + "/"
    there = [one.address.removeprefix(above) for one in listing.objects if one.address.startswith(above)]
    meant = nearest(listing.path.rpartition("/")[2], {name.partition("/")[0] for name in (*there, *listing.beside)})
    place = without_secrets(path).rstrip("/")
    fix = None if meant is None else f"did you mean {place.rpartition('/')[0]}/{meant}?"
    return CkptError("there is no such file or folder", file=without_secrets(path), fix=fix)


def _is_in(listing: Listing, one: Object) -> bool:
    inside = f"{listing.root}/{listing.path}".rstrip("/")
    return one.address == inside or one.address.startswith(f"{inside}/")


def found(path: str) -> str | None:
    """As `localised`; None where nothing is, or nothing that is finished. `StoreError` if the store does not say."""
    if scheme_of(path) is None:
        return path if os.path.lexists(path) else None
    try:
        return localised(path)
    except StoreError:
        raise
    except CkptError:
        return None


def _check_finished(listing: Listing) -> None:
    """Raise `CkptError` for what a conversion has not finished: it would lack files, and nothing else would tell."""
    inside = f"{listing.root}/{listing.path}".rstrip("/")
    known = {one.address for one in listing.objects}
    if inside + UNFINISHED in known and known.isdisjoint((f"{inside}/{RECEIPT}", f"{inside}.{RECEIPT}")):
        raise CkptError(
            "a conversion to this address is not finished",
            file=inside,
            found=f"{inside}{UNFINISHED}, and no receipt",
            fix="repeat the command that writes there: what is done is kept",
        )


def object_at(path: str | os.PathLike[str]) -> Object | None:
    """The object that a path stands for; None for a file of this machine."""
    if not _objects:
        return None
    text = os.fspath(path)
    return _objects.get(text) or _objects.get(os.path.abspath(text))


def stand_in(path: str | os.PathLike[str]) -> bool:
    """Whether a path leads into a folder of stand-ins: other programs can't read what is there."""
    text = os.path.abspath(path)
    return any(text == root or text.startswith(root + os.sep) for root in _tops)


def _stood(listing: Listing) -> str:
    """The folder of stand-ins for a listing's root."""
    root = os.path.join(_top(), *_folder_for(listing.root))
    os.makedirs(root, exist_ok=True)
    addresses.stands_for(root, listing.root)
    names = {one: one.address.removeprefix(f"{listing.root}/") for one in listing.objects}
    for one, name in names.items():
        _check_name(one, name)
    folders: set[str] = set()
    for folder in {os.path.dirname(name) for name in names.values()}:
        while folder and folder not in folders:
            folders.add(folder)
            folder = os.path.dirname(folder)
    marks = {one: name for one, name in names.items() if one.size == 0 and name in folders}  # as some stores do
    for one, mark in marks.items():
        del names[one]
        if (
            _objects.pop(os.path.join(root, mark), None) is not None
        ):  # nothing was in the folder when it was listed before
            os.unlink(os.path.join(root, mark))
    kept = cache.get()
    _forget(os.path.join(root, listing.path).rstrip("/"), {os.path.join(root, name) for name in names.values()})
    try:
        for folder in sorted(folders):
            os.makedirs(os.path.join(root, folder), exist_ok=True)
        for one, name in names.items():
            place = os.path.join(root, name)
            if not (one.size == 0 and os.path.isdir(place)):  # the folder above the one that was listed
                _stand(place, one)
                _objects[place] = replace(one, cache=kept)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise FormatError(
            "an object and a folder have one name",
            file=addresses.spelled(str(error.filename)),
            expected="names as files have them",
        ) from None
    rows: dict[tuple[str, str], list[Object]] = {}
    for name in sorted(names.values()):  # the shards of a model, the files of the ranks: whoever reads one reads all
        if (known := _objects.get(os.path.join(root, name))) is not None and known.size:
            rows.setdefault((os.path.dirname(name), os.path.splitext(name)[1]), []).append(known)
    for row in rows.values():
        ranges.follow(row)
    return root


def _forget(inside: str, there: set[str]) -> None:
    """Remove the stand-ins of what was there when the folder was listed before, and is there no more."""
    for place in [one for one in _objects if (one == inside or one.startswith(inside + os.sep)) and one not in there]:
        del _objects[place]
        os.unlink(place)
        folder = os.path.dirname(place)
        with contextlib.suppress(OSError):  # a folder that holds something else
            while folder.startswith(inside):
                os.rmdir(folder)
                folder = os.path.dirname(folder)


def _folder_for(root: str) -> tuple[str, ...]:
    """Where the stand-ins of a root lie: those of the hub as in its own cache, where readers find name and commit."""
    scheme, _, rest = root.partition("://")
    if scheme == "hf":
        name, _, commit = rest.partition("@")
        return (scheme, f"models--{name.replace('/', '--')}", "snapshots", commit)
    return (scheme, rest)


def _check_name(one: Object, name: str) -> None:
    """Raise `FormatError` for an object whose name is no path in its folder."""
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or "\0" in name or any(len(os.fsencode(part)) > _LONGEST_NAME for part in parts):
        raise FormatError(
            "an object has a name that no file can have", file=one.address, expected="a path inside its folder"
        )


def _stand(place: str, one: Object) -> None:
    if os.path.lexists(place):
        os.unlink(place)
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0)
    try:
        os.write(descriptor, (STAND_IN + one.address.encode("utf-8", "surrogatepass") + b"\n")[: one.size])
        os.truncate(descriptor, one.size)
        os.utime(descriptor, ns=(one.modified_ns, one.modified_ns))
    except OSError as error:  # a full disk: of this machine, so it is not said by the address
        error.filename = _top()
        error.add_note("this folder stands for the remote one: name another with TMPDIR")
        raise
    finally:
        os.close(descriptor)


def _top() -> str:
    """The folder of this process's stand-ins; it is removed when the process ends."""
    if not _tops:
        import tempfile

        top = os.path.realpath(tempfile.mkdtemp(prefix="ckpt-"))
        _tops.append(top)
        atexit.register(_remove, top, os.getpid())
    return _tops[0]


def _remove(top: str, process: int) -> None:
    if os.getpid() == process:  # a fork of it ends earlier
        import shutil

        shutil.rmtree(top, ignore_errors=True)
