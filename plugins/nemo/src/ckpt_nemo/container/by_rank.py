"""The tensors of a model that has a state dict per tensor and pipeline parallel rank: T5 and ViT have no other form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ckpt_core.sdk import FormatError, RankTensors, StoredTensor, layouts, reading
from ckpt_nemo.container.optimizer import rank_optimizers, saved_training
from ckpt_nemo.container.saved import Rank, SavedCheckpoint

Tensors = dict[str, StoredTensor]


def check_by_rank(saved: SavedCheckpoint, kind: str) -> None:
    """Raise `FormatError` unless `saved` is a config and a state dict per rank; `kind` is what errors call the model."""
    if saved.backend != "ranks":
        raise FormatError(
            f"{kind} lies in files of ranks", file=saved.place, found=f"a distributed checkpoint ({saved.backend})"
        )
    if not saved.config:
        raise FormatError(
            "no config is stored with the weights",
            file=saved.place,
            expected="hyper_parameters, or hparams.yaml beside the run",
        )


def training_of(
    saved: SavedCheckpoint,
    parameters: Callable[[Rank], Tensors],
    local_name: Callable[[str, int], str | None],
    as_read: Callable[[Tensors, Rank], Tensors] = lambda tensors, rank: tensors,
) -> reading.SavedTraining | None:
    """The state of the training. `parameters` are those of a rank that the optimizer steps; `as_read` makes of the tensors
    of a kind, by these names, what is made of the weights of that rank when they are read."""
    found = rank_optimizers(saved, lambda rank: [parameters(rank)])
    if found is None:
        return None
    ranks: dict[reading.Kind, list[RankTensors]] = {}
    for kind, of_kind in found.ranks.items():
        held = {
            (rank.tp, rank.pp): as_read(rank.chunks[0], weights)
            for rank, weights in zip(of_kind, saved.ranks, strict=True)
        }
        ranks[kind] = list(rank_tensors(saved, held, local_name))
    return saved_training(saved, found, ranks, "moments by the order of the modules, in the groups of the optimizer")


def rank_tensors(
    saved: SavedCheckpoint, ranks: Mapping[tuple[int, int], Tensors], local_name: Callable[[str, int], str | None]
) -> Iterator[RankTensors]:
    """The `ranks` (tp, pp), each with its file. `local_name` is that of a tensor on a pipeline stage, None where it is on another."""
    tp, _ = saved.parallel
    files = {(rank.tp, rank.pp): rank.file for rank in saved.ranks}
    for (t, stage), tensors in sorted(ranks.items()):

        def called(native: layouts.Native, stage: int = stage) -> str | None:
            return local_name(native.name, stage)

        yield RankTensors({"tp": (t, tp)}, tensors, files[t, stage], called)
