"""Which store an address is in."""

from __future__ import annotations

import functools

from ckpt_core.errors import UsageError
from ckpt_core.storage.bytes.remote.objects import Store
from ckpt_core.storage.bytes.remote.schemes import BUCKETS, SCHEMES, scheme_of


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
