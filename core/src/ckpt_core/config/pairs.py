"""How many inverse pairs of functions config tables hold that a person wrote: the fewer, the less can drift apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ckpt_core.config.entry import Entry


def pairs_by_hand(entries: Iterable[Entry]) -> dict[tuple[str, str], tuple[Callable, Callable]]:
    """The distinct pairs of a reader and a writer in lines, by where they are defined: one pair in two tables is one."""
    return {(_place(read), _place(write)): (read, write) for entry in entries for read, write in entry.by_hand}


def _place(function: Callable) -> str:
    code = function.__code__
    return f"{function.__module__}:{function.__qualname__}:{code.co_firstlineno}"
