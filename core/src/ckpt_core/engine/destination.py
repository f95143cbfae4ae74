"""What may be done at a destination: nothing of anybody else's is replaced, and there is room for the output."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ckpt_core.engine.plan import Plan
from ckpt_core.engine.staging import Staging, is_empty_folder
from ckpt_core.errors import CkptError, UsageError
from ckpt_core.lean import dataclass
from ckpt_core.ledger import UNKNOWN_FILE, place_text
from ckpt_core.plugins.discovery import detect
from ckpt_core.plugins.request import ReadRequest
from ckpt_core.plugins.values import typed_options
from ckpt_core.reading import checkpoint_at
from ckpt_core.receipt.places import RECEIPT, receipt_beside, receipt_path
from ckpt_core.receipt.receipt import recorded_plan
from ckpt_core.storage.bytes.home import absolute
from ckpt_core.storage.bytes.remote.writable import writable
from ckpt_core.storage.bytes.space import free_space
from ckpt_core.storage.documents import read_json_object


def check_destination(plan: Plan, destination: str, overwrite: bool) -> None:
    """Refuse to write over the source, to touch what exists (without `overwrite`), and ever to replace what is not a checkpoint."""
    store = writable(destination)
    if store is not None:
        from ckpt_core.engine.spool import Spool

        Spool(store, destination, plan).check(overwrite)
        return
    if not os.path.lexists(destination):  # `notes.txt/` and `missing/../notes.txt` are nothing, and we write notes.txt
        destination = absolute(destination)
    real = os.path.realpath(destination)
    # What is not there yet holds nothing, and to follow the links of thousands of files takes time.
    if os.path.lexists(real) and _holds(real, (os.path.realpath(state.path) for state in plan.source.files)):
        raise CkptError("the destination holds the source", file=destination, fix="write somewhere else")
    if _holds(os.path.realpath(plan.source.path), [real]):
        raise CkptError("the destination is inside the source", file=destination, fix="write somewhere else")
    _check_outside(destination)
    if os.path.ismount(destination):
        raise CkptError(
            "the destination is a mount point, which can't be replaced",
            file=destination,
            fix="name a folder inside it: the output is written beside the destination and then renamed",
        )
    if os.path.lexists(destination) and not (not plan.target.single_file and is_empty_folder(destination)):
        _check_replaceable(plan, destination, overwrite)
    beside = receipt_beside(destination)
    if os.path.lexists(beside):
        recorded = recorded_plan(beside)
        if recorded is None and (overwrite or plan.target.single_file):
            raise CkptError(
                "what lies in the place of the receipt is none", file=beside, fix="move it away, or use another name"
            )
        if plan.target.single_file and not overwrite and recorded != plan.hash:
            raise CkptError(
                "the receipt of something else is there", file=beside, fix="use --overwrite, or another name"
            )
    parent = os.path.dirname(absolute(destination))
    if not os.path.isdir(parent):
        raise CkptError("the destination's parent folder does not exist", file=parent, fix="make it, or use -p")


def _holds(place: str, paths: Iterable[str]) -> bool:
    """Whether one of some paths is a place, or is in it, by whatever name: one folder has two where it is mounted twice, and where a file system does
    not tell capital letters from small ones."""
    identity, known = _identity(place), {place: True}
    for path in paths:
        while path not in known:
            if identity is not None and _identity(path) == identity:
                return True
            known[path] = False
            path = os.path.dirname(path)
        if known[path]:
            return True
    return False


def _identity(path: str) -> tuple[int, int] | None:
    """What the names of one file or folder have in common; None where nothing is."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _check_outside(destination: str) -> None:
    """Refuse a place inside the output of another conversion: it would be one that has files which it does not know."""
    folder = os.path.realpath(os.path.dirname(absolute(destination)))
    while folder != os.path.dirname(folder):
        if recorded_plan(os.path.join(folder, RECEIPT)) is not None:
            raise CkptError(
                "the destination is inside another checkpoint",
                file=destination,
                found=os.path.join(folder, RECEIPT),
                fix="write somewhere else: ckpt verify would call the new files additions to that one",
            )
        folder = os.path.dirname(folder)


def _check_replaceable(plan: Plan, destination: str, overwrite: bool) -> None:
    if overwrite:
        if not _is_checkpoint(destination):
            raise CkptError(
                "the destination is not a checkpoint, and --overwrite replaces nothing else",
                file=destination,
                expected="a checkpoint: with a receipt of ckpt, or of a format that is installed",
                fix="move it away, or use another name",
            )
        foreign = _foreign(destination)
        if foreign:
            more = f" and {len(foreign) - 3:,} more" if len(foreign) > 3 else ""
            raise CkptError(
                "the destination holds more than one checkpoint's files, and --overwrite would remove them all",
                file=destination,
                found=", ".join(foreign[:3]) + more,
                expected="files of the checkpoint alone",
                fix="move those away, or use another name",
            )
        return
    staging, receipt, found = Staging(destination, plan), receipt_path(destination), []
    if recorded_plan(receipt) not in (None, plan.hash):
        found.append(f"the output of a conversion: {staging.differences(read_json_object(receipt))[0]}")
    if os.path.lexists(staging.folder):
        found.append(f"it, and an unfinished conversion in {staging.folder}")
    raise CkptError(
        "the destination exists",
        file=destination,
        found="; ".join(found) or None,
        fix="use --overwrite, or another name",
    )


def _is_checkpoint(path: str) -> bool:
    """Whether what is there is a checkpoint, ours or any that an installed format knows. An empty folder may be one to come,
    and of a link only the link is replaced.
    """
    if os.path.islink(path) or is_empty_folder(path) or recorded_plan(receipt_path(path)) is not None:
        return True
    try:
        return bool(detect(path))
    except (CkptError, OSError):
        return False


def _foreign(path: str) -> list[str]:
    """The files and folders in a checkpoint's folder that are not part of it: by our receipt, else by its reader's ledger."""
    if os.path.islink(path) or not os.path.isdir(path) or is_empty_folder(path):
        return []
    receipt = receipt_path(path)
    if recorded_plan(receipt) is not None:
        target = read_json_object(receipt).get("target")
        parts = target if isinstance(target, dict) else {}
        own = {RECEIPT}.union(*(parts.get(kind) or () for kind in ("files", "documents")))
        there = (
            os.path.relpath(os.path.join(folder, name), path) for folder, _, names in os.walk(path) for name in names
        )
        return sorted(name for name in there if name not in own)
    ((plugin, _), *_) = detect(path)
    try:
        checkpoint = checkpoint_at(plugin, path, ReadRequest(typed_options(plugin.info, {}, "read")))
    except CkptError as problem:
        return [f"what {plugin.name} can't read: {problem.problem}"]
    read = [state.path for state in checkpoint.files]
    ledger = checkpoint.ledger.closed(path, read, [sidecar.path for sidecar in checkpoint.sidecars.values()], RECEIPT)
    return [place_text(entry.file, path) for entry in ledger.sorted() if entry.what == UNKNOWN_FILE.what]


_MORE_ROOM = "make room there, or write to another disk; what is at the destination stays until the new output is whole"


@dataclass(frozen=True, slots=True)
class Room:
    """The bytes that an output still needs, and those that are free where it goes, on the file system at `mount`."""

    needed: int
    free: int
    mount: str
    fix: str = _MORE_ROOM

    @property
    def missing(self) -> int:
        return max(0, self.needed - self.free)

    def check(self, destination: str) -> None:
        """Raise if the output does not fit."""
        if self.missing:
            raise CkptError(
                f"there is no room for the output: {self.missing:,} bytes are missing",
                file=destination,
                found=f"{self.free:,} bytes free on {self.mount}",
                expected=f"{self.needed:,} bytes",
                fix=self.fix,
            )


def room_for(staging: Staging) -> Room | None:
    """The room for an output, without what an earlier run wrote of it already; None where the file system does not say.

    Of an output that goes to a store it is the room for what waits to be sent.
    """
    free = free_space(os.path.dirname(staging.folder))
    if free is None:
        return None
    fix = "name a folder on another disk with --spool" if staging.spooled else _MORE_ROOM
    return Room(max(0, staging.most_held - staging.taken), *free, fix)


def check_spool(destination: str, spool: str | None) -> None:
    """`UsageError` where there is a folder for what waits to be sent, and nothing is sent."""
    if spool is not None and writable(destination) is None:
        raise UsageError(
            "--spool is for a destination in a store, and this one is on this machine",
            file=destination,
            fix="leave --spool out: what is not whole yet lies beside the destination",
        )


def staging_at(destination: str, plan: Plan, sync: bool = True, spool: str | None = None) -> Staging:
    """Where the output of a plan lies until it is whole: beside the destination or, if that is the address of a store, in the folder `spool`."""
    store = writable(destination)
    check_spool(destination, spool)
    if store is None:
        return Staging(destination, plan, sync)
    from ckpt_core.engine.spool import Spool

    return Spool(store, destination, plan, spool)
