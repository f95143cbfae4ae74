"""From what lies on disk to the tensors of the tables: global layer numbers, the names of the model's own kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field

from ckpt_core.sdk import FormatError, StoredTensor, chunked, errors, layouts, lazy, schema
from ckpt_megatron.sdk import dist_tensors, is_fused, layer_of, masters, renumbered
from ckpt_nemo.container.saved import Rank, SavedCheckpoint
from ckpt_nemo.gpt.weights import ROTARY, TIED_COPY, is_legacy, legacy, plain

_EMBEDDING = "embedding.word_embeddings.weight"
_FINAL_NORM = "decoder.final_layernorm.weight"
_GATED_BIAS, _GATED_WEIGHT = ".mlp.linear_fc1.bias", ".mlp.linear_fc1.weight"


@schema.dataclass
class RankShare:
    """The tensors that the ranks `ranks` hold, by the name of the tables: every copy found, as the shards that tile it."""

    ranks: layouts.Ranks
    tensors: dict[str, list[list[lazy.Shard]]] = field(default_factory=dict)


@schema.dataclass
class GptContents:
    """The tensors of a GPT checkpoint.

    `rotary` are the stored frequencies; `tied_copy`: the last stage holds a copy of the embedding, under the name that
    only such a copy has; `bias_ranks` see `_bias_ranks`.
    """

    legacy: bool
    fused_names: bool
    shares: list[RankShare]
    layers: int
    vpp: int = 1
    rotary: list[StoredTensor] = field(default_factory=list)
    bias_ranks: int = 1
    tied_copy: bool = False
    masters: bool = False

    @property
    def names(self) -> set[str]:
        return {name for share in self.shares for name in share.tensors}

    def rows(self, place: str) -> int:
        """The rows of the embedding, over all ranks."""
        held = [_height(share.tensors[_EMBEDDING][0]) for share in self.shares if _EMBEDDING in share.tensors]
        name = f"model.{legacy(_EMBEDDING, False) if self.legacy else _EMBEDDING}"
        if not held or not min(held):
            raise FormatError(f"tensor {name!r} is missing", file=place)
        if len(set(held)) > 1:
            raise FormatError(
                f"the ranks have different numbers of rows of {name!r}", file=place, found=", ".join(map(str, held))
            )
        return sum(held)


def _height(shards: list[lazy.Shard]) -> int:
    return max((shard.origin[0] + shard.stored.shape[0] for shard in shards if shard.stored.shape), default=0)


def tensors_of(saved: SavedCheckpoint, weights: str) -> GptContents:
    """The tensors in `saved`. `weights` is auto, model or master: the fp32 masters of the optimizer."""
    names = saved.names
    # The keys of distributed checkpoints are those of TransformerEngine's modules, even for local ones.
    found = GptContents(is_legacy(names), saved.backend != "ranks" or any(map(is_fused, names)), [], 0)
    problems = errors.Problems(f"reading {saved.place}")
    if saved.backend == "ranks":
        _of_ranks(saved, weights, found, problems)
    else:
        _of_all(saved, weights, found, problems)
    problems.raise_any()
    return found


# --- rank files ----------------------------------------------------------------------------------------------------


def _of_ranks(saved: SavedCheckpoint, weights: str, found: GptContents, problems: errors.Problems) -> None:
    tp, pp = saved.parallel
    found.vpp = len(saved.ranks[0].chunks)
    found.masters = all(masters.present({"optimizer": rank.optimizer}) for rank in saved.ranks)
    stages = _layers_per_stage(saved, found.vpp, pp, problems)
    found.layers = sum(stages)
    problems.raise_any()
    found.shares = [RankShare({"tp": (t, tp)}) for t in range(tp)]
    held_by: dict[tuple[int, str], list[str]] = {}
    for rank in saved.ranks:
        chunks = rank.chunks
        if weights == "master":
            chunks = masters.replaced(chunks, {"optimizer": rank.optimizer}, rank.file, None)
        _check_ends(rank, pp, problems)
        share = found.shares[rank.tp]
        for chunk, tensors in enumerate(chunks):
            start = sum(stages[: chunk * pp + rank.pp])
            for raw, tensor in tensors.items():
                if raw == ROTARY:
                    found.rotary.append(tensor)
                    continue
                found.tied_copy |= raw == TIED_COPY
                name = plain(raw)
                layer = layer_of(name)
                name = renumbered(name, None if layer is None else start + layer, None)
                share.tensors.setdefault(name, []).append(lazy.whole(tensor))
                held_by.setdefault((rank.pp, name), []).append(rank.file)
    for (stage, name), files in held_by.items():
        for rank in saved.ranks:
            if rank.pp == stage and rank.file not in files:
                problems.add(FormatError(f"tensor {name!r} is missing", file=rank.file, expected=f"as in {files[0]}"))


def stepped_parameters(rank: Rank) -> list[dict[str, StoredTensor]]:
    """The parameters of a rank in the order of its modules, without buffers."""
    return [
        {name: tensor for name, tensor in chunk.items() if not masters.BUFFERS.search(name)} for chunk in rank.chunks
    ]


def _layers_per_stage(saved: SavedCheckpoint, vpp: int, pp: int, problems: errors.Problems) -> list[int]:
    """The number of layers of every stage in the order of the model: all stages of the first chunk, then of the second."""
    counts: dict[tuple[int, int], tuple[int, str]] = {}
    for rank in saved.ranks:
        for chunk, tensors in enumerate(rank.chunks):
            indices = {index for name in tensors if (index := layer_of(plain(name))) is not None}
            if indices != set(range(len(indices))):
                problems.add(
                    FormatError(
                        "the layers of a stage are not numbered from 0 on",
                        file=rank.file,
                        found=str(sorted(indices))[:80],
                    )
                )
            known, other = counts.setdefault((chunk, rank.pp), (len(indices), rank.file))
            if known != len(indices):
                problems.add(
                    FormatError(
                        f"the stage has {len(indices)} layers", file=rank.file, expected=f"{known}, as in {other}"
                    )
                )
    return [counts[chunk, stage][0] for chunk in range(vpp) for stage in range(pp) if (chunk, stage) in counts]


def _check_ends(rank: Rank, pp: int, problems: errors.Problems) -> None:
    """The embedding begins the first stage and the last norm ends the last one: stages in another order have neither."""
    for chunk, tensors in enumerate(rank.chunks):
        names, stage = {plain(name) for name in tensors}, f"stage {rank.pp}, chunk {chunk}"
        if (_EMBEDDING in names) != ((chunk, rank.pp) == (0, 0)):
            problems.add(
                FormatError("the embedding is not in the first pipeline stage alone", file=rank.file, found=stage)
            )
        if (_FINAL_NORM in names) != ((chunk, rank.pp) == (len(rank.chunks) - 1, pp - 1)):
            problems.add(
                FormatError("the final norm is not in the last pipeline stage alone", file=rank.file, found=stage)
            )


# --- distributed checkpoints ---------------------------------------------------------------------------------------


def _of_all(saved: SavedCheckpoint, weights: str, found: GptContents, problems: errors.Problems) -> None:
    tensors = _with_masters(saved) if weights == "master" else saved.tensors
    found.masters = bool(saved.masters)
    found.bias_ranks = _bias_ranks(tensors)
    share = RankShare({})
    stacks: dict[str, int] = {}
    for stored_as, tensor in tensors.items():
        try:
            for name, shards in dist_tensors(stored_as, tensor, stacks):
                # What is stored per layer lies together in one copy.
                copies = share.tensors.setdefault(plain(name), [[]])
                copies[0] += shards
        except FormatError as problem:
            problems.add(problem)
    if len(set(stacks.values())) > 1:
        sizes = ", ".join(f"{name}: {size}" for name, size in stacks.items())
        problems.add(FormatError("tensors of all layers disagree on how many there are", file=saved.place, found=sizes))
    found.shares = [share]
    found.layers = max((index for name in share.tensors if (index := layer_of(name)) is not None), default=-1) + 1


def _with_masters(saved: SavedCheckpoint) -> dict[str, chunked.ChunkedTensor]:
    if not saved.masters:
        raise errors.NotCarried(
            "there are no fp32 masters (optimizer.state.fp32_param)", file=saved.place, fix="use --weights model"
        )
    problems = errors.Problems("reading fp32 masters")
    found = {}
    for name, tensor in saved.tensors.items():
        master = saved.masters.get(name)
        if master is None and tensor.dtype.name in ("bf16", "fp16"):
            problems.add(FormatError(f"there is no fp32 master of {name}", file=saved.place, fix="use --weights model"))
        elif master is not None and master.shape != tensor.shape:
            problems.add(
                FormatError(
                    f"the fp32 master of {name} is flattened",
                    file=saved.place,
                    found=master.shape,
                    expected=tensor.shape,
                    fix="use --weights model",
                )
            )
        found[name] = master or tensor
    problems.raise_any()
    return found


def _bias_ranks(tensors: Mapping[str, chunked.ChunkedTensor]) -> int:
    """How many ranks' [gate; up] follow each other in the bias of a gated linear_fc1; 1 where it is [gate; up] of all.

    Megatron-Core before 0.8 (NeMo before 2.0) cut only the weight of a rank in two. So the bias has chunks of a
    rank's whole part, twice as long as those of the weight, and keeps the order of the ranks that saved it.
    """
    for name, weight in tensors.items():
        bias = tensors.get(name.removesuffix(".weight") + ".bias")
        if not name.endswith(_GATED_WEIGHT) or bias is None or not bias.shape or len(weight.shape) < 2:
            continue
        lengths, halves = {chunk.shape[-1] for chunk in bias.chunks}, {chunk.shape[-2] for chunk in weight.chunks}
        if len(lengths) == len(halves) == 1 and (length := lengths.pop()) == 2 * halves.pop():
            return bias.shape[-1] // length
    return 1


def bias_blocks(shards: list[lazy.Shard], ranks: int) -> Iterator[list[lazy.Shard]]:
    """The shards of each rank's part of such a bias, each counted from its own beginning."""
    length = _height(shards) // ranks
    for rank in range(ranks):
        inside = [shard for shard in shards if rank * length <= shard.origin[0] < (rank + 1) * length]
        yield [lazy.Shard((shard.origin[0] - rank * length,), shard.stored) for shard in inside]


def is_gated_bias(name: str) -> bool:
    """Whether a tensor of the tables may be arranged so."""
    return name.endswith(_GATED_BIAS)
