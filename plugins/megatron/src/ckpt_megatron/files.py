"""The files of a Megatron checkpoint, and which rank of which layout each tensor in them belongs to.

    ROOT/latest_checkpointed_iteration.txt            an iteration, or the word release
    ROOT/iter_0000100/mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt        torch: one file per rank
    ROOT/iter_0000100/metadata.json .metadata common.pt __0_0.distcp   torch_dist: see `dist`

The second number of a folder is the pipeline rank if there are several stages, else the expert rank. Layers are
numbered from 0 within each (virtual) stage, and experts within each rank; here they get their global numbers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ckpt_core.engine.assembly import Shard
from ckpt_core.errors import CkptError, FormatError, Problems
from ckpt_core.layout import Ranks
from ckpt_core.storage.files import FileState, read_small
from ckpt_core.storage.opaque import Opaque, brief
from ckpt_core.storage.tensor import StoredTensor
from ckpt_core.storage.torchzip import read_torch_file
from ckpt_megatron import masters
from ckpt_megatron.config import GPT, MLA
from ckpt_megatron.names import LegacySpelling, expert_of, is_fused, layer_of, plain, renumbered

TRACKER = "latest_checkpointed_iteration.txt"
DIST_METADATA = "metadata.json"
COMMON = "common.pt"
_RANK_FOLDER = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")
_MODEL_FILES = ("model_optim_rng.pt", "model_rng.pt")  # the second from mid-2022 to mid-2023, with a distributed optimizer
_OPTIMIZER_FILES = ("distrib_optim.pt", "optim.pt")
_ITERATION = re.compile(r"iter_\d{7,}|release")


@dataclass
class Share:
    """The tensors that one tensor parallel rank (or, for experts, one pair of ranks) holds, over all stages.

    `ranks` says which. Every name has all copies that were found, each as the shards that tile it.
    """

    ranks: Ranks
    expert: bool
    tensors: dict[str, list[list[Shard]]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, shards: list[Shard], stored_as: str) -> None:
        self.tensors.setdefault(name, []).append(shards)
        self.names[name] = stored_as


@dataclass
class Found:
    """What lies in a checkpoint folder. `args` is None where none are stored; `version` the checkpoint_version."""

    folder: str
    container: str
    args: dict[str, object] | None
    args_file: str
    shares: list[Share]
    files: list[str]
    parallel: dict[str, int]
    version: float = 3.0
    legacy: LegacySpelling | None = None
    fused_names: bool = False
    grouped: bool = False
    stages: list[int] = field(default_factory=list)
    layers: int = 0
    masters: bool = False
    iteration: object = None
    dropped: set[str] = field(default_factory=set)

    @property
    def states(self) -> list[FileState]:
        return [FileState.of(path) for path in self.files]

    @property
    def names(self) -> set[str]:
        """Every name of the tables that was found."""
        return {name for share in self.shares for name in share.tensors}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor on the first rank that has it."""
        for share in self.shares:
            if name in share.tensors:
                return share.tensors[name][0][0].stored.shape
        return None


def find_folder(path: str) -> str:
    """The folder of one iteration at `path`: itself, or the one that the tracker names."""
    if _is_iteration(path):
        return path
    tracker = os.path.join(path, TRACKER)
    if os.path.isfile(tracker):
        word = read_small(tracker, 64).decode("ascii", "replace").strip()
        if word != "release" and not (word.isdigit() and word.isascii()):
            raise FormatError(f"{TRACKER} names no iteration", file=tracker, found=repr(word), expected="a number, or the word release")
        folder = os.path.join(path, word if word == "release" else f"iter_{int(word):07d}")
        if not os.path.isdir(folder):
            raise FormatError("the iteration that the tracker names is not there", file=tracker, found=os.path.basename(folder))
        return folder
    found = sorted(name for name in os.listdir(path) if _ITERATION.fullmatch(name) and _is_iteration(os.path.join(path, name)))
    if len(found) != 1:
        raise FormatError(f"no {TRACKER} says which iteration to read", file=path, found=", ".join(found) or "none", fix="give the folder of the iteration")
    return os.path.join(path, found[0])


def looks_like(path: str) -> str | None:
    """The fact by which a folder is a Megatron checkpoint, or None."""
    if not os.path.isdir(path):
        return None
    try:
        folder = find_folder(path)
    except (CkptError, OSError):
        return None
    # Megatron-Bridge and NeMo 2 keep the same tensors under configs of their own.
    if os.path.isfile(os.path.join(folder, "run_config.yaml")):
        return None
    if any(os.path.isdir(os.path.join(outer, "context")) for outer in (path, os.path.dirname(os.path.abspath(folder)))):
        return None
    name = os.path.relpath(folder, os.path.dirname(folder))
    kind = _kind(folder)
    return f"{kind} files in {name}" if kind else None


def _is_iteration(folder: str) -> bool:
    return os.path.isdir(folder) and _kind(folder) is not None


def _kind(folder: str) -> str | None:
    """The container, tested for in the order in which Megatron does (checkpointing.py, _get_checkpoint_format)."""
    metadata = os.path.join(folder, DIST_METADATA)
    if os.path.isfile(metadata) and os.path.isfile(os.path.join(folder, ".metadata")):
        try:
            return "torch_dist" if json.loads(read_small(metadata, 1 << 20)).get("sharded_backend") == "torch_dist" else None
        except (ValueError, AttributeError, CkptError):
            return None
    if any(True for _ in _rank_folders(folder)):
        return "torch"
    return None


def container_of(folder: str) -> str:
    """`torch` or `torch_dist`; raises where it is neither."""
    kind = _kind(folder)
    if kind is None:
        raise FormatError("there are no weights here", file=folder, expected="mp_rank_* folders, or metadata.json (torch_dist) and .metadata")
    return kind


def _rank_folders(folder: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Path of the model file and the numbers of every rank folder. Those of an optimizer alone have no model file."""
    for name in sorted(os.listdir(folder)):
        match = _RANK_FOLDER.fullmatch(name)
        if match is None:
            continue
        for file in _MODEL_FILES:
            path = os.path.join(folder, name, file)
            if os.path.isfile(path):
                yield path, tuple(int(number) for number in match.groups() if number is not None)


def read_args(value: object, file: str) -> dict[str, object] | None:
    """The attributes of a stored Namespace."""
    if value is None:
        return None
    if not isinstance(value, Opaque) or not isinstance(value.state, dict):
        raise FormatError("args is no Namespace", file=file, found=brief(value))
    return {str(key): item for key, item in value.state.items()}


def read_torch(folder: str, weights: str) -> Found:
    """The rank files of a folder, from headers alone. `weights` is auto, model or master."""
    ranks = [_RankFile(path, numbers, weights) for path, numbers in _rank_folders(folder)]
    first = ranks[0]
    args = read_args(first.content.get("args"), first.path)
    _place(ranks, args)
    tp, pp, ep = (max(getattr(rank, name) for rank in ranks) + 1 for name in ("tp", "pp", "ep"))
    vpp = len(first.chunks)
    etp = _expert_ranks(args, tp, ep)
    parallel = {"tp": tp, "pp": pp, "ep": ep} | ({"vpp": vpp} if vpp > 1 else {}) | ({"etp": etp} if etp != tp else {})
    found = Found(folder, "torch", args, first.path, [], [rank.path for rank in ranks], parallel)
    problems = Problems(f"reading {folder}")
    _check_ranks(ranks, args, tp, pp, ep, problems)
    version = first.content.get("checkpoint_version", 0)
    found.version = float(version) if isinstance(version, int | float) else 3.0
    found.iteration = first.content.get("iteration")
    found.masters = all(rank.has_masters for rank in ranks)
    found.stages = _layers_per_stage(ranks, vpp, pp, problems)
    found.layers = sum(found.stages)
    problems.raise_any()
    stored_names = [name for rank in ranks for tensors in rank.chunks for name in tensors]
    if any(name.startswith("language_model.") for name in stored_names):
        found.legacy = LegacySpelling.of(stored_names)
    dense = {t: Share({"tp": (t, tp)}, False) for t in range(tp)}
    experts: dict[tuple[int, int], Share] = {}
    held_by: dict[tuple[int, tuple | None, int], dict[str, set[str]]] = {}
    for rank in ranks:
        # The expert grid is laid over the same ranks (parallel_state.py); with etp dividing tp it is this one.
        place = (rank.tp % etp, rank.ep)
        for chunk, tensors in enumerate(rank.chunks):
            start = sum(found.stages[: chunk * pp + rank.pp])
            per_rank = max((index + 1 for name in tensors if (index := expert_of(plain(name))) is not None), default=0)
            for raw, tensor in tensors.items():
                name = plain(raw)
                layer, expert = layer_of(name), expert_of(name)
                found.fused_names |= is_fused(raw)
                if name.startswith("mtp."):
                    found.dropped.add("mtp.*")
                    continue
                name = renumbered(name, None if layer is None else start + layer, None if expert is None else rank.ep * per_rank + expert)
                grouped = re.search(r"\.mlp\.experts\.weight([12])$", name)
                if grouped:
                    found.grouped = True
                    tensor = _viewed(tensor, name, args, ep)
                share, pair = dense[rank.tp], None
                if ".mlp.experts." in name:
                    share, pair = experts.setdefault(place, Share({"tp": (place[0], etp), "ep": (place[1], ep)}, True)), place
                share.add(name, [Shard((0,) * len(tensor.shape), tensor)], raw)
                held_by.setdefault((rank.tp, pair, rank.pp), {}).setdefault(name, set()).add(rank.path)
    found.shares = [*dense.values(), *(experts[place] for place in sorted(experts))]
    for files in held_by.values():
        everywhere = set().union(*files.values())
        for name, paths in files.items():
            for path in sorted(everywhere - paths):
                problems.add(FormatError(f"tensor {name!r} is missing", file=path, expected=f"as in {sorted(paths)[0]}"))
    problems.raise_any()
    return found


class _RankFile:
    """One rank's file: what it holds, and where it stands. `chunks` are the tensors of each virtual stage by stored name."""

    def __init__(self, path: str, numbers: tuple[int, ...], weights: str) -> None:
        content = read_torch_file(path)
        if not isinstance(content, dict):
            raise FormatError("the file holds no dict", file=path, found=brief(content))
        self.path, self.numbers = path, numbers
        self.content: Mapping[object, object] = content
        self.tp, self.pp, self.ep = numbers[0], 0, 0
        chunks = [key for key in ("model", *(f"model{n}" for n in range(1000))) if key in content]
        if not chunks:
            raise FormatError("the file holds no model", file=path, found=", ".join(map(brief, content)), expected="model, or model0, model1 ...")
        self.chunks = [_tensors(content[key], path) for key in chunks]
        self.has_masters = masters.present(content)
        if weights == "master":
            self.chunks = masters.replaced(self.chunks, content, path, _optimizer_file(path))


def _optimizer_file(path: str) -> str | None:
    folder = os.path.dirname(path)
    return next((name for name in _OPTIMIZER_FILES if os.path.isfile(os.path.join(folder, name))), None)


def _tensors(model: object, path: str) -> dict[str, StoredTensor]:
    """A nest of dicts as one dict of tensors with dotted names, in the order of the file."""
    found: dict[str, StoredTensor] = {}
    problems = Problems(f"reading {path}")

    def walk(value: object, prefix: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{prefix}.{key}" if prefix else str(key))
        elif prefix.endswith("_extra_state"):
            return  # None, bytes or a tensor of fp8 scales
        elif isinstance(value, StoredTensor):
            name = prefix
            while name.startswith("module."):
                name = name.removeprefix("module.")
            if name in found:
                problems.add(FormatError(f"the tensor {name!r} is stored twice", file=path))
            found[name] = value
        else:
            problems.add(FormatError(f"the entry {prefix!r} is no tensor", file=path, found=brief(value)))

    walk(model, "")
    problems.raise_any()
    return found


def _place(ranks: list[_RankFile], args: Mapping[str, object] | None) -> None:
    """Give every file its pipeline and expert rank, which folder names alone do not tell apart."""
    fields = {len(rank.numbers) for rank in ranks}
    if len(fields) > 1:
        raise FormatError("folders of several parallel layouts lie side by side", file=os.path.dirname(os.path.dirname(ranks[0].path)), fix="remove the stale ones")
    count = fields.pop()
    if count == 3:
        for rank in ranks:
            _, rank.pp, rank.ep = rank.numbers
    elif count == 2:
        experts = _second_is_expert(ranks, args)
        for rank in ranks:
            rank.pp, rank.ep = (0, rank.numbers[1]) if experts else (rank.numbers[1], 0)


def _second_is_expert(ranks: list[_RankFile], args: Mapping[str, object] | None) -> bool:
    if args is not None:
        stages = args.get("pipeline_model_parallel_size")
        if isinstance(stages, int):
            return stages == 1
    # Without args: a file that has both ends of the model is no stage of a pipeline.
    names = {plain(name) for tensors in ranks[0].chunks for name in tensors}
    return "embedding.word_embeddings.weight" in names and "decoder.final_layernorm.weight" in names


def _expert_ranks(args: Mapping[str, object] | None, tp: int, ep: int) -> int:
    """How many ranks divide the width of an expert: all tensor parallel ones, unless the args say otherwise."""
    given = args.get("expert_tensor_parallel_size") if args is not None else None
    etp = given if isinstance(given, int) and args.get("num_experts") is not None else tp
    if etp < 1 or tp % etp:
        raise FormatError("more expert tensor parallel than tensor parallel ranks are not supported", found=f"etp={etp} tp={tp}")
    return etp


def _check_ranks(ranks: list[_RankFile], args: Mapping[str, object] | None, tp: int, pp: int, ep: int, problems: Problems) -> None:
    folder = os.path.dirname(os.path.dirname(ranks[0].path))
    if args is not None:
        tensor = "tensor_model_parallel_size" if "tensor_model_parallel_size" in args else "model_parallel_size"
        for key, found in ((tensor, tp), ("pipeline_model_parallel_size", pp), ("expert_model_parallel_size", ep)):
            said = args.get(key)
            if isinstance(said, int) and said != found:
                problems.add(FormatError(f"args.{key} is {said}, but the folders are of {found} ranks", file=folder, fix="files are missing, or stale"))
    held = {(rank.tp, rank.pp) for rank in ranks}
    for t in range(tp):
        for p in range(pp):
            if (t, p) not in held:
                problems.add(FormatError(f"there is no file of tensor parallel rank {t}, pipeline rank {p}", file=folder))
    for e in range(ep):
        if not any(rank.ep == e for rank in ranks):
            problems.add(FormatError(f"there is no file of expert parallel rank {e}", file=folder))
    if len({len(rank.chunks) for rank in ranks}) > 1:
        problems.add(FormatError("the ranks have different numbers of virtual stages", file=folder))
    for rank in ranks:
        _check_ends(rank, pp, problems)
        _check_same_model(rank, ranks[0], problems)
    _check_saved_ranks(ranks, tp, pp, ep, problems)


def _check_same_model(rank: _RankFile, first: _RankFile, problems: Problems) -> None:
    """Every file has the args; two stories mean that the files are of two models."""
    one, two = (read_args(file.content.get("args"), file.path) or {} for file in (first, rank))
    for key in sorted(one.keys() & two.keys() & (GPT.keys | MLA.keys)):
        if one[key] != two[key]:
            problems.add(FormatError(f"args.{key} is {brief(two[key])}", file=rank.path, expected=f"{brief(one[key])}, as in {first.path}"))


def _check_ends(rank: _RankFile, pp: int, problems: Problems) -> None:
    """The embedding begins the first stage and the last norm ends the last one: stages in another order have neither."""
    for chunk, tensors in enumerate(rank.chunks):
        names = {plain(name) for name in tensors}
        predicts = any(name.startswith("mtp.") for name in names)  # multi-token prediction embeds once more
        if ("embedding.word_embeddings.weight" in names) != ((chunk, rank.pp) == (0, 0)) and not predicts:
            problems.add(FormatError("the embedding is not in the first pipeline stage alone", file=rank.path, found=f"stage {rank.pp}, chunk {chunk}"))
        if ("decoder.final_layernorm.weight" in names) != ((chunk, rank.pp) == (len(rank.chunks) - 1, pp - 1)):
            problems.add(FormatError("the final norm is not in the last pipeline stage alone", file=rank.path, found=f"stage {rank.pp}, chunk {chunk}"))


def _check_saved_ranks(ranks: list[_RankFile], tp: int, pp: int, ep: int, problems: Problems) -> None:
    """Files that were swapped fit as well as others; but each file's args tell the global rank that wrote it.

    Converters write the same rank into all files, which tells nothing. The order of ranks is tp, (cp, ep,) dp, pp
    (parallel_state.py).
    """
    saved = {}
    for rank in ranks:
        args = read_args(rank.content.get("args"), rank.path) or {}
        saved[rank.path] = args.get("rank")
        if args.get("use_tp_pp_dp_mapping") or not isinstance(args.get("world_size"), int) or args["world_size"] % pp:
            return
    if len(set(saved.values())) != len(ranks) or not all(isinstance(number, int) for number in saved.values()):
        return
    for rank in ranks:
        args = read_args(rank.content["args"], rank.path)
        number, etp = saved[rank.path], _expert_ranks(args, tp, ep)
        stage = number // (args["world_size"] // pp)
        expected = (number % tp, stage, (number % (args["world_size"] // pp)) // etp % ep if ep > 1 else 0)
        if expected != (rank.tp, rank.pp, rank.ep):
            problems.add(
                FormatError(
                    "the file was written by another rank than its folder says",
                    file=rank.path,
                    found=f"args.rank={number}: tp, pp, ep = {expected}",
                    expected=f"tp, pp, ep = {(rank.tp, rank.pp, rank.ep)}",
                )
            )


def _layers_per_stage(ranks: list[_RankFile], vpp: int, pp: int, problems: Problems) -> list[int]:
    """The number of layers of every stage in the order of the model: all stages of the first chunk, then of the second."""
    counts: dict[tuple[int, int], tuple[int, str]] = {}
    for rank in ranks:
        for chunk, tensors in enumerate(rank.chunks):
            indices = {index for name in tensors if (index := layer_of(plain(name))) is not None}
            if indices != set(range(len(indices))):
                problems.add(FormatError("the layers of a stage are not numbered from 0 on", file=rank.path, found=str(sorted(indices))))
            known, other = counts.setdefault((chunk, rank.pp), (len(indices), rank.path))
            if known != len(indices):
                problems.add(FormatError(f"the stage has {len(indices)} layers", file=rank.path, expected=f"{known}, as in {other}"))
    return [counts[chunk, stage][0] for chunk in range(vpp) for stage in range(pp) if (chunk, stage) in counts]


def _viewed(tensor: StoredTensor, name: str, args: Mapping[str, object] | None, ep: int) -> StoredTensor:
    """GroupedMLP's two-dimensional weights as what they are used as (moe/experts.py, `weight1.view(x, h, -1)`)."""
    experts = args.get("num_experts") if args is not None else None
    if not isinstance(experts, int) or experts % ep:
        raise FormatError(f"nothing says how many experts {name!r} holds", file=tensor.file, fix="the checkpoint has no args; they can't be done without here")
    local = experts // ep
    rows, columns = tensor.shape if len(tensor.shape) == 2 else (0, 0)
    shape = (local, rows, columns // local) if name.endswith("weight1") else (local, rows // local, columns)
    viewed = StoredTensor.contiguous(tensor.file, tensor.dtype, shape, tensor.offset)
    if viewed.elements != tensor.elements or tensor.strides != (columns, 1):
        raise FormatError(f"{name!r} is no view of {local} experts", file=tensor.file, found=f"shape {tensor.shape}")
    return viewed
