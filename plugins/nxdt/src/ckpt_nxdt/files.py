"""The tensors in the files of a Neuron checkpoint, from headers alone; where the files lie: `places`."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import field

from ckpt_core.sdk import FormatError, RankTensors, StoredTensor, disk, errors, layouts, lazy, schema, torch_files
from ckpt_nxdt.places import DONE, OPTIMIZER, Rank, rank_files, root_of, weights_folder
from ckpt_nxdt.xser import AbsentTensor, read_xser

_MODEL_KEY = "model"
_SAMPLE = 1 << 12  # bytes of a row
_MOST_MISSING = 8  # ranks that are named: a stale file may be of rank 99999999


@schema.dataclass
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


@schema.dataclass
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


@schema.dataclass
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


def read_files(folder: str) -> FolderContents:
    """The rank files of a checkpoint, from headers alone; every problem with them is raised at once."""
    weights = weights_folder(folder) or folder
    problems = errors.Problems(f"reading {weights}")
    files: list[RankFile] = []
    paths: dict[Rank, str] = {}
    for path, rank in rank_files(weights):
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
    return {rank: path for path, rank in rank_files(place)} if os.path.isdir(place) else {}
