"""In which order transfers are carried out: the largest first, and neighbours to different output files.

A large transfer that comes last is waited for by everyone. And two that write to one file at the same time wait for each other (see
`transfer.TargetFiles`), so that many workers need many files at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def in_order(work: Iterable[T], size: Callable[[T], int], file: Callable[[T], str]) -> list[T]:
    """The same, dealt out in rounds: in each round the largest that is left for each file, and in it the largest first.

    `size` is in bytes; `file` names the one output file that most of them go to.

    >>> in_order(["aa", "a", "aaa", "bbbb"], len, lambda one: one[0])
    ['bbbb', 'aaa', 'aa', 'a']
    """
    of_file: dict[str, list[T]] = {}
    for one in sorted(work, key=size, reverse=True):
        of_file.setdefault(file(one), []).append(one)
    return [one for deal in itertools.zip_longest(*of_file.values()) for one in deal if one is not None]
