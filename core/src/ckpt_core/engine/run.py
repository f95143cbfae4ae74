"""Running a plan: transfers on an executor, then documents, receipt and the one rename."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor

from blake3 import blake3

from ckpt_core.engine.completion import Completion
from ckpt_core.engine.destination import check_destination, room_for, staging_at
from ckpt_core.engine.plan import Plan
from ckpt_core.engine.records import RecordSums
from ckpt_core.engine.staging import KEPT, Staging, boot_id
from ckpt_core.engine.threads import in_threads
from ckpt_core.engine.touched import Copy, check_resumed, settle, touched_after
from ckpt_core.engine.transfer import TargetFiles, digests_of
from ckpt_core.errors import BeingWritten, CkptError, TouchedSource, WorkerError
from ckpt_core.lean import dataclass
from ckpt_core.receipt.make import make_receipt
from ckpt_core.receipt.places import RECEIPT, receipt_beside
from ckpt_core.receipt.receipt import Receipt
from ckpt_core.storage.archive.tree import Extent
from ckpt_core.storage.bytes import crc32
from ckpt_core.storage.bytes.files import pwrite_all, written
from ckpt_core.storage.bytes.output import OutputFile
from ckpt_core.storage.bytes.pagecache import Kept
from ckpt_core.tensors.source import SourceFiles


@dataclass(frozen=True, slots=True)
class Progress:
    """An event: `done` of `total` bytes are written, the last of them of the tensor `subject`.

    With a `remark` nothing more is: it is a sentence about the workers, for whoever waits for them.
    """

    done: int
    total: int
    subject: str
    remark: str = ""


Listener = Callable[[Progress], None]


def run_plan(
    plan: Plan,
    destination: str,
    *,
    overwrite: bool = False,
    sync: bool = True,
    executor: Executor | None = None,
    listener: Listener | None = None,
    spool: str | None = None,
    again: Callable[[], Plan] | None = None,
) -> Receipt:
    """Carry out `plan` and publish its output at `destination`, a path or the address of a store; `spool` is a folder for what waits to be sent there.
    `again` makes the plan anew, where a source file was touched and may be another one: without it such a file is an error.

    A kill leaves a staging folder from which the same call continues with byte-identical output. An error in
    the input removes it, an error of the system (a full disk) or of a worker (`WorkerError`) keeps it, and so does `TouchedSource`. Without `sync` the output is left to the kernel
    to write to the disk: a power cut soon after may damage it. What this very plan wrote already, and is whole, is found.
    """
    staging, tell = staging_at(destination, plan, sync, spool), _telling(plan, listener)
    if not overwrite and staging.is_published():
        staging.tidy()
        receipt = staging.published()
        later = touched_after(plan.source.files, receipt)
        if later is not None:
            tell(f"{later} was touched after this output was made: ckpt verify says whether it is the same still")
        return receipt
    check_destination(plan, destination, overwrite)
    room = room_for(staging)
    if room is not None:
        room.check(destination)
    kept = Kept.of(plan.bytes_read, plan.bytes_written)
    source = SourceFiles(plan.source.files, drop=not kept.source)
    with staging, contextlib.closing(source):
        check_resumed(staging, plan, source, tell)
        try:
            check_destination(plan, destination, overwrite)  # again: the run that held the lock may have published
            staging.create(plan.target.files, tell)
            copied = _copy_all(plan, staging)
            crcs = _transfer_all(plan, staging, source, copied, kept, executor, listener)
            receipt = _finish(plan, staging, crcs)
            source.recheck()
            if source.touched:
                settle(plan, again, staging.done, [*_copies(plan, copied, receipt)], source, tell)
        except (WorkerError, BeingWritten, TouchedSource):
            raise
        except CkptError:
            staging.discard()
            raise
        if overwrite:
            check_destination(plan, destination, overwrite)  # and again: it is about to be replaced
        staging.publish(plan.target.files[0].path if plan.target.single_file else None, overwrite)
    return receipt


def _telling(plan: Plan, listener: Listener | None) -> Callable[[str], None]:
    def tell(remark: str) -> None:
        if listener is not None:
            listener(Progress(0, plan.bytes_written, "", remark))

    return tell


def _transfer_all(
    plan: Plan,
    staging: Staging,
    source: SourceFiles,
    copied: Mapping[str, int],
    kept: Kept,
    executor: Executor | None,
    listener: Listener | None,
) -> Mapping[str, int]:
    """Write every data file; the CRC-32 of each. Some of it is `copied` already."""
    todo = staging.in_order(transfer for transfer in plan.transfers if transfer.key not in staging.done)
    total = sum(file.size for file in plan.target.files)
    written = sum(result.bytes_written for result in staging.done.values())
    written += sum(one.size for file in plan.target.files for one in file.excerpts)
    completion = Completion(plan.target.files, todo, staging.done.values(), copied, staging.path, staging.sync, kept)
    records = RecordSums((transfer.assembly for transfer in plan.transfers), source)
    for result in staging.done.values():
        records.add(result.records)
    staging.begin(todo)
    with contextlib.ExitStack() as stack:
        if executor is None:
            sink = TargetFiles(staging.out, staging.sync, staging.spooled, kept)
            stack.callback(sink.close)
            finished = in_threads(todo, source, sink, plan.workers, in_step=staging.spooled)
        else:

            def tell(remark: str) -> None:
                if listener is not None:
                    listener(Progress(written, total, "", remark))

            from ckpt_core.engine.dispatch import Workers  # it reads its own sources, to know what code it runs
            from ckpt_core.engine.worker import Run

            states = staging.share_states()
            run = Run(staging.out, staging.token, boot_id(), staging.sync, states, staging.spooled, kept)
            finished = Workers(executor, run, source, tell).carry_out(todo, plan.workers, plan.threads, plan.grows)
        stack.enter_context(contextlib.closing(finished))
        for transfer, result in finished:
            records.add(result.records)
            staging.finish(result, source.seen(transfer.paths))
            completion.written(transfer, result)
            staging.advance(transfer)
            written += result.bytes_written
            if listener is not None:
                listener(Progress(written, total, transfer.name))
    return completion.crcs


def _copy_all(plan: Plan, staging: Staging) -> dict[str, int]:
    """Copy what output files have of other files; what that is to the CRC-32 of each, as a remainder."""
    copied = {}
    for file in plan.target.files:
        if file.excerpts:
            with written(staging.path(file.path)) as descriptor:
                copied[file.path] = _copy_excerpts(file, descriptor)
    return copied


def _copy_excerpts(file: OutputFile, descriptor: int | None = None) -> int:
    """Copy the excerpts of an output file; what they are to the CRC-32 of the whole, as a remainder. Without a descriptor they are only read."""
    whole = 0
    for one in file.excerpts:
        offset = one.offset
        for piece in Extent(one.source, one.start, one.size).pieces():
            if descriptor is not None:
                pwrite_all(descriptor, memoryview(piece), offset)
            offset += len(piece)
            whole ^= crc32.shifted(crc32.remainder(piece), file.size - offset)
    return whole


def _copies(plan: Plan, copied: Mapping[str, int], receipt: Receipt) -> Iterator[Copy]:
    """What is copied as it is: the excerpts of each output file, and sidecars."""
    for file in (one for one in plan.target.files if one.excerpts):
        sources = {one.source for one in file.excerpts}
        yield Copy(sources, copied[file.path], functools.partial(_copy_excerpts, file))
    for path, sidecar in plan.target.sidecars.items():
        yield Copy({sidecar.path}, receipt.documents[path], functools.partial(_digest, sidecar.extent))


def _finish(plan: Plan, staging: Staging, crcs: Mapping[str, int]) -> Receipt:
    for file in plan.target.files:
        if (size := os.path.getsize(staging.path(file.path))) != file.size:
            raise WorkerError(
                "an output file has lost the size it was made with",
                file=staging.path(file.path),
                found=f"{size} bytes",
                expected=f"{file.size} bytes",
                fix=f"find out what else writes there, {KEPT}",
            )
    documents = {
        path: _write_document(staging.path(path), sidecar.extent.pieces())
        for path, sidecar in plan.target.sidecars.items()
    }
    for path, data in plan.target.documents.items():
        documents[path] = _write_document(staging.path(path), [data])
    receipt = make_receipt(
        plan.source,
        plan.target,
        receipt_beside(staging.destination) if plan.target.single_file else os.path.join(staging.destination, RECEIPT),
        plan=plan.hash,
        options=plan.options,
        losses=plan.losses,
        tensors=digests_of(staging.done.values()),
        crcs=crcs,
        documents=documents,
    )
    _write_document(staging.path(RECEIPT), [receipt.text().encode()])
    staging.to_disk([*plan.outputs, RECEIPT])
    return receipt


def _digest(extent: Extent) -> str:
    digest = blake3()
    for piece in extent.pieces():
        digest.update(piece)
    return digest.hexdigest()


def _write_document(path: str, pieces: Iterable[bytes]) -> str:
    """Write a file that is copied, or known in advance; the digest of what was written."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    digest = blake3()
    offset = 0
    with written(path, os.O_CREAT | os.O_TRUNC) as descriptor:
        for piece in pieces:
            pwrite_all(descriptor, memoryview(piece), offset)
            offset += len(piece)
            digest.update(piece)
    return digest.hexdigest()
