"""The uploads of an output to a store: one for every data file, sent part by part, and completed when all parts are there.

    ADDRESS.ckpt-partial     the claim, made first (see `claim`): what is converted, and the names of the uploads
    ADDRESS/...              made at the end, the receipt last; then the claim is removed

The claim lets a conversion continue on any machine. A part counts as sent if the tag that the store lists for it is right. For a part that this
machine sent, that is the tag in the answer of the store; for any other part it is the MD5 of the bytes that this machine would
send.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from ckpt_core.engine.claim import Claim, Tell, who
from ckpt_core.engine.parts import Parts, Place
from ckpt_core.errors import CkptError, StoreError
from ckpt_core.storage.bytes.files import naming, pwrite_all, written
from ckpt_core.storage.bytes.remote.ranges import again
from ckpt_core.storage.bytes.remote.writing import Body, Gone, Part, Taken, WritableStore, Written
from ckpt_core.storage.bytes.space import drop_space

SENDERS = 8
QUEUE = 2 * SENDERS
"""How many parts may be sent, or wait to be sent, at a time."""


class Uploads:
    """The data files of one output on their way to a store.

    `claim` is the claim on the address of the output. `address_of` gives the address of each of its files, `place` the path of a file on this
    machine. `log` is the file of the tags of sent parts.
    """

    def __init__(
        self,
        store: WritableStore,
        claim: Claim,
        address_of: Callable[[str], str],
        place: Callable[[str], str],
        parts: Parts,
        files: Mapping[str, int],
        log: str,
    ) -> None:
        self._store, self._address_of, self._place, self._parts = store, address_of, place, parts
        self._claim, self._files, self._plan, self._log = claim, files, claim.plan, log
        self._names: dict[str, str] = {}  # of the uploads, by the files' paths
        self._there: dict[str, dict[int, Part]] = {}
        self._complete: set[str] = set()
        self.sent: dict[Place, str] = {}
        self._pool = ThreadPoolExecutor(SENDERS, "send")
        self._room = threading.Semaphore(QUEUE)
        self._sending: list[Future[None]] = []
        self._writing = threading.Lock()

    # --- the claim

    def open(self, tell: Tell, doubted: Set[Place], kept: Set[Place]) -> set[Place]:
        """Find the uploads of an earlier run of this plan, or begin new ones. Returns the parts that have to be made again.

        Those are parts that the run sent and the store has lost, parts that it sent and nobody knows what of (`doubted`), and those of `kept` that
        the log lacks, unless the store has the very bytes that lie here. The journal has the pieces of `kept`, so that nothing else makes them again.
        `CkptError` if another conversion goes on here; `tell` gets a sentence if it takes time to find out.
        """
        said = self._claim.read()
        if said is None:
            self._begun()
        elif (
            said["plan"] != self._plan
            or said.get("parts") != self._shapes
            or said["uploads"].keys() != self._files.keys()
        ):
            raise CkptError(
                "an unfinished conversion of something else is in the way",
                file=self._claim.address,
                found=who(said),
                fix="repeat the old command, or remove that object",
            )
        else:
            self._claim.take(said, tell)
            self._names = {path: str(name) for path, name in said["uploads"].items()}
        self._list()
        logged = self._logged()
        self.sent = {place: tag for place, tag in logged.items() if place not in doubted and self._is_there(place, tag)}
        self._log_again()
        return (logged.keys() - self.sent.keys()) | self._dropped(kept - logged.keys())

    def _dropped(self, places: Iterable[Place]) -> set[Place]:
        """Those of some parts that may be holes here: they may have been sent, and dropped here, and the log lost that. What the store has proves
        that a part lies here whole; of a part that the store lacks nobody knows."""
        return {place for place in places if place.path not in self._complete and not self._is_here(place)}

    def _is_here(self, place: Place) -> bool:
        """Whether the bytes that lie here are those that the store has."""
        there = self._there[place.path].get(place.number)
        if there is None:
            return False
        start, size = self._parts.extent(place)
        with contextlib.closing(Body(self._place(place.path), start, size)) as body:
            return there == Part(body.md5.hex(), size)

    def _begun(self) -> None:
        """Begin an upload for every file, and make the claim."""

        def begin(path: str) -> None:
            self._names[path] = self._begin(path)

        try:
            for one in [self._pool.submit(begin, path) for path in self._files]:
                one.result()
            self._claim.make({"uploads": self._names, "parts": self._shapes})
        except BaseException:  # Ctrl-C, too: no claim knows these uploads
            self._end()
            for upload in self._names.items():
                with contextlib.suppress(CkptError):
                    self._abort(upload)
            raise

    @property
    def _shapes(self) -> dict[str, list[int]]:
        """The size of each file, and its number of parts."""
        return {path: [size, self._parts.count(path)] for path, size in self._files.items()}

    def _begin(self, path: str) -> str:
        address = self._address_of(path)
        return again(address, lambda: self._store.begin(address, self._plan))

    def _list(self) -> None:
        """Ask which parts are there. If an upload is gone, either a run that was then killed completed it, or it is begun anew."""

        def look(path: str) -> None:
            address, name = self._address_of(path), self._names[path]
            try:
                self._there[path] = again(address, lambda: self._store.parts(address, name))
            except Gone:
                self._there[path] = {}
                if self._is_mine(path):
                    self._complete.add(path)
                else:
                    self._names[path] = self._begin(path)
                    renewed.append(path)

        renewed: list[str] = []
        list(self._pool.map(look, self._files))
        if renewed:
            try:
                self._claim.change({"uploads": self._names})
            except CkptError:  # the claim may be another run's by now: these uploads are in no claim
                for path in renewed:
                    with contextlib.suppress(CkptError):
                        self._abort((path, self._names[path]))
                raise

    def _is_mine(self, path: str) -> bool:
        """Whether a run of this plan completed a file."""
        address = self._address_of(path)
        return again(address, lambda: self._store.written(address)) == Written(self._files[path], self._plan)

    def _is_there(self, place: Place, tag: str) -> bool:
        if place.path in self._complete:
            return True
        found = self._there.get(place.path, {}).get(place.number)
        return found == Part(tag, self._parts.extent(place)[1])

    # --- parts

    def submit(self, places: Iterable[Place]) -> None:
        """Send parts that are whole. Waits while `QUEUE` parts are on their way, and raises the error of an earlier part."""
        for place in places:
            if place in self.sent:
                continue
            self._room.acquire()
            self._claim.check()
            self._raise_any()
            sending = self._pool.submit(self._send, place)
            sending.add_done_callback(lambda _: self._room.release())
            self._sending.append(sending)

    def _raise_any(self) -> None:
        over = [one for one in self._sending if one.done()]
        self._sending = [one for one in self._sending if not one.done()]
        for one in over:
            one.result()

    def drain(self) -> None:
        """Wait until all that was submitted is there."""
        for one in self._sending:
            one.result()
        self._sending = []

    def _send(self, place: Place) -> None:
        start, size = self._parts.extent(place)
        path = self._place(place.path)
        with contextlib.closing(Body(path, start, size)) as body:
            there = self._there[place.path].get(place.number)
            if place.path in self._complete:
                tag = ""
            elif there is not None and there == Part(body.md5.hex(), size):
                tag = there.tag
            else:
                tag = self._sent(place, body)
        with self._writing:
            self.sent[place] = tag
            self._note(place, tag)
        drop_space(path, start, size)

    def _sent(self, place: Place, body: Body) -> str:
        address, name = self._address_of(place.path), self._names[place.path]
        try:
            return again(address, lambda: self._store.send(address, name, place.number, body))
        except Gone:
            raise StoreError(
                "the upload was ended by something else",
                file=address,
                fix="repeat the command: if another run of the same conversion completed it, that is found",
            ) from None

    # --- the log of what was sent

    def _note(self, place: Place, tag: str) -> None:
        with naming(self._log), open(self._log, "ab", buffering=0) as log:
            line = memoryview(json.dumps([*place, tag]).encode() + b"\n")
            while line:  # a disk that is all but full takes a part of a line, and the bytes here are dropped when all of it is there
                line = line[log.write(line) :]

    def _log_again(self) -> None:
        """Write the log anew, with those lines alone that are believed. A part that is made again may have other bytes now: where this run is killed
        before it sends them, the next one finds their pieces in the journal, and must not find the tag of the old bytes here."""
        with naming(self._log), written(self._log, os.O_CREAT | os.O_TRUNC) as log:
            lines = "".join(json.dumps([*place, tag]) + "\n" for place, tag in self.sent.items())
            pwrite_all(log, memoryview(lines.encode()), 0)

    def _logged(self) -> dict[Place, str]:
        try:
            with open(self._log, "rb") as log:
                lines = log.read().splitlines()
        except FileNotFoundError:
            return {}
        known, found = set(self._parts.all()), {}
        for line in lines:  # a kill may have cut a line short, and the next one goes on behind it
            with contextlib.suppress(ValueError, TypeError):
                path, number, tag = json.loads(line)
                if Place(path, number) in known:
                    found[Place(path, number)] = str(tag)
        return found

    # --- the end

    def agree(self, contents: str) -> bool:
        """Say in the claim which contents are about to get their name. False where an earlier run said others: the same plan has them where a source
        file was replaced by one of the same size and time."""
        self.drain()
        self._claim.check()
        known = self._claim.said("contents")
        if known is None:
            self._claim.change({"contents": contents})
        return known in (None, contents)

    def complete(self) -> None:
        """Complete the data files. `StoreError` if something else has one of their names by now."""
        missing = [place for place in self._parts.all() if place not in self.sent]
        if missing:
            raise AssertionError(f"parts were never whole: {missing[:3]}")
        list(self._pool.map(self._completed, self._files.keys() - self._complete))

    def _completed(self, path: str) -> None:
        address, name = self._address_of(path), self._names[path]
        tags = [self.sent[Place(path, number)] for number in range(1, self._parts.count(path) + 1)]
        try:
            again(address, lambda: self._store.complete(address, name, tags, self._plan))
        except (Taken, Gone):
            self._check_mine(address, self._files[path])
            with contextlib.suppress(StoreError):
                self._abort(
                    (path, name)
                )  # another run may have ended while this one began its uploads: then they are in no claim
        self._complete.add(path)

    def put(self, names: Iterable[str]) -> None:
        """Put documents, each in one step."""
        list(self._pool.map(self._put, names))

    def _put(self, name: str) -> None:
        path, address = self._place(name), self._address_of(name)
        size = os.path.getsize(path)
        with contextlib.closing(Body(path, 0, size)) as body:
            try:
                again(address, lambda: self._store.put(address, body, self._plan))
            except Taken:
                self._check_mine(address, size)

    def _check_mine(self, address: str, size: int) -> None:
        found = again(address, lambda: self._store.written(address))
        if found != Written(size, self._plan):
            raise StoreError(
                "something else appeared at the destination meanwhile",
                file=address,
                found="nothing of that name" if found is None else f"{found.size} bytes",
                expected=f"{size} bytes that this conversion wrote",
                fix="remove it, and repeat the command: what is done is kept",
            )

    def release(self) -> None:
        """Remove the claim."""
        self._claim.release()

    def _remove(self, address: str) -> None:
        again(address, lambda: self._store.remove(address))

    def abort(self, documents: Iterable[str]) -> None:
        """Drop every upload and every file of the output, with those `documents` that a run before put there, and then the claim. Does nothing if
        another run has the claim."""
        self._end()
        if self._claim.still_mine():  # it stays ours meanwhile, since it is written anew until the release
            named = documents if self._claim.said("contents") is not None else ()
            with ThreadPoolExecutor(SENDERS, "abort") as pool:
                list(pool.map(self._abort, self._names.items()))
                list(pool.map(self._remove, map(self._address_of, self._complete)))
                list(pool.map(self._remove_mine, map(self._address_of, named)))
        self._claim.release()

    def _remove_mine(self, address: str) -> None:
        found = again(address, lambda: self._store.written(address))
        if found is not None and found.plan == self._plan:
            self._remove(address)

    def _abort(self, upload: tuple[str, str]) -> None:
        address = self._address_of(upload[0])
        again(address, partial(self._store.abort, address, upload[1]))

    def close(self) -> None:
        """Send nothing more; what is on its way may arrive."""
        self._end()
        self._claim.rest()

    def _end(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
