"""The tensors of a model that has a state dict per tensor and pipeline parallel rank: T5 and ViT have no other form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ckpt_core.sdk import FormatError, RankTensors, StoredTensor, layouts
from ckpt_nemo.container.saved import SavedCheckpoint

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
