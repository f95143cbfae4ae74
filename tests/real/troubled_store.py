"""A server before another one that makes trouble: it kills who asks, breaks off, or answers as stores and what stands before them do at times.

At each request `before` and `after` are asked, with its kind and how many of that kind there were; they may take their time, and name one of `TROUBLES`.
"""

from __future__ import annotations

import http.client
import http.server
import socket
import threading
from collections import Counter
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

Trouble = str | None
TROUBLES = ("500", "503", "lost request", "lost answer", "short answer", "error in 200", "no words")
"""`lost answer`: the request has its effect. `short answer`: the body ends before its Content-Length. `no words`: 502 with a page of HTML."""
SLOW = ("silence", "stalled answer")
"""`silence`: no answer comes, and the connection stays. `stalled answer`: half of it comes. Whoever asks must have a limit of its own."""
WRONG = ("cut answer", "long answer", "redirect")
"""`cut answer`: the Content-Length is that of half the body, and no more comes. `long answer`: there is more than it says. `redirect`: to the server behind."""
_HELD = 60.0  # seconds


class Troubled(http.server.ThreadingHTTPServer):
    """On a port of its own, before the server at `behind`, a port of this machine."""

    daemon_threads = True

    def __init__(self, behind: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = behind
        self.seen: Counter[str] = Counter()
        self.before: Callable[[str, int], Trouble] = lambda kind, number: None
        self.after: Callable[[str, int], Trouble] = lambda kind, number: None
        self.lock = threading.Lock()
        self.over = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def shutdown(self) -> None:
        self.over.set()
        super().shutdown()

    def calm(self) -> None:
        """From now on, no trouble; and count anew."""
        self.seen.clear()
        self.before = self.after = lambda kind, number: None

    def handle_error(self, *_: object) -> None:
        """A client that is killed says nothing."""


def kind_of(method: str, url: str, ranged: bool) -> str:
    """What a request asks of a store."""
    query = parse_qs(urlsplit(url).query, keep_blank_values=True)
    if "comp" in query:  # of Azure
        ways = {"list": "list", "block": "send", "blocklist": "parts" if method == "GET" else "complete"}
        return ways[query["comp"][0]]
    if "uploadId" in query or "uploads" in query:
        ways = {"PUT": "send", "GET": "parts", "DELETE": "abort"}
        return ways.get(method, "begin" if "uploads" in query else "complete")
    if method == "GET":
        return "list" if "list-type" in query else "range" if ranged else "get"
    return {"PUT": "put", "HEAD": "head", "DELETE": "remove"}.get(method, method)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Troubled

    def log_message(self, *_: object) -> None:
        pass

    def _any(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        if len(body) < size:
            return self._break_off()
        kind = kind_of(self.command, self.path, "Range" in self.headers or "x-ms-range" in self.headers)
        with self.server.lock:
            self.server.seen[kind] += 1
            number = self.server.seen[kind]
        before = self.server.before(kind, number)
        if self._answered(before):
            return
        asked = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=60)
        asked.request(self.command, self.path, body, dict(self.headers))
        answer = asked.getresponse()
        data = answer.read()
        asked.close()
        after = self.server.after(kind, number)
        partly = after in ("short answer", "stalled answer", "cut answer", "long answer")
        if not partly and self._answered(after):
            return
        if partly and len(data) < 2:
            return self._break_off()
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = {"cut answer": len(data) // 2, "long answer": len(data) - 1}.get(after or "")
        self.send_header("Content-Length", str(length or answer.getheader("Content-Length", str(len(data)))))
        self.end_headers()
        if partly:
            self.wfile.write(data if after == "long answer" else data[: len(data) // 2])
            if after == "stalled answer":
                self.wfile.flush()
                self.server.over.wait(_HELD)
            return self._break_off()
        if self.command != "HEAD":
            self.wfile.write(data)
        return None

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any

    def _answered(self, trouble: Trouble) -> bool:
        if trouble is None:
            return False
        if trouble == "silence":
            self.server.over.wait(_HELD)
        if trouble == "redirect":
            self.send_response_only(307)
            self.send_header("Location", f"http://127.0.0.1:{self.server.behind}{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif trouble in ("silence", "lost request", "lost answer", "short answer"):
            self._break_off()
        elif trouble == "no words":
            self._say(502, "<html><body>Bad Gateway</body></html>", "text/html")
        else:
            code = {"500": "InternalError", "503": "SlowDown", "error in 200": "InternalError"}[trouble]
            said = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>so it is</Message></Error>'
            self._say(200 if trouble == "error in 200" else int(trouble), said, "application/xml")
        return True

    def _say(self, status: int, said: str, kind: str) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(said.encode())

    def _break_off(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True
