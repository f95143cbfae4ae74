"""The claim on an address: which conversion goes on there, the names of its uploads, and who is at it.

An object `ADDRESS.ckpt-partial`, put on the condition that there is none, so that one conversion has the address. Of two runs of the same
conversion the one that writes the object anew every few seconds holds it. A run that finds the claim of another machine looks at
it for as long as six such times: if it changes the other one lives, and this one ends; if it does not, this one takes it over. A run that was taken over, because
it stood still, notices that and ends, and drops nothing.

Nothing is wrong with the output where two runs are at it nevertheless: both send the same bytes to the same places. The claim
keeps one from dropping what the other one sends.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from ckpt_core.errors import BeingWritten, CkptError, FormatError, StoreError
from ckpt_core.storage.bytes.names import UNFINISHED
from ckpt_core.storage.bytes.remote.ranges import ATTEMPTS, again
from ckpt_core.storage.bytes.remote.writing import Taken, WritableStore
from ckpt_core.storage.documents import parse_json

BEAT = 10.0
"""Seconds between two times that the holder writes the claim anew."""
SILENCE = 6 * BEAT
"""Seconds without one after which a holder counts as dead."""
_ATTEMPTS = 3  # of the first look: a wrong name of a server is said soon
_PATIENCE = 5.0  # for the thread that writes it, if the store hangs
_LOOKS = 12  # at a claim that may be dead

Tell = Callable[[str], None]


class Claim:
    """The claim of a conversion on an address.

    `head` says what is converted, `head["plan"]` is its hash. `holder` is a random text, the same one in each run that goes on with what
    lies on this machine.
    """

    def __init__(self, store: WritableStore, address: str, head: Mapping[str, Any], holder: Callable[[], str]) -> None:
        self._store, self._head, self._holder = store, head, holder
        self.address = address.rstrip("/") + UNFINISHED
        self.plan = str(head["plan"])
        self._said: dict[str, Any] = {}
        self._lost: StoreError | None = None
        self._over = threading.Event()
        self._beating: threading.Thread | None = None
        self._writing = threading.Lock()

    @property
    def mine(self) -> bool:
        """Whether this run holds the claim, as far as it knows."""
        return bool(self._said) and self._lost is None

    # --- what is there

    def read(self) -> dict[str, Any] | None:
        """What the claim says; None if there is none. `CkptError` for what is none."""
        return self._look(_ATTEMPTS)[0]

    def _look(self, attempts: int = ATTEMPTS) -> tuple[dict[str, Any] | None, str]:
        found = again(self.address, lambda: self._store.read(self.address), attempts)
        if found is None:
            return None, ""
        try:
            said = parse_json(found.data, self.address)
        except FormatError:
            said = None
        if isinstance(said, dict) and isinstance(said.get("plan"), str) and isinstance(said.get("uploads"), dict):
            return said, found.version
        raise CkptError(
            "what lies in the place of an unfinished conversion was not made by ckpt",
            file=self.address,
            fix="move it away, or choose another name for the output",
        )

    # --- taking it

    def make(self, content: Mapping[str, Any]) -> None:
        """Make the claim; `BeingWritten` if another conversion was faster, `StoreError` for a store that gives a name twice."""
        said = {**self._head, **content, **self._signature()}
        data = json.dumps(said).encode()
        try:
            self._put(data)
        except Taken:
            there = again(self.address, lambda: self._store.read(self.address))
            if there is None or there.data != data:  # it is ours if an answer was lost, and we asked once more
                raise BeingWritten(
                    "another conversion is writing to this destination", file=self.address, fix="wait for it"
                ) from None
        with contextlib.suppress(Taken):
            self._put(data)
            again(self.address, lambda: self._store.remove(self.address))
            raise StoreError(
                "the store does not keep what is there from being replaced",
                file=self.address,
                found="it put an object in the place of another one, against If-None-Match",
                fix="write to a local folder, then copy it there, the receipt last",
            )
        self._hold(said)

    def take(self, said: Mapping[str, Any], tell: Tell) -> None:
        """Go on under a claim that is there: of this machine, or of another one that does not live any more."""
        if said.get("holder") == self._holder():
            self._hold(dict(said))
            return
        holder, data = who(said), json.dumps(said)
        tell(
            f"the same conversion was begun by {holder}: waiting up to {SILENCE:.0f} s, to go on with it if that run is over"
        )
        for _ in range(_LOOKS):
            time.sleep(SILENCE / _LOOKS)
            there, version = self._look()
            if there is None:
                raise BeingWritten(
                    "the same conversion was ended by another run just now",
                    file=self.address,
                    found=holder,
                    fix="repeat the command: if it is complete, that is found",
                )
            if json.dumps(there) != data:
                raise BeingWritten(
                    "another run is at the same conversion",
                    file=self.address,
                    found=who(there),
                    fix="wait for it, or end it there; the same command then goes on from here",
                )
        taken = {**said, **self._signature()}
        if not self._replaced(taken, version):
            raise BeingWritten("another run takes over the same conversion", file=self.address, fix="wait for it")
        self._hold(taken)

    def _signature(self) -> dict[str, object]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"holder": self._holder(), "host": socket.gethostname(), "process": os.getpid(), "since": now}

    def _put(self, data: bytes, over: str | None = None) -> None:
        again(self.address, lambda: self._store.put(self.address, data, self.plan, over))

    def _hold(self, said: dict[str, Any]) -> None:
        self._said = said
        self._beating = threading.Thread(target=self._beat, name="claim", daemon=True)
        self._beating.start()

    # --- holding it

    def change(self, said: Mapping[str, Any]) -> None:
        """Say other things in the claim, such as the names of the uploads. `StoreError` if another run has the claim by now."""
        self._renew(said)
        self.check()

    def said(self, name: str) -> Any:
        """What the claim that this run holds says; None if it says nothing of that name."""
        return self._said.get(name)

    def check(self) -> None:
        """Raise `StoreError` if another run has taken the claim, or removed it."""
        if self._lost is not None:
            raise self._lost

    def _beat(self) -> None:
        while not self._over.wait(BEAT) and self._lost is None:
            with contextlib.suppress(CkptError):  # a store that does not answer says so to those who send parts
                self._renew()

    def _renew(self, other: Mapping[str, Any] = {}) -> None:
        """Write the claim anew, if it is still ours."""
        with self._writing:
            said = {**self._said, **other, "beat": os.urandom(8).hex()}  # the tag of the object changes with it
            there, version = self._look()
            if there is not None and there.get("holder") == said["holder"] and self._replaced(said, version):
                self._said = said
            elif not self._over.is_set():
                self._lose(there)

    def _replaced(self, said: Mapping[str, Any], version: str) -> bool:
        """Whether the claim of that version could be replaced by what is `said` now."""
        try:
            self._put(json.dumps(said).encode(), version)
        except Taken:
            return self._look()[0] == said  # it is ours if an answer was lost, and we asked once more
        return True

    def _lose(self, there: Mapping[str, Any] | None) -> None:
        self._lost = StoreError(
            "another run took over this conversion" if there else "something removed the claim of this conversion",
            file=self.address,
            found=who(there) if there else "no such object",
            fix="wait for that run, or end it; then repeat the command: what is done is kept"
            if there
            else "repeat the command: what is done is kept",
        )

    def still_mine(self) -> bool:
        """Whether the claim that is there is ours, before what depends on it is dropped."""
        there = self._look()[0] if self.mine else None
        return there is not None and there.get("holder") == self._said["holder"]

    def release(self) -> None:
        """Remove the claim, if it is ours."""
        self.rest()
        if self.still_mine():
            self.remove()

    def remove(self) -> None:
        """Remove the claim, whosever it is."""
        again(self.address, lambda: self._store.remove(self.address))

    def rest(self) -> None:
        """Write it anew no more."""
        self._over.set()
        if self._beating is not None:
            self._beating.join(_PATIENCE)


def who(said: Mapping[str, Any]) -> str:
    """Who holds a claim, and since when, by what it says."""
    host, process, since = (str(said.get(name, "?"))[:100] for name in ("host", "process", "since"))
    return f"process {process} on {host}, since {since}"
