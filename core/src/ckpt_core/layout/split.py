"""How ranks divide axes: the split of a row, resolved for one rank.

A split is a list of axes that ranks count through row-major: with `tp="g r"`, rank = group index *
pieces of r + index in r. Groups are cut first: when there are more ranks than groups, the query heads
of a group are divided too, and a part that has no `r` (the key) is replicated, on neighbouring ranks for
"g r" and on ranks a stride apart for "r g". Replication is thereby part of the split.

Where the parts of one tensor are dealt out in different orders, a split says so part by part: "q: g r; k v: r g".
A split "rows" names no axis: ranks cut the tensor, once it is arranged, into equal blocks of its first dimension.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_core.errors import Refusal

Ranks = Mapping[str, tuple[int, int]]
"""Where a rank stands: {"tp": (rank, ranks), "ep": (rank, ranks)}; a missing entry means one rank."""

IndexRange = tuple[int, int]
"""The first index and the number of indices of an axis that a rank holds."""

ROWS = "rows"
"""The split of a tensor that ranks cut into equal blocks of its first dimension, whatever lies in it."""


class SplitError(Refusal):
    """An axis that a number of ranks does not divide."""

    def __init__(self, axis: str, size: int, dimension: str, count: int, sentence: str) -> None:
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        shown = ", ".join(map(str, divisors if len(divisors) < 12 else [*divisors[:10], "..."]))
        super().__init__(
            f"{dimension}={count} does not divide axis {axis}={size}",
            found=sentence,
            expected=f"{dimension} among {shown}",
        )


def axes_of(spec: str, part: str | None) -> list[str]:
    """The axes through which ranks count for one part of a tensor.

    >>> axes_of("g r", "k"), axes_of("q: g r; k v: r g", "k")
    (['g', 'r'], ['r', 'g'])
    """
    if ":" not in spec:
        return spec.split()
    for clause in spec.split(";"):
        parts, _, axes = clause.partition(":")
        if part in parts.split():
            return axes.split()
    return []


def shares(
    splits: Mapping[str, str], ranks: Ranks, sizes: Mapping[str, int], sentence: str, part: str | None = None
) -> dict[str, IndexRange]:
    """The share of every divided axis that one rank holds (of one part); `SplitError` where the ranks do not divide it.

    >>> shares({"tp": "g r"}, {"tp": (5, 8)}, {"g": 4, "r": 6}, "(g r d) h")
    {'r': (3, 3), 'g': (2, 1)}
    """
    found: dict[str, IndexRange] = {}
    for dimension, spec in splits.items():
        if spec == ROWS:
            continue
        rank, count = ranks.get(dimension, (0, 1))
        axes = axes_of(spec, part)
        if not any(axis in sizes for axis in axes):
            continue
        pieces = _pieces(axes, count, sizes, dimension, sentence)
        for axis in reversed(axes):
            rank, index = divmod(rank, pieces[axis])
            if axis in sizes:
                size = sizes[axis] // pieces[axis]
                found[axis] = (index * size, size)
    return found


def _pieces(axes: list[str], count: int, sizes: Mapping[str, int], dimension: str, sentence: str) -> dict[str, int]:
    order = sorted(axes, key=lambda axis: axis != "g")
    pieces, left = {}, count
    for axis in order:
        last = axis == order[-1]
        pieces[axis] = left if last else min(left, sizes.get(axis, 1))
        if left % pieces[axis] or (axis in sizes and (sizes[axis] == 0 or sizes[axis] % pieces[axis])):
            raise SplitError(axis, sizes[axis], dimension, count, sentence)
        left //= pieces[axis]
    return pieces
