"""Putting a model together from a state dict per tensor and pipeline parallel rank: T5 and ViT have no other form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ckpt_core.sdk import FormatError, Native, ParameterBuilder, Shard, StoredTensor, layouts, lazy
from ckpt_nemo.container.saved import Saved

Tensors = dict[str, StoredTensor]


def check_by_rank(saved: Saved, kind: str) -> None:
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


def _shard(name: str, stored: StoredTensor, native: Native, t: int) -> Shard:
    return Shard((0,) * len(stored.shape), stored)


def assembled(
    saved: Saved,
    ranks: Mapping[tuple[int, int], Tensors],
    layout: layouts.BoundTables,
    local_name: Callable[[str, int], str | None],
    *,
    shard: Callable[[str, StoredTensor, Native, int], Shard] = _shard,
) -> dict[str, lazy.LazyParameter]:
    """The canonical tensors, put together from those of all ranks (tp, pp); what several ranks hold is compared.

    `local_name` is that of a tensor on a pipeline stage, None where it is on another; `shard` is what a tensor parallel
    rank contributes.
    """
    assembler = ParameterBuilder(layout.parameters, saved.place)
    tp, _ = saved.parallel
    files = {(rank.tp, rank.pp): rank.file for rank in saved.ranks}
    for (t, stage), tensors in sorted(ranks.items()):
        expected: dict[str, Native] = {}
        for name, native in layout.natives({"tp": (t, tp)}).items():
            local = local_name(name, stage)
            if local is None:
                continue
            expected[local] = native
            if local in tensors:
                assembler.add(replace(native, name=local), [shard(local, tensors[local], native, t)])
        for problem in layouts.account(expected, [], tensors, files[t, stage]):
            assembler.problems.add(problem)
    return assembler.finish()
