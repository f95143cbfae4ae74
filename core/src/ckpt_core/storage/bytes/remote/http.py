"""HTTP as ranges need it: kept connections, redirects, proxies, and answers that are checked before they are believed."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import http.client
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from ckpt_core.errors import StoreError
from ckpt_core.storage.bytes.remote.objects import Hiccup, without_secrets

_TIMEOUT = 60.0  # seconds without a byte
_MOST_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_NO_HEAD = (403, 405, 501)  # 403: S3 and Google sign a URL for one method
_PLAIN = "%/:=&?~+!$,;'@()*[]"  # what `quote` leaves alone in a URL, beside letters and digits
_PIECE = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_local = threading.local()

Headers = Mapping[str, str]
T = TypeVar("T")


class Refused(Exception):
    """An answer that will be the same next time: `status`, and the reason in words."""

    def __init__(self, status: int, reason: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(f"{status} {reason}" if status else reason)


def head(url: str, headers: Headers) -> tuple[str, http.client.HTTPMessage]:
    """The headers of what lies at a URL, and the URL where it really lies; `Refused` or `Hiccup` if it does not say.

    A server that gives no headers alone is asked for the first byte.
    """
    try:
        return _asked("HEAD", url, headers, lambda answer, url: (url, answer.headers))
    except Refused as refused:
        if refused.status not in _NO_HEAD:
            raise
    return _asked("GET", url, {**headers, "Range": "bytes=0-0"}, _headers_alone)


def _headers_alone(answer: http.client.HTTPResponse, url: str) -> tuple[str, http.client.HTTPMessage]:
    """What an answer to HEAD would have: the length of the whole file. The body may be that file, so it is left where it is."""
    said = answer.headers
    if answer.status == 206:
        found = _CONTENT_RANGE.fullmatch(said.get("Content-Range", "").strip())
        del said["Content-Length"]
        if found is not None and found[3] != "*":
            said["Content-Length"] = found[3]
    answer.will_close = True
    answer.close()
    return url, said


def body(url: str, headers: Headers, longest: int) -> tuple[str, http.client.HTTPMessage, bytes]:
    """A whole small text, with the URL where it really lies and its headers."""

    def whole(answer: http.client.HTTPResponse, url: str) -> tuple[str, http.client.HTTPMessage, bytes]:
        data = answer.read(longest + 1)
        if len(data) > longest:
            raise Refused(200, f"more than {longest} bytes")
        return url, answer.headers, data

    return _asked("GET", url, headers, whole)


def read_range(url: str, headers: Headers, view: memoryview, offset: int, size: int) -> http.client.HTTPMessage:
    """Fill `view` with the bytes from `offset` on of the `size` bytes at a URL; returns the headers of the answer.

    `Hiccup` for a body that ends early, `Refused` for another status, and `StoreError` for a server that does not keep to the range.
    """
    last = offset + len(view) - 1

    def fill(answer: http.client.HTTPResponse, url: str) -> http.client.HTTPMessage:
        _check_answer(answer, url, offset, last, size)
        if answer.length not in (None, len(view)):
            raise Hiccup(f"a body of {answer.length} bytes for {len(view)}")
        filled = 0
        while filled < len(view):
            count = answer.readinto(view[filled : filled + _PIECE])
            if not count:
                raise Hiccup(f"the body ends after {filled} of {len(view)} bytes")
            filled += count
        if answer.read(1):
            raise Hiccup("the body goes on behind its range")
        return answer.headers

    return _asked("GET", url, {**headers, "Range": f"bytes={offset}-{last}"}, fill)


def _check_answer(answer: http.client.HTTPResponse, url: str, first: int, last: int, size: int) -> None:
    """Raise `StoreError` for a server that sends something else than the range it was asked for."""
    whole = first == 0 and last == size - 1
    coding = answer.headers.get("Content-Encoding", "identity")
    if coding != "identity":
        raise _broken(url, "packs what it sends", f"Content-Encoding: {coding}", "the bytes as they are")
    if answer.status == 200 and whole and answer.length == size:
        return
    asked = f"bytes {first}-{last}/{size}"
    if answer.status != 206:
        raise _broken(
            url, "ignores ranges", f"status {answer.status} and {answer.length} bytes", f"status 206, {asked}"
        )
    said = answer.headers.get("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(said.strip())
    if found is None or (int(found[1]), int(found[2])) != (first, last) or found[3] not in ("*", str(size)):
        raise _broken(url, "sends another range than it was asked for", said or "no Content-Range", asked)


def _broken(url: str, does: str, found: str, expected: str) -> StoreError:
    return StoreError(
        f"the server {does}",
        file=without_secrets(url),
        found=found,
        expected=expected,
        fix="download the files and give the folder",
    )


def _asked(method: str, url: str, headers: Headers, use: Callable[[http.client.HTTPResponse, str], T]) -> T:
    """What `use` makes of the answer, redirects followed. What a server may see of `headers` another one may not."""
    asked, sent = _requested(url), dict(headers)
    for _ in range(_MOST_REDIRECTS):
        answer, connection = _answer(method, asked, sent)
        kept = False
        try:
            if answer.status in _REDIRECTS and (place := answer.headers.get("Location")):
                answer.read(_PIECE)  # its page; of one that does not end no more
                kept = answer.isclosed()
                target = _requested(place.encode("latin-1").decode("utf-8", "surrogateescape"), asked)
                if site(target) != site(asked):
                    sent = {
                        name: value for name, value in sent.items() if name.lower() not in ("authorization", "cookie")
                    }
                if urlsplit(asked).scheme == "https" and urlsplit(target).scheme != "https":
                    raise Refused(answer.status, "a redirect from https to http")
                asked = target
                continue
            if answer.status in _PASSING:
                raise Hiccup(f"status {answer.status} {answer.reason}", _wait(answer.headers.get("Retry-After")))
            if answer.status not in (200, 206):
                raise Refused(answer.status, answer.reason)
            found = use(answer, asked)
            if not answer.length:  # all of it came; a connection takes the next request only after the end was read
                answer.read()
            kept = answer.isclosed()
            return found
        except (OSError, http.client.HTTPException) as error:
            raise _failure(error, asked) from error
        finally:
            if not kept or answer.will_close:
                connection.close()
    raise Refused(answer.status, "too many redirects")


def _requested(url: str, beside: str = "") -> str:
    """A URL as a request has it: whole, and in ASCII. Servers redirect to names with spaces and letters, and in no fixed code; `Refused` for what is no URL."""
    try:
        parts = urlsplit(urljoin(beside, url))
        _ = parts.port  # raises for what is none
    except ValueError:
        raise Refused(0, "not a URL of the web") from None
    path, query = (quote(one, safe=_PLAIN, errors="surrogateescape") for one in (parts.path, parts.query))
    return parts._replace(path=path, query=query).geturl()


def _wait(said: str | None) -> float | None:
    """The seconds that `Retry-After` asks for: a number or a date."""
    if said is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(said))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    return None


def _answer(method: str, url: str, headers: Headers) -> tuple[http.client.HTTPResponse, http.client.HTTPConnection]:
    parts = urlsplit(url)
    connection, through = _connection(parts)
    target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    if through is not None:
        target, headers = parts._replace(fragment="").geturl(), {**headers, **through}
    sent = {"Accept-Encoding": "identity", "User-Agent": "ckpt", **headers}
    for fresh in (connection.sock is None, True):
        try:
            connection.request(method, target, headers=sent)
            return connection.getresponse(), connection
        except (OSError, http.client.HTTPException) as error:
            connection.close()  # a kept connection may have been closed by the server meanwhile: once more with a new one
            if fresh:
                raise _failure(error, url) from error
    raise AssertionError("a request is answered or raises")


def _failure(error: Exception, url: str) -> Exception:
    """The error about a request that was not answered. It may pass, unless the server speaks no TLS, or has a certificate that is not known here."""
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return StoreError(
            "the certificate of the server is not accepted",
            file=without_secrets(url),
            found=error.verify_message,
            fix="set SSL_CERT_FILE to the certificates of the authority that signed it",
        )
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        plain = without_secrets(urlsplit(url)._replace(scheme="http").geturl())
        return StoreError(
            "the server does not speak TLS", file=without_secrets(url), found=str(error), fix=f"it may be at {plain}"
        )
    return Hiccup(f"{type(error).__name__}: {error}")


def _connection(parts: SplitResult) -> tuple[http.client.HTTPConnection, Headers | None]:
    """This thread's connection to a server, and, where requests go through a proxy, what they carry for it."""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Refused(0, f"not a URL of the web: {without_secrets(parts.geturl())}")
    host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    proxy = urllib.request.getproxies().get(parts.scheme)
    proxy = None if proxy is None or urllib.request.proxy_bypass(host) else proxy
    kept: dict[tuple[str, str, int, str | None], http.client.HTTPConnection] = _local.__dict__.setdefault("kept", {})
    place = (parts.scheme, host, port, proxy)
    secure = parts.scheme == "https"
    if proxy is None:
        if place not in kept:
            kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            kept[place] = kind(host, port, timeout=_TIMEOUT)
        return kept[place], None
    by = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    own = {"Proxy-Authorization": _basic(by)} if by.username is not None else {}
    if place not in kept:
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        kept[place] = kind(by.hostname or "", by.port or 80, timeout=_TIMEOUT)
        if secure:
            kept[place].set_tunnel(host, port, own)
    return kept[place], None if secure else own


def site(url: str) -> tuple[str, str]:
    """The scheme and the server of a URL: what one of them may know, another may not."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def basic(name: str, password: str) -> str:
    """The header of a name and a password."""
    return f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"


def _basic(parts: SplitResult) -> str:
    return basic(unquote(parts.username or ""), unquote(parts.password or ""))
