"""A bucket in memory, that keeps the rules of S3: parts by number, nothing seen before its completion, a name given once.

It can be told to fail: `fault` is called with the name of each operation and its number, before it has an effect and after, and may raise.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ckpt_core.storage.bytes.remote.objects import Listing, Object, changed
from ckpt_core.storage.bytes.remote.writing import Body, Gone, Part, Read, Taken, Written


@dataclass(frozen=True)
class Kept:
    """An object: its bytes, its version, and the plan that it is marked with."""

    data: bytes
    version: str
    plan: str = ""


@dataclass
class Upload:
    address: str
    plan: str
    parts: dict[int, bytes] = field(default_factory=dict)


class Bucket:
    """A `Store` and a `WritableStore` at `s3://bucket`. `sent` counts the bytes of parts and objects that arrived."""

    def __init__(self) -> None:
        self.objects: dict[str, Kept] = {}
        self.uploads: dict[str, Upload] = {}
        self.calls: list[str] = []
        self.sent = 0
        self.conditions = True
        self.key = (
            b""  # with one, tags are not the MD5 of the bytes, as in a bucket that encrypts with a key of its owner
        )
        self.fault: Callable[[str, int, bool], None] = lambda name, number, after: None
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()

    def folder(self, address: str) -> dict[str, bytes]:
        """What is in a folder, by its path in it."""
        inside = f"{address}/"
        return {name.removeprefix(inside): one.data for name, one in self.objects.items() if name.startswith(inside)}

    def keep(self, address: str, data: bytes, plan: str = "") -> None:
        """Put an object there, whatever is."""
        self.objects[address] = Kept(data, hashlib.md5(data).hexdigest(), plan)

    def _do(self, name: str, effect: Callable[[], object]) -> object:
        with self._lock:
            self.calls.append(name)
            number = len(self.calls)
        self.fault(name, number, False)
        with self._lock:
            found = effect()
        self.fault(name, number, True)
        return found

    # --- to read

    def listing(self, address: str) -> Listing:
        root, path = "/".join(address.split("/", 3)[:3]), "/".join(address.split("/", 3)[3:]).strip("/")
        return Listing(root, path, [self._object(name) for name in sorted(self.objects)])

    def _object(self, address: str) -> Object:
        kept = self.objects[address]
        return Object(address, len(kept.data), kept.version)

    def now(self, object: Object) -> Object:
        if object.address not in self.objects:
            raise changed(object, "nothing")
        kept = self.objects[object.address]
        return replace(object, size=len(kept.data), version=kept.version)

    # --- both

    def read(self, address: str | Object, view: memoryview | None = None, offset: int = 0) -> Read | None:
        if isinstance(address, Object):
            assert view is not None
            view[:] = self.objects[address.address].data[offset : offset + len(view)]
            return None
        kept = self.objects.get(address)
        return None if kept is None else Read(kept.data, kept.version)

    # --- to write

    def removal(self, address: str, single: bool = False) -> str:
        return f"remove {address}" if single else f"remove all in {address}"

    def below(self, address: str) -> Sequence[str]:
        return list(self.folder(address))

    def written(self, address: str) -> Written | None:
        kept = self.objects.get(address)
        return None if kept is None else Written(len(kept.data), kept.plan)

    def put(self, address: str, body: Body | bytes, plan: str, over: str | None = None) -> None:
        data = _bytes(body)
        if over is None:
            self._do("put", lambda: self._make(address, data, plan))
        else:
            self._do("replace", lambda: self._replace(address, data, plan, over))
        self.sent += len(data)

    def _replace(self, address: str, data: bytes, plan: str, over: str) -> None:
        if address not in self.objects or self.objects[address].version != over:
            raise Taken
        self.keep(address, data, plan)

    def _make(self, address: str, data: bytes, plan: str) -> None:
        if address in self.objects and self.conditions:
            raise Taken
        self.keep(address, data, plan)

    def remove(self, address: str) -> None:
        self._do("remove", lambda: self.objects.pop(address, None))

    def begin(self, address: str, plan: str) -> str:
        name = f"upload-{next(self._numbers)}"
        self._do("begin", lambda: self.uploads.update({name: Upload(address, plan)}))
        return name

    def send(self, address: str, upload: str, number: int, body: Body) -> str:
        data = _bytes(body)
        self._do("send", lambda: self._upload(address, upload).parts.update({number: data}))
        self.sent += len(data)
        return self._tag(data)

    def parts(self, address: str, upload: str) -> dict[int, Part]:
        found = self._upload(address, upload).parts
        return {number: Part(self._tag(data), len(data)) for number, data in found.items()}

    def complete(self, address: str, upload: str, tags: Sequence[str], plan: str) -> None:
        def effect() -> None:
            found = self._upload(address, upload)
            assert found.plan == plan
            assert [self._tag(found.parts[number]) for number in range(1, len(tags) + 1)] == list(tags)
            self._make(address, b"".join(found.parts[number] for number in range(1, len(tags) + 1)), found.plan)
            del self.uploads[upload]

        self._do("complete", effect)

    def abort(self, address: str, upload: str) -> None:
        self._do("abort", lambda: self.uploads.pop(upload, None))

    def _tag(self, data: bytes) -> str:
        return hashlib.md5(self.key + data).hexdigest()

    def _upload(self, address: str, name: str) -> Upload:
        if name not in self.uploads:
            raise Gone
        assert self.uploads[name].address == address
        return self.uploads[name]


def _bytes(body: Body | bytes) -> bytes:
    if isinstance(body, bytes):
        return body
    body.seek(0)
    data = body.read()
    assert len(data) == body.size == len(body)
    assert hashlib.md5(data).digest() == body.md5
    return data
