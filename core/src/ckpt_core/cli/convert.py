"""`ckpt convert`: one checkpoint to another format, or with --dry-run the plan of it."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ckpt_core.addresses import spelled
from ckpt_core.cli.mistakes import OneOf
from ckpt_core.cli.names import PATH, FormatCommand
from ckpt_core.cli.options import Size, layout, reading, written
from ckpt_core.cli.output import (
    Page,
    Unprintable,
    emit_json,
    memory_text,
    paint,
    say,
    shortened,
    table,
)
from ckpt_core.cli.phrases import launch_lines, parallel_text
from ckpt_core.cli.progress import announced, duration_text, progress
from ckpt_core.cli.usage import peak_memory
from ckpt_core.errors import UsageError
from ckpt_core.sizes import size_text
from ckpt_core.storage.bytes.home import absolute
from ckpt_core.text import plural

if TYPE_CHECKING:
    from ckpt_core.checkpoint import Checkpoint, Target
    from ckpt_core.engine.plan import Plan
    from ckpt_core.engine.staging import Staging
    from ckpt_core.receipt import Receipt


@click.command(cls=FormatCommand, short_help="Convert a checkpoint to another format.")
@click.argument("src", type=PATH)
@click.argument("dst", type=PATH)
@written
@reading
@layout
@click.option(
    "--max-memory",
    type=Size(),
    metavar="SIZE",
    help="How much memory may be used, e.g. 256MiB or 2GB; with another engine than local, by each worker.  [default: 256MiB]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many pieces of tensors, of about 64 MB, are converted at a time.  [default: up to 4, of a cluster all]",
)
@click.option(
    "--engine",
    type=OneOf(["local", "processes", "ray", "dask"]),
    default="local",
    show_default=True,
    help="Where the work is done. Cluster workers must see the same paths.",
)
@click.option(
    "--engine-address",
    metavar="ADDRESS",
    help="A running Ray or Dask cluster, as HEAD:6379 or tcp://SCHEDULER:8786; without it one is started on this machine.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be done, from headers alone, and write nothing.")
@click.option("--overwrite", is_flag=True, help="Delete the checkpoint at DST, once the new one is whole.")
@click.option("-p", "--parents", is_flag=True, help="Make the folders above DST that are missing.")
@click.option(
    "--sync/--no-sync",
    default=True,
    show_default=True,
    help="Wait until DST is on the disk. Without, it is as safe as what `cp` leaves: a power cut may still damage it.",
)
@click.option(
    "--spool",
    type=PATH,
    metavar="DIR",
    help="The folder where an output that goes to a store waits until its parts are whole.  [default: ckpt in the user's caches]",
)
def command(
    src: str,
    dst: str,
    *,
    options: dict[str, str],
    max_shard_size: int | None,
    max_memory: int | None,
    engine: str,
    engine_address: str | None,
    dry_run: bool,
    overwrite: bool,
    parents: bool,
    sync: bool,
    spool: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Convert the checkpoint SRC to DST.

    SRC is a folder, a file, or an address (hf://, s3://, ...); DST is a path, s3://bucket/folder or az://container/folder. Nothing appears at DST before it is
    complete; an interrupted conversion continues when the same command is repeated.

    \b
    ckpt convert run/step-1000 model --to hf
    ckpt convert model out --to nanotron --tp 2 --dtype bf16 --dry-run
    """
    # Nothing is multiplied here, and the thread per core that NumPy would start spins: a fifth of what a plan costs.
    if "numpy" not in sys.modules:  # it looks at its import, and then never again
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from ckpt_core.api import plan_conversion
    from ckpt_core.engine.destination import check_spool
    from ckpt_core.engine.executors import check_engine
    from ckpt_core.plugins.discovery import require

    require(str(asked["to"]))  # a name that no format has is said before a large source is looked at
    check_spool(dst, spool)
    check_engine(engine, engine_address)
    if max_shard_size is not None:
        options = with_shard_size(options, str(asked["to"]), max_shard_size)
    if max_memory is not None:
        asked["max_memory"] = max_memory
    here = engine == "local" or "://" in src  # other processes have other working directories
    planned = functools.partial(
        plan_conversion,
        src if here else absolute(src),
        dst,
        options=options,
        apart=engine != "local",
        **asked,
    )
    with announced("reading headers"):
        plan = planned()
    remark = odd_name(plan, dst)
    if remark is not None:
        say(f"{paint('note', 'bold', sys.stderr)}: {remark}", err=True)
    if dry_run:
        _foretell(plan, src, dst, as_json, spool)
        return
    if parents and "://" not in dst:
        os.makedirs(os.path.dirname(absolute(dst)), exist_ok=True)
    started = time.monotonic()
    receipt = _run(plan, dst, overwrite, sync, engine, engine_address, asked.get("workers") is None, spool, planned)
    summary = summary_of(plan, receipt, dst, time.monotonic() - started)
    try:
        if as_json:
            emit_json(summary, "convert")
        else:
            show_summary(plan, src, summary)
    except Unprintable as problem:  # what was asked for is done all the same
        say(f"{dst} is complete, but its summary can't be printed: {problem.found}", err=True)


def _foretell(plan: Plan, src: str, dst: str, as_json: bool, spool: str | None) -> None:
    """Print the plan; raises if there is no room for its output."""
    from ckpt_core.engine.destination import room_for, staging_at

    staging = staging_at(dst, plan, spool=spool)
    room = room_for(staging)
    if as_json:
        said = (
            {"needed": room.needed, "free": room.free, "missing": room.missing, "mount": room.mount} if room else None
        )
        emit_json(
            {**plan.to_json(), "destination": dst, "evidence": plan.source.provenance.evidence, "room": said}, "plan"
        )
        if room is not None and room.missing:
            raise click.exceptions.Exit(1)
    else:
        show_plan(plan, src, dst, staging)
        if room is not None:
            room.check(dst)


def odd_name(plan: Plan, dst: str) -> str | None:
    """What is odd about the name of a destination; it is taken as it is all the same."""
    from ckpt_core.plugins.discovery import all_plugins, require

    wanted, given = require(plan.target.format).info.ending, os.path.splitext(dst.rstrip(os.sep))[1]
    if plan.target.single_file and wanted and given != wanted:
        return f"{plan.target.format} writes one file, and its loaders look for a name that ends in {wanted}: {dst}"
    endings = {one.info.ending for one in all_plugins() if one.broken is None} | _ENDINGS_OF_FILES
    if not plan.target.single_file and given and given in endings:
        return f"{plan.target.format} writes a folder, and this is the name of a file: {dst}"
    return None


_ENDINGS_OF_FILES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".tar"}


def with_shard_size(options: dict[str, str], target: str, size: int) -> dict[str, str]:
    """The options with `--max-shard-size` among them; `UsageError` if the target has no such option."""
    from ckpt_core.plugins.discovery import require

    declared = {option.name for option in require(target).info.options if option.side != "read"}
    if "max_shard_size" not in declared:
        raise UsageError(f"format {target} has no --max-shard-size", fix=f"see: ckpt formats {target}")
    if options.keys() & {"max_shard_size", "dst.max_shard_size"}:
        raise UsageError("the shard size is given twice", fix="use either --max-shard-size or -o max_shard_size=")
    return {**options, "dst.max_shard_size": str(size)}


def _run(
    plan: Plan,
    dst: str,
    overwrite: bool,
    sync: bool,
    engine: str,
    address: str | None,
    all_workers: bool,
    spool: str | None,
    again: Callable[[], Plan],
) -> Receipt:
    from ckpt_core.engine.destination import check_destination, staging_at
    from ckpt_core.engine.executors import executor_for, fitted
    from ckpt_core.engine.run import run_plan

    staging = staging_at(dst, plan, spool=spool)
    if not overwrite and staging.is_published():
        engine, address = "local", None  # there is nothing left to do for a cluster, which may be gone
    else:
        check_destination(plan, dst, overwrite)  # before a cluster is started for nothing
    try:
        # the workers of a cluster take seconds to start
        clustered = engine in ("ray", "dask")
        shown = progress("converting", before="waiting for the workers") if clustered else progress("converting")
        with shown as listener, executor_for(engine, plan.workers, address) as executor:
            plan = fitted(plan, executor, all_workers)
            return run_plan(
                plan,
                dst,
                overwrite=overwrite,
                sync=sync,
                executor=executor,
                listener=listener,
                spool=spool,
                again=again,
            )
    except (KeyboardInterrupt, OSError) as error:
        if os.path.isdir(staging.folder) and not getattr(error, "__notes__", ()):
            error.add_note("repeat the same command to continue where this one stopped")
        raise


def show_plan(plan: Plan, src: str, dst: str, staging: Staging) -> None:
    """The plan as text. Of an output that goes to a store it says what room this machine needs for it."""
    page, source, target = Page(), plan.source, plan.target
    page.say("source", side_text(source, src), f"{size_text(plan.bytes_read)} to read")
    written = [
        plural(len(target.files), "data file"),
        plural(len(target.documents), "document"),
        plural(len(target.sidecars), "sidecar"),
    ]
    page.say("target", side_text(target, dst), f"{size_text(plan.bytes_written)} to write: {', '.join(written)}")
    sizes = sorted((file.path, file.size) for file in target.files)
    page.say("files", *shortened(table((size_text(size), path) for path, size in sizes)))
    page.say("documents", *sorted(target.documents))
    page.say("sidecars", *sorted(target.sidecars))
    page.say("tensors", f"{len(plan.tensors):,}")
    page.say("training", *training_lines(plan))
    each = " in each process" if plan.apart else ""
    page.say("memory", f"at most {memory_text(plan.peak_memory)}{each}, {plural(plan.workers, 'worker')}")
    if staging.spooled:
        page.say(
            "spool", f"at most {size_text(staging.most_held)} wait in {os.path.dirname(staging.folder)} to be sent"
        )
    page.say("decisions", *decision_lines(target.decisions))
    page.say("losses", *(map(str, plan.losses) if plan.losses else ["none"]))
    page.say("launch", *launch_lines(plan.target.launch, dst))
    page.say("to do", *(plan.target.training.still_to_do() if plan.target.training else ()))
    page.say("plan", paint(plan.hash, "dim"))


def summary_of(plan: Plan, receipt: Receipt, dst: str, seconds: float) -> dict[str, Any]:
    """What is worth knowing after a conversion. `receipt` is its path."""
    from ckpt_core.receipt.places import receipt_path

    return {
        "destination": dst,
        "format": plan.target.format,
        "parallel": plan.target.parallel,
        "fingerprint": receipt.fingerprint,
        "receipt": spelled(receipt.file) if "://" in dst else receipt_path(dst),
        "tensors": len(plan.tensors),
        **({} if plan.target.training is None else {"training": plan.training_json()}),
        "files": len(plan.target.files) + len(plan.target.documents) + len(plan.target.sidecars),
        "bytes_read": plan.bytes_read,
        "bytes_written": plan.bytes_written,
        "decisions": plan.target.decisions,
        **({} if plan.target.launch is None else {"launch": plan.target.launch.to_json()}),
        "losses": [loss.to_json() for loss in plan.losses],
        "found": receipt.found,
        "seconds": round(seconds, 3),
        "bytes_per_second": round(plan.bytes_written / max(seconds, 1e-9)),
        "peak_memory": peak_memory(),
    }


def show_summary(plan: Plan, src: str, summary: dict[str, Any]) -> None:
    """The summary as text."""
    page = Page()
    page.say("source", side_text(plan.source, src))
    page.say("target", side_text(plan.target, str(summary["destination"])))
    size, files = size_text(summary["bytes_written"]), plural(summary["files"], "file")
    pace = f"{duration_text(summary['seconds'])}, {size_text(summary['bytes_per_second'])}/s"
    page.say(
        "found" if summary["found"] else "written", f"{size} in {files}, {'done before' if summary['found'] else pace}"
    )
    if not summary["found"] and summary["peak_memory"] is not None:
        page.say("memory", f"{memory_text(summary['peak_memory'])} at the peak, the program's own included")
    page.say("training", *training_lines(plan))
    page.say("decisions", *decision_lines(plan.target.decisions))
    page.say("losses", *(map(str, plan.losses) if plan.losses else ["none"]))
    page.say("fingerprint", str(summary["fingerprint"]))
    page.say("receipt", str(summary["receipt"]))
    page.say("launch", *launch_lines(plan.target.launch, str(summary["destination"])))
    page.say("to do", *(plan.target.training.still_to_do() if plan.target.training else ()))


def training_lines(plan: Plan) -> list[str]:
    """The state of the training that is taken along, in a line."""
    state = plan.target.training
    if state is None:
        return []
    said = plan.training_json()
    figures = f"{plural(int(str(said['tensors'])), 'tensor')}, {size_text(int(str(said['bytes'])))}"
    return [f"kept: {state.optimizer} after {plural(state.step, 'step')}, {figures}, masters: {said['masters']}"]


def side_text(side: Checkpoint | Target, path: str) -> str:
    """Format, parallel layout and path of a source or a target."""
    return f"{side.format}{parallel_text(side.parallel)}  {path}"


def decision_lines(decisions: dict[str, object]) -> list[str]:
    """One line per decision, and one per item of a decision that is a list; empty decisions are left out."""
    lines = []
    for name, value in decisions.items():
        items = value if isinstance(value, list | tuple) else [value]
        lines += [f"{name}: {item}" for item in items if item not in (None, "", {})]
    return lines
