"""The Python API: what the command line does, as functions.

from ckpt_core import convert, open_checkpoint

checkpoint = open_checkpoint("run/step-1000")
checkpoint.architecture.hidden
checkpoint["layers.0.attention.q.weight"].numpy()     # read now, and only this tensor

convert("run/step-1000", "hf-model", to="hf")
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ckpt_core.addresses import spelled
from ckpt_core.arguments import OptionValue, check_count, check_executor, check_format, options_of, path_of, size_of
from ckpt_core.checkpoint import Checkpoint, Target
from ckpt_core.company.companions import with_config, with_sound_ids
from ckpt_core.company.vocabulary import with_sound_tokenizer
from ckpt_core.description import Fragment
from ckpt_core.errors import CkptError, NotCarried, Refusal, UsageError, did_you_mean, nearest
from ckpt_core.lazily import hints_in
from ckpt_core.ledger import OPTIMIZER
from ckpt_core.plugins.discovery import Plugin, all_plugins, check_returned, detect, launched, require
from ckpt_core.plugins.installed import format_names
from ckpt_core.plugins.request import Option, ReadRequest, WriteRequest
from ckpt_core.plugins.values import typed_options
from ckpt_core.reading import checkpoint_at
from ckpt_core.receipt import Receipt, find_receipt
from ckpt_core.receipt.places import RECEIPT, receipt_path
from ckpt_core.storage.bytes.home import absolute, at_home
from ckpt_core.storage.bytes.names import UNFINISHED
from ckpt_core.storage.bytes.remote import localised, stand_in
from ckpt_core.storage.bytes.remote.ranges import noting_failures
from ckpt_core.storage.bytes.remote.writable import writable
from ckpt_core.storage.bytes.watch import steadily
from ckpt_core.storage.dtypes import DType, written_dtype

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from ckpt_core.architecture import Architecture
    from ckpt_core.engine.pieces import Transfer
    from ckpt_core.engine.plan import Plan
    from ckpt_core.engine.run import Listener
    from ckpt_core.launch import Launch
    from ckpt_core.opened import OpenCheckpoint
    from ckpt_core.tensors.assembly import LazyParameter
    from ckpt_core.tensors.digest import Digests
    from ckpt_core.tensors.source import SourceFiles
    from ckpt_core.training import Training
else:
    hints_in(
        __name__,
        {
            "concurrent.futures": "Executor",
            "ckpt_core.architecture": "Architecture",
            "ckpt_core.engine.pieces": "Transfer",
            "ckpt_core.engine.plan": "Plan",
            "ckpt_core.engine.run": "Listener",
            "ckpt_core.launch": "Launch",
            "ckpt_core.opened": "OpenCheckpoint",
            "ckpt_core.tensors.assembly": "LazyParameter",
            "ckpt_core.tensors.digest": "Digests",
            "ckpt_core.tensors.source": "SourceFiles",
            "ckpt_core.training": "Training",
        },
    )

_CHUNK_BYTES = 4 << 20
_FEW = 1 << 20  # bytes: fewer are read before threads have been started
_WEIGHTS = ("auto", "model", "master")
_TRAINING_STATES = ("auto", "keep", "drop")

T = TypeVar("T")


def find_format(path: str, name: str | None = None) -> tuple[Plugin, str]:
    """The plugin that reads `path`, and why. Raises if none or several recognise it."""
    check_format(name, "format")
    if UNFINISHED in os.path.realpath(path):
        from ckpt_core.diagnosis import check_finished

        check_finished(path)
    if name is not None:
        return require(name), "asked for with --from"
    if not os.path.exists(path):
        from ckpt_core.diagnosis import absent

        raise absent(path)
    with at_home(path) as home, noting_failures() as failures:
        found = detect(path)
    if not found and failures:
        raise failures[-1]
    if len(found) == 1:
        return found[0]
    if home.refused is not None and not found:
        raise home.refused
    if found:
        facts = "; ".join(f"{plugin.name} ({fact})" for plugin, fact in found)
        raise UsageError("several formats recognise this path", file=path, found=facts, fix="choose one with --from")
    from ckpt_core.diagnosis import diagnosis

    problem = diagnosis(path, format_names(), _recognised)
    broken = [f"{plugin.name} ({plugin.broken})" for plugin in all_plugins() if plugin.broken]
    if broken:
        problem.fix = f"{problem.fix}; broken formats: {', '.join(broken)}"
    raise problem


def _recognised(path: str) -> list[str]:
    try:
        return [plugin.name for plugin, _ in detect(path)]
    except CkptError:  # a plugin that fails there
        return []


def config_architecture(path: str | None) -> Architecture | None:
    """The architecture in a config file, for `--config`."""
    if path is None:
        return None
    if not os.path.exists(path):
        from ckpt_core.diagnosis import absent

        raise absent(path)
    for plugin in all_plugins():
        if plugin.broken is None:
            architecture = plugin.hooks.ckpt_architecture(path=path)
            if architecture is not None:
                return architecture
    raise CkptError(
        "no installed format reads this config", file=path, expected="an HF config.json or our architecture.json"
    )


_CONFIGS = ("config.json", "architecture.json")


def config_file(given: str | os.PathLike[str]) -> str:
    """The config that is given, as a path on this machine: a file, or the one in the folder or repository of a model."""
    path = localised(path_of(given, "config"))
    if not os.path.isdir(path):
        return path
    found = [file for name in _CONFIGS if os.path.isfile(file := os.path.join(path, name))]
    if not found:
        raise CkptError("the folder that --config names has no config", file=path, expected=" or ".join(_CONFIGS))
    return found[0]


def _reading(
    plugin: Plugin,
    options: Mapping[str, str],
    config: str | os.PathLike[str] | None,
    weights: str,
    alone: bool = False,
    training_state: str = "drop",
) -> ReadRequest:
    """What a plugin is asked to read, with typed options and the config file that the user gave."""
    if weights not in _WEIGHTS:
        raise UsageError("there are no such weights", found=f"{weights!r:.60}", expected=", ".join(_WEIGHTS))
    if training_state not in _TRAINING_STATES:
        raise UsageError(
            "there is no such choice for the state of a training",
            found=f"{training_state!r:.60}",
            expected=", ".join(_TRAINING_STATES),
        )
    given = None if config is None else config_file(config)
    typed = typed_options(plugin.info, options, "read")
    for option in plugin.info.options:
        if option.kind is Checkpoint and isinstance(typed.get(option.name), str):
            typed[option.name] = _other(typed[option.name], option.name, given)
    return ReadRequest(typed, config_architecture(given), weights, given, alone, training_state)


def _other(path: str, option: str, config: str | None) -> Checkpoint:
    """The checkpoint that an option names. `config` says its architecture, where it does not itself."""
    try:
        return read_checkpoint(path, config=config)
    except CkptError as error:
        error.problem = f"-o {option}={path}: {error.problem}"
        raise


def _named_by(request: ReadRequest) -> tuple[str, ...]:
    """The paths that a user names besides the source; files may lie there, too."""
    named = tuple(value for value in (*request.options.values(), request.config) if isinstance(value, str))
    for other in request.options.values():
        named += (other.path, *other.provenance.named) if isinstance(other, Checkpoint) else ()
    return named


@contextlib.contextmanager
def _guarded(plugin: Plugin, path: str, named: tuple[str, ...]) -> Iterator[None]:
    """While a plugin reads. Files may be damaged in ways that it did not foresee: that too is one clear error."""
    with at_home(path, named) as home:
        try:
            yield
        except CkptError as error:  # of a file that was refused, a reader may say no more than that it lacks it
            from ckpt_core.diagnosis import broken_off

            raise home.refused or broken_off(path, error) or _recognised_otherwise(plugin, path, error) from None
        except OSError:
            raise
        except Exception as error:
            raise CkptError(
                f"the reader of {plugin.name} fails on this checkpoint",
                file=path,
                found=f"{type(error).__name__}: {error}",
                fix="give the process more memory; if it has enough, the files are damaged"
                if isinstance(error, MemoryError)
                else "if the files are whole, this is a bug: report it with the output of CKPT_DEBUG=1",
            ) from error


def _recognised_otherwise(plugin: Plugin, path: str, error: CkptError) -> CkptError:
    """The error of a reader, with the advice to leave --from out where the path is of other formats alone."""
    others = _recognised(path)
    if others and plugin.name not in others:
        way = f"leave --from out: it looks like {' or '.join(others)}"
        error.fix = way if error.fix is None else f"{error.fix}; or {way}"
    return error


def _read(plugin: Plugin, path: str, request: ReadRequest, fact: str) -> Checkpoint:
    """What a plugin reads, and the `fact` by which `path` is of its format."""
    named = _named_by(request)
    with _guarded(plugin, path, named):
        checkpoint = checkpoint_at(plugin, path, request)
    known = checkpoint.provenance
    known = replace(known, named=named, evidence=(f"{plugin.name}: {fact}", *known.evidence))
    checkpoint = replace(checkpoint, provenance=known)
    if request.config is not None and checkpoint.adapter is None:  # what comes with the base stays with it
        checkpoint = with_config(checkpoint, request.config, _notes_in(request.config))
    read = [state.path for state in checkpoint.files]
    companions = [sidecar.path for sidecar in checkpoint.sidecars.values() if not sidecar.offset]
    ledger = checkpoint.ledger.closed(path, read, companions, RECEIPT)
    return with_sound_ids(replace(checkpoint, ledger=ledger))


def _notes_in(config: str) -> Mapping[str, Any]:
    """The notes in a config file, for `--config`."""
    for plugin in all_plugins():
        if plugin.broken is None:
            notes = plugin.hooks.ckpt_notes(path=config)
            if notes is not None:
                return notes
    return {}


def target_of(
    plugin: Plugin,
    checkpoint: Checkpoint,
    request: WriteRequest,
    *,
    resumed: bool = False,
    training: Training | None = None,
) -> Target:
    """What a plugin would write, and how its framework is started with that; `resumed`: with its own optimizer states, which may be of `training`.

    `Refusal` where the format can't hold the model. The layout choices that a receipt records may be anyone's: where a writer
    can't follow them, and they are not a reading of its own format, the error names the receipt.
    """
    if plugin.info.adapters and checkpoint.adapter is None:
        raise Refusal(
            f"format {plugin.name} holds adapters, and this is a whole model",
            file=checkpoint.path,
            fix="give an adapter; without -o base one is converted by itself",
        )
    try:
        target: Target = plugin.hooks.ckpt_write(checkpoint=checkpoint, request=request)
        check_returned(plugin, "ckpt_write", target, Target)
        goes_on = target if training is None else replace(target, training=training)
        target.launch = launched(plugin, goes_on, request, resumed=resumed)
        return target
    except (CkptError, OSError):
        raise
    except Exception as error:
        from ckpt_core.config import TableError

        recorded = checkpoint.format != plugin.name and plugin.name in checkpoint.provenance.origins
        # a mistake in a table is the plugin's, whatever the receipt says
        if isinstance(error, TableError) or not recorded or not os.path.isfile(receipt_path(checkpoint.path)):
            raise
        raise CkptError(
            f"the receipt beside the source records layout choices of {plugin.name} that its writer can't follow",
            file=receipt_path(checkpoint.path),
            found=f"{type(error).__name__}: {error}",
            fix="remove the receipt, or put back the one that ckpt wrote: the source is read without it as well",
        ) from error


@steadily
def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    config: str | os.PathLike[str] | None = None,
    options: Mapping[str, OptionValue] | None = None,
    weights: str = "auto",
    alone: bool = False,
    training_state: str = "drop",
) -> Checkpoint:
    """Read a checkpoint from headers alone: `open_checkpoint` says the arguments and the errors. `alone` and `training_state` are those
    of a `ReadRequest`."""
    local = localised(path_of(path, "path"))
    plugin, fact = find_format(local, format)
    request = _reading(plugin, options_of(options), config, weights, alone, training_state)
    return _read(plugin, local, request, fact)


@steadily
def read_model_or_fragment(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    config: str | os.PathLike[str] | None = None,
    options: Mapping[str, OptionValue] | None = None,
    weights: str = "auto",
    training_state: str = "drop",
) -> Checkpoint | tuple[str, str, Fragment]:
    """The checkpoint at a path, or what lies there that is not a model by itself, with its format and the fact that says so.

    The arguments and errors are those of `read_checkpoint`.
    """
    local = localised(path_of(path, "path"))
    plugin, fact = find_format(local, format)
    request = _reading(plugin, options_of(options), config, weights, training_state=training_state)
    if plugin.hooks.ckpt_fragment.get_hookimpls():
        with _guarded(plugin, local, _named_by(request)):
            fragment = plugin.hooks.ckpt_fragment(path=local, request=request)
        if fragment is not None:
            check_returned(plugin, "ckpt_fragment", fragment, Fragment)
            return plugin.name, fact, fragment
    return _read(plugin, local, request, fact)


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    config: str | os.PathLike[str] | None = None,
    options: Mapping[str, OptionValue] | None = None,
    weights: str = "auto",
    training_state: str = "drop",
) -> OpenCheckpoint:
    """Open a checkpoint of any readable format: its architecture, and a lazy mapping of canonical tensors.

    `path` is a folder, a file, or an address (`hf://owner/name[@revision]`, `s3://bucket/folder`, ...); only headers are read. `format` is asked for where several
    recognise it, `config` is a file that says the architecture where the checkpoint does not. `options` are those of the
    format, as `-o` has them. `weights` is `auto`, `model` or `master` (the optimizer's fp32 masters). With `training_state`
    `keep` the state of the training is opened too: `NotCarried` says why it can't be. `auto` opens it where it can be.
    Raises `UsageError` for a wrong argument, `FormatError` for damaged files, and `CkptError` for what can't be read.
    """
    from ckpt_core.opened import OpenCheckpoint

    return OpenCheckpoint(
        read_checkpoint(
            path, format=format, config=config, options=options, weights=weights, training_state=training_state
        )
    )


def split_options(given: Mapping[str, str], source: Plugin, target: Plugin) -> tuple[dict[str, str], dict[str, str]]:
    """Give each `-o` option to the side that declares it; `src.` and `dst.` say which where both do."""
    sides: dict[str, dict[str, str]] = {"src": {}, "dst": {}}
    known = {
        "src": {option.name for option in source.info.options if option.side != "write"},
        "dst": {option.name for option in target.info.options if option.side != "read"},
    }
    for name, value in given.items():
        side, dot, rest = name.partition(".")
        if dot and side in sides:
            sides[side][rest] = value
            continue
        owners = [side for side in sides if name in known[side]]
        if not owners and nearest(name, known["src"]) and not nearest(name, known["dst"]):
            raise UsageError(
                f"neither {source.name} (source) nor {target.name} (target) has an option {name!r}",
                expected=", ".join(sorted(known["src"] | known["dst"])),
                fix=did_you_mean(name, known["src"]),
            )
        if len(owners) == 2:
            raise UsageError(
                f"both {source.name} (source) and {target.name} (target) have an option {name!r}",
                fix=f"say src.{name} or dst.{name}",
            )
        sides[owners[0] if owners else "dst"][name] = value
    return sides["src"], sides["dst"]


def check_asked(
    *,
    to: str,
    format: str | None = None,
    config: str | os.PathLike[str] | None = None,
    tp: int | None = None,
    pp: int | None = None,
    ep: int | None = None,
    options: Mapping[str, OptionValue] | None = None,
    training_state: str | None = None,
    **_: object,
) -> None:
    """Raise what is wrong with arguments of `convert`, whatever the source is: for those who wait for one.

    Without a `format` an option may be that of any reader.
    """
    writer, given = writer_of(to, {"tp": tp, "pp": pp, "ep": ep}), options_of(options)
    _state_wanted(writer, training_state)
    if config is not None:
        config_architecture(config_file(config))
    if format is not None:
        reader = require(format)
        read, write = split_options(given, reader, writer)
        typed_options(reader.info, read, "read")
        typed_options(writer.info, write, "write")
        return
    own = {option.name for option in writer.info.options if option.side != "read"}
    for key, value in given.items():
        side, _dot, name = key.rpartition(".")
        reads = [option for option in _read_options() if option.name == name] if side == "src" or key not in own else []
        if side == "src" or (side != "dst" and reads):
            _check_read(name, value, reads)
        else:
            typed_options(writer.info, {name if side == "dst" else key: value}, "write")


def _read_options() -> list[Option]:
    """The options of all readers."""
    working = [plugin for plugin in all_plugins() if plugin.broken is None]
    return [option for plugin in working for option in plugin.info.options if option.side != "write"]


def _check_read(name: str, value: str, options: Sequence[Option]) -> None:
    """`UsageError` where no format has a read option of this name, or none takes the value."""
    problem = UsageError(
        f"no format has a read option {name!r}", fix=did_you_mean(name, {one.name for one in _read_options()})
    )
    for option in options:
        try:
            option.parse(value)
            return
        except UsageError as error:
            problem = error
    raise problem


@steadily
def plan_conversion(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    to: str,
    format: str | None = None,
    config: str | os.PathLike[str] | None = None,
    tp: int | None = None,
    pp: int | None = None,
    ep: int | None = None,
    dtype: str = "keep",
    options: Mapping[str, OptionValue] | None = None,
    weights: str = "auto",
    training_state: str | None = None,
    max_memory: int | str | None = None,
    workers: int | None = None,
    apart: bool = False,
) -> Plan:
    """Everything that `convert` would do, without doing it: every byte is accounted for, from headers alone.

    Its arguments and errors are those of `convert`; `apart`: for workers of an executor.
    """
    from ckpt_core.engine.plan import make_plan

    ranks = {"tp": tp, "pp": pp, "ep": ep}
    given = options_of(options)
    place = path_of(dst, "dst")
    store = writable(place)
    if store is None:  # said before a large source is looked at
        if place.startswith("~"):
            from ckpt_core.diagnosis import check_expanded

            check_expanded(place)
        place = absolute(place)
    local = localised(path_of(src, "src"))
    wanted, memory = _wanted(dtype), size_of(max_memory, "max_memory")
    check_count(workers, "workers")
    reader, fact = find_format(local, format)
    writer = writer_of(to, ranks)
    source_options, target_options = split_options(given, reader, writer)
    state = _state_wanted(writer, training_state)
    how = _reading(reader, source_options, config, weights, writer.info.adapters, state)
    checkpoint = _read(reader, local, how, fact)
    typed = typed_options(writer.info, target_options, "write")
    request = WriteRequest(typed, wanted, tp, pp, ep, place, training_state or "auto")
    checkpoint = checkpoint.in_dtype(request.dtype)
    try:
        target = target_of(writer, checkpoint, request)
        if checkpoint.training is not None and target.training is None:
            raise NotCarried("it does not take the state of a training along in this way")
    except NotCarried as problem:
        if training_state == "keep" or checkpoint.training is None:
            raise
        checkpoint = _read(reader, local, replace(how, training_state="drop"), fact).not_continued(problem)
        checkpoint = checkpoint.in_dtype(request.dtype)
        target = target_of(writer, checkpoint, request)
    if not stand_in(local):
        checkpoint = with_sound_tokenizer(checkpoint)
    asked = {
        "to": to,
        **ranks,
        "dtype": "keep" if wanted is None else wanted.name,
        "weights": weights,
        "options": given,
    }
    asked |= {} if training_state is None else {"training_state": training_state}
    return make_plan(
        checkpoint, target, memory=memory, workers=workers, options=asked, apart=apart, sent=store is not None
    )


def _state_wanted(writer: Plugin, asked: str | None) -> str:
    """How the state of a training is to be read for a writer: it is kept where both sides can, unless the user says what he wants.

    `NotCarried` where he wants it kept, and the writer can't.
    """
    if asked not in (None, "keep", "drop"):
        raise UsageError("training_state is keep or drop", found=f"{asked!r:.60}", expected="keep, drop")
    if writer.info.trains:
        return asked or "auto"
    if asked == "keep":
        able = [plugin.name for plugin in all_plugins() if plugin.broken is None and plugin.info.trains]
        raise NotCarried(
            f"format {writer.name} does not take the state of a training along yet",
            expected=f"one of {', '.join(able)}",
            fix="convert the weights alone, with --training-state drop",
        )
    return "drop"


def _wanted(dtype: str) -> DType | None:
    """The dtype that `dtype` names; None for `keep`."""
    if not isinstance(dtype, str):
        raise UsageError("dtype is given by its name", found=f"{dtype!r:.60}", expected="keep, bf16, fp32, ...")
    return None if dtype == "keep" else written_dtype(dtype)


def writer_of(to: str, ranks: Mapping[str, int | None]) -> Plugin:
    """The format to write; `UsageError` if it can't be written, or not on so many ranks."""
    for name, count in ranks.items():
        check_count(count, name, f"--{name}")
    check_format(to, "to", optional=False)
    writer = require(to)
    if not (writer.info.writes or writer.info.adapters):
        raise UsageError(f"format {to} can only be read", fix="see what is written: ckpt formats")
    for name, count in ranks.items():
        if count not in (None, 1) and name not in writer.info.parallel:
            raise UsageError(
                f"format {to} has no --{name}",
                expected=", ".join(f"--{n}" for n in writer.info.parallel) or "no parallel layout",
                fix=f"leave --{name} out: it says how the target is divided, and the ranks of the source are in its files",
            )
    return writer


@steadily
def launch_of(
    src: str | os.PathLike[str],
    *,
    to: str | None = None,
    dst: str | None = None,
    format: str | None = None,
    config: str | os.PathLike[str] | None = None,
    tp: int | None = None,
    pp: int | None = None,
    ep: int | None = None,
    dtype: str = "keep",
    options: Mapping[str, OptionValue] | None = None,
    weights: str = "auto",
) -> Launch:
    """How a framework is started with `src`: that of its own format, or with `to` that of another, for a checkpoint that
    was converted to `dst`.

    Its own is started on the ranks that it was saved by, unless others are given. Raises `Refusal` where no program
    trains the format, or where the framework can't be told what the model is.
    """
    local = localised(path_of(src, "src"))
    reader, fact = find_format(local, format)
    own = to in (None, reader.name)
    writer = writer_of(to or reader.name, {"tp": tp, "pp": pp, "ep": ep})
    if not _is_trained(writer):
        raise Refusal(
            f"no training program starts from a checkpoint of format {writer.name}",
            file=local if own else None,
            fix="name the format to train in with --to: " + ", ".join(p.name for p in all_plugins() if _is_trained(p)),
        )
    source_options, target_options = split_options(options_of(options), reader, writer)
    here = own and dst is None  # a run goes on where it lies
    state = "auto" if here and writer.info.trains else "drop"
    wanted = _reading(reader, source_options, config, weights, training_state=state)
    checkpoint = _read(reader, local, wanted, fact)
    typed = typed_options(writer.info, target_options, "write")
    found = {**checkpoint.parallel, **_as_it_lies(checkpoint, local)} if own else {}
    typed |= {name: value for name, value in found.items() if name in typed and typed[name] is None}
    named = spelled(dst or local)  # what lies at an address is known here by a path of its own
    place = "DST" if dst is None and not own else named if "://" in named else absolute(named)
    ranks = {name: asked or found.get(name) for name, asked in (("tp", tp), ("pp", pp), ("ep", ep))}
    request = WriteRequest(typed, _wanted(dtype), ranks["tp"], ranks["pp"], ranks["ep"], place)
    training = checkpoint.training
    kept = here and (training is not None or any(entry.what == OPTIMIZER.what for entry in checkpoint.ledger))
    launch = target_of(writer, replace(checkpoint, training=None), request, resumed=kept, training=training).launch
    assert launch is not None  # _is_trained
    launch.check()
    if place == "DST":
        said = "DST stands for the converted checkpoint: --at, in Python dst=, says where it lies."
        launch = replace(launch, notes=(*launch.notes, said))
    elif "://" in place:
        said = f"{launch.framework} opens {place} itself. Where it can't, copy that to its machines: --at, in Python dst=, says to which place."
        launch = replace(launch, notes=(*launch.notes, said))
    return launch


def _as_it_lies(checkpoint: Checkpoint, path: str) -> dict[str, Any]:
    """By which options of its format a checkpoint is written as it is: what its receipt says that was decided, else what its files say."""
    hints = checkpoint.provenance.hints
    receipt = find_receipt(path) if checkpoint.provenance.recorded else None
    decided = {} if receipt is None else dict(receipt.decisions)
    return {**{name: hints.get(name) for name in ("container", "iteration")}, **decided}


def _is_trained(plugin: Plugin) -> bool:
    return plugin.broken is None and bool(plugin.hooks.ckpt_launch.get_hookimpls())


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    to: str,
    format: str | None = None,
    config: str | os.PathLike[str] | None = None,
    tp: int | None = None,
    pp: int | None = None,
    ep: int | None = None,
    dtype: str = "keep",
    options: Mapping[str, OptionValue] | None = None,
    weights: str = "auto",
    training_state: str | None = None,
    max_memory: int | str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    sync: bool = True,
    executor: Executor | None = None,
    listener: Listener | None = None,
    spool: str | os.PathLike[str] | None = None,
) -> Receipt:
    """Convert `src` to format `to` at `dst`, and return the receipt that lies there.

    `tp`, `pp` and `ep` are numbers of ranks; None keeps what the format says by itself. `dtype` is `keep` or a name (`bf16`, or `bfloat16`).
    `options` are those of both formats, as `-o` has them: `src.NAME` and `dst.NAME` where both have one of that name.
    `training_state` is `keep` or `drop`; without it, the optimizer's moments and all that belongs to them go along where both formats can.
    `max_memory` is in bytes or a text (`"2GB"`), 256 MiB unless the plan itself needs more; `workers` are threads. `overwrite` replaces a
    checkpoint at `dst`. Without `sync` it does not wait for the disk. `executor` moves the data in other processes, each of
    which may then use `max_memory` (a `concurrent.futures.Executor`: processes, or `distributed.Client(...).get_executor()`), and
    `listener` is called with a `Progress` now and then. `dst` may be `s3://bucket/folder` or `az://container/folder`; `spool` is then a folder for what waits to
    be sent. The others are those of `open_checkpoint`.

    Raises `UsageError` for a wrong argument, `Refusal` for what the target can't hold exactly, `FormatError` for damaged
    files and `CkptError` for the rest, with nothing left at `dst`. An interrupted call continues where it was when it is
    repeated.
    """
    from ckpt_core.engine.executors import fitted
    from ckpt_core.engine.run import run_plan

    check_executor(executor)
    planned = functools.partial(
        plan_conversion,
        src,
        dst,
        to=to,
        format=format,
        config=config,
        tp=tp,
        pp=pp,
        ep=ep,
        dtype=dtype,
        options=options,
        weights=weights,
        training_state=training_state,
        max_memory=max_memory,
        workers=workers,
        apart=executor is not None,
    )
    return run_plan(
        fitted(planned(), executor, workers is None),
        path_of(dst, "dst"),
        overwrite=overwrite,
        sync=sync,
        executor=executor,
        listener=listener,
        spool=None if spool is None else path_of(spool, "spool"),
        again=planned,
    )


def digests(
    checkpoint: Checkpoint, *, version: int | None = None, workers: int | None = None, listener: Listener | None = None
) -> dict[str, Digests]:
    """The digest of every canonical tensor, read once, in bounded memory; records of torch files are checked meanwhile.

    `version` is that of the digests: without one the present, or another to compare them with what an older receipt records.
    """
    from ckpt_core.engine.pieces import pieces
    from ckpt_core.engine.records import RecordSums, watched
    from ckpt_core.engine.transfer import digests_of, run_transfer
    from ckpt_core.tensors.digest import HASHES, VERSION
    from ckpt_core.tensors.source import SourceFiles

    version = VERSION if version is None else version
    transfers = _whole(watched(checkpoint.tensors))
    if version != 1:  # of which a tensor is one leaf
        transfers = [piece for tensor in transfers for piece in pieces(tensor)]
    hash_ = HASHES[version]
    found = _over(checkpoint, transfers, lambda one, source: run_transfer(one, source, None, hash_), workers, listener)
    source = SourceFiles(checkpoint.files)
    records = RecordSums((transfer.assembly for transfer in transfers), source)
    try:
        for result in found:
            records.add(result.records)
    finally:
        source.close()
    return digests_of(found, version)


def over_tensors(
    checkpoint: Checkpoint,
    work: Callable[[Transfer, SourceFiles], T],
    *,
    workers: int | None = None,
    listener: Listener | None = None,
) -> dict[str, T]:
    """What `work` finds in each canonical tensor, by name; several are read at a time, each by one thread."""
    transfers = _whole(checkpoint.tensors)
    found = _over(checkpoint, transfers, work, workers, listener)
    return {transfer.name: result for transfer, result in zip(transfers, found, strict=True)}


def _whole(tensors: Mapping[str, LazyParameter]) -> list[Transfer]:
    """Tensors that are read, and go nowhere."""
    from ckpt_core.engine.pieces import uncut

    return [uncut(assembly, (), max(1, _CHUNK_BYTES // assembly.dtype.size)) for assembly in tensors.values()]


def _over(
    checkpoint: Checkpoint,
    transfers: Sequence[Transfer],
    work: Callable[[Transfer, SourceFiles], T],
    workers: int | None,
    listener: Listener | None,
) -> list[T]:
    """What `work` finds in each of some transfers, in their order."""
    from concurrent.futures import ThreadPoolExecutor

    from ckpt_core.engine.run import Progress
    from ckpt_core.tensors.source import SourceFiles

    source = SourceFiles(checkpoint.files)
    total = sum(transfer.bytes_read for transfer in transfers)
    done = 0
    found: list[T] = []
    try:
        with ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1), "read") as pool:
            over = pool.map if total >= _FEW else map
            for transfer, result in zip(
                transfers, over(lambda transfer: work(transfer, source), transfers), strict=True
            ):
                found.append(result)
                done += transfer.bytes_read
                if listener is not None:
                    listener(Progress(done, total, transfer.name))
        source.check_untouched()
    finally:
        source.close()
    return found


@steadily
def fingerprint(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    config: str | os.PathLike[str] | None = None,
    options: Mapping[str, OptionValue] | None = None,
    weights: str = "auto",
    listener: Listener | None = None,
) -> str:
    """The fingerprint of a checkpoint, `v2-` and 64 hexadecimal digits: equal for equal models, whatever format, layout or storage dtype
    holds them. Every tensor is read. Its arguments and errors are those of `open_checkpoint`.
    """
    checkpoint = read_checkpoint(path, format=format, config=config, options=options, weights=weights)
    return fingerprint_of(checkpoint, digests(checkpoint, listener=listener))


def fingerprint_of(checkpoint: Checkpoint, results: Mapping[str, Digests]) -> str:
    from ckpt_core.tensors.digest import fingerprint as combine

    known = checkpoint.tensors
    return combine((name, known[name].parameter.true_shape, result.digest) for name, result in results.items())


def of_training(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the tensors of its training in the place of the weights, for what reads values by name."""
    state = checkpoint.training
    return replace(checkpoint, tensors={} if state is None else state.tensors)
