"""fp32 master weights, as zero-1 keeps them: every parameter in as many shards as there are data parallel ranks.

    optim/dp_rank_DD_tp_rank_TT_pp_rank_PP.pt    {"shape_info": {i: shape}, "sharded_master_weights": {i: shard}, ...}

A parameter is padded with zeros to a multiple of the ranks on its first axis, and cut. It is known by its number alone:
parameters with weight decay come first, those without after them, each kind in the order of the model. Biases have no decay,
and norms only if the job says so (`do_layer_norm_weight_decay`), so there are two orders that the numbers can follow; the
shapes tell which, or masters are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ckpt_core.sdk import CkptError, FormatError, StoredTensor, disk, errors, lazy, torch_files
from ckpt_nxdt.files import FolderContents, RankFile, Weights, optimizer_files
from ckpt_nxdt.places import Rank
from ckpt_nxdt.xser import read_xser

KEY = "sharded_master_weights"
_EXPECTED, _FIX = f"{KEY} in optim/ (use_master_weights_in_ckpt)", "use --weights model"
UNDECAYED = ("bias",), ("bias", "LayerNorm", "norm")
"""The words by which a job leaves parameters without weight decay."""


def present(contents: FolderContents) -> bool:
    """Whether the optimizer of the first rank holds masters."""
    path = optimizer_files(contents.folder).get(Rank(0, 0, 0))
    try:
        content = read_xser(path) if path else None
    except CkptError:  # a damaged optimizer does not hinder reading weights
        return False
    return isinstance(content, dict) and bool(content.get(KEY))


def read_masters(contents: FolderContents) -> tuple[Weights, list[disk.FileState]]:
    """The masters of every rank's parameters, and the files they lie in."""
    by_rank: dict[Rank, dict[int, str]] = {}
    for rank, path in optimizer_files(contents.folder).items():
        by_rank.setdefault(replace(rank, dp=0), {})[rank.dp] = path
    if not by_rank:
        raise errors.NotCarried("there are no fp32 masters", file=contents.folder, expected=_EXPECTED, fix=_FIX)
    masters: dict[Rank, dict[str, list[lazy.Shard]]] = {}
    states: list[disk.FileState] = []
    problems = errors.Problems("reading fp32 masters")
    for file in contents.files:
        paths = by_rank.get(file.rank)
        if paths is None:
            problem = f"there are no fp32 masters of rank {file.rank}"
            problems.add(FormatError(problem, file=contents.folder, expected=_EXPECTED, fix=_FIX))
            continue
        try:
            masters[file.rank] = _of_rank(file, paths)
        except CkptError as error:
            problems.add(error)
            continue
        held = {shard.stored.file for shards in masters[file.rank].values() for shard in shards}
        states += [disk.FileState.of(path) for path in sorted({*paths.values(), *held})]
    problems.raise_any()
    files = {file.rank: file.path for file in contents.files}
    return Weights(contents.folder, contents.tp, contents.ep, masters, files), states


def _of_rank(file: RankFile, by_data_rank: Mapping[int, str]) -> dict[str, list[lazy.Shard]]:
    paths = in_order(file, by_data_rank)
    contents = [_content(path) for path in paths]
    shapes = contents[0]["shape_info"]
    wanted = parameters(file)
    names = _order(wanted, list(shapes.values()), paths[0])
    found: dict[str, list[lazy.Shard]] = {}
    for number, name in zip(shapes, names, strict=True):
        shards = [(content[KEY].get(number), path) for content, path in zip(contents, paths, strict=True)]
        found[name] = joined(f"the master of {name}", wanted[name], shards)
    return found


def in_order(file: RankFile, by_data_rank: Mapping[int, str]) -> list[str]:
    """The optimizer's files of a model's file, of which no data parallel rank may be missing."""
    ranks = sorted(by_data_rank)
    paths = [by_data_rank[rank] for rank in ranks]
    if ranks != list(range(len(ranks))):
        shown = ", ".join(map(str, ranks))
        raise FormatError(f"data parallel ranks of {file.rank} are missing", file=paths[-1], found=shown, fix=_FIX)
    return paths


def parameters(file: RankFile) -> dict[str, tuple[int, ...]]:
    """The parameters of a rank by name with their shapes, in the order of the file, which is that of the modules."""
    return {name: shape for name, shape in file.shapes.items() if shape and not name.endswith(".inv_freq")}


def joined(what: str, shape: tuple[int, ...], shards: Sequence[tuple[object, str]]) -> list[lazy.Shard]:
    """A tensor of `shape` out of those of all data parallel ranks, each with its file: it was padded to a multiple of them on its first axis, and cut."""
    rows = -(-shape[0] // len(shards))
    found, start = [], 0
    for shard, path in shards:
        if not isinstance(shard, StoredTensor) or shard.shape != (rows, *shape[1:]):
            raise FormatError(
                f"{what} is not one of {len(shards)} shards",
                file=path,
                found=f"shape {shard.shape}" if isinstance(shard, StoredTensor) else torch_files.brief(shard),
                expected=f"shape {(rows, *shape[1:])}",
                fix="files of other data parallel ranks are missing or stale: use --weights model",
            )
        count = min(rows, shape[0] - start)
        if count > 0:
            found.append(lazy.Shard((start, *([0] * (len(shape) - 1))), replace(shard, shape=(count, *shape[1:]))))
        start += rows
    return found


def _content(path: str) -> Mapping[str, Mapping[int, object]]:
    content = read_xser(path)
    if not isinstance(content, dict) or not isinstance(content.get(KEY), dict) or not content[KEY]:
        raise errors.NotCarried(f"there are no fp32 masters ({KEY})", file=path, fix=_FIX)
    shapes = content.get("shape_info")
    if not isinstance(shapes, dict) or not list(shapes) == list(content[KEY]) == list(range(len(shapes))):
        raise FormatError("shape_info does not describe the masters", file=path, found=torch_files.brief(shapes))
    return content


def _order(wanted: Mapping[str, tuple[int, ...]], shapes: list[object], path: str) -> list[str]:
    """The names of the parameters by number."""
    found = [list(shape) if isinstance(shape, tuple) else shape for shape in shapes]
    fitting = []
    for words in UNDECAYED:
        decayed = [name for name in wanted if not any(word in name for word in words)]
        order = [*decayed, *(name for name in wanted if name not in set(decayed))]
        if [list(wanted[name]) for name in order] == found and order not in fitting:
            fitting.append(order)
    if len(fitting) != 1:
        raise FormatError(
            "the order of the fp32 masters can't be established",
            file=path,
            found=f"{len(shapes)} shapes that fit {len(fitting)} orders of the {len(wanted)} parameters",
            expected="one order: parameters with weight decay, then those without, each in the model's order",
            fix=_FIX,
        )
    return fitting[0]
