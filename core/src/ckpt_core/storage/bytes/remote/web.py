"""`https://`: files of any web server, and folders of one that lists them in a page of links (Apache, nginx, `python -m http.server`)."""

from __future__ import annotations

import contextlib
import email.utils
import netrc
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from http.client import HTTPMessage
from urllib.parse import quote, unquote, urljoin, urlsplit

from ckpt_core.errors import CkptError, StoreError, UsageError
from ckpt_core.storage.bytes.remote import http
from ckpt_core.storage.bytes.remote.http import Refused
from ckpt_core.storage.bytes.remote.objects import Listing, Object, changed, without_secrets

_LONGEST_PAGE = 16 << 20
_DEEPEST = 32
_GONE = (404, 410, 412, 416)
_MOST_DIGITS = 18  # of a size that a file can have


class Web:
    """Files behind URLs. A file's version is its ETag, or the time of its last change where the server gives none."""

    def listing(self, address: str) -> Listing:
        """The file at a URL, or those that the page there links to, with the folders below it."""
        parts = urlsplit(address)
        if "@" in parts.netloc:
            raise UsageError(
                "an address with a password would end up in logs and receipts",
                found=f"{parts.scheme}://...@{parts.hostname}",
                fix="put it into ~/.netrc",
            )
        try:
            url, headers = http.head(address, _credentials(address))
            folder = next((one for one in (url, address) if urlsplit(one).path.endswith("/")), None)
            objects = [_object(address, headers)] if folder is None else list(self._below(folder, _DEEPEST))
        except Refused as refused:
            raise _no(address, refused) from None
        asked = urlsplit(folder or address)
        return Listing(f"{asked.scheme}://{asked.netloc}", unquote(asked.path).strip("/"), objects)

    def _below(self, folder: str, depth: int) -> Iterator[Object]:
        if not depth:
            raise StoreError("folders lie too deep in one another", file=without_secrets(folder))
        url, headers, page = http.body(folder, _credentials(folder), _LONGEST_PAGE)
        if "html" not in headers.get("Content-Type", ""):
            raise StoreError(
                "the server does not list what is in this folder",
                file=without_secrets(folder),
                found=headers.get("Content-Type"),
                expected="a page of links",
                fix="give the address of a file, or download the folder",
            )
        links = _Links(url)
        links.feed(page.decode("utf-8", "replace"))
        for inner in sorted(links.found):
            if inner.endswith("/"):
                yield from self._below(inner, depth - 1)
            else:
                yield _object(inner, http.head(inner, _credentials(inner))[1])

    def now(self, object: Object) -> Object:
        """The file as it is now."""
        url = _url(object)
        try:
            found = _object(url, http.head(url, _credentials(url))[1])
        except Refused as refused:
            raise self._said(object, refused) from None
        return replace(object, size=found.size, version=found.version)

    def read(self, object: Object, view: memoryview, offset: int) -> None:
        """Fill `view` from `offset`, if the server still has this version."""
        url, when = _url(object), email.utils.formatdate(object.modified_ns / 1e9, usegmt=True)
        strong = object.version.startswith('"')
        weak = {"If-Unmodified-Since": when} if object.modified_ns else {}  # a weak ETag meets no condition
        condition = {"If-Match": object.version} if strong else weak
        try:
            headers = http.read_range(url, {**_credentials(url), **condition}, view, offset, object.size)
        except Refused as refused:
            raise self._said(object, refused) from None
        if (version := _version(headers)) not in (None, object.version):  # a server may know no conditions
            raise changed(object, f"version {version}")

    def _said(self, object: Object, refused: Refused) -> CkptError:
        return changed(object, str(refused)) if refused.status in _GONE else _no(object.address, refused)


class _Links(HTMLParser):
    """The links of a page that lead to what lies directly in its own folder."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self._page = page
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href") if tag == "a" else None
        if target:
            url = urljoin(self._page, target)
            inside = url.removeprefix(self._page)
            if (
                url.startswith(self._page)
                and inside.rstrip("/")
                and not set("?#") & set(url)
                and "/" not in inside[:-1]
            ):
                self.found.add(url)


def _object(url: str, headers: HTTPMessage) -> Object:
    address, version, size = unquote(without_secrets(url)), _version(headers), headers.get("Content-Length", "")
    if version is None or not size.isdecimal() or len(size) > _MOST_DIGITS:
        raise StoreError(
            "the server does not say enough of the file to read a part of it",
            file=address,
            found=", ".join(
                f"{name}: {headers[name]}" for name in ("Content-Length", "ETag", "Last-Modified") if name in headers
            ),
            expected="Content-Length, and ETag or Last-Modified: without them a change would not be seen",
            fix="download it, and give the file",
        )
    modified = 0
    with contextlib.suppress(ValueError, TypeError):
        modified = int(email.utils.parsedate_to_datetime(headers.get("Last-Modified", "")).timestamp()) * 10**9
    return Object(address, int(size), version, modified, urlsplit(url).query)


def _version(headers: HTTPMessage) -> str | None:
    return headers.get("ETag") or headers.get("Last-Modified")


def _url(object: Object) -> str:
    """The URL of an object: its address may hold spaces and letters that a request may not."""
    parts = urlsplit(object.address.replace("?", "%3F").replace("#", "%23"))
    return parts._replace(path=quote(parts.path, safe="/%:@!$&'()*+,;=~"), query=object.query).geturl()


def _credentials(url: str) -> dict[str, str]:
    """What ~/.netrc says of a server."""
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        found = netrc.netrc().authenticators(urlsplit(url).hostname or "")
        if found is not None:
            return {"Authorization": http.basic(found[0], found[2] or "")}
    return {}


def _no(address: str, refused: Refused) -> StoreError:
    return StoreError(
        "the server does not give this file",
        file=without_secrets(address),
        found=str(refused),
        fix=f"put the name and the password into ~/.netrc{_unread()}" if refused.status in (401, 403) else None,
    )


def _unread() -> str:
    """Why the passwords that are there already are not used; its own words may have one of them."""
    try:
        with contextlib.suppress(OSError):
            netrc.netrc()
    except netrc.NetrcParseError as error:
        where = f"line {error.lineno} is wrong" if error.lineno else "something in it is wrong"
        return f", which is not read as it is: {where}, or others may read it (chmod 600 ~/.netrc)"
    return ""
