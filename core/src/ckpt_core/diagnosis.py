"""What a path is that no format recognises, as far as the names in it tell, and what to do about it.

The first finding that holds is the error. A folder is only listed, and files are only looked at by their first bytes.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
from collections.abc import Callable, Iterator

from ckpt_core.errors import CkptError, FormatError, ProblemsFound, nearest
from ckpt_core.lean import dataclass
from ckpt_core.storage.bytes.files import FileState
from ckpt_core.storage.bytes.names import JOURNAL, UNFINISHED
from ckpt_core.storage.bytes.pointers import LONGEST
from ckpt_core.storage.documents import read_json

Recognised = Callable[[str], list[str]]
"""The names of the installed formats that recognise a path."""

_MOST = 2000
"""Names of a folder that are looked at."""
_SHOWN = 8
"""Names that are told; the others are counted."""
_UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".tmp")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".distcp", ".nemo")
_STATE_DICTS = (".safetensors", ".bin", ".pt", ".pth")
_UNEXPANDED = "a shell does not expand ~ in quotes, nor Python in a path: write the whole path, or $HOME"
_CONFIGS = ("config.json", "params.json", "model_config.yaml", "config.yaml", "architecture.json")


@dataclass(frozen=True, slots=True)
class Trace:
    """What a name says: `pattern` is of a file or folder in a checkpoint of `format`, which `package` reads.

    Where `package` is None, none does yet. `rank` marks what one rank of several wrote.
    """

    pattern: str
    format: str
    package: str | None
    rank: bool = False


OWN = {
    "ckpt-deepspeed": ("deepspeed", "megatron-deepspeed"),
    "ckpt-fsdp": ("fsdp", "torchtitan"),
    "ckpt-gguf": ("gguf",),
    "ckpt-hf": ("hf",),
    "ckpt-megatron": ("megatron", "megatron-bridge"),
    "ckpt-nanotron": ("nanotron",),
    "ckpt-nemo": ("nemo", "nemo2"),
    "ckpt-nxdt": ("nxdt",),
    "ckpt-peft": ("peft", "megatron-lora", "fsdp-lora"),
}
"""The packages that `pip install ckpt-convert` brings, and the formats of each: what to install where one is missing."""

TRACES = (
    # name                                    what wrote it                        what reads it     one rank's
    Trace("mp_rank_[0-9]*",                   "Megatron-LM, NeMo or DeepSpeed",    "ckpt-megatron",  True),
    Trace("tp_rank_[0-9]*",                   "NeMo",                              "ckpt-nemo",      True),
    Trace("model_optim_rng.pt",               "Megatron-LM",                       "ckpt-megatron",  True),
    Trace("latest_checkpointed_iteration.txt", "Megatron-LM",                      "ckpt-megatron"),
    Trace("iter_[0-9]*",                      "Megatron-LM",                       "ckpt-megatron"),
    Trace("run_config.yaml",                  "Megatron-Bridge",                   "ckpt-megatron"),
    Trace("*.nemo",                           "NeMo",                              "ckpt-nemo"),
    Trace("model_weights.ckpt",               "NeMo",                              "ckpt-nemo",      True),
    Trace("model_config.yaml",                "NeMo",                              "ckpt-nemo"),
    Trace("io.json",                          "NeMo 2",                            "ckpt-nemo"),
    Trace("model_*_pp-rank-*_tp-rank-*.safetensors", "Nanotron",                   "ckpt-nanotron",  True),
    Trace("checkpoint_metadata.json",         "Nanotron",                          "ckpt-nanotron"),
    Trace("dp_rank_*_tp_rank_*_pp_rank_*.pt", "NeuronX Distributed Training",      "ckpt-nxdt",      True),
    Trace("zero_pp_rank_*_optim_states.pt",   "DeepSpeed",                         "ckpt-deepspeed", True),
    Trace("bf16_zero_pp_rank_*_optim_states.pt", "DeepSpeed",                      "ckpt-deepspeed", True),
    Trace("zero_pp_rank_*_model_states.pt",   "DeepSpeed",                         "ckpt-deepspeed", True),
    Trace("global_step[0-9]*",                "DeepSpeed",                         "ckpt-deepspeed"),
    Trace("zero_to_fp32.py",                  "DeepSpeed",                         "ckpt-deepspeed"),
    Trace("model-[0-9]*-of-[0-9]*.safetensors", "Hugging Face transformers",       "ckpt-hf",        True),
    Trace("model.safetensors*",               "Hugging Face transformers",         "ckpt-hf"),
    Trace("pytorch_model*.bin*",              "Hugging Face transformers",         "ckpt-hf"),
    Trace("model_world_size_*_rank_*.pt",     "verl (FSDP)",                       "ckpt-fsdp",      True),
    Trace("pytorch_model_fsdp*",              "accelerate (FSDP)",                 "ckpt-fsdp"),
    Trace("__*_*.distcp",                     "torch.distributed.checkpoint",      "ckpt-fsdp",      True),
    Trace("adapter_model.*",                  "PEFT: an adapter, not a model",     "ckpt-peft"),
    Trace("adapter_config.json",              "PEFT: an adapter, not a model",     "ckpt-peft"),
    Trace("consolidated.*.pth",               "Meta's or Mistral's own code",      None),
    Trace("consolidated*.safetensors",        "Meta's or Mistral's own code",      None),
    Trace("*.gguf",                           "llama.cpp",                         "ckpt-gguf"),
    Trace("*.h5",                             "Keras",                             None),
    Trace("*.msgpack",                        "Flax",                              None),
    Trace("*.onnx",                           "ONNX",                              None),
)  # fmt: skip


@dataclass(frozen=True)
class _Folder:
    """A path and the names in it: of a file, its own."""

    path: str
    names: list[str]

    def place(self, name: str) -> str:
        return os.path.join(self.path, name)

    def like(self, *patterns: str) -> list[str]:
        return [name for name in self.names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def diagnosis(path: str, installed: list[str], recognised: Recognised) -> CkptError:
    """The error about a path that exists and that none of the `installed` formats recognises."""
    try:
        names = sorted(os.listdir(path))[:_MOST] if os.path.isdir(path) else []
    except OSError as error:
        return CkptError("the folder can't be read", file=path, found=error.strerror)
    folder = _Folder(path, names)
    return (
        _damaged(folder)
        or _hub_cache(folder)
        or _rank(folder, recognised)
        or _file_of(folder, recognised)
        or _inside(folder, recognised)
        or _iterations(folder)
        or _incomplete(folder)
        or _foreign(folder, installed)
        or _foreign_inside(folder, installed)
        or _half(folder)
        or _unfinished_inside(folder)
        or _unknown(folder, installed, recognised)
    )


def package_of(name: str) -> str | None:
    """The package that brings the format `name`; None if it is none of ours."""
    return next((package for package, names in OWN.items() if name in names), None)


def _unknown(folder: _Folder, installed: list[str], recognised: Recognised) -> CkptError:
    around = _around(folder, recognised)
    absent = [name for names in OWN.values() for name in names if name not in installed]
    fix = "name the format with --from" if around is None else f"if it is a part of the checkpoint around it: {around}"
    if absent:
        fix += f"; if it is not installed: pip install ckpt-convert brings {', '.join(absent)}, others are in packages of their own"
    return CkptError(
        "no installed format recognises this path",
        file=folder.path,
        found=_listed(folder.names) if folder.names else None,
        expected=f"one of the formats installed here: {', '.join(installed)}",
        fix=fix,
    )


def check_expanded(path: str) -> None:
    """Raise for a destination in a `~` that no shell expanded and that is no folder here: nobody wants one of that name."""
    home = path.split(os.sep)[0]
    if home.startswith("~") and os.sep in path and not os.path.isdir(home):
        raise CkptError("the destination's parent folder does not exist", file=home, fix=_UNEXPANDED)


def check_finished(path: str) -> None:
    """Raise for a path in the staging folder of a conversion: its files have their size from the start, and nothing in them tells what is not written yet."""
    place = os.path.realpath(path)  # a link may lead there
    while place != (above := os.path.dirname(place)):
        if _is_staging(place):
            raise _not_finished(path, place)
        place = above


def _is_staging(folder: str) -> bool:
    return folder.endswith(UNFINISHED) and os.path.isfile(os.path.join(folder, JOURNAL))


def _unfinished_inside(folder: _Folder) -> CkptError | None:
    """Nothing but conversions that are not finished."""
    found = [folder.place(name) for name in folder.names if _is_staging(folder.place(name))]
    return _not_finished(found[0].removesuffix(UNFINISHED), os.path.abspath(found[0])) if found else None


def _not_finished(path: str, staging: str) -> CkptError:
    near = os.path.relpath(staging)
    if near.endswith(UNFINISHED) and not os.path.isabs(path):  # it is `..` for who stands in it
        staging = near
    return CkptError(
        "a conversion to this path is not finished",
        file=path,
        found=staging,
        fix=f"repeat the command that writes {staging.removesuffix(UNFINISHED)}: what is done is kept",
    )


def absent(path: str) -> CkptError:
    """The error about a path where nothing is."""
    staging = path.rstrip(os.sep) + UNFINISHED
    if _is_staging(staging):
        return _not_finished(path, staging)
    missing = os.path.abspath(path)
    above = os.path.dirname(missing)
    while not os.path.isdir(above):
        missing, above = above, os.path.dirname(above)
    meant = None
    with contextlib.suppress(OSError):
        meant = nearest(os.path.basename(missing), os.listdir(above)[:_MOST])
    fix = None
    if os.path.islink(path):
        fix = f"it is a link to {os.readlink(path)}, and nothing is there"
    elif path.startswith("~"):
        fix = _UNEXPANDED
    elif missing == os.path.abspath(path):
        beside = os.path.dirname(path.rstrip(os.sep))
        fix = None if meant is None else f"did you mean {os.path.join(beside, meant)!r}?"
    elif meant is not None:
        fix = f"the folders are there as far as {above}, where {meant!r} is; did you mean that?"
    elif re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path):
        fix = f"a repository of the hub is written hf://{path}"
    else:
        fix = f"the folders are there as far as {above}"
    return CkptError("there is no such file or folder", file=path, fix=fix)


def broken_off(path: str, problem: CkptError) -> CkptError | None:
    """Why a reader misses files of a checkpoint that was recognised: a download that was broken off; None if it is not so."""
    problems = problem.problems if isinstance(problem, ProblemsFound) else [problem]
    missing = [one.file for one in problems if one.file is not None and not os.path.exists(one.file)]
    if not missing or not os.path.isdir(path):
        return None
    folder = _Folder(path, sorted(os.listdir(path))[:_MOST])
    return _damaged(folder) or _incomplete(folder)


def _damaged(folder: _Folder) -> CkptError | None:
    """Nothing in it, or files that are not the files."""
    if not os.path.isdir(folder.path):
        try:
            FileState.of(folder.path)
        except FormatError as problem:
            return problem
        if os.path.isfile(folder.path) and not os.path.getsize(folder.path):
            return CkptError("the file is empty", file=folder.path, expected="a checkpoint")
        return None
    if not folder.names:
        return CkptError("the folder is empty", file=folder.path, expected="a checkpoint")
    for name in folder.names:
        place = folder.place(name)
        if os.path.islink(place) and not os.path.exists(place):
            return CkptError(
                "a link in the folder leads nowhere",
                file=place,
                found=os.readlink(place),
                fix="copy the checkpoint with what its links lead to (cp -rL), or download it again",
            )
        if os.path.isfile(place) and os.path.getsize(place) <= LONGEST:
            try:
                FileState.of(place)
            except FormatError as problem:
                return problem
    return None


def _hub_cache(folder: _Folder) -> CkptError | None:
    """The cache of the Hugging Face hub: the checkpoint is in a snapshot of one of its repositories."""
    repositories = [folder.path] if "snapshots" in folder.names else []
    repositories += [folder.place(name) for name in folder.like("models--*")]
    if "hub" in folder.names:
        hub = folder.place("hub")
        repositories += [os.path.join(hub, name) for name in _subfolders(hub) if name.startswith("models--")]
    if not repositories:
        return None
    found = [
        os.path.join(repository, "snapshots", name)
        for repository in repositories
        for name in _subfolders(os.path.join(repository, "snapshots"))
    ]
    if not found:
        return CkptError(
            "a cache of the Hugging Face hub without any snapshot", file=folder.path, fix="download it again"
        )
    return CkptError(
        "this is a cache of the Hugging Face hub, not one checkpoint in it",
        file=folder.path,
        found=_listed(found),
        fix=f"give a snapshot: {found[0]}" if len(found) == 1 else "give one of these snapshots",
    )


def _rank(folder: _Folder, recognised: Recognised) -> CkptError | None:
    """What one rank of a checkpoint wrote: the checkpoint is the folder around it."""
    own = os.path.basename(os.path.abspath(folder.path))
    trace = next((trace for trace in TRACES if trace.rank and fnmatch.fnmatch(own, trace.pattern)), None)
    if trace is None:
        return None
    above = os.path.abspath(folder.path)
    for _ in range(6):
        above = os.path.dirname(above)
        formats = recognised(above)
        if formats:
            return CkptError(
                f"this is a part of a checkpoint ({trace.format}), not all of it",
                file=folder.path,
                fix=f"give the folder of all parts: {above} ({', '.join(formats)})",
            )
    if trace.package is None:
        return None
    return CkptError(
        f"this is a part of a checkpoint ({trace.format}), not all of it",
        file=folder.path,
        fix=f"give the folder in which all ranks are; {trace.package} reads it",
    )


def _file_of(folder: _Folder, recognised: Recognised) -> CkptError | None:
    """A file of a checkpoint: the checkpoint is the folder around it."""
    around = _around(folder, recognised) if os.path.isfile(folder.path) else None
    if around is None:
        return None
    return CkptError(
        "this is a file of a checkpoint, not the checkpoint", file=folder.path, fix=f"give the folder: {around}"
    )


def _around(folder: _Folder, recognised: Recognised) -> str | None:
    """A checkpoint up to three levels above, with its formats; None if there is none."""
    above = os.path.abspath(folder.path)
    for _ in range(3):
        above = os.path.dirname(above)
        formats = recognised(above)
        if formats:
            place = os.path.relpath(above) if not os.path.isabs(folder.path) else above
            return f"{place} ({', '.join(formats)})"
    return None


def _inside(folder: _Folder, recognised: Recognised) -> CkptError | None:
    """Checkpoints one or two levels down."""
    found: list[str] = []
    places: set[str] = set()
    for name in _below(folder):
        if os.path.dirname(name) in places:
            continue  # it is a part of that one
        formats = recognised(folder.place(name))
        if formats:
            places.add(name)
            found.append(f"{folder.place(name)} ({', '.join(formats)})")
    iterations = folder.like("iter_[0-9]*")
    if not found or (len(found) > 1 and iterations):
        return None
    return CkptError(
        f"the folder is not a checkpoint, but holds {'one' if len(found) == 1 else len(found)}",
        file=folder.path,
        found=_listed(found),
        fix=f"give {found[0].rpartition(' (')[0]}" if len(found) == 1 else "give one of these",
    )


def _iterations(folder: _Folder) -> CkptError | None:
    """Several iterations, and nothing that says which."""
    steps = [
        name
        for name in folder.like("iter_[0-9]*", "global_step[0-9]*", "step[-_]*")
        if os.path.isdir(folder.place(name))
    ]
    if len(steps) < 2:
        return None
    return CkptError(
        "the folder holds several iterations, and no tracker says which is meant",
        file=folder.path,
        found=_listed(steps),
        expected="latest_checkpointed_iteration.txt (or latest) beside them",
        fix=f"give one of them: {folder.place(steps[-1])}",
    )


def _incomplete(folder: _Folder) -> CkptError | None:
    """A download that was broken off."""
    unfinished = [name for name in folder.names if name.endswith(_UNFINISHED)]
    wanted = sorted(set(_wanted(folder)) - set(folder.names))
    if wanted:
        indexes = " and ".join(folder.like("*.index.json"))
        return CkptError(
            "a shard is not here" if len(wanted) == 1 else f"{len(wanted)} shards are not here",
            file=folder.path,
            found=f"no {_listed(wanted)}" + (f"; unfinished: {_listed(unfinished)}" if unfinished else ""),
            expected=f"all that {indexes} names" if indexes else "as many as the names of the others say",
            fix="finish the download, or copy the files that are missing",
        )
    if unfinished:
        return CkptError(
            "the folder holds unfinished downloads",
            file=folder.path,
            found=_listed(unfinished),
            fix="finish the download",
        )
    return None


def _wanted(folder: _Folder) -> Iterator[str]:
    """The files that the indexes in a folder name, and those whose siblings say how many there are."""
    for name in folder.like("*.index.json"):
        try:
            index = read_json(folder.place(name))
        except CkptError:
            continue
        places = index.get("weight_map") if isinstance(index, dict) else None
        yield from (place for place in places.values() if isinstance(place, str)) if isinstance(places, dict) else ()
    for name in folder.names:
        match = re.fullmatch(r"(.+-)(\d{5})(-of-)(\d{5})(\.\w+)", name)
        if match and int(match[4]) <= _MOST:
            yield from (
                f"{match[1]}{number:05d}{match[3]}{match[4]}{match[5]}" for number in range(1, int(match[4]) + 1)
            )


def _half(folder: _Folder) -> CkptError | None:
    """A description without weights, or weights without a description."""
    weights = [name for name in folder.names if name.endswith(_WEIGHTS)]
    configs = [name for name in folder.names if name in _CONFIGS]
    if configs and not weights:
        return CkptError(
            "the folder describes a model, and there are no weights in it",
            file=folder.path,
            found=_listed(configs),
            expected="weights beside it, such as model.safetensors",
            fix="finish the download, or give the folder with the weights",
        )
    shards = folder.like("*-[0-9]*-of-[0-9]*.safetensors", "*-[0-9]*-of-[0-9]*.bin")
    if shards and configs and not folder.like("*.index.json"):
        return CkptError(
            "the weights are in shards, and the index that says which tensors each holds is missing",
            file=folder.path,
            found=_listed(shards),
            expected="model.safetensors.index.json or pytorch_model.bin.index.json beside them",
            fix="finish the download",
        )
    plain = folder.like("*.safetensors", "pytorch_model*.bin")
    adapters = folder.like("adapter_*", "consolidated*")
    if plain and not adapters and "config.json" not in folder.names:
        return CkptError(
            "there are weights here, and no config that says of which model",
            file=folder.path,
            found=_listed(plain),
            expected="config.json beside them",
            fix="put the config.json of the model beside them, or say --from hf --config FILE",
        )
    own = os.path.basename(folder.path)
    alone = own if os.path.isfile(folder.path) else folder.names[0] if len(folder.names) == 1 else ""
    if alone.endswith(_STATE_DICTS):
        return CkptError(
            "this may be a file of weights, and no config says of which model",
            file=folder.path,
            found=alone,
            expected="config.json beside it",
            fix=f"if it is the state dict of a transformers model: {'' if alone == own else 'give the file, and '}"
            "say --from hf --config FILE",
        )
    return None


def _foreign(folder: _Folder, installed: list[str]) -> CkptError | None:
    """What a framework wrote whose plugin is not installed, or does not exist."""
    names = [os.path.basename(os.path.abspath(folder.path)), *folder.names]
    for trace in TRACES:
        seen = [name for name in names if fnmatch.fnmatch(name, trace.pattern)]
        if seen and (trace.package is None or _lacks(trace.package, installed)):
            return _uninstalled(folder, trace, seen, installed)
    return None


def _foreign_inside(folder: _Folder, installed: list[str]) -> CkptError | None:
    """The same one or two levels down, where there is a plugin to install: a checkpoint may have a folder for each iteration."""
    below = [
        (os.path.join(inner, name), name) for inner in _below(folder) for name in _names(folder.place(inner))[:_MOST]
    ]
    for trace in TRACES:
        if trace.package is not None and _lacks(trace.package, installed):
            seen = [place for place, name in below if fnmatch.fnmatch(name, trace.pattern)]
            if seen:
                return _uninstalled(folder, trace, seen, installed)
    return None


def _lacks(package: str, installed: list[str]) -> bool:
    return not any(name in installed for name in OWN[package])


def _uninstalled(folder: _Folder, trace: Trace, seen: list[str], installed: list[str]) -> CkptError:
    return CkptError(
        f"no installed format recognises this path; it looks like one of {trace.format}",
        file=folder.path,
        found=_listed(seen),
        expected=f"one of the formats installed here: {', '.join(installed)}",
        fix="this is not supported yet"
        if trace.package is None
        else f"pip install {trace.package} (ckpt-convert brings all formats)",
    )


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _subfolders(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())[:_MOST]
    except OSError:
        return []


def _below(folder: _Folder) -> Iterator[str]:
    """The folders one level down, and two levels down; the first thirty, and ten in each."""
    inner = [
        name for name in folder.names if os.path.isdir(folder.place(name)) and not _is_staging(folder.place(name))
    ][:30]
    yield from inner
    for name in inner:
        yield from (os.path.join(name, deeper) for deeper in _subfolders(folder.place(name))[:10])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
