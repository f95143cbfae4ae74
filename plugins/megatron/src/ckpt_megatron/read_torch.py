"""Reading the torch container: one file per rank.

Layers are numbered from 0 within each (virtual) stage, and experts within each rank; here they get their global
numbers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from ckpt_core.sdk import FormatError, StoredTensor, disk, errors, lazy, ledgers, reading
from ckpt_megatron.contents import NAMES, STATE, enter_state
from ckpt_megatron.files import optimizer_files, rank_files
from ckpt_megatron.found import FolderContents, Gathered, RankShare, check_kind
from ckpt_megatron.names import LegacySpelling, expert_of, is_fused, layer_of, plain, renumbered
from ckpt_megatron.optimizer.found import FoundOptimizer
from ckpt_megatron.optimizer.groups import Divided, said_of, united
from ckpt_megatron.optimizer.progress import CONSUMED, saved_training
from ckpt_megatron.optimizer.rank_files import rank_optimizer
from ckpt_megatron.ranks import Grid, RankFile, check_ranks, layers_per_stage

_GROUPED = re.compile(r"\.mlp\.experts\.weight[12]$")


def read_torch(folder: str, weights: str) -> FolderContents:
    """The rank files of a folder, from headers alone. `weights` is auto, model or master."""
    ranks = [RankFile(path, numbers, weights) for path, numbers in rank_files(folder)]
    grid, first = Grid.of(ranks), ranks[0]
    found = FolderContents(folder, "torch", first.args, first.path, [], [rank.path for rank in ranks], grid.sizes)
    for rank in ranks:
        check_kind((plain(name) for tensors in rank.chunks for name in tensors), rank.path)
    problems = errors.Problems(f"reading {folder}")
    check_ranks(ranks, grid, problems)
    version = first.content.get("checkpoint_version", 0)
    found.version = float(version) if isinstance(version, int | float) else 3.0
    found.iteration = first.content.get("iteration")
    found.masters = all(rank.has_masters for rank in ranks)
    found.stages = layers_per_stage(ranks, grid, problems)
    found.layers = sum(found.stages)
    problems.raise_any()
    stored_names = [name for rank in ranks for tensors in rank.chunks for name in tensors]
    if any(name.startswith("language_model.") for name in stored_names):
        found.legacy = LegacySpelling.of(stored_names)
    found.fused_names = any(map(is_fused, stored_names))
    found.grouped = any(map(_GROUPED.search, stored_names))
    found.shares = _shares(ranks, grid, found, problems)
    problems.raise_any()
    for rank in ranks:
        enter_state(found.ledger, rank.path, rank.content, STATE)
        found.ledger.contents(rank.path, rank.kernel_states, NAMES, section="model")
    for path in optimizer_files(folder):
        found.ledger.left(ledgers.OPTIMIZER, path, size=os.path.getsize(path))
    found.training = lambda gathered, _: _training(ranks, grid, found, gathered)
    return found


def _training(
    ranks: Sequence[RankFile], grid: Grid, found: FolderContents, gathered: Gathered
) -> reading.SavedTraining | None:
    """The state of the training in the files of all ranks, under the names of the tables as the weights are."""
    optimizers = [rank_optimizer(rank) for rank in ranks]
    saved = [one for one in optimizers if one is not None]
    if not saved:
        return None
    if len(saved) < len(ranks):
        lacking = ranks[optimizers.index(None)].path
        raise FormatError("a rank has no optimizer", file=lacking, expected=f"as {saved[0].file} has")
    bodies = united({rank.path: one.groups for one, rank in zip(saved, ranks, strict=True)})
    reading.adam.check_progress({rank.path: _progress(rank) for rank in ranks})
    problems = errors.Problems(f"reading {found.folder}")
    shares = {
        kind: _shares([one.holding(rank, kind) for one, rank in zip(saved, ranks, strict=True)], grid, found, problems)
        for kind in saved[0].tensors
    }
    problems.raise_any()
    members: dict[Divided, dict[str, None]] = {said_of(body): {} for body in bodies}
    steps: dict[str, object] = {}
    for one, rank in zip(saved, ranks, strict=True):
        for _, name, number in _numbered(one.grouped(rank), grid, found.stages):
            members[said_of(one.groups[number])][name] = None  # type: ignore[call-overload]
        steps |= {f"{name} of {os.path.relpath(one.file, found.folder)}": step for name, step in one.steps.items()}
    files = [
        disk.FileState.of(path)
        for path in dict.fromkeys(
            path for one, rank in zip(saved, ranks, strict=True) for path in (rank.path, one.file)
        )
    ]
    step = reading.adam.one_step(steps, saved[0].file, files)
    optimizer = FoundOptimizer(shares, bodies, [list(of) for of in members.values()], step, saved[0].file, files)
    for one, rank in zip(saved, ranks, strict=True):
        keys = [key for key in ("optimizer", "opt_param_scheduler", "iteration") if key in rank.content]
        optimizer.carried.append((rank.path, tuple(keys)))
        if one.file != rank.path:
            optimizer.carried.append((one.file, ()))
    made = {kind: gathered(of_kind) for kind, of_kind in shares.items()}
    return saved_training(optimizer, ranks[0].content, ranks[0].args or {}, made)


def _progress(rank: RankFile) -> dict[str, object]:
    """Where a rank says that the schedule and the data stand."""
    schedule = rank.content.get("opt_param_scheduler")
    position = schedule.get("num_steps") if isinstance(schedule, dict) else None
    return {"opt_param_scheduler.num_steps": position, f"args.{CONSUMED}": (rank.args or {}).get(CONSUMED)}


def _shares(ranks: Sequence[RankFile], grid: Grid, found: FolderContents, problems: errors.Problems) -> list[RankShare]:
    """Every tensor under its global name, with those of the same ranks."""
    dense = {t: RankShare({"tp": (t, grid.tp)}, False) for t in range(grid.tp)}
    experts: dict[tuple[int, int], RankShare] = {}
    held_by: dict[tuple[int, tuple | None, int], dict[str, set[str]]] = {}
    for rank in ranks:
        # The expert grid is laid over the same ranks (parallel_state.py); with etp dividing tp it is this one.
        place = (rank.tp % grid.etp, rank.ep)
        for raw, name, tensor in _numbered(rank, grid, found.stages):
            if _GROUPED.search(name):
                tensor = _viewed(tensor, name, _local_experts(rank, grid))
            share, pair = dense[rank.tp], None
            if ".mlp.experts." in name:
                expert_ranks = {"tp": (place[0], grid.etp), "ep": (place[1], grid.ep)}
                share, pair = experts.setdefault(place, RankShare(expert_ranks, True)), place
            share.add(name, lazy.whole(tensor), raw)
            held_by.setdefault((rank.tp, pair, rank.pp), {}).setdefault(name, set()).add(rank.path)
    for files in held_by.values():
        everywhere = set().union(*files.values())
        for name, paths in files.items():
            for path in sorted(everywhere - paths):
                problems.add(
                    FormatError(f"tensor {name!r} is missing", file=path, expected=f"as in {sorted(paths)[0]}")
                )
    return [*dense.values(), *(experts[place] for place in sorted(experts))]


def _numbered(rank: RankFile, grid: Grid, stages: Sequence[int]) -> Iterator[tuple[str, str, StoredTensor]]:
    """The stored name, the name with global layer and expert numbers, and the tensor."""
    for chunk, tensors in enumerate(rank.chunks):
        start = sum(stages[: chunk * grid.pp + rank.pp])
        local = {expert for name in tensors if (expert := expert_of(plain(name))) is not None}
        for raw, tensor in tensors.items():
            name = plain(raw)
            layer, expert = layer_of(name), expert_of(name)
            if layer is not None:
                layer += start
            if expert is not None:
                expert += rank.ep * (max(local) + 1)
            yield raw, renumbered(name, layer, expert), tensor


def _local_experts(rank: RankFile, grid: Grid) -> int:
    """How many experts a rank has; the router, which every rank has whole, has a row for each of all."""
    rows = {
        tensor.shape[0]
        for tensors in rank.chunks
        for name, tensor in tensors.items()
        if name.endswith(".mlp.router.weight") and tensor.shape
    }
    if len(rows) != 1 or not (experts := rows.pop()) or experts % grid.ep:
        raise FormatError("the routers do not say how many experts there are", file=rank.path, found=f"ep={grid.ep}")
    return experts // grid.ep


def _viewed(tensor: StoredTensor, name: str, local: int) -> StoredTensor:
    """GroupedMLP's two-dimensional weights as what they are used as (moe/experts.py, `weight1.view(x, h, -1)`)."""
    rows, columns = tensor.shape if len(tensor.shape) == 2 else (0, 0)
    shape = (local, rows, columns // local) if name.endswith("weight1") else (local, rows // local, columns)
    viewed = StoredTensor.contiguous(tensor.file, tensor.dtype, shape, tensor.offset)
    if viewed.elements != tensor.elements or tensor.strides != (columns, 1):
        raise FormatError(f"{name!r} is not a view of {local} experts", file=tensor.file, found=f"shape {tensor.shape}")
    return viewed
