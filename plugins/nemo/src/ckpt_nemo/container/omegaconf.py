"""OmegaConf's config objects as plain data, with their interpolations resolved.

A pickled DictConfig keeps its values in `_content`, each wrapped in a node that keeps its own in `_val`, and points
back at what holds it (`_parent`). Values may refer to others: `${.seq_length}` to a sibling, `${..x}` to one level up,
`${model.seq_length}` from the root, and `${multiply:2, ${.x}}` and `${sum:...}` to a resolver that NeMo registers.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ckpt_core.sdk import CkptError, FormatError, errors, torch_files

_MAX_DEPTH = 64
_MAX_NODES = 100_000
_MAX_STEPS = 100
_INNERMOST = re.compile(r"\$\{([^${}]*)\}")
_SEPARATOR = re.compile(r"[.\[\]]+")
_RESOLVERS: dict[str, Callable[[list], Any]] = {"multiply": math.prod, "sum": sum}


def plain(value: object, file: str) -> Any:
    """A value of a pickled config as dicts, lists and scalars; interpolations stay text."""
    return _Unwrapping(file).unwrapped(value, 0)


class _Unwrapping:
    """Counts what it unwraps: a pickle may hold itself, or one thing very often."""

    def __init__(self, file: str) -> None:
        self._file, self._nodes = file, 0

    def unwrapped(self, value: object, depth: int) -> Any:
        self._nodes += 1
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise FormatError("the config nests too deep, or is too large", file=self._file)
        if isinstance(value, torch_files.Opaque):
            return self._of_object(value, depth)
        if isinstance(value, Mapping):
            return {str(key): self.unwrapped(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.unwrapped(inner, depth + 1) for inner in value]
        return value

    def _of_object(self, value: torch_files.Opaque, depth: int) -> Any:
        fields = value.fields()
        if value.module.startswith("omegaconf."):
            for key in ("_content", "_val"):
                if key in fields:
                    return self.unwrapped(fields[key], depth + 1)
        if value.module.startswith("pathlib"):
            return posixpath.join("", *map(str, value.args or ()))  # ("/", "a", "b"); ("/a/b",) since Python 3.13
        # An enum, a dtype, a class: it has no plain form, and no key of the tables takes it.
        return repr(value)


def root_of(value: object, file: str) -> tuple[Any, tuple[str, ...]]:
    """The outermost config that a pickled one lies in, as plain data, and the keys that lead from there to it."""
    keys: list[str] = []
    for _ in range(_MAX_DEPTH):
        fields = value.fields() if isinstance(value, torch_files.Opaque) else {}
        metadata, parent = fields.get("_metadata"), fields.get("_parent")
        key = metadata.fields().get("key") if isinstance(metadata, torch_files.Opaque) else None
        if not isinstance(parent, torch_files.Opaque) or not isinstance(key, str):
            break
        keys.insert(0, key)
        value = parent
    return plain(value, file), tuple(keys)


def resolved(
    config: Mapping[str, Any], root: Mapping[str, Any] | None = None, at: Sequence[str] = ()
) -> dict[str, Any]:
    """`config` with every interpolation that can be resolved replaced by its value; others stay as they are.

    `config` lies in `root` at the keys `at`. Without a root it once was `root.model`: NeMo stores that section alone.
    """
    if root is None or not isinstance(_at(root, at), Mapping):
        root, at = {**config, "model": config}, ("model",)
    return _Resolver(root).value(config, tuple(at))


def unresolved(value: object) -> bool:
    """Whether a value is, or holds, an interpolation that nothing resolves.

    >>> unresolved("${oc.env:HOME}"), unresolved({"a": [1, 2]})
    (True, False)
    """
    if isinstance(value, Mapping):
        return any(map(unresolved, value.values()))
    if isinstance(value, list):
        return any(map(unresolved, value))
    return isinstance(value, str) and "${" in value


def check_resolved(config: Mapping[str, Any], unread: Collection[str], file: str) -> None:
    """Raise every key, but for the `unread` ones, that refers to a value which is not stored."""
    problems = errors.Problems(f"reading {file}")
    for key, value in config.items():
        if key not in unread and unresolved(value):
            problems.add(
                CkptError(f"key {key!r} refers to a value that is not stored", file=file, found=str(value)[:80])
            )
    problems.raise_any()


_NOTHING = object()


def _at(root: object, keys: Sequence[str]) -> Any:
    for key in keys:
        if isinstance(root, Mapping) and key in root:
            root = root[key]
        elif isinstance(root, list) and key.isdecimal() and int(key) < len(root):
            root = root[int(key)]
        else:
            return _NOTHING
    return root


class _Resolver:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def value(self, value: Any, place: tuple[str, ...]) -> Any:
        """`value`, which stands at `place` of the root, without interpolations."""
        if isinstance(value, Mapping):
            return {key: self.value(inner, (*place, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.value(inner, (*place, str(number))) for number, inner in enumerate(value)]
        found = self._scalar(value, place[:-1], 0)
        return value if found is _NOTHING else found

    def _scalar(self, value: Any, holder: tuple[str, ...], depth: int) -> Any:
        """A scalar in the container at `holder`, resolved; `_NOTHING` where that is not possible."""
        for _ in range(_MAX_STEPS):
            if not isinstance(value, str) or "${" not in value:
                return value
            match = _INNERMOST.search(value)
            found = self._expression(match[1].strip(), holder, depth) if match else _NOTHING
            if match is None or found is _NOTHING or isinstance(found, Mapping | list):
                return _NOTHING
            whole = match[0] == value
            value = found if whole else value[: match.start()] + _spelled(found) + value[match.end() :]
        return _NOTHING

    def _expression(self, expression: str, holder: tuple[str, ...], depth: int) -> Any:
        name, colon, arguments = expression.partition(":")
        if colon:
            return _called(name, arguments)
        dots = len(expression) - len(expression.lstrip("."))
        keys = [key for key in _SEPARATOR.split(expression) if key]
        if dots > len(holder) + 1 or depth > _MAX_DEPTH:
            return _NOTHING
        place = (*holder[: len(holder) - (dots - 1)], *keys) if dots else tuple(keys)
        return self._scalar(_at(self._root, place), place[:-1], depth + 1)


def _called(name: str, arguments: str) -> Any:
    function = _RESOLVERS.get(name)
    numbers = [_number(argument.strip()) for argument in arguments.split(",")]
    if function is None or None in numbers:
        return _NOTHING
    return function(numbers)


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text) if len(text) < 40 else None
        except ValueError:
            continue
    return None


def _spelled(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
