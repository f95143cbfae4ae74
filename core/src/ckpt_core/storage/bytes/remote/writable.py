"""Which store an address is written to, and what to do about those that are not."""

from __future__ import annotations

import functools
import os

from ckpt_core.errors import UsageError
from ckpt_core.storage.bytes.names import RECEIPT
from ckpt_core.storage.bytes.remote.objects import without_secrets
from ckpt_core.storage.bytes.remote.schemes import address_of, check_names, scheme_of
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
    if scheme == "s3":
        *root, path = (address.rstrip("/") + "/").split("/", 3)
        names = path.removesuffix("/").split("/")
        bucket = "".join(root[2:])
        if names == [""] and not (below and bucket):
            raise UsageError(
                "the address names a bucket, and no folder in it" if bucket else "the address names no bucket",
                file=without_secrets(address),
                expected="s3://bucket/folder",
                fix=f"give the output a name: s3://{bucket or 'bucket'}/NAME",
            )
        check_names(address)
        if len(os.fsencode(names[-1])) > _LONGEST_NAME:
            raise UsageError(
                "the name of the output is too long",
                file=without_secrets(address),
                expected=f"at most {_LONGEST_NAME} bytes: what stands beside it has longer ones",
            )
        return _s3("/".join(root))
    raise UsageError(
        f"{scheme}:// is no destination",
        file=without_secrets(address),
        expected="a path of this machine, or s3://bucket/folder",
        fix=_WAYS.get(scheme, "write to a local folder, then copy it there, the receipt last"),
    )


_WAYS = {
    "hf": "write to a local folder, then: hf upload OWNER/NAME FOLDER",
    "gs": "write to a local folder, then: gcloud storage cp --recursive, the receipt last",
    "az": "write to a local folder, then: azcopy copy --recursive, the receipt last",
}


@functools.cache
def _s3(root: str) -> WritableStore:
    from ckpt_core.storage.bytes.remote.s3 import S3

    return S3(root)
