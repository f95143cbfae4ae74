"""What lies in a store: objects with an address, a size and a version, and how a store is asked for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Protocol

from ckpt_core.errors import FormatError
from ckpt_core.lean import dataclass


def without_secrets(url: str) -> str:
    """A URL without what signs it: signatures are not for logs."""
    from urllib.parse import urlsplit

    return urlsplit(url)._replace(query="", fragment="").geturl()


@dataclass(frozen=True, slots=True)
class Object:
    """A file that lies elsewhere, as it was when it was listed. It is pickled with what is read of it: a worker needs no list.

    `address` is the whole one, `size` is in bytes, `version` changes whenever the bytes do (an ETag, a hash), `modified_ns` is
    the time of the last change, 0 where the store does not say. `query` signs a URL, and is shown to nobody. `copy` is a file on this machine with the same bytes, and
    `cache` a folder in which to keep the ranges that are read.
    """

    address: str
    size: int
    version: str
    modified_ns: int = 0
    query: str = field(default="", repr=False)
    copy: str | None = None
    cache: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies at an address: `objects` below `root`, all of the folder (or the file) `path` in it, and files beside and above it.

    `root` is an address without a slash at its end, `path` has forward slashes, and is empty for all that is in the root. `beside` has the names of
    folders beside it, where a store says them.
    """

    root: str
    path: str
    objects: Sequence[Object]
    beside: Sequence[str] = ()


class Store(Protocol):
    """Where objects lie. Its errors are `Hiccup` for what may pass, and `CkptError` for what will not."""

    def listing(self, address: str) -> Listing:
        """The objects in the folder at an address, or the one that it names."""
        ...

    def now(self, object: Object) -> Object:
        """The object as it is now; `changed` if it is gone."""
        ...

    def read(self, object: Object, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes from `offset` on, of this version of the object or of none: then `changed`."""
        ...


class Hiccup(Exception):
    """A failure that may pass: the same request is sent again, after `wait` seconds if the server says how long.

    `look` is what to look at where it does not pass.
    """

    def __init__(self, reason: str, wait: float | None = None, look: str | None = None) -> None:
        self.reason, self.wait, self.look = reason, wait, look
        super().__init__(reason)


def changed(object: Object, found: str) -> FormatError:
    """The source is another one than when it was listed."""
    return FormatError(
        "the source changed while it was being read",
        file=object.address,
        found=found,
        expected=f"{object.size} bytes, version {object.version}",
        fix="let the writer finish, then run again",
    )
