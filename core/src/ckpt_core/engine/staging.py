"""The staging folder: where a conversion lives until it is whole.

    DST.ckpt-partial/
        token            a random text of the running process, by which its workers recognise the folder
        sources          the state of each source file when the plan was made, for the workers
        mark-*           which worker has which task
        journal.jsonl    first line: the plan; then one line per finished piece of a tensor
        out/             the files, at their final size from the start

The whole of `out/` gets its final name in one rename, so nothing half-written ever has it. Where the output is a
single file, its receipt gets its name just before. A killed run
leaves the folder behind, and the same command continues from the journal. The journal is trusted only until the machine restarts: a restart can
lose written pages that were never synced. Without `sync` the output itself can lose pages, too, until the kernel has written them.

An existing folder of that name is used only if ckpt made it: a real folder of this user, closed to others, with a
journal that begins as those of ckpt do. Links in it are never followed or written through, and only the files above
are removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NoReturn

from ckpt_core import __version__
from ckpt_core.addresses import spelled
from ckpt_core.engine.marks import MARK
from ckpt_core.engine.pieces import Transfer
from ckpt_core.engine.plan import Plan
from ckpt_core.engine.results import Result
from ckpt_core.engine.states import STATES, write_states
from ckpt_core.errors import BeingWritten, CkptError
from ckpt_core.receipt.places import RECEIPT, receipt_beside, receipt_path
from ckpt_core.receipt.receipt import Receipt, read_receipt, recorded_plan
from ckpt_core.storage.bytes.files import naming, pwrite_all, written
from ckpt_core.storage.bytes.home import absolute
from ckpt_core.storage.bytes.names import JOURNAL, UNFINISHED
from ckpt_core.storage.bytes.output import OutputFile

SUFFIX = UNFINISHED
TOKEN = "token"
KEPT = "then repeat the same command: what is done is kept"
SOURCE_CHANGED = "one of the same options, of the source as it was then", "one of the source as it is: it changed"
_FIRST_BYTES = b'{"ckpt": "'  # of every journal
_SYNCS = 8
# The answers of a file system that lacks a call. The conversion then goes on without the call.
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY}
_NOT_OURS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT}
_NO_LOCKS = {*_UNSUPPORTED, errno.ENOLCK}


def boot_id() -> str:
    """An identifier that changes when the machine restarts; empty where there is none (nothing is then resumed)."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


class Staging:
    """An unfinished output of a plan beside its destination, locked against other runs."""

    spooled = False
    """Whether the files are only on their way to a store. Then they take no space in advance."""

    def __init__(self, destination: str, plan: Plan, sync: bool = True, folder: str | None = None) -> None:
        self.destination = absolute(destination) if folder is None else destination
        self.folder = folder or self.destination + SUFFIX
        self.sync = sync
        self.out = os.path.join(self.folder, "out")
        self.token = os.urandom(16).hex()
        self._beside = [os.path.join(self.folder, name) for name in (TOKEN, STATES)]
        self._plan = plan
        self._journal_path = os.path.join(self.folder, JOURNAL)
        self._receipt = receipt_beside(self.destination)
        self._aside = {
            self.destination: os.path.join(self.folder, "replaced"),
            self._receipt: os.path.join(self.folder, "receipt"),
        }
        asked = {"source": spelled(plan.source.path), "options": dict(plan.options)}
        self.head = {"ckpt": __version__, "plan": plan.hash, "boot": boot_id(), **asked}
        self.done: dict[tuple[str, int], Result] = {}
        self.seen: dict[tuple[str, int], str] = {}
        """Of each finished piece, how the files that it was read from are known again (`SourceFiles.seen`)."""

    def __enter__(self) -> Staging:
        try:
            os.mkdir(self.folder, 0o700)
        except FileExistsError:
            with self._alone():
                self._check_ours()
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
            raise CkptError(
                "nothing can be written beside the destination",
                file=os.path.dirname(self.folder),
                found=error.strerror,
                fix="write to a folder of yours, on a disk that can be written",
            ) from error
        with self._alone():
            descriptor = os.open(self._journal_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _CAREFULLY, 0o600)
            self._journal = os.fdopen(descriptor, "a+b", buffering=0)
        try:
            with self._alone():
                self._lock()
            self._resume()
            os.makedirs(self.out, exist_ok=True)
        except BaseException:
            self._journal.close()  # and with it goes the lock
            raise
        return self

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            yield
        except (BlockingIOError, FileNotFoundError):
            raise BeingWritten(
                "another conversion is writing to this destination", file=self.destination, fix="wait for it"
            ) from None

    def _lock(self) -> None:
        """Take the lock. On a file system without locks two runs are not kept apart."""
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:  # Lustre has none unless it is mounted with -o flock
                raise
        if not os.path.samestat(os.fstat(self._journal.fileno()), os.lstat(self._journal_path)):
            raise BlockingIOError  # another run finished and removed its journal, after we opened it and before we locked it

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(
            OSError
        ):  # its lines are written, or lost: a later run believes those that it finds whole
            self._journal.close()

    # --- whose folder it is

    def _check_ours(self) -> None:
        """Refuse a folder that ckpt did not make, before anything in it is touched."""
        status = os.lstat(self.folder)
        if not stat.S_ISDIR(status.st_mode):
            self._refuse("a link" if stat.S_ISLNK(status.st_mode) else "a file")
        if status.st_uid != os.geteuid() and status.st_uid != _owner_of_new_files(os.path.dirname(self.folder)):
            self._refuse(f"a folder of user {status.st_uid}")
        try:
            data = self._journal_bytes()
        except FileNotFoundError:
            data = b""
            if not set(os.listdir(self.folder)) <= {"out"}:
                self._refuse(f"a folder without a {JOURNAL}")
        if data[: len(_FIRST_BYTES)] != _FIRST_BYTES[: len(data)]:
            self._refuse(f"a {JOURNAL} of something else")
        if b"\n" not in data and any(self._files()):  # a run that was killed at its start has no files yet
            self._refuse(f"files, but no {JOURNAL} that says of which conversion")

    def _check_files(self) -> None:
        """Refuse an `out/` with anything but regular files of this plan in real folders."""
        for name in self._files():
            if name not in self._plan.outputs and name != RECEIPT:
                self._refuse(f"{name}, which is not a file of this conversion", os.path.join(self.out, name))

    def _files(self) -> Iterator[str]:
        """The names of all files in `out/`. Refuses links, pipes, devices, and files with a second name elsewhere."""
        if not os.path.lexists(self.out):
            return
        if not stat.S_ISDIR(os.lstat(self.out).st_mode):
            self._refuse("out is not a folder", self.out)
        pending = [""]
        while pending:
            prefix = pending.pop()
            with os.scandir(os.path.join(self.out, prefix)) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(f"{prefix}{entry.name}/")
                    elif not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                        kind = "a link" if stat.S_ISLNK(status.st_mode) else "no file of its own"
                        self._refuse(f"{prefix}{entry.name} is {kind}", entry.path)
                    else:
                        yield f"{prefix}{entry.name}"

    def _refuse(self, found: str, file: str | None = None) -> NoReturn:
        raise CkptError(
            "what lies in the place of the staging folder was not made by this conversion",
            file=file or self.folder,
            found=found,
            expected=f"nothing, or a folder that ckpt made, with its {JOURNAL}",
            fix="move it away, or choose another name for the output",
        )

    # --- the journal

    def _resume(self) -> None:
        self._journal.seek(0)
        head, done, seen, size = _read_journal(self._journal.readall())
        if not head:
            self._restart()
            return
        if head.get("plan") != self.head["plan"]:
            raise self.in_the_way(*self.differences(head))
        self._check_files()
        if not self.head["boot"] or head.get("boot") != self.head["boot"]:
            self._restart()
            return
        self._journal.truncate(size)
        self.done, self.seen = done, seen

    def in_the_way(self, was: str, wanted: str) -> CkptError:
        """The error about a folder of another conversion: what it is of, and what is wanted now."""
        moved = self._aside[self.destination]
        kept = f" after saving {moved}, which it was to replace" if os.path.lexists(moved) else ""
        return CkptError(
            "an unfinished conversion of something else is in the way",
            file=self.folder,
            found=was,
            expected=wanted,
            fix=f"repeat the old command, or remove that folder{kept}",
        )

    def _journal_bytes(self) -> bytes:
        """The content of the journal, which must be a regular file without a second name. `FileNotFoundError` if there is none."""
        try:
            descriptor = os.open(self._journal_path, os.O_RDONLY | _CAREFULLY)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno == errno.ELOOP:
                self._refuse(f"a {JOURNAL} that is a link", self._journal_path)
            raise
        with os.fdopen(descriptor, "rb") as journal:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                self._refuse(f"a {JOURNAL} that is not a file of its own", self._journal_path)
            return journal.read()

    def is_published(self) -> bool:
        """Whether a run of this plan gave its output the final name, and all of it is there.

        Such a run may have died before it removed this folder. Then every tensor is in the journal, and nothing is left to publish.
        """
        if recorded_plan(receipt_path(self.destination)) != self.head["plan"] or not is_whole(self.destination):
            return False
        try:
            head, done, _, _ = _read_journal(self._journal_bytes())
        except (FileNotFoundError, NotADirectoryError):  # it is removed last
            return True
        pieces = {transfer.key for transfer in self._plan.transfers}
        return head.get("plan") == self.head["plan"] and done.keys() >= pieces and not any(self._files())

    def published(self) -> Receipt:
        """The receipt of the published output."""
        return read_receipt(receipt_path(self.destination), found=True)

    def differences(self, other: Mapping[str, object]) -> tuple[str, str]:
        """The options of another conversion that differ from ours, and ours that differ from the other.

        `other` is the first line of the other conversion's journal, or its receipt.
        """
        old, new = _asked(other), _asked(self.head)
        apart = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if not apart:
            return SOURCE_CHANGED
        was, wanted = (", ".join(f"{name} {side.get(name, 'not given')}" for name in apart) for side in (old, new))
        return f"one with {was}", f"one with {wanted}"

    def tidy(self) -> None:
        """Remove the folder of a run that has published its output. A folder that is not ours, or is in use, stays."""
        if os.path.lexists(self.folder):
            with contextlib.suppress(CkptError), self:
                self.remove()

    def _restart(self) -> None:
        _remove(self.out)
        os.makedirs(self.out)
        self._journal.truncate(0)
        self._append(self.head)

    def in_order(self, transfers: Iterable[Transfer]) -> list[Transfer]:
        """Transfers in the best order to carry them out: here that of the plan."""
        return list(transfers)

    def begin(self, todo: Iterable[Transfer]) -> None:
        """Called with the transfers that are left, when all bytes that are known in advance are in the files."""

    def advance(self, transfer: Transfer) -> None:
        """Called when a transfer is in its files, and every checksum that waited only for this transfer."""

    def _append(self, record: Mapping[str, object]) -> None:
        with naming(self._journal_path):
            self._journal.write(json.dumps(record).encode() + b"\n")

    def finish(self, result: Result, seen: str) -> None:
        """Note that a piece is written, and what was `seen` of its files."""
        self.done[result.key], self.seen[result.key] = result, seen
        self._append({name: getattr(result, name) for name in Result.__slots__} | {"seen": seen})

    # --- the files

    def create(self, files: Iterable[OutputFile], tell: Callable[[str], None]) -> None:
        """Make every output file at its final size, with the bytes that are known already, and the token of this run.

        It may be called again. `tell` gets a sentence if something takes time.

        If a file of the journal is not there (it was published, removed, or lost in a failed sync), all
        starts over.
        """
        files = list(files)
        if self.done and not all(
            os.path.isfile(path := self.path(file.path)) and os.path.getsize(path) == file.size for file in files
        ):
            self._restart()
            self.done = {}
        with written(os.path.join(self.folder, TOKEN), os.O_CREAT | os.O_TRUNC) as descriptor:
            pwrite_all(descriptor, memoryview(self.token.encode()), 0)
        for file in files:
            path = self.path(file.path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with written(path, os.O_CREAT) as descriptor:
                if os.fstat(descriptor).st_size != file.size:
                    os.ftruncate(descriptor, file.size)
                for offset, data in file.literals:
                    pwrite_all(descriptor, memoryview(data), offset)

    def share_states(self) -> str:
        """Write the states of the source files for the workers. Returns the digest of what was written."""
        return write_states(self.folder, self._plan.source.files)

    def path(self, relative: str) -> str:
        """The path of an output file while the conversion runs."""
        return os.path.join(self.out, relative)

    @property
    def most_held(self) -> int:
        """The most bytes that lie there at a time: all of the output."""
        return self._plan.bytes_written

    @property
    def taken(self) -> int:
        """The bytes of disk that the files of an earlier run take: they need no more space."""
        total = 0
        with contextlib.suppress(OSError, CkptError):
            for name in self._files():
                status = os.lstat(self.path(name))
                total += min(status.st_size, status.st_blocks * 512)
        return total

    def to_disk(self, files: Iterable[str]) -> None:
        """Force output files to the disk, if `sync`.

        If that fails, pages may be lost that the journal calls written, and no later sync reports the loss again. So the
        file is removed, and the next run starts over.
        """

        def force(relative: str) -> None:
            try:
                sync_file(self.path(relative))
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    with contextlib.suppress(OSError):
                        os.unlink(self.path(relative))
                raise

        if self.sync:
            _sync_all(files, force)

    def publish(self, single_file: str | None, overwrite: bool) -> None:
        """Give the output its final name, in one rename; then remove the staging folder.

        The receipt of a single file gets its name first: an output with its final name always has a receipt.
        """
        self._check_files()
        made = {self.out: self.destination}
        if single_file:
            made = {self.path(RECEIPT): self._receipt, self.path(single_file): self.destination}
        if overwrite:
            for old, aside in self._aside.items():
                if os.path.lexists(old):
                    _remove(aside)  # a killed run moved it aside, and then published the output that is replaced now
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
        """Remove the staging folder, the journal last: a later run needs the journal to recognise the folder.

        A file that can't be removed stays behind, and does not harm the published output.
        """
        with contextlib.suppress(OSError):
            marks = [entry.path for entry in os.scandir(self.folder) if entry.name.startswith(MARK)]
            for path in (self.out, *self._beside, *marks, *self._aside.values(), self._journal_path):
                _remove(path)
            os.rmdir(self.folder)

    def discard(self) -> None:
        """Remove everything that was written. Put back an old output that a killed run moved aside and did not replace."""
        if not os.path.lexists(self.destination):
            if recorded_plan(self._receipt) == self.head["plan"]:  # published by a run that was killed just then
                os.unlink(self._receipt)
            for old, aside in self._aside.items():
                if os.path.lexists(aside) and not os.path.lexists(old):
                    os.rename(aside, old)
        self.remove()


_CAREFULLY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def _read_journal(
    data: bytes,
) -> tuple[dict[str, object], dict[tuple[str, int], Result], dict[tuple[str, int], str], int]:
    """The first line, the finished pieces, what was seen of their files, and the number of bytes before the first line that is cut short or damaged."""
    head: dict[str, object] = {}
    done: dict[tuple[str, int], Result] = {}
    seen: dict[tuple[str, int], str] = {}
    size = 0
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            record = json.loads(line)
            if size:
                of_files = str(record.pop("seen", ""))  # a journal of before: its pieces are read again, and compared
                result = Result(**record)
                done[result.key], seen[result.key] = result, of_files
            else:
                head = dict(record)
        except (ValueError, TypeError, KeyError, AttributeError):
            break
        size += len(line)
    return head, done, seen, size


def _asked(said: Mapping[str, object]) -> dict[str, str]:
    """The options in a journal's first line or in a receipt, as on the command line."""
    source, options = said.get("source"), said.get("options")
    found = {"source": str(source.get("path") if isinstance(source, Mapping) else source)}
    for name, value in options.items() if isinstance(options, Mapping) else ():
        if isinstance(value, Mapping):
            found |= {f"-o {key}": str(inner) for key, inner in value.items()}
        elif value is not None:
            found[f"--{name}"] = str(value)
    return found | {"ckpt": str(said.get("ckpt"))}


def is_whole(output: str) -> bool:
    """Whether every file of the receipt is there, and every data file has its size."""
    try:
        receipt = read_receipt(receipt_path(output))
        if not os.path.isdir(output):
            return all(os.path.getsize(output) == size for size in receipt.files.values())
        paths = [os.path.join(output, name) for name in receipt.documents]
        return all(map(os.path.isfile, paths)) and all(
            os.path.getsize(os.path.join(output, name)) == size for name, size in receipt.files.items()
        )
    except (CkptError, OSError):
        return False


def is_empty_folder(path: str) -> bool:
    """Whether a rename can replace this folder: it is empty, and not a link."""
    return os.path.isdir(path) and not os.path.islink(path) and not os.listdir(path)


def _owner_of_new_files(folder: str) -> int:
    """The owner of new files in a folder: on some network file systems it is not the user who makes them."""
    import tempfile

    probe = tempfile.mkdtemp(prefix=".ckpt-", dir=folder)
    try:
        return os.lstat(probe).st_uid
    finally:
        os.rmdir(probe)


def _remove(path: str) -> None:
    """Remove a file or a folder, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        import shutil

        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def sync_file(path: str) -> None:
    """Force a file's bytes, or a folder's names, to the disk.

    A file system that can't sync a folder keeps names in its own way (CIFS, some of FUSE), so that error is ignored. On one that can't sync
    a file the promise of `sync` can't be kept, so that error is raised.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with naming(path):
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                error.add_note("this file system does not wait for the disk: repeat the command with --no-sync")
                raise
        finally:
            os.close(descriptor)


def _sync_all(paths: Iterable[str], sync: Callable[[str], None]) -> None:
    """Force many files or folders to the disk. Raises the first failure.

    Several syncs at once share a commit of the file system; one after the other, each would wait for its own.
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_SYNCS, "sync") as pool:
        list(pool.map(sync, paths))
