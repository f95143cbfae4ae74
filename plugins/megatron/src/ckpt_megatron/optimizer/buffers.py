"""The flat buffers of a distributed optimizer: where each parameter of a (virtual) stage lies.

All parameters of one dtype lie in one buffer, from last to first, each at a multiple of 64 elements. A buffer is cut into buckets, each of which begins anew: a
run that overlaps its reductions cuts where a bucket has enough, and an embedding that two stages share has a bucket of its own (core 0.16,
distributed/param_and_grad_buffer.py, `_ParamAndGradBuffer`). What pads the end of a bucket is not saved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ckpt_core.sdk import errors

_ALIGNMENT = 64

Shape = tuple[int, ...]
Start = tuple[int, int]
"""The bucket of a parameter, and the element of it where it begins."""


def walked(shapes: Mapping[str, Shape], shared: str | None = None) -> tuple[dict[str, Start], list[int]]:
    """Where parameters begin, which are given in the order of registration, and how many elements each bucket has.

    `shared` is the embedding that the first and the last stage share.

    >>> walked({"embedding": (3, 4), "norm": (4,)})
    ({'norm': (0, 0), 'embedding': (0, 64)}, [76])
    >>> walked({"embedding": (3, 4), "norm": (4,)}, "embedding")
    ({'norm': (0, 0), 'embedding': (1, 0)}, [64, 12])
    """
    starts: dict[str, Start] = {}
    sizes: list[int] = []
    position = 0
    for name, shape in reversed(list(shapes.items())):
        position = _aligned(position)
        if name == shared and position:
            sizes.append(position)  # the padding before a parameter is a part of the bucket that ends there
            position = 0
        starts[name] = len(sizes), position
        position += math.prod(shape)
        if name == shared:
            sizes.append(position)
            position = 0
    if position:
        sizes.append(position)
    return starts, sizes


def fitted(shapes: Mapping[str, Shape], sizes: Sequence[int], file: str, what: str) -> dict[str, Start]:
    """Where parameters begin in buckets of these `sizes`. `NotCarried` unless the last one of each ends where its bucket does, which proves the order."""
    starts: dict[str, Start] = {}
    bucket, position = 0, 0
    for name, shape in reversed(list(shapes.items())):
        start = _aligned(position)
        if bucket < len(sizes) and starts and sizes[bucket] in (position, start):
            bucket, start = bucket + 1, 0
        position = start + math.prod(shape)
        if bucket >= len(sizes) or position > sizes[bucket]:
            raise _does_not_end(file, what, sizes, walked(shapes)[1])
        starts[name] = bucket, start
    if bucket != len(sizes) - 1 or position != sizes[-1]:
        raise _does_not_end(file, what, sizes, walked(shapes)[1])
    return starts


def _aligned(position: int) -> int:
    return position + -position % _ALIGNMENT


def _does_not_end(file: str, what: str, found: Sequence[int], expected: Sequence[int]) -> errors.NotCarried:
    return errors.NotCarried(
        f"{what} does not end where its parameters do: which lies where can't be told",
        file=file,
        found=f"{', '.join(map(str, found)) or 'no'} elements",
        expected=f"{sum(expected)}: all parameters from last to first, each at a multiple of {_ALIGNMENT}",
        fix="save with --dist-ckpt-optim-fully-reshardable, or convert the weights alone with --training-state drop",
    )
