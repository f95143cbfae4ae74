"""Which store an address is written to, and what to do about those that are not."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from ckpt_core.errors import UsageError
from ckpt_core.storage.bytes.names import RECEIPT
from ckpt_core.storage.bytes.remote.objects import without_secrets
from ckpt_core.storage.bytes.remote.schemes import address_of, check_names, scheme_of

if TYPE_CHECKING:
    from ckpt_core.storage.bytes.remote.writing import WritableStore

_LONGEST_NAME = 255 - len(f".{RECEIPT}")


def writable(address: str, below: bool = False) -> WritableStore | None:
    """The store that an address is written to; None for a path of this machine. `below`: outputs get names below it, so that it may be a bucket.

    `UsageError` for a scheme that is not written and for a bucket without a folder, `CkptError` where a library is missing.
    """
    address = address_of(address)
    scheme = scheme_of(address)
    if scheme is None:
        return None
    if scheme in _KINDS:
        *root, path = (address.rstrip("/") + "/").split("/", 3)
        names = path.removesuffix("/").split("/")
        bucket, kind = "".join(root[2:]), _KINDS[scheme]
        if names == [""] and not (below and bucket):
            raise UsageError(
                f"the address names a {kind}, and no folder in it" if bucket else f"the address names no {kind}",
                file=without_secrets(address),
                expected=f"{scheme}://{kind}/folder",
                fix=f"give the output a name: {scheme}://{bucket or kind}/NAME",
            )
        check_names(address)
        if len(os.fsencode(names[-1])) > _LONGEST_NAME:
            raise UsageError(
                "the name of the output is too long",
                file=without_secrets(address),
                expected=f"at most {_LONGEST_NAME} bytes: what stands beside it has longer ones",
            )
        return _store("/".join(root))
    raise UsageError(
        f"{scheme}:// is no destination",
        file=without_secrets(address),
        expected="a path of this machine, " + " or ".join(f"{name}://{_KINDS[name]}/folder" for name in _KINDS),
        fix=_WAYS.get(scheme, "write to a local folder, then copy it there, the receipt last"),
    )


_KINDS = {"s3": "bucket", "az": "container"}
_WAYS = {
    "hf": "write to a local folder, then: hf upload OWNER/NAME FOLDER",
    "gs": "write to a local folder, then: gcloud storage cp --recursive, the receipt last",
}


@functools.cache
def _store(root: str) -> WritableStore:
    """One for each bucket. What a store needs is imported for it alone."""
    if root.startswith("az://"):
        from ckpt_core.storage.bytes.remote.az import Azure

        return Azure(root)
    from ckpt_core.storage.bytes.remote.s3 import S3

    return S3(root)
