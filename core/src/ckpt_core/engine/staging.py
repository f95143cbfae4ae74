"""The staging folder: where a conversion lives until it is whole.

    DST.ckpt-partial/
        token            a random text of the run that is alive, by which its workers know the folder
        journal.jsonl    first line: the plan; then one line per finished tensor
        out/             the files, at their final size from the start

The whole of `out/` gets its final name in one rename, so nothing half-written ever has it; where the output is a
single file, its receipt gets its name beside it just before. A killed run
leaves the folder behind; the same command continues from the journal. Finished tensors are trusted only
while the machine has not been restarted: a restart can lose written pages that were never synced. Without `sync` the same
is true of the output itself, for as long as the kernel takes to write it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from ckpt_core.engine.transfer import Result
from ckpt_core.errors import CkptError, FormatError
from ckpt_core.storage.files import naming, pwrite_all
from ckpt_core.storage.jsonfile import read_json_object
from ckpt_core.storage.output import OutputFile

SUFFIX = ".ckpt-partial"
RECEIPT = "ckpt-receipt.json"
TOKEN = "token"
_SYNCS = 8


def receipt_path(output: str) -> str:
    """Where the receipt of an output is: in a folder, or beside a file (`model.nemo.ckpt-receipt.json`)."""
    return os.path.join(output, RECEIPT) if os.path.isdir(output) else receipt_beside(output)


def receipt_beside(output: str) -> str:
    """Where the receipt of a single file is, or will be."""
    return f"{output.rstrip(os.sep)}.{RECEIPT}"


def boot_id() -> str:
    """An identifier that changes when the machine restarts; empty where there is none (nothing is then resumed)."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


class Staging:
    """An unfinished output beside its destination, locked against other runs."""

    def __init__(self, destination: str, plan_hash: str, sync: bool = True) -> None:
        self.destination = os.path.abspath(destination)
        self.folder = self.destination + SUFFIX
        self.sync = sync
        self.out = os.path.join(self.folder, "out")
        self.token = secrets.token_hex(16)
        self._token_path = os.path.join(self.folder, TOKEN)
        self._journal_path = os.path.join(self.folder, "journal.jsonl")
        self._receipt = receipt_beside(self.destination)
        self._aside = {
            self.destination: os.path.join(self.folder, "replaced"),
            self._receipt: os.path.join(self.folder, "receipt"),
        }
        self._head = {"plan": plan_hash, "boot": boot_id()}
        self.done: dict[str, Result] = {}

    def __enter__(self) -> Staging:
        os.makedirs(self.out, exist_ok=True)
        self._journal = open(self._journal_path, "a+b", buffering=0)
        try:
            self._lock()
            self._resume()
        except BaseException:
            self._journal.close()  # and with it goes the lock
            raise
        return self

    def _lock(self) -> None:
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self._journal.fileno()), os.stat(self._journal_path)):
                raise BlockingIOError  # the other one finished, and removed its journal, between our opening and our locking it
        except (BlockingIOError, FileNotFoundError):
            raise CkptError(
                "another conversion is writing to this destination", file=self.destination, fix="wait for it"
            ) from None

    def __exit__(self, *_: object) -> None:
        self._journal.close()

    def _resume(self) -> None:
        head, done, size = self._read_journal()
        if not head:
            self._restart()
            return
        if head.get("plan") != self._head["plan"]:
            moved = self._aside[self.destination]
            kept = f" after saving {moved}, which it was to replace" if os.path.lexists(moved) else ""
            raise CkptError(
                "an unfinished conversion of something else is in the way",
                file=self.folder,
                found=f"plan {head.get('plan')}",
                expected=f"plan {self._head['plan']}",
                fix=f"the source or the options changed: repeat the old command, or remove that folder{kept}",
            )
        if not self._head["boot"] or head.get("boot") != self._head["boot"]:
            self._restart()
            return
        self._journal.truncate(size)
        self.done = done

    def _read_journal(self) -> tuple[dict[str, object], dict[str, Result], int]:
        """The first line, the finished tensors, and the bytes up to the first line that a kill cut short or that is damaged."""
        head: dict[str, object] = {}
        done: dict[str, Result] = {}
        size = 0
        with open(self._journal_path, "rb") as journal:
            for line in journal:
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                    if size:
                        done[record["name"]] = Result(**record)
                    else:
                        head = dict(record)
                except (ValueError, TypeError, KeyError):
                    break
                size += len(line)
        return head, done, size

    def is_published(self, tensors: Iterable[str]) -> bool:
        """Whether a run of this plan died between giving its output the final name and removing this folder.

        Then every tensor is in the journal, nothing is left to publish, and the receipt at the destination is this plan's.
        """
        if recorded_plan(receipt_path(self.destination)) != self._head["plan"]:
            return False
        if any(files for _, _, files in os.walk(self.out)):
            return False
        try:
            head, done, _ = self._read_journal()
        except FileNotFoundError:  # it is removed last
            return os.path.isdir(self.folder)
        return head.get("plan") == self._head["plan"] and done.keys() >= set(tensors)

    def _restart(self) -> None:
        shutil.rmtree(self.out)
        os.makedirs(self.out)
        self._journal.truncate(0)
        self._append(self._head)

    def _append(self, record: dict) -> None:
        with naming(self._journal_path):
            self._journal.write(json.dumps(record).encode() + b"\n")

    def finish(self, result: Result) -> None:
        """Note that a tensor is written."""
        self.done[result.name] = result
        self._append({name: getattr(result, name) for name in Result.__slots__})

    def create(self, files: Iterable[OutputFile]) -> None:
        """Make every output file at its final size, with the bytes that are known already, and the token of this run.

        Repeating is harmless.

        If a file that the journal thinks written is not there (it was published already, or removed), all starts over.
        """
        files = list(files)
        if self.done and not all(
            os.path.isfile(path := self.path(file.path)) and os.path.getsize(path) == file.size for file in files
        ):
            self._restart()
            self.done = {}
        with naming(self._token_path), open(self._token_path, "w") as token:
            token.write(self.token)
        for file in files:
            path = self.path(file.path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                with naming(path):
                    if os.fstat(descriptor).st_size != file.size:
                        os.ftruncate(descriptor, file.size)
                    for offset, data in file.literals:
                        pwrite_all(descriptor, memoryview(data), offset)
            finally:
                os.close(descriptor)

    def path(self, relative: str) -> str:
        """Where an output file is while the conversion runs."""
        return os.path.join(self.out, relative)

    def to_disk(self, files: Iterable[str]) -> None:
        """Force output files to the disk, if that is wanted.

        Where that fails, pages may be lost that the journal calls written, and no later sync would say so again. So the
        file is removed, and the next run starts over.
        """

        def force(relative: str) -> None:
            try:
                sync_file(self.path(relative))
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(self.path(relative))
                raise

        if self.sync:
            _sync_all(files, force)

    def publish(self, single_file: str | None, overwrite: bool) -> None:
        """Give the output its final name, in one rename; then remove the staging folder.

        A single file's receipt gets its own name before: what has a final name is whole, and has its receipt.
        """
        made = {self.out: self.destination}
        if single_file:
            made = {self.path(RECEIPT): self._receipt, self.path(single_file): self.destination}
        if overwrite:
            for old, aside in self._aside.items():
                if os.path.lexists(old):
                    _remove(aside)  # what a killed run replaced before it published what is replaced now
                    os.rename(old, aside)
        elif os.path.lexists(self.destination) and (single_file or not is_empty_folder(self.destination)):
            raise CkptError("the destination exists", file=self.destination, fix="use --overwrite, or another name")
        if self.sync:
            _sync_all([folder for folder, _, _ in os.walk(self.out)], sync_file)
        for staged, final in made.items():
            os.rename(staged, final)
        if self.sync:
            sync_file(os.path.dirname(self.destination))
        self.remove()

    def remove(self) -> None:
        """Remove the staging folder, the journal last: by it a later run knows what it finds here.

        What can't be removed stays behind, and does no harm to an output that is published.
        """
        with contextlib.suppress(OSError):
            for path in (self.out, self._token_path, *self._aside.values()):
                _remove(path)
        shutil.rmtree(self.folder, ignore_errors=True)

    def discard(self) -> None:
        """Remove everything that was written; put back what a killed run moved aside and did not replace."""
        if not os.path.lexists(self.destination):
            if recorded_plan(self._receipt) == self._head["plan"]:  # published by a run that was killed just then
                os.unlink(self._receipt)
            for old, aside in self._aside.items():
                if os.path.lexists(aside) and not os.path.lexists(old):
                    os.rename(aside, old)
        self.remove()


def recorded_plan(receipt: str) -> str | None:
    """The plan that a receipt is about; None if it is no receipt, or not there."""
    try:
        return str(read_json_object(receipt).get("plan"))
    except FormatError:
        return None


def is_empty_folder(path: str) -> bool:
    """Whether a folder of this name can be replaced by a rename: an empty one, that is not a link to one."""
    return os.path.isdir(path) and not os.path.islink(path) and not os.listdir(path)


def _remove(path: str) -> None:
    """Remove a file or a folder, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def sync_file(path: str) -> None:
    """Force a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_all(paths: Iterable[str], sync: Callable[[str], None]) -> None:
    """Force many files or folders to the disk; raises the first failure.

    Several at once share the commits of the file system; a thousand in turn would wait for one each.
    """
    with ThreadPoolExecutor(_SYNCS, "sync") as pool:
        list(pool.map(sync, paths))
