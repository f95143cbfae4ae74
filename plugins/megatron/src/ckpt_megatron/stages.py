"""Which layers a (virtual) pipeline stage holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_core.sdk import Refusal

FIRST, LAST = "decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers"


def stages(
    layers: int, pp: int, vpp: int, options: Mapping[str, Any], hints: Mapping[str, Any]
) -> tuple[dict[tuple[int, int], range], dict[str, Any]]:
    """The layers of each (pipeline rank, virtual stage), and the args that say so.

    Stages are even, but the first and the last may differ (`FIRST`, `LAST`). Virtual stages are counted through all
    ranks before the next: rank p holds layers [c * L / vpp + p * L / (pp * vpp), ...) of chunk c.
    """
    if vpp > 1 and pp == 1:
        raise Refusal("virtual stages need more than one pipeline stage", found=f"vpp={vpp} pp=1")
    first, last = options.get(FIRST), options.get(LAST)
    if first is None and last is None and layers % pp:
        first, last = hints.get(FIRST), hints.get(LAST)
    counts = _counts(layers, pp, first, last)
    if counts is None or any(count % vpp or count < 0 for count in counts):
        raise Refusal(
            f"pp={pp}" + (f" vpp={vpp}" if vpp > 1 else "") + f" does not divide the {layers} layers",
            found=None if counts is None else f"stages of {', '.join(map(str, counts))} layers",
            fix=f"another --pp, or -o {FIRST}=N and -o {LAST}=N for uneven stages",
        )
    args: dict[str, Any] = {FIRST: first, LAST: last, "virtual_pipeline_model_parallel_size": vpp if vpp > 1 else None}
    args["num_layers_per_virtual_pipeline_stage"] = (
        counts[0] // vpp if vpp > 1 and first is None and last is None else None
    )
    args["num_virtual_stages_per_pipeline_rank"] = vpp if vpp > 1 and (first is not None or last is not None) else None
    return layers_of_stages(counts, vpp), args


def layers_of_stages(counts: Sequence[int], vpp: int) -> dict[tuple[int, int], range]:
    """The layers of each (pipeline rank, virtual stage), of ranks that hold so many; virtual stages are counted through all
    ranks before the next.

    >>> layers_of_stages([2, 2], 2)
    {(0, 0): range(0, 1), (1, 0): range(1, 2), (0, 1): range(2, 3), (1, 1): range(3, 4)}
    """
    held, start = {}, 0
    for chunk in range(vpp):
        for rank, count in enumerate(counts):
            held[rank, chunk] = range(start, start + count // vpp)
            start += count // vpp
    return held


def _counts(layers: int, pp: int, first: int | None, last: int | None) -> list[int] | None:
    """The number of layers of each pipeline rank, or None if they can't be shared out so."""
    ends = [end for end in (first, last) if end is not None]
    middle, left = pp - len(ends), layers - sum(ends)
    if middle < 0 or left < 0 or (left if middle == 0 else left % middle):
        return None
    even = [left // middle] * middle if middle else []
    return [*([first] if first is not None else []), *even, *([last] if last is not None else [])]
