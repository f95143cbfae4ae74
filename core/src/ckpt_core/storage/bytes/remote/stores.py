"""Which store an address is in, and the schemes that there are."""

from __future__ import annotations

import functools
import re

from ckpt_core.errors import UsageError
from ckpt_core.storage.bytes.remote.objects import Store

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
BUCKETS = ("s3", "gs", "az")
SCHEMES = ("hf", *BUCKETS, "https", "http")


def scheme_of(path: str) -> str | None:
    """The scheme of an address in lower case; None for a path of this machine."""
    found = _SCHEME.match(path)
    return found[1].lower() if found else None


def store_of(address: str) -> Store:
    """The store that an address is in; `UsageError` for a scheme that no store has."""
    scheme = scheme_of(address)
    if scheme not in SCHEMES:
        raise UsageError(
            f"there is no reader for {scheme}://",
            file=address,
            expected="a path, or " + ", ".join(f"{name}://" for name in SCHEMES),
            fix="give the path itself" if scheme == "file" else "copy the files to one of these first",
        )
    return _store(scheme if scheme not in BUCKETS else "/".join(address.split("/", 3)[:3]))


@functools.cache
def _store(name: str) -> Store:
    """One for each scheme, and one for each bucket. What a store needs is imported for it alone."""
    if name == "hf":
        from ckpt_core.storage.bytes.remote.hub import Hub

        return Hub()
    if name in ("http", "https"):
        from ckpt_core.storage.bytes.remote.web import Web

        return Web()
    from ckpt_core.storage.bytes.remote.buckets import Bucket

    return Bucket(name)
