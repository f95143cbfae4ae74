"""The rank files of the torch container: what each holds, where it stands, and whether all are of one model.

The second number of a folder is the pipeline rank if there are several stages, else the expert rank.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_core.sdk import FormatError, StoredTensor, errors, schema, torch_files
from ckpt_megatron import masters
from ckpt_megatron.config import GPT, MLA
from ckpt_megatron.files import optimizer_file
from ckpt_megatron.found import stored_args
from ckpt_megatron.names import layer_of, plain, unwrapped


class RankFile:
    """One rank's file: what it holds, and where it stands. `chunks` are the tensors of each virtual stage by stored name.

    `kernel_states` are what TransformerEngine keeps beside them: None, bytes, or a tensor of FP8 scales.
    """

    def __init__(self, path: str, numbers: tuple[int, ...], weights: str) -> None:
        content = torch_files.read_torch_file(path)
        if not isinstance(content, dict):
            raise FormatError("the file holds no dict", file=path, found=torch_files.brief(content))
        self.path, self.numbers = path, numbers
        self.content: Mapping[object, Any] = content
        self.args = stored_args(content.get("args"), path)
        self.tp, self.pp, self.ep = numbers[0], 0, 0
        chunks = [key for key in ("model", *(f"model{n}" for n in range(1000))) if key in content]
        if not chunks:
            raise FormatError(
                "the file holds no model",
                file=path,
                found=", ".join(map(torch_files.brief, content)),
                expected="model, or model0, model1 ...",
            )
        self.kernel_states: dict[str, object] = {}
        self.chunks = [_tensors(content[key], path, self.kernel_states) for key in chunks]
        self.has_masters = masters.present(content)
        if weights == "master":
            self.chunks = masters.replaced(self.chunks, content, path, optimizer_file(path))


def _tensors(model: object, path: str, kernel_states: dict[str, object]) -> dict[str, StoredTensor]:
    """A nest of dicts as one dict of tensors with dotted names, in the order of the file; without states of kernels."""
    found: dict[str, StoredTensor] = {}
    problems = errors.Problems(f"reading {path}")

    def walk(value: object, prefix: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{prefix}.{key}" if prefix else str(key))
        elif prefix.endswith("_extra_state"):
            kernel_states[prefix] = value
        elif isinstance(value, StoredTensor):
            name = unwrapped(prefix)
            if name in found:
                problems.add(FormatError(f"the tensor {name!r} is stored twice", file=path))
            found[name] = value
        else:
            problems.add(
                FormatError(f"the entry {prefix!r} is not a tensor", file=path, found=torch_files.brief(value))
            )

    walk(model, "")
    problems.raise_any()
    return found


@schema.dataclass(frozen=True)
class Grid:
    """How many ranks there are in each dimension. `etp`: those that divide the width of an expert.

    With etp less than tp, Megatron writes only the triples of ranks that some process has: of TP 2, EP 2, ETP 1 on two
    processes (0, 0, 0) and (1, 0, 1).
    """

    tp: int
    pp: int
    ep: int
    etp: int
    vpp: int

    @classmethod
    def of(cls, ranks: Sequence[RankFile]) -> Grid:
        """The grid of all rank files, each of which is given its place in it."""
        args = ranks[0].args
        _place(ranks, args)
        tp, pp, ep = (max(getattr(rank, name) for rank in ranks) + 1 for name in ("tp", "pp", "ep"))
        return cls(tp, pp, ep, _expert_ranks(args, tp), len(ranks[0].chunks))

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes by the names of dimensions, those of rarely used ones only where they are."""
        usual = {"tp": self.tp, "pp": self.pp, "ep": self.ep}
        virtual = {"vpp": self.vpp} if self.vpp > 1 else {}
        return usual | virtual | ({"etp": self.etp} if self.etp != self.tp else {})


def _place(ranks: Sequence[RankFile], args: Mapping[str, Any] | None) -> None:
    """Give every file its pipeline and expert rank, which folder names alone do not tell apart."""
    fields = {len(rank.numbers) for rank in ranks}
    if len(fields) > 1:
        raise FormatError(
            "folders of several parallel layouts lie side by side",
            file=_iteration_folder(ranks),
            fix="remove the stale ones",
        )
    count = fields.pop()
    if count == 3:
        for rank in ranks:
            _, rank.pp, rank.ep = rank.numbers
    elif count == 2:
        experts = _second_is_expert(ranks, args)
        for rank in ranks:
            rank.pp, rank.ep = (0, rank.numbers[1]) if experts else (rank.numbers[1], 0)


def _second_is_expert(ranks: Sequence[RankFile], args: Mapping[str, Any] | None) -> bool:
    if args is not None:
        stages = args.get("pipeline_model_parallel_size")
        if isinstance(stages, int):
            return stages == 1
    # Without args: a file that has both ends of the model is not a stage of a pipeline.
    names = {plain(name) for tensors in ranks[0].chunks for name in tensors}
    return "embedding.word_embeddings.weight" in names and "decoder.final_layernorm.weight" in names


def _expert_ranks(args: Mapping[str, Any] | None, tp: int) -> int:
    """How many ranks divide the width of an expert: all tensor parallel ones, unless the args say otherwise."""
    etp = args.get("expert_tensor_parallel_size") if args and args.get("num_experts") is not None else None
    if not isinstance(etp, int):
        return tp
    if etp < 1 or tp % etp:
        raise FormatError(
            "more expert tensor parallel than tensor parallel ranks are not supported", found=f"etp={etp} tp={tp}"
        )
    return etp


def _iteration_folder(ranks: Sequence[RankFile]) -> str:
    return os.path.dirname(os.path.dirname(ranks[0].path))


def check_ranks(ranks: Sequence[RankFile], grid: Grid, problems: errors.Problems) -> None:
    """Every rank has its file, and every file is of the same model and the place that its folder says."""
    folder = _iteration_folder(ranks)
    _check_sizes(ranks[0], grid, folder, problems)
    _check_complete(ranks, grid, folder, problems)
    if len({len(rank.chunks) for rank in ranks}) > 1:
        problems.add(FormatError("the ranks have different numbers of virtual stages", file=folder))
    predicts = any(name.startswith("mtp.") for rank in ranks for tensors in rank.chunks for name in tensors)
    for rank in ranks:
        _check_ends(rank, grid, predicts, problems)
        _check_same_model(rank, ranks[0], problems)
    _check_saved_ranks(ranks, grid, problems)


def _check_complete(ranks: Sequence[RankFile], grid: Grid, folder: str, problems: errors.Problems) -> None:
    """A file for every pair of tensor and pipeline rank, and for every expert rank: not for every triple (see `Grid`)."""
    if max(grid.tp, grid.pp, grid.ep) > len(ranks):
        found = f"{len(ranks)} files, of tensor ranks up to {grid.tp - 1}, pipeline {grid.pp - 1}, expert {grid.ep - 1}"
        problems.add(FormatError("there are fewer files than ranks", file=folder, found=found, fix="files are missing"))
        return
    held = {(rank.tp, rank.pp) for rank in ranks}
    for t in range(grid.tp):
        for p in range(grid.pp):
            if (t, p) not in held:
                problems.add(
                    FormatError(f"there is no file of tensor parallel rank {t}, pipeline rank {p}", file=folder)
                )
    for e in range(grid.ep):
        if not any(rank.ep == e for rank in ranks):
            problems.add(FormatError(f"there is no file of expert parallel rank {e}", file=folder))


def _check_sizes(first: RankFile, grid: Grid, folder: str, problems: errors.Problems) -> None:
    """The args say how many ranks there were."""
    args = first.args or {}
    tensor = "tensor_model_parallel_size" if "tensor_model_parallel_size" in args else "model_parallel_size"
    sizes = {tensor: grid.tp, "pipeline_model_parallel_size": grid.pp, "expert_model_parallel_size": grid.ep}
    if args.get("virtual_pipeline_model_parallel_size") is not None:
        sizes["virtual_pipeline_model_parallel_size"] = grid.vpp
    for key, found in sizes.items():
        said = args.get(key)
        if isinstance(said, int) and said != found:
            problems.add(
                FormatError(
                    f"args.{key} is {said}, but the files are of {found}",
                    file=folder,
                    fix="files are missing, or stale",
                )
            )


def _check_same_model(rank: RankFile, first: RankFile, problems: errors.Problems) -> None:
    """Every file has the args and the iteration; two stories mean that the files are of two models, or of two times."""
    for key in ("iteration", "checkpoint_version"):
        if rank.content.get(key) != first.content.get(key):
            problems.add(
                FormatError(
                    f"{key} is {torch_files.brief(rank.content.get(key))}",
                    file=rank.path,
                    expected=f"{torch_files.brief(first.content.get(key))}, as in {first.path}",
                )
            )
    one, two = first.args or {}, rank.args or {}
    for key in sorted(one.keys() & two.keys() & (GPT.keys | MLA.keys)):
        if one[key] != two[key]:
            problems.add(
                FormatError(
                    f"args.{key} is {torch_files.brief(two[key])}",
                    file=rank.path,
                    expected=f"{torch_files.brief(one[key])}, as in {first.path}",
                )
            )


def _check_ends(rank: RankFile, grid: Grid, predicts: bool, problems: errors.Problems) -> None:
    """The embedding begins the first stage and the last norm ends the last one: stages in another order have neither.

    `predicts`: layers of multi-token prediction come after the last norm, in its stage or another, and embed once more.
    """
    for chunk, tensors in enumerate(rank.chunks):
        names = {plain(name) for name in tensors}
        stage = f"stage {rank.pp}, chunk {chunk}"
        embeds, first = "embedding.word_embeddings.weight" in names, (chunk, rank.pp) == (0, 0)
        if embeds != first and (first or not predicts):
            problems.add(
                FormatError("the embedding is not in the first pipeline stage alone", file=rank.path, found=stage)
            )
        ends, last = "decoder.final_layernorm.weight" in names, (chunk, rank.pp) == (len(rank.chunks) - 1, grid.pp - 1)
        if ends != last and not predicts:
            problems.add(
                FormatError("the final norm is not in the last pipeline stage alone", file=rank.path, found=stage)
            )


def _check_saved_ranks(ranks: Sequence[RankFile], grid: Grid, problems: errors.Problems) -> None:
    """Files that were swapped fit as well as others; but each file's args tell the global rank that wrote it.

    Converters write the same rank into all files, which tells nothing. The order of ranks is tp, (cp, ep,) dp, pp
    (parallel_state.py).
    """
    saved: dict[str, tuple[int, int]] = {}
    for rank in ranks:
        args = rank.args or {}
        number, world = args.get("rank"), args.get("world_size")
        if args.get("use_tp_pp_dp_mapping") or not isinstance(number, int) or not isinstance(world, int):
            return
        if world % grid.pp:
            return
        saved[rank.path] = number, world // grid.pp
    if len({number for number, _ in saved.values()}) != len(ranks):
        return
    for rank in ranks:
        number, stage_size = saved[rank.path]
        expert = number % stage_size // grid.etp % grid.ep if grid.ep > 1 else 0
        expected = (number % grid.tp, number // stage_size, expert)
        if expected != (rank.tp, rank.pp, rank.ep):
            problems.add(
                FormatError(
                    "the file was written by another rank than its folder says",
                    file=rank.path,
                    found=f"args.rank={number}: tp, pp, ep = {expected}",
                    expected=f"tp, pp, ep = {(rank.tp, rank.pp, rank.ep)}",
                )
            )


def layers_per_stage(ranks: Sequence[RankFile], grid: Grid, problems: errors.Problems) -> list[int]:
    """The number of layers of every stage in the order of the model: all stages of the first chunk, then of the second."""
    counts: dict[tuple[int, int], tuple[int, str]] = {}
    for rank in ranks:
        for chunk, tensors in enumerate(rank.chunks):
            indices = {index for name in tensors if (index := layer_of(plain(name))) is not None}
            if indices != set(range(len(indices))):
                problems.add(
                    FormatError(
                        "the layers of a stage are not numbered from 0 on", file=rank.path, found=str(sorted(indices))
                    )
                )
            known, other = counts.setdefault((chunk, rank.pp), (len(indices), rank.path))
            if known != len(indices):
                problems.add(
                    FormatError(
                        f"the stage has {len(indices)} layers", file=rank.path, expected=f"{known}, as in {other}"
                    )
                )
    places = [(chunk, stage) for chunk in range(grid.vpp) for stage in range(grid.pp)]
    return [counts[place][0] for place in places if place in counts]
