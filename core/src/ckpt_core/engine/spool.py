"""The staging folder of an output that goes to a store. It lies on this machine, and holds the parts that can't be sent yet.

    SPOOL/HASH.ckpt-partial/      named by the address; it has what every staging folder has, and
        parts.jsonl               a line for each part that was sent, with its tag
        holder                    a random text, by which the next run here knows that the claim is ours

The files in it have their final size, but holes in place of data that is not there: a part is sent when it is whole, and its bytes then become
a hole. Nothing is published by a rename: see `uploads`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

from blake3 import blake3

from ckpt_core.addresses import spelled
from ckpt_core.engine.claim import Claim, Tell, who
from ckpt_core.engine.parts import Parts, Place
from ckpt_core.engine.pieces import Transfer
from ckpt_core.engine.plan import Plan
from ckpt_core.engine.staging import Staging, is_whole
from ckpt_core.engine.uploads import QUEUE, Uploads
from ckpt_core.errors import BeingWritten, CkptError, FormatError, StoreError, UsageError
from ckpt_core.receipt.places import RECEIPT, receipt_beside, receipt_path
from ckpt_core.receipt.receipt import Receipt, read_receipt, recorded_plan
from ckpt_core.storage.bytes.files import pwrite_all, written
from ckpt_core.storage.bytes.home import absolute
from ckpt_core.storage.bytes.names import UNFINISHED
from ckpt_core.storage.bytes.output import OutputFile
from ckpt_core.storage.bytes.remote import found, localised
from ckpt_core.storage.bytes.remote.ranges import again
from ckpt_core.storage.bytes.remote.schemes import address_of
from ckpt_core.storage.bytes.remote.writing import WritableStore
from ckpt_core.storage.bytes.space import drops_space
from ckpt_core.storage.documents import read_json_object

T = TypeVar("T")

_LOG = "parts.jsonl"
_HOLDER = "holder"
_ATTEMPTS = 3  # at requests before anything is done


def default_spool() -> str:
    """The folder in which outputs wait for a store: `ckpt` in the user's folder of caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(caches, "ckpt")


class Spool(Staging):
    """An unfinished output of a plan on its way to an address."""

    spooled = True

    def __init__(self, store: WritableStore, address: str, plan: Plan, folder: str | None = None) -> None:
        self.address, self._store = address_of(address).rstrip("/"), store
        self.place = absolute(folder or default_spool())
        name = blake3(self.address.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        super().__init__(self.address, plan, sync=False, folder=os.path.join(self.place, name + UNFINISHED))
        files = plan.target.files
        self._single = files[0].path if plan.target.single_file else None
        self._receipt_at = receipt_beside(self.address) if self._single else f"{self.address}/{RECEIPT}"
        self._log, self._holder_at = os.path.join(self.folder, _LOG), os.path.join(self.folder, _HOLDER)
        self._beside += [self._log, self._holder_at]  # removed after `out`, whose holes the log tells of
        self._parts = Parts(files, 2 * plan.workers)
        self._waiting: Counter[Place] = Counter()
        head = {name: value for name, value in self.head.items() if name != "boot"}
        sizes = {file.path: file.size for file in files}
        self._claim = Claim(store, self.address, head, self._holder)
        self._uploads = Uploads(store, self._claim, self._address_of, self.path, self._parts, sizes, self._log)

    def _address_of(self, name: str) -> str:
        """The address of a file of the output."""
        if name == RECEIPT:
            return self._receipt_at
        return self.address if name == self._single else f"{self.address}/{name}"

    def __enter__(self) -> Spool:
        os.makedirs(self.place, mode=0o700, exist_ok=True)
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._uploads.close()
        super().__exit__(*error)

    # --- before anything is done

    def is_published(self) -> bool:
        """See `Staging`: the receipt is the last that is put there."""
        there = found(self.address)
        return there is not None and recorded_plan(receipt_path(there)) == self._plan.hash and is_whole(there)

    def published(self) -> Receipt:
        """See `Staging`."""
        return read_receipt(receipt_path(localised(self.address)), found=True)

    def check(self, overwrite: bool) -> None:
        """Refuse an address with anything that an earlier run of this plan did not put there."""
        source = spelled(self._plan.source.path)
        if f"{self.address}/".startswith(f"{source}/"):
            raise CkptError("the destination is inside the source", file=self.address, fix="write somewhere else")
        self._check_outside()
        claim = self._claim.read()
        if claim is not None and claim["plan"] != self._plan.hash:
            was, wanted = self.differences(claim)
            raise CkptError(
                "an unfinished conversion of something else is in the way",
                file=self._claim.address,
                found=f"{was}, by {who(claim)}",
                expected=wanted,
                fix="repeat the old command, or remove that object, and its uploads by a rule of the bucket for those that stay incomplete",
            )
        own = {self._address_of(name) for name in (*self._plan.outputs, RECEIPT)} if claim is not None else set()
        there = {f"{self.address}/{name}" for name in self._ask(self.address, self._store.below)}
        there |= {one for one in (self.address, self._receipt_at) if self._ask(one, self._store.written) is not None}
        foreign = sorted(there - own)
        if not foreign:
            return
        named = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3:,} more" if len(foreign) > 3 else "")
        alone = [one for one in foreign if one in (self.address, self._receipt_at)] if self._single else []
        commands = [self._store.removal(one, single=True) for one in alone] or [self._store.removal(self.address)]
        remove = f"remove it first ({' && '.join(commands)}), or use another name"
        if overwrite:
            raise UsageError(
                "--overwrite replaces nothing in a store, where many objects can't be replaced in one step",
                file=self.address,
                found=named,
                fix=remove,
            )
        raise CkptError("the destination exists", file=self.address, found=named, fix=remove)

    def _check_outside(self) -> None:
        """Refuse an address inside the output of another conversion, be it finished or not, or inside that of a file."""
        _, *names = self.address.partition("://")[2].split("/")
        above = ["/".join(names[:count]) for count in range(1, len(names))]
        root = self.address[: -len("/".join(names))]
        for place in (f"{root}{name}{kind}" for name in reversed(above) for kind in (f"/{RECEIPT}", UNFINISHED, "")):
            there = None
            with suppress(StoreError):  # whoever has no right to read above the address has written nothing there
                there = self._ask(place, self._store.written)
            if there is not None and not (
                there.size == 0 and not there.plan
            ):  # an empty object may be the mark of a folder
                raise CkptError(
                    "the destination is inside another checkpoint"
                    if place.endswith((RECEIPT, UNFINISHED))
                    else "the destination is inside a file",
                    file=self.address,
                    found=place,
                    fix="write somewhere else",
                )

    def _ask(self, address: str, question: Callable[[str], T]) -> T:
        return again(address, lambda: question(address), _ATTEMPTS)

    @property
    def most_held(self) -> int:
        """The most bytes that lie here at a time. Where the file system can't make holes in files, that is the whole output."""
        small = sum(map(len, self._plan.target.documents.values()))
        small += sum(sidecar.size for sidecar in self._plan.target.sidecars.values())
        whole = sum(file.size for file in self._plan.target.files)
        if not drops_space(self.place):
            return whole + small
        largest = max((self._parts.extent(place)[1] for place in self._parts.all()), default=0)
        copied = sum(one.size for file in self._plan.target.files for one in file.excerpts)
        begun = self._parts.choose(self._plan.transfers)
        return min(whole, begun + copied + QUEUE * largest) + small

    # --- while it runs

    def in_order(self, transfers: Iterable[Transfer]) -> list[Transfer]:
        """See `Staging`: in the order of the files, so that parts fill one after the other."""
        return self._parts.in_order(transfers)

    def _holder(self) -> str:
        with suppress(FileNotFoundError), open(self._holder_at) as file:
            if known := file.read().strip():
                return known
        fresh = os.urandom(16).hex()
        with written(self._holder_at, os.O_CREAT | os.O_TRUNC) as descriptor:
            pwrite_all(descriptor, memoryview(fresh.encode()), 0)
        return fresh

    def create(self, files: Iterable[OutputFile], tell: Tell) -> None:
        """Make the files here and the uploads in the store. Parts that an earlier run sent and the store has lost are made again."""
        super().create(files, tell)
        doubted, kept = self._known()
        try:
            lost = self._uploads.open(tell, doubted, kept)
        except BeingWritten:
            if not self.done:
                self.remove()
            raise
        if lost:
            for transfer in self._plan.transfers:
                if transfer.key in self.done and not lost.isdisjoint(self._parts.filled(transfer)):
                    del self.done[transfer.key]

    def _known(self) -> tuple[set[Place], set[Place]]:
        """The parts of an earlier run of which the journal lacks a piece, so that nobody knows what was sent of them, and those of which it has one."""
        kept: set[Place] = set()
        doubted = set(self._parts.copied)  # no piece tells whether a file that is copied is the one that it was
        if self.done or os.path.lexists(self._log):
            for transfer in self._plan.transfers:
                (kept if transfer.key in self.done else doubted).update(self._parts.of(transfer))
        return doubted, kept

    def begin(self, todo: Iterable[Transfer]) -> None:
        """See `Staging`. Sends the parts that wait for no transfer."""
        self._waiting = Counter(place for transfer in todo for place in self._parts.of(transfer))
        self._uploads.submit(place for place in self._parts.all() if not self._waiting[place])

    def advance(self, transfer: Transfer) -> None:
        """See `Staging`. Sends the parts that waited only for this transfer."""
        places = self._parts.of(transfer)
        self._waiting.subtract(places)
        self._uploads.submit(sorted(place for place in places if not self._waiting[place]))

    def publish(self, single_file: str | None, overwrite: bool) -> None:
        """Complete the data files, then put the documents, and the receipt last: without a receipt there is no checkpoint."""
        self._check_files()
        if not self._uploads.agree(self._contents()):
            self.discard()
            raise FormatError(
                "an earlier run completed files of the source as it was then",
                file=self.address,
                found="the source of the same size and modification time, with other contents",
                expected="what was read of it then",
                fix="repeat the command: what that run had written is removed",
            )
        self._uploads.complete()
        data = {file.path for file in self._plan.target.files}
        self._uploads.put(sorted(self._plan.outputs - data))
        self._uploads.put([RECEIPT])
        self._uploads.release()
        self.remove()

    def _contents(self) -> str:
        """A digest of what is in the output, by its receipt."""
        said = read_json_object(self.path(RECEIPT))
        told = [said["fingerprint"], said["tensors"], said.get("training")]
        told += [said["target"][name] for name in ("crc32", "documents")]
        return blake3(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def tidy(self) -> None:
        """See `Staging`. Removes the claim, too."""
        with suppress(CkptError):
            claim = self._claim.read()
            if claim is not None and claim["plan"] == self._plan.hash:
                self._claim.remove()
        super().tidy()

    def discard(self) -> None:
        """Drop everything that was written, here and there."""
        self._uploads.abort(self._plan.outputs - {file.path for file in self._plan.target.files})
        self.remove()
