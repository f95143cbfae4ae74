"""Bytes of objects: few requests for headers, exact ranges for data, the same request again where a store hiccups.

A header is read in small steps that follow one another. So a small read asks for more than it needs, and for twice as much each
time that the next one goes on behind it; what came is kept, some MiB in all. A large read is one request into the caller's
own buffer. Readers look at one header after the other, so the heads of the files that follow are asked for at the same time.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from ckpt_core.errors import CkptError, FormatError, StoreError
from ckpt_core.storage.bytes.remote.kept import Cache
from ckpt_core.storage.bytes.remote.objects import Hiccup, Object, Store
from ckpt_core.storage.bytes.remote.stores import store_of

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_FIRST_STEP = 8 << 10  # the header of most shards, and the end of a torch file, lie in as much
_LONGEST_STEP = 1 << 20
_KEPT = 32 << 20
_GAP = 256 << 10  # a read that begins no further behind what came last goes on from it
ATTEMPTS = 7
"""How often a range is asked for before a command gives up."""
_FIRST_WAIT = 0.5  # seconds; doubled each time: 31 s in all
_LONGEST_WAIT = 60.0
_HEADS = 16  # that are asked for at a time

T = TypeVar("T")

_failures: ContextVar[list[StoreError] | None] = ContextVar("failures", default=None)


@contextlib.contextmanager
def noting_failures() -> Iterator[list[StoreError]]:
    """The failures of stores meanwhile: a plugin that only looks whether it knows a path swallows such errors."""
    noted: list[StoreError] = []
    token = _failures.set(noted)
    try:
        yield noted
    finally:
        _failures.reset(token)


def read_into(object: Object, view: memoryview, offset: int) -> None:
    """Fill `view` from byte `offset` of an object; `FormatError` if it has not as many, or changed."""
    if offset + len(view) > object.size:
        raise FormatError(
            "the file ends too early",
            file=object.address,
            found=f"{object.size} bytes",
            expected=f"at least {offset + len(view)}",
            fix="copy the file again; it is cut off or damaged",
        )
    if len(view) >= _LONGEST_STEP:
        _fetched(object, view, offset)
    else:
        _STEPS.read_into(object, view, offset)


def read(object: Object, offset: int, count: int) -> bytes:
    """At most `count` bytes from `offset` on: fewer only at the end of the object."""
    data = bytearray(max(0, min(count, object.size - offset)))
    if data:
        read_into(object, memoryview(data), offset)
    return bytes(data)


def now(object: Object) -> Object:
    """The object as it is now; `FormatError` if it is gone."""
    return again(object.address, lambda: store_of(object.address).now(object))


def again(address: str, request: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """What a request returns; it is sent again where the store hiccups, later each time."""
    for attempt in range(attempts):
        try:
            return request()
        except Hiccup as hiccup:
            if attempt == attempts - 1:
                first = f"{hiccup.look}; or " if hiccup.look else ""
                failure = StoreError(
                    "the store does not answer as it should",
                    file=address,
                    found=f"{hiccup.reason}, {attempts} times in a row",
                    fix=f"{first}run the same command again later: what is done of a conversion is kept",
                )
                if (noted := _failures.get()) is not None:
                    noted.append(failure)
                raise failure from None
            import random

            wait = _FIRST_WAIT * 2**attempt * random.uniform(0.75, 1.25)
            time.sleep(wait if hiccup.wait is None else min(hiccup.wait, _LONGEST_WAIT))
    raise AssertionError("an attempt returns or raises")


def _fetched(object: Object, view: memoryview, offset: int, attempts: int = ATTEMPTS) -> None:
    if object.copy is not None and _from_copy(object.copy, object.size, view, offset):
        return
    store: Store = store_of(object.address)

    def fetch(part: memoryview, start: int) -> None:
        again(object.address, lambda: store.read(object, part, start), attempts)

    if object.cache is None:
        fetch(view, offset)
    else:
        Cache(object.cache, object).read_into(view, offset, fetch)


def _from_copy(path: str, size: int, view: memoryview, offset: int) -> bool:
    """Fill `view` from a copy on this machine; False if there is none here, or not a whole one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.fstat(descriptor).st_size == size and os.preadv(descriptor, [view], offset) == len(view)
    finally:
        os.close(descriptor)


class _Steps:
    """What came of small reads, the least recently used forgotten first; for all objects of the process, and all its threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Object, int], bytearray] = OrderedDict()  # (object, offset) -> bytes
        self._of: dict[Object, list[int]] = {}
        self._size = 0
        self._next: dict[Object, Object] = {}
        self._coming: dict[Object, Future[bool]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def follow(self, row: Sequence[Object]) -> None:
        """Have the heads of objects be asked for together, when that of one of them is."""
        with self._lock:
            self._next.update(pairwise(row))

    def read_into(self, object: Object, view: memoryview, offset: int) -> None:
        while len(view):
            with self._lock:
                known, step = self._known(object, offset)
            if known is None and offset < _FIRST_STEP and self._came(object):
                continue
            if known is None:
                start = max(0, min(offset, object.size - _FIRST_STEP))  # the end of a file has a directory before it
                data = bytearray(min(max(offset - start + len(view), step), object.size - start))
                _fetched(object, memoryview(data), start)
                with self._lock:
                    self._keep(object, start, data)
                known = data[offset - start :]
            count = min(len(view), len(known))
            view[:count] = known[:count]
            view, offset = view[count:], offset + count

    def _came(self, object: Object) -> bool:
        """Whether the head of an object was asked for before, and came; those that follow are asked for now."""
        with self._lock:
            coming, follower = self._coming.pop(object, None), self._next.get(object)
            for _ in range(_HEADS):
                if follower is None or follower in self._of or follower in self._coming:
                    break
                if self._pool is None:
                    from concurrent.futures import ThreadPoolExecutor

                    self._pool = ThreadPoolExecutor(_HEADS, "heads")
                self._coming[follower] = self._pool.submit(self._head, follower)
                follower = self._next.get(follower)
        return coming is not None and coming.result()

    def _head(self, object: Object) -> bool:
        """Fetch the head of an object; False where that fails: who needs it asks again, and is told why."""
        data = bytearray(min(_FIRST_STEP, object.size))
        try:
            _fetched(object, memoryview(data), 0, attempts=1)
        except (CkptError, OSError):
            return False
        with self._lock:
            self._keep(object, 0, data)
        return True

    def _known(self, object: Object, offset: int) -> tuple[bytearray | None, int]:
        """The bytes from `offset` on that are here, or how many to ask for."""
        step = _FIRST_STEP
        for start in self._of.get(object, ()):
            data = self._kept[object, start]
            if start <= offset < start + len(data):
                self._kept.move_to_end((object, start))
                return data[offset - start :], 0
            if 0 <= offset - start - len(data) <= _GAP:
                step = max(step, min(2 * len(data), _LONGEST_STEP))
        return None, step

    def _keep(self, object: Object, offset: int, data: bytearray) -> None:
        if (object, offset) in self._kept:
            return
        self._kept[object, offset] = data
        self._of.setdefault(object, []).append(offset)
        self._size += len(data)
        while self._size > _KEPT:
            (oldest, start), gone = self._kept.popitem(last=False)
            self._size -= len(gone)
            self._of[oldest].remove(start)
            if not self._of[oldest]:
                del self._of[oldest]


_STEPS = _Steps()


def follow(row: Sequence[Object]) -> None:
    """See `_Steps.follow`."""
    _STEPS.follow(row)
