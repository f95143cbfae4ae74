"""The schemes of addresses, and which addresses are well formed."""

from __future__ import annotations

import os
import re

from ckpt_core.addresses import stands_for
from ckpt_core.errors import UsageError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
BUCKETS = ("s3", "gs", "az")
SCHEMES = ("hf", *BUCKETS, "https", "http")

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ALMOST = re.compile(r"([A-Za-z][A-Za-z0-9]*):/?(?!/)")


def address_of(path: str) -> str:
    """A path as it is, an address with its scheme in lower case.

    `UsageError` for what is all but an address: pathlib makes `s3:/bucket` of `s3://bucket`, other programs write `s3:bucket`.
    """
    if (scheme := scheme_of(path)) is not None:
        if scheme in ("https", "http"):
            _check_url(path)
        query = path.partition("?")[2]
        if "=" in query and scheme not in (*BUCKETS, "hf"):  # there it may be a part of a name
            stands_for(f"?{query}", "")  # what signs a URL is shown to nobody
        return scheme + path[len(scheme) :]
    almost = _ALMOST.match(path)
    if almost and almost[1].lower() in SCHEMES and not os.path.lexists(path.split("/", 1)[0]):
        rest = path[almost.end() :]
        raise UsageError(
            "an address has two slashes behind its scheme",
            file=path,
            expected=f"{almost[1].lower()}://{rest}"
            + (" as text: pathlib.Path makes one slash of two" if "/" in almost[0] else ""),
            fix=f"for a file of this machine write ./{path}",
        )
    return path


def _check_url(address: str) -> None:
    """Raise `UsageError` for an address of the web that is no URL."""
    from urllib.parse import urlsplit

    try:
        host, _ = urlsplit(address).hostname, urlsplit(address).port
    except ValueError:
        host = None
    if not host:
        raise UsageError(
            "the address is no URL",
            found=address.partition("?")[0].rpartition("@")[2],
            expected="https://server/folder/ or https://server:port/file",
        )


def check_names(address: str) -> None:
    """Raise `UsageError` for an address in a bucket whose names its readers do not take: obstore has no empty ones, none that mean
    a folder above, and no control characters in them.
    """
    names = address.rstrip("/").split("/")[3:]
    strange = next((name for name in names if name in ("", ".", "..") or _CONTROL.search(name)), None)
    if strange is None and address.startswith("az://"):
        strange = next((name for name in names if "\\" in name), None)
        if strange is not None:
            raise UsageError(
                "Azure makes a slash of each backslash in a name",
                file=address,
                found=f"the name {strange!r}",
                fix="take another name, or write the slashes",
            )
    if strange is not None:
        raise UsageError(
            "the address is not that of a folder in a bucket",
            file=address,
            found=f"the name {strange!r}" if strange else "an empty name",
            expected=f"{scheme_of(address)}://bucket/folder, without empty names, '.', '..' and control characters",
        )


def scheme_of(path: str) -> str | None:
    """The scheme of an address in lower case; None for a path of this machine."""
    found = _SCHEME.match(path)
    return found[1].lower() if found else None
