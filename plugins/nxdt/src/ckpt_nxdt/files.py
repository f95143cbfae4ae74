"""The files of a Neuron checkpoint: one per tensor, pipeline and expert parallel rank.

    DIR/TAG/checkpoint  done                     marks of a training job: begun, and complete
    DIR/TAG/model/dp_rank_00[_ep_rank_EE]_tp_rank_TT_pp_rank_PP.pt     plain, or xser (see `ckpt_nxdt.xser`)
    DIR/TAG/optim/dp_rank_DD_tp_rank_TT_pp_rank_PP.pt                  see `masters`
    OUT/model/...                                AWS's converter: the same names without any marks
    DIR/tp_rank_TT_pp_rank_PP  .../checkpoint.pt  .../tp_rank_TT_pp_rankPP.pt      before SDK 2.15

Data parallel ranks hold the same model, so there is only dp_rank_00. What a pipeline rank holds is told by names alone:
cuts may lie anywhere.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ckpt_core.sdk import FormatError, RankTensors, StoredTensor, disk, errors, layouts, lazy, torch_files
from ckpt_nxdt.xser import AbsentTensor, read_xser

BEGUN, DONE = "checkpoint", "done"
MODEL, OPTIMIZER = "model", "optim"
_RANKS = re.compile(r"(?:dp_rank_(\d{2,})_)?(?:ep_rank_(\d{2,})_)?tp_rank_(\d{2,})_pp_rank_?(\d{2,})(?:\.pt)?")
_OLD_FILE = "checkpoint.pt"
_MODEL_KEY = "model"
_SAMPLE = 1 << 12  # bytes of a row
_MOST_MISSING = 8  # ranks that are named: a stale file may be of rank 99999999


@dataclass(frozen=True, slots=True, order=True)
class Rank:
    """Where a file's process stood."""

    tp: int
    pp: int
    ep: int
    dp: int = 0

    def __str__(self) -> str:
        return f"tp={self.tp} pp={self.pp}" + (f" ep={self.ep}" if self.ep else "")


@dataclass
class RankFile:
    """The tensors of one file by name; `absent` are referred to, and kept elsewhere or nowhere.

    `shapes` has all of them in the order of the file.
    """

    path: str
    rank: Rank
    shapes: dict[str, tuple[int, ...] | None] = field(default_factory=dict)
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    absent: dict[str, AbsentTensor] = field(default_factory=dict)
    xser: bool = False


@dataclass
class FolderContents:
    """What lies in a checkpoint folder; `trained`: the signs that a job wrote it."""

    folder: str
    files: list[RankFile]
    tp: int
    pp: int
    ep: int
    trained: list[str]

    def states(self) -> list[disk.FileState]:
        """Every file that was read, and those that hold its tensors."""
        paths = {file.path for file in self.files}
        paths |= {tensor.file for file in self.files for tensor in file.tensors.values()}
        return [disk.FileState.of(path) for path in sorted(paths)]

    def absent(self) -> Iterator[tuple[str, AbsentTensor]]:
        """The tensors by name that this checkpoint should hold and does not."""
        for file in self.files:
            for name, tensor in file.absent.items():
                if not file.rank.ep or tensor.expert:  # the rest is kept by expert rank 0
                    yield name, tensor

    def weights(self) -> Weights:
        """The tensors themselves, each in one shard."""
        tensors = {
            file.rank: {name: lazy.whole(tensor) for name, tensor in file.tensors.items()} for file in self.files
        }
        return Weights(self.folder, self.tp, self.ep, tensors, {file.rank: file.path for file in self.files})


@dataclass
class Weights:
    """The tensors that are read, the weights or their masters: by rank and name, each as the shards that tile it.

    `paths` are the model's files by rank, which say the names.
    """

    folder: str
    tp: int
    ep: int
    tensors: Mapping[Rank, Mapping[str, list[lazy.Shard]]]
    paths: Mapping[Rank, str]

    @functools.cached_property
    def names(self) -> set[str]:
        return {name for held in self.tensors.values() for name in held}

    def shards(self, name: str, tp: int) -> list[lazy.Shard]:
        """A tensor on a tensor parallel rank; nothing if no file of the rank has it."""
        return next((held[name] for rank, held in self.tensors.items() if rank.tp == tp and name in held), [])

    def shape(self, name: str, tp: int) -> tuple[int, ...]:
        """The shape of a tensor on a tensor parallel rank; () if it has none."""
        shards = self.shards(name, tp)
        if not shards or not shards[0].stored.shape:
            return ()
        return sum(shard.stored.shape[0] for shard in shards), *shards[0].stored.shape[1:]

    def row(self, name: str, tp: int, row: int) -> bytes:
        """The first bytes of a row of a matrix; of one that is not stored row by row, its first element."""
        for shard in self.shards(name, tp):
            stored, inside = shard.stored, row - shard.origin[0]
            if len(stored.shape) == 2 and 0 <= inside < stored.shape[0]:
                width = stored.shape[1] if stored.strides[1] == 1 else min(1, stored.shape[1])
                start = stored.offset + inside * stored.strides[0] * stored.dtype.size
                return disk.read_range(stored.file, start, min(width * stored.dtype.size, _SAMPLE))
        return b""

    def by_rank(self) -> Iterator[RankTensors]:
        """The tensors of every file. Expert ranks share all that is not an expert's: it need lie with rank 0 alone."""
        for rank, tensors in sorted(self.tensors.items()):
            ranks = {"tp": (rank.tp, self.tp), "ep": (rank.ep, self.ep)}
            yield RankTensors(ranks, tensors, self.paths[rank], needed=_is_expert if rank.ep else None)


def _is_expert(native: layouts.Native) -> bool:
    return "ep" in dict(native.row.splits)


def looks_like(path: str) -> str | None:
    """The fact by which a folder is a Neuron checkpoint, or None."""
    if not os.path.isdir(path):
        return None
    for folder in (path, *_subfolders(path)):
        weights = _weights_folder(folder)
        if weights is not None and any(torch_files.may_be_torch_file(file) for file, _ in _rank_files(weights)):
            return f"{os.path.basename(next(_rank_files(weights))[0])} in {os.path.relpath(weights, path)}"
    return None


def _subfolders(folder: str) -> list[str]:
    return [
        entry.path for entry in sorted(os.scandir(folder), key=lambda entry: entry.name) if os.path.isdir(entry.path)
    ]


def _weights_folder(folder: str) -> str | None:
    """The folder of the rank files: `folder`/model, or `folder` itself."""
    for place in (os.path.join(folder, MODEL), folder):
        if os.path.isdir(place) and any(True for _ in _rank_files(place)):
            return place
    return None


def _rank_files(folder: str) -> Iterator[tuple[str, Rank]]:
    """Path and rank of every model or optimizer file directly in a folder."""
    for name in sorted(os.listdir(folder)):
        match = _RANKS.fullmatch(name)
        if match is None:
            continue
        path = os.path.join(folder, name)
        old = os.path.join(path, _OLD_FILE)
        if os.path.isfile(old):
            path = old
        if os.path.isfile(path):
            dp, ep, tp, pp = (int(number or 0) for number in match.groups())
            yield path, Rank(tp, pp, ep, dp)


def find_folder(path: str) -> tuple[str, list[str]]:
    """The folder of one checkpoint at `path` and what decided it: itself, or the newest tag that is complete."""
    folder, evidence = (path, list[str]()) if _weights_folder(path) is not None else _newest_tag(path)
    root = root_of(folder)
    if os.path.isfile(os.path.join(root, BEGUN)) and not os.path.isfile(os.path.join(root, DONE)):
        raise FormatError(
            f"the checkpoint was not finished: {BEGUN} is there, and {DONE} is not",
            file=root,
            fix="take another tag; if you know that this one is complete, delete the file named checkpoint",
        )
    return folder, evidence


def _newest_tag(path: str) -> tuple[str, list[str]]:
    """The tag that NxD would load: the one whose `done` was modified last. Without any mark, the only one."""
    tags = [tag for tag in _subfolders(path) if _weights_folder(tag) is not None]
    if not tags:
        expected = f"{MODEL}/dp_rank_00_tp_rank_00_pp_rank_00.pt"
        raise FormatError("there are no weights here", file=path, expected=expected)
    complete = [tag for tag in tags if os.path.isfile(os.path.join(tag, DONE))]
    when = {tag: os.stat(os.path.join(tag, DONE)).st_mtime_ns for tag in complete}
    newest = [tag for tag in complete if when[tag] == max(when.values())] or tags
    if len(newest) > 1:
        names = ", ".join(os.path.basename(tag) for tag in newest)
        raise FormatError("several tags could be meant", file=path, found=names, fix="give the folder of one")
    said = f", the newest of {len(complete)} that are complete" if len(complete) > 1 else ""
    return newest[0], [f"tag {os.path.basename(newest[0])}{said}"]


def _is_model_folder(folder: str) -> bool:
    return os.path.basename(os.path.abspath(folder)) == MODEL and _weights_folder(folder) == folder


def root_of(folder: str) -> str:
    """The folder that holds model/, config.json and the marks."""
    return os.path.dirname(os.path.abspath(folder)) if _is_model_folder(folder) else folder


def read_files(folder: str) -> FolderContents:
    """The rank files of a checkpoint, from headers alone; every problem with them is raised at once."""
    weights = _weights_folder(folder) or folder
    problems = errors.Problems(f"reading {weights}")
    files: list[RankFile] = []
    paths: dict[Rank, str] = {}
    for path, rank in _rank_files(weights):
        if rank in paths:
            problems.add(FormatError(f"two files of {rank}", file=path, found=paths[rank], fix="remove the stale one"))
        elif rank.dp:
            problems.add(FormatError("a model file of another data parallel rank than 0", file=path))
        else:
            paths[rank] = path
            try:
                files.append(_read_rank(path, rank))
            except FormatError as problem:
                problems.add(problem)
    tp, pp, ep = (max((getattr(rank, name) for rank in paths), default=-1) + 1 for name in ("tp", "pp", "ep"))
    grid = (Rank(t, p, e) for t in range(tp) for p in range(pp) for e in range(ep))
    missing = itertools.islice((rank for rank in grid if rank not in paths), _MOST_MISSING)
    for rank in missing if tp * pp * ep != len(paths) else ():
        expected = f"files of every rank of tp={tp} pp={pp} ep={ep}"
        problems.add(FormatError(f"no file of rank {rank}", file=weights, expected=expected))
    problems.raise_any()
    return FolderContents(folder, files, tp, pp, ep, _signs_of_training(folder, files))


def _read_rank(path: str, rank: Rank) -> RankFile:
    content = read_xser(path)
    if isinstance(content, dict) and isinstance(content.get(_MODEL_KEY), dict):
        content = content[_MODEL_KEY]
    if not isinstance(content, dict):
        raise FormatError("the file holds no dict of tensors", file=path, found=torch_files.brief(content))
    file = RankFile(path, rank)
    problems = errors.Problems(f"reading {path}")
    if "lora_config" in content or any(".lora_" in str(name) for name in content):
        raise FormatError(
            "the file holds LoRA adapters, which are not models by themselves",
            file=path,
            fix="save the merged model (peft: save_lora_base, merge)",
        )
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, StoredTensor):
            file.tensors[name], file.shapes[name] = value, value.shape
            file.xser |= value.file != path
        elif isinstance(name, str) and isinstance(value, AbsentTensor):
            file.absent[name], file.shapes[name] = value, value.shape
            file.xser = True
        elif value is not None or not rank.ep:  # expert ranks have None for what rank 0 keeps
            problems.add(
                FormatError(
                    f"the entry {torch_files.brief(name)} is not a tensor", file=path, found=torch_files.brief(value)
                )
            )
    problems.raise_any()
    return file


def _signs_of_training(folder: str, files: list[RankFile]) -> list[str]:
    """What only a job leaves; AWS's converter writes bare state dicts."""
    root = root_of(folder)
    signs = [name for name in (DONE, OPTIMIZER) if os.path.exists(os.path.join(root, name))]
    if any(file.xser for file in files):
        signs.append("xser references")
    if any(name.endswith(".inv_freq") for file in files for name in file.tensors):
        signs.append("rotary buffers")
    return signs


def optimizer_files(folder: str) -> dict[Rank, str]:
    """The optimizer's files of a checkpoint by rank."""
    place = os.path.join(root_of(folder), OPTIMIZER)
    return {rank: path for path, rank in _rank_files(place)} if os.path.isdir(place) else {}
