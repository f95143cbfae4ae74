"""Bounds on the shape of what a pickle made.

Whoever uses the result walks it, so it must be walkable. A nest too deep breaks
recursion; a "billion laughs" (each list holds the one before it twice) has few
objects but endless paths. Objects may hold themselves, as OmegaConf's do: that
counts as one step. Lists and dicts that do are of endless size.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any

from ckpt_core.storage.pickle.opaque import Opaque

# The exact types that the reader makes: a lookup by type is much faster than `isinstance`.
_CONTAINERS = frozenset((dict, list, tuple, Opaque, OrderedDict, defaultdict, set, frozenset))
_LEAF = (1, 1)
# Sizes stop growing here: a chain of doublings would make them numbers of a million digits.
_SIZE_CAP = 1 << 62
_DEPTHS = (1 << 16) - 1
# Containers of so few leaves, and objects of so small a size, are measured anew each time: most are so small, and
# noting them all takes much memory.
_SMALL = 8
_SMALL_SIZE = 24
NOTE = 160
"""Bytes that noting the size of one other container takes."""


def measure(root: Any, deep: int, many: int = 1 << 62) -> tuple[int, int]:
    """(depth, size) of `root` as a walk that goes into everything but its own ancestors would see it.

    `depth` counts containers inside each other, `size` counts every visit of a
    value, shared ones again each time. One pass over the objects, no recursion;
    it stops, with a size of 0, where it is more than `deep` containers down, or has more than `many` to note.
    """
    noted: dict[int, int] = {}  # by identity: size * 2**16 + depth; 0 while it is walked
    deepest = 0
    path: list[tuple[Any, Any, list[int]]] = []  # container, iterator over its children, [depth, size]

    def enter(value: Any) -> None:
        noted[id(value)] = 0
        path.append((value, iter(_children(value)), [1, 1]))

    if not _is_container(root):
        return _LEAF
    enter(root)
    while path:
        value, children, total = path[-1]
        for child in children:
            if type(child) not in _CONTAINERS:
                total[1] += 1
            elif type(child) is not Opaque and len(child) <= _SMALL and _is_flat(child):
                total[0] = max(total[0], 2)
                total[1] += 1 + len(child)
            elif type(child) is Opaque and (small := _of_small_object(child)):
                total[0] = max(total[0], small[0] + 1)
                total[1] += small[1]
            elif known := noted.get(id(child)):
                total[0] = max(total[0], (known & _DEPTHS) + 1)
                total[1] += known >> 16
            elif known == 0:
                total[1] += 1 if _through_an_object(path, child) else _SIZE_CAP
            else:
                enter(child)
                deepest = max(deepest, len(path))
                if deepest > deep or len(noted) > many:
                    return deepest, 0
                break
        else:
            path.pop()
            total[1] = min(total[1], _SIZE_CAP)
            if total[1] > _SMALL_SIZE or not path:
                noted[id(value)] = total[1] << 16 | min(total[0], _DEPTHS)
            else:
                del noted[id(value)]
            if path:
                above = path[-1][2]
                above[0] = max(above[0], total[0] + 1)
                above[1] += total[1]
    known = noted[id(root)]
    return max(known & _DEPTHS, deepest), known >> 16


def _of_small_object(value: Opaque) -> tuple[int, int] | None:
    """(depth, size) of an object that holds a few leaves, and collections of them, as each of the 90,000 in the metadata of a large checkpoint
    does; None for any other. It is what the walk would find."""
    depth, size = 1, 1
    for part in _children(value):
        if type(part) not in _CONTAINERS:
            size += 1
            continue
        if type(part) is Opaque or len(part) > _SMALL:
            return None
        if _is_flat(part):
            depth, size = max(depth, 2), size + 1 + len(part)
            continue
        size += 1
        for child in _children(part):
            if type(child) not in _CONTAINERS:
                size += 1
            elif type(child) is Opaque or len(child) > _SMALL or not _is_flat(child):
                return None
            else:
                size += 1 + len(child)
        depth = 3
    return (depth, size) if size <= _SMALL_SIZE else None


def _through_an_object(path: Sequence[tuple[Any, Any, list[int]]], child: Any) -> bool:
    """Whether the way from `child` down to the end of `path` goes through the object of a class."""
    for value, _, _ in reversed(path):
        if type(value) is Opaque:
            return True
        if value is child:
            return False
    return False


def _is_container(value: Any) -> bool:
    return type(value) in _CONTAINERS


def _is_flat(value: Any) -> bool:
    """Whether a dict, or any other collection, holds nothing that holds something."""
    if isinstance(value, dict) and not _CONTAINERS.isdisjoint(map(type, value.values())):
        return False
    return _CONTAINERS.isdisjoint(map(type, value))


def _children(value: Any) -> Any:
    if type(value) is Opaque:
        return [value.args, value.kwargs, value.state, value.items, value.entries]
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value
