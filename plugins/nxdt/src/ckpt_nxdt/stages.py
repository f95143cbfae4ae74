"""Which pipeline rank holds which layer."""

from __future__ import annotations

import re

from ckpt_core.sdk import Refusal, errors

_CUT = re.compile(r"(?:(?:model|language_model\.encoder)\.layers\.)?(\d+)")


def even_cuts(layers: int, stages: int) -> list[int]:
    """The last layer of every stage but the last: equal stages, with the remainder one each on the last ones.

    NxD, pipeline/partition.py, create_partitions.

    >>> even_cuts(8, 5), even_cuts(3, 2)
    ([0, 1, 3, 5], [0])
    """
    base, more = divmod(layers, stages)
    sizes = [base + (stage >= stages - more) for stage in range(stages)]
    return [sum(sizes[: stage + 1]) - 1 for stage in range(stages - 1)]


def given_cuts(text: str) -> list[int]:
    """The cuts a user wrote: `18,39,60`, or the names of layers as in a job's yaml.

    >>> given_cuts("model.layers.18, 39")
    [18, 39]
    """
    matches = [_CUT.fullmatch(part.strip()) for part in text.split(",")]
    if any(match is None for match in matches):
        raise errors.UsageError(f"option pipeline_cuts has no value {text!r}", expected="layers, as 18,39,60")
    return [int(match[1]) for match in matches if match is not None]


def pipeline_ranks(layers: int, pp: int, vpp: int, cuts: list[int] | None) -> list[int]:
    """The pipeline rank of every layer; `cuts` None means even ones. Stage s of pp * vpp lies on rank s mod pp.

    >>> pipeline_ranks(5, 2, 2, None)
    [0, 1, 0, 1, 1]
    """
    stages = pp * vpp
    if stages > layers:
        raise Refusal(f"{stages} pipeline stages are more than the {layers} layers", found=f"pp={pp} virtual_pp={vpp}")
    cuts = even_cuts(layers, stages) if cuts is None else cuts
    if len(cuts) != stages - 1 or sorted(set(cuts)) != cuts or (cuts and cuts[-1] >= layers - 1):
        raise errors.UsageError(
            "pipeline_cuts do not fit the pipeline",
            found=", ".join(map(str, cuts)) or "no cuts",
            expected=f"{stages - 1} layers in ascending order, each the last of its stage, below {layers - 1}",
        )
    return [sum(cut < layer for cut in cuts) % pp for layer in range(layers)]
