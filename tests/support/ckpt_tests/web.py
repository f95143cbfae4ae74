"""A web server on this machine with ranges, conditions and pages of links, that can be told to do wrong; and a hub on top of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_SILENCE = 20.0  # seconds: far longer than any client of a test waits


@dataclass
class Asked:
    """A request for bytes: the file, the range, and what the client made a condition."""

    name: str
    first: int
    count: int
    condition: str | None


@dataclass
class Site:
    """What a server serves, what it was asked for, and what it does wrong.

    `fault` is called with the number of the request for bytes and may name one: "status", "drop", "short", "whole", "other", "none",
    "silent" (no answer at all), "stalled" (half of one), "longer" and "shorter" (than Content-Length says), "moved" (a redirect).
    `no_head` is the status with which it refuses HEAD, `location` a redirect for each file behind `old/`.
    `lie` is added to the size of each file where it is asked for alone. `etags`: without them there is only the time of the last change. `repository` makes it a hub with that one.
    """

    folder: Path
    fault: Callable[[int], str | None] = lambda number: None
    lie: int = 0
    no_head: int | None = None
    location: str | None = None
    etags: bool = True
    conditions: bool = True
    repository: str | None = None
    asked: list[Asked] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    url: str = ""
    expired: set[str] = field(default_factory=set)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def sent(self) -> int:
        """Bytes of files sent."""
        return sum(one.count for one in self.asked)

    def files(self) -> dict[str, Path]:
        """Every file, by its path in the folder."""
        return {one.relative_to(self.folder).as_posix(): one for one in sorted(self.folder.rglob("*")) if one.is_file()}


@contextlib.contextmanager
def serving(folder: Path, **settings: object) -> Iterator[Site]:
    """A server of a folder; `url` of what it yields ends in a slash."""
    site = Site(folder, **settings)  # type: ignore[arg-type]
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that goes away is none of ours
    site.url = f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield site
    finally:
        site.over.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _answer(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.command == "HEAD" and self.site.no_head is not None:
            self._answer(b"", {}, self.site.no_head)
        elif self.site.location is not None and path.startswith("/old/"):
            self._answer(b"", {"Location": self.site.location}, 302)
        elif self.site.repository is not None and (path.startswith("/api/") or "/resolve/" in path):
            self._hub(path)
        elif path.startswith("/blobs/") and self.site.repository is not None:
            if self.path in self.site.expired:
                self._answer(b"", {}, 403)
            else:
                self._file(path.removeprefix("/blobs/"))
        elif (self.site.folder / path[1:]).is_dir():
            self._page(path)
        else:
            self._file(path[1:])

    do_HEAD = do_GET

    def _page(self, path: str) -> None:
        if not path.endswith("/"):
            self._answer(b"", {"Location": quote(path) + "/"}, 301)
            return
        self.site.others.append(path)
        inside = sorted((self.site.folder / path[1:]).iterdir())
        links = "".join(f'<li><a href="{quote(one.name)}{"/" * one.is_dir()}">x</a>' for one in inside)
        page = f'<html><a href="../">up</a><a href="?C=N">sort</a><a href="https://elsewhere/a">else</a>{links}</html>'
        self._answer(page.encode(), {"Content-Type": "text/html; charset=utf-8"})

    def _file(self, name: str, more: dict[str, str] | None = None) -> None:
        file = self.site.files().get(name)
        if file is None:
            self._answer(b"", {}, 404)
            return
        data = file.read_bytes()
        changed = formatdate(file.stat().st_mtime, usegmt=True)
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        headers = {"Last-Modified": changed, **({"ETag": tag} if self.site.etags else {}), **(more or {})}
        condition = self.headers.get("If-Match") or self.headers.get("If-Unmodified-Since")
        if self.site.conditions and condition not in (None, tag, changed):
            self._answer(b"", headers, 412)
        elif self.command == "HEAD":
            self._answer(data, {**headers, "Content-Length": str(len(data) + self.site.lie)})
        else:
            self._bytes(name, data, headers, condition)

    def _bytes(self, name: str, data: bytes, headers: dict[str, str], condition: str | None) -> None:
        size, asked = len(data), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2]), size - 1)) if asked else (0, size - 1)
        self.site.asked.append(Asked(name, first, last + 1 - first, condition))
        fault = self.site.fault(len(self.site.asked))
        part = data[first : last + 1]
        if fault == "status":
            self._answer(b"later", {"Retry-After": "0"}, 503)
        elif fault == "drop":
            self.close_connection = True
        elif fault == "silent":
            self.close_connection = True
            self.site.over.wait(_SILENCE)
        elif fault == "moved":
            self._answer(b"over there", {"Location": f"{self.path}?moved"}, 302)
        elif fault == "whole":
            self._answer(data, headers)
        elif fault == "other":
            said = f"bytes {first + 1}-{last + 1}/{size + 1}"
            self._answer(bytes(len(part)), {**headers, "Content-Range": said}, 206)
        elif fault == "none":
            self._answer(part, headers, 206)
        elif fault in ("short", "stalled", "longer", "shorter"):
            self.close_connection = True
            length = len(part) + {"longer": -1, "shorter": 1}.get(fault, 0)
            said = {"Content-Length": str(length), "Content-Range": f"bytes {first}-{last}/{size}"}
            self._answer(part if fault in ("longer", "shorter") else part[: len(part) // 2], {**headers, **said}, 206)
            self.site.over.wait(_SILENCE if fault == "stalled" else 0)
        else:
            self._answer(part, {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}, 206)

    def _hub(self, path: str) -> None:
        """What a client asks a hub for: the revision, the listing, and where the bytes of a file lie."""
        repository, files = self.site.repository, self.site.files()
        self.site.others.append(path)
        kind = {"Content-Type": "application/json"}
        if path.startswith(f"/api/models/{repository}/tree/{COMMIT}"):
            tree = [{"type": "file", "path": n, "size": f.stat().st_size, "oid": COMMIT} for n, f in files.items()]
            self._answer(json.dumps(tree).encode(), kind)
        elif path in (
            f"/api/models/{repository}{end}" for end in ("", "/revision/main", "/revision/v1", f"/revision/{COMMIT}")
        ):
            siblings = [{"rfilename": name} for name in files]
            body = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}
            self._answer(json.dumps(body).encode(), kind)
        elif path.startswith(f"/api/models/{repository}"):
            self._answer(b'{"error": "Revision not found"}', {"X-Error-Code": "RevisionNotFound"}, 404)
        elif path.startswith(f"/{repository}/resolve/{COMMIT}/"):
            name = path.split("/resolve/", 1)[1].split("/", 1)[1]
            size = files[name].stat().st_size
            elsewhere = self.site.url.replace("127.0.0.1", "localhost")  # another server, as far as a client sees
            signed = f"{elsewhere}blobs/{quote(name)}?signature={self.site.others.count(path)}"
            said = {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(size), "X-Linked-Etag": f'"{len(name):x}"'}
            self._answer(b"", {**said, "ETag": '"x"', "Location": signed}, 302)
        else:
            self._answer(b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, 404)


def serve_apart(folder: Path, port: int, seconds: float) -> int:
    """Serve a folder in a process of its own, which listens already; returns its number."""
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"site": Site(folder)}))
    child = os.fork()
    if not child:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nowhere, number)
        signal.alarm(int(seconds))  # nobody need remember to end it
        server.serve_forever()
    return child


if __name__ == "__main__":
    # For the documentation: python3 -m ckpt_tests.web FOLDER PORT
    Path("server.pid").write_text(str(serve_apart(Path(sys.argv[1]), int(sys.argv[2]), 600)))
