"""`ckpt follow`: converts each checkpoint of a running training once, as soon as it is whole.

The receipts of the outputs are the only state, so the command may be stopped and started at any time, and several commands may follow one run.
A checkpoint that is still being written is not opened. It waits until nothing in it has changed for a while, until the run's pointer to its
newest checkpoint has reached it, and until no mark of unfinished work lies in it.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ckpt_core.cli.convert import with_shard_size
from ckpt_core.cli.names import PATH, FormatCommand
from ckpt_core.cli.options import Size, layout, reading, written
from ckpt_core.cli.output import emit_json, paint, say
from ckpt_core.cli.progress import duration_text
from ckpt_core.errors import BeingWritten, CkptError, FormatError, StoreError, UsageError
from ckpt_core.lean import dataclass
from ckpt_core.sizes import size_text
from ckpt_core.storage.bytes.home import absolute

if TYPE_CHECKING:
    from ckpt_core.receipt import Receipt

# How frameworks call the checkpoints of a run. A name without a number (`latest`, `final`) is none of them.
_STEPS = (
    "iter_[0-9]*",  # Megatron
    "checkpoint-[0-9]*",  # transformers' Trainer
    "checkpoint_[0-9]*",  # accelerate
    "global_step*[0-9]*",  # DeepSpeed, verl
    "step[-_][0-9]*",  # torchtitan, NxD
    "step[0-9]*",
    "epoch*[0-9]*",
    "*step=[0-9]*",  # Lightning, NeMo
    "[0-9]*",  # Nanotron
    "*.nemo",
    "*[0-9]*.ckpt",
)
# Folders of ranks, each with a file for every checkpoint of the run: NeMo 1 in training.
_RANKS = ("mp_rank_[0-9]*", "tp_rank_[0-9]*_pp_rank_[0-9]*")
# Files by which a run says which of its checkpoints is the newest whole one. Each is written after the checkpoint it names.
_POINTERS = ("latest_checkpointed_iteration.txt", "latest.txt", "latest", "newest")
# Marks of what is not finished yet: NeMo's `-unfinished`, temporary folders of the Trainer and of Orbax, downloads.
_UNFINISHED = ("*-unfinished", "tmp-*", "*.tmp", "*.tmp-*", "*.incomplete", "*.partial", "*.ckpt-partial", ".tmp*")
_PASSING = (
    "store-error",
    "worker-error",
    "errors-of-the-system",
)  # errors that are not the checkpoint's: the conversion is tried again
_QUIET = 30.0
_LONG_AGO = 3600.0
"""Seconds after which nobody still writes a checkpoint, whatever the clocks of this machine and of its file server are."""

_DECIDING: dict[str, object] = {"tp": None, "pp": None, "ep": None, "dtype": "keep", "weights": "auto", "options": {}}
"""What decides the bytes of an output, as its receipt records it, and what stands there where nothing was asked for."""


@dataclass(frozen=True, slots=True)
class State:
    """The files of a checkpoint as they are at one moment: path, size and time of each."""

    files: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, paths: Sequence[str]) -> State:
        """Raises `FileNotFoundError` if a file is removed meanwhile: a run removes its old checkpoints."""
        places = [place for path in paths for place in _files_in(path)]
        found = ((place, os.stat(place)) for place in sorted(places))
        return cls(tuple((place, status.st_size, status.st_mtime_ns) for place, status in found))

    @property
    def newest(self) -> float:
        """The latest change of a file, in seconds of the file system's clock."""
        return max((when for _, _, when in self.files), default=0) / 1e9

    @property
    def unfinished(self) -> str | None:
        """A file whose name says that the checkpoint is not finished."""
        names = (os.path.basename(place) for place, _, _ in self.files)
        return next((name for name in names if any(fnmatch.fnmatch(name, mark) for mark in _UNFINISHED)), None)


def _files_in(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    return [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]


@click.command(cls=FormatCommand, short_help="Convert each new checkpoint of a running training, once.")
@click.argument("run", type=PATH)
@click.argument("dst", type=PATH)
@written
@reading
@layout
@click.option(
    "--max-memory",
    type=Size(),
    metavar="SIZE",
    help="How much memory may be used, e.g. 256MiB or 2GB.  [default: 256MiB]",
)
@click.option(
    "--every",
    type=click.FloatRange(min=1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How often RUN is looked at, without --once.",
)
@click.option(
    "--quiet",
    type=click.FloatRange(min=0),
    default=_QUIET,
    show_default=True,
    metavar="SECONDS",
    help="How long a checkpoint must not have changed, so that a half-written one is never opened.",
)
@click.option("--once", is_flag=True, help="Convert what is whole now, and end: for cron.")
def command(run: str, dst: str, *, every: float, quiet: float, once: bool, as_json: bool, **asked: Any) -> int:
    """Convert each checkpoint in the folder RUN to DST/NAME, as soon as it is whole, and go on until it is stopped.

    A checkpoint is converted once: the receipt in its output says so. It may be stopped at any time, and the same command goes on. One
    line is printed for each checkpoint, and a failure stops no other. With --once: exit 0 if nothing failed, though something may still wait, and 1
    if a conversion failed.

    \b
    ckpt follow run/checkpoints hf --to hf
    */10 * * * *  ckpt follow run/checkpoints hf --to hf --once
    """
    from ckpt_core.api import check_asked
    from ckpt_core.diagnosis import check_expanded
    from ckpt_core.storage.bytes.remote.writable import writable

    check_asked(**asked)
    if not os.path.isdir(run):
        raise UsageError(
            "a run is a folder of checkpoints on this machine",
            file=run,
            fix="name the folder that the training saves into",
        )
    if (shard := asked.pop("max_shard_size")) is not None:
        asked["options"] = with_shard_size(asked["options"], str(asked["to"]), shard)
    asked = {name: value for name, value in asked.items() if value is not None}
    if writable(dst, below=True) is None:  # a scheme that is not written is refused
        check_expanded(dst)
        _check_place(run, dst)
        os.makedirs(dst, exist_ok=True)
    follower = Follower(run, dst, quiet, asked, patient=not once)
    if not steps_in(run):
        say(f"no checkpoint is in {run}" + ("" if once else f" yet; it is looked at every {every:g} s"), err=True)
        if formats := _formats_of(run):
            say(f"{run} is a checkpoint itself ({formats}): RUN is the folder around it, or see ckpt convert", err=True)
    if once:
        steps = list(follower.look())
        if as_json:
            emit_json({"run": run, "steps": steps}, "follow")
        else:
            for step in steps:
                if step["state"] != "done before":  # cron sends what is printed
                    show(step)
        return 1 if any(step["state"] == "failed" for step in steps) else 0
    while True:
        try:
            for step in follower.look():
                if as_json:
                    emit_json(step, "step", line=True)
                elif step["state"] != "done before":
                    show(step)
        except OSError as error:  # the disk of the run is not there for now, or the run was moved
            say(f"{run} can't be looked at: {error.strerror}; it is tried again in {every:g} s", err=True)
        time.sleep(every)


def _check_place(run: str, dst: str) -> None:
    """`UsageError` where the outputs can't lie in `dst`, or would be taken for checkpoints of the run."""
    if os.path.lexists(dst) and not os.path.isdir(dst):
        raise UsageError("the outputs lie in a folder, and this is a file", file=dst, fix="name a folder, or a new one")
    place, around = os.path.realpath(dst), os.path.realpath(run)
    below = os.path.relpath(place, around).split(os.sep)[0]
    if place == around or _is_step(below) or _is_of_rank(below):
        problem = "the outputs would be taken for checkpoints of the run, or for a part of one"
        raise UsageError(problem, file=dst, fix="name a folder outside of it, or one in it without a number")


class Follower:
    """Looks at a run again and again. It says nothing twice about a checkpoint.

    A `patient` follower looks more than once, and uses its own clock: a checkpoint must not change between its looks.
    """

    def __init__(
        self,
        run: str,
        dst: str,
        quiet: float,
        asked: Mapping[str, Any],
        patient: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._dst, self._quiet, self._asked = run, dst, quiet, asked
        self._patient, self._clock = patient, clock
        self._said: dict[str, str] = {}
        self._done: dict[str, tuple[int, int]] = {}
        self._seen: dict[str, tuple[State, float]] = {}
        self._failed: dict[str, State] = {}

    def look(self) -> Iterator[dict[str, Any]]:
        """What became of each checkpoint that is there now, as the documents of `--json`; only what is new is said."""
        for name in steps_in(self._run):
            if self._done.get(name, ()) == _mark(self._run, name):
                continue
            step = self._looked_at(name)
            if step is None:
                continue
            if step["state"] in ("converted", "done before"):
                self._done[name] = _mark(self._run, name)
            said = step["state"] + (step["error"]["problem"] if step["state"] == "failed" else "")
            if step["state"] == "converted" or self._said.get(name) != said:
                self._said[name] = said
                yield step

    def _looked_at(self, name: str) -> dict[str, Any] | None:
        """What became of one checkpoint. None if it has just been removed, or has not changed since it failed."""
        places = places_of(self._run, name)
        source, destination = places[0], os.path.join(self._dst, output_name(name, self._asked))
        step: dict[str, Any] = {"step": name, "state": "done before", "source": source, "destination": destination}
        try:
            receipt = self._receipt_of(destination)
        except (StoreError, FormatError) as error:  # a store may answer the next time
            return step | _failed(error)
        if receipt is not None:
            if (apart := self._asked_otherwise(receipt)) is not None:
                return step | _failed(apart)
            changed = next(filter(None, map(_changed, receipt.source_files.items())), None)
            if changed is None:
                return step
            return step | _failed(
                CkptError(
                    "it was saved again after it was converted",
                    file=changed,
                    fix=f"remove {destination}, and it is converted again",
                )
            )
        absent = [place for place in places[1:] if not os.path.lexists(place)]
        try:
            state = State.of([place for place in places if place not in absent])
        except FileNotFoundError:
            return None
        if self._failed.get(name) == state:
            return None
        seen, since = self._seen.get(name, (None, 0.0))
        if seen != state:
            since = self._clock()
            self._seen[name] = state, since
        why = self._not_yet(name, state, self._clock() - since)
        if why is None and absent:
            why = f"{os.path.basename(os.path.dirname(absent[0]))} has no file of it"
        if why is not None:
            return step | {"state": "waiting", "why": why}
        step |= self._converted(source, destination)
        if step["state"] == "failed" and step["error"]["anchor"] not in _PASSING:
            self._failed[name] = state
        return step

    def _receipt_of(self, destination: str) -> Receipt | None:
        """The receipt of an existing output. `CkptError` if its format is another one: then the folder belongs to another follower."""
        from ckpt_core.receipt import read_receipt
        from ckpt_core.receipt.places import receipt_path
        from ckpt_core.storage.bytes.remote import found

        there = found(destination)
        if there is None or not os.path.isfile(path := receipt_path(there)):
            return None
        receipt = read_receipt(path)
        if receipt.format != self._asked["to"]:
            raise CkptError(
                "the outputs in this folder are of another format",
                file=path,
                found=receipt.format,
                expected=self._asked["to"],
                fix="name a folder for each format",
            )
        return receipt

    def _asked_otherwise(self, receipt: Receipt) -> CkptError | None:
        """The error about an output with other options than this command asks for. Without it the command would take that output for its own."""
        was = receipt.body.get("options")
        was = was if isinstance(was, Mapping) else {}
        now = {**_DECIDING, **self._asked}
        apart = [name for name in _DECIDING if name in was and was[name] != now[name]]
        if not apart:
            return None
        return CkptError(
            "it was converted with other options: " + ", ".join(f"{name} {was[name]}" for name in apart),
            file=receipt.file,
            expected=", ".join(f"{name} {now[name]}" for name in apart),
            fix="name another folder, or remove that output, and it is converted again",
        )

    def _not_yet(self, name: str, state: State, unchanged: float) -> str | None:
        """Why a checkpoint is not opened yet. It has not changed for `unchanged` seconds of our own clock."""
        if not state.files:
            return "it is empty"
        for mark in (
            f"{name}-unfinished",
            f"{os.path.splitext(name)[0]}-unfinished",
        ):  # NeMo puts it beside the checkpoint
            if os.path.lexists(os.path.join(self._run, mark)):
                return f"{mark} lies beside it"
        if state.unfinished is not None:
            return f"{state.unfinished} lies in it"
        pointer = newest_whole(self._run)
        number = number_of(name)
        if pointer is not None and number is not None and number > pointer[1]:
            return f"{pointer[0]} names {pointer[1]}"
        age = time.time() - state.newest
        if self._patient and age < 0 and unchanged >= self._quiet:
            return None  # the clock of the file server is ahead, and we have waited by our own
        if age < 0 and self._quiet:
            return f"its files are {-age:.0f} s younger than now: the clock of their disk is ahead"
        if max(0.0, age) < self._quiet:
            return f"it changed {age:.0f} s ago"
        if self._patient and age < _LONG_AGO and unchanged < self._quiet:
            return "it is new here"
        return None

    def _converted(self, source: str, destination: str) -> dict[str, Any]:
        from ckpt_core.api import plan_conversion
        from ckpt_core.engine.run import run_plan

        began = time.monotonic()
        try:
            if "://" not in self._dst:
                os.makedirs(self._dst, exist_ok=True)  # whoever removed it wants new ones all the same
            planned = functools.partial(plan_conversion, source, destination, **self._asked)
            plan = planned()
            receipt = run_plan(plan, destination, again=planned)
        except UsageError as problem:
            if not self._done:  # what is wrong with the first one is wrong with the command
                raise
            return _failed(problem)
        except BeingWritten:  # by another follower: the next look finds its receipt
            return {"state": "waiting", "why": "another run is writing it"}
        except (CkptError, OSError) as problem:
            if self._receipt_of(destination) is not None:  # by another follower, meanwhile
                return {"state": "done before"}
            if not os.path.lexists(source):  # a run removes its old checkpoints
                return _failed(CkptError("it was removed meanwhile", file=source))
            return _failed(problem, destination)
        if receipt.found:  # another follower was faster
            return {"state": "done before"}
        return {
            "state": "converted",
            "seconds": round(time.monotonic() - began, 3),
            "bytes_written": plan.bytes_written,
            "fingerprint": receipt.fingerprint,
        }


def _formats_of(run: str) -> str:
    """The formats that recognise RUN itself, for the case that it is a checkpoint and not a folder of checkpoints."""
    from ckpt_core.plugins.discovery import detect

    try:
        return ", ".join(plugin.name for plugin, _ in detect(run))
    except (CkptError, OSError):
        return ""


def _failed(problem: CkptError | OSError, destination: str = "") -> dict[str, Any]:
    """The parts of a step that failed. An error of the disk or of the `destination` is not an error of the checkpoint."""
    if isinstance(problem, OSError):
        text = problem.strerror or str(problem)
        problem, passing = CkptError(text, file=problem.filename, fix="it is tried again: what is done is kept"), True
    else:
        passing = bool(destination) and problem.file in (destination, os.path.dirname(absolute(destination)))
    anchor = "errors-of-the-system" if passing else problem.anchor
    return {"state": "failed", "error": problem.to_json() | {"anchor": anchor}}


def _changed(file: tuple[str, tuple[int, int]]) -> str | None:
    """The path of a source file whose size or time of change differs from the receipt; None if there is none."""
    path, was = file
    try:
        status = os.stat(path)
    except OSError:  # a run may remove what is converted
        return None
    return path if (status.st_size, status.st_mtime_ns) != was else None


def _mark(run: str, name: str) -> tuple[int, int]:
    """A cheap mark that differs if another checkpoint was saved in the same place: the folder's inode number and time of change."""
    whole = os.path.join(run, name)
    try:
        status = os.stat(whole if os.path.lexists(whole) else places_of(run, name)[0])
    except OSError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns


def steps_in(run: str) -> list[str]:
    """The names of the checkpoints in a run, in the order of their numbers."""
    found = {name for folder in (run, *_rank_folders(run)) for name in os.listdir(folder)}
    return sorted(filter(_is_step, found), key=lambda name: (number_of(name) or 0, name))


def _is_step(name: str) -> bool:
    """Whether a name is that of a checkpoint, and of a finished one."""
    marked = any(fnmatch.fnmatch(name, mark) for mark in _UNFINISHED)
    return not marked and any(fnmatch.fnmatch(name, pattern) for pattern in _STEPS)


def _is_of_rank(name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in _RANKS)


def places_of(run: str, name: str) -> list[str]:
    """Where a checkpoint lies: in the run or, file by file, in its folders of ranks. The first place is the one that a reader is given."""
    whole = os.path.join(run, name)
    ranks = [os.path.join(folder, name) for folder in _rank_folders(run)]
    return (
        [whole] if os.path.lexists(whole) or not ranks else sorted(ranks, key=lambda place: not os.path.lexists(place))
    )


def _rank_folders(run: str) -> list[str]:
    found = filter(_is_of_rank, sorted(os.listdir(run)))
    return [path for path in (os.path.join(run, name) for name in found) if os.path.isdir(path)]


def number_of(name: str) -> int | None:
    """The step in a name: the number after `step`, or else the last one.

    >>> number_of("iter_0000100"), number_of("model--val_loss=2.31-step=40-consumed_samples=320.ckpt"), number_of("final")
    (100, 40, None)
    """
    after_step = re.search(r"step[-_=]?(\d+)", name)
    numbers = [after_step[1]] if after_step else re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


def newest_whole(run: str) -> tuple[str, int] | None:
    """The file by which a run names its newest whole checkpoint, and the number that it names."""
    for name in _POINTERS:
        path = os.path.join(run, name)
        if os.path.isfile(path) and os.path.getsize(path) < 200:
            with open(path, encoding="utf-8", errors="replace") as file:
                number = number_of(file.read().strip())
            if number is not None:
                return name, number
    return None


def output_name(name: str, asked: Mapping[str, Any]) -> str:
    """The name of a checkpoint's output: that of the checkpoint, with the ending of the target format if that is one file."""
    from ckpt_core.plugins.discovery import require

    stem, ending = os.path.splitext(name)
    stem = stem if ending in (".nemo", ".ckpt") else name
    return stem + require(str(asked["to"])).info.ending


def show(step: Mapping[str, Any]) -> None:
    """The line about a checkpoint."""
    if step["state"] == "converted":
        pace = f"{size_text(step['bytes_written'])} in {duration_text(step['seconds'])}"
        rest = f"-> {step['destination']}  {pace}  {step['fingerprint'][:15]}"
    elif step["state"] == "failed":
        error = step["error"]
        several = error.get("problems", ())
        if several:  # one line has room for one of them
            error = several[0] | {"problem": f"{error['problem']}, first: {several[0]['problem']}"}
        rest = "  ".join(str(error[key]) for key in ("problem", "file", "fix") if key in error)
    else:
        rest = step.get("why") or f"-> {step['destination']}"
    text = f"{step['step']}  {step['state']}  {rest}"
    say(paint(text, "red") if step["state"] == "failed" else text)
