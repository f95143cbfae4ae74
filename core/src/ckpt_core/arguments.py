"""What a caller of the Python API gives, checked before anything is read: a wrong type is a `UsageError` that names it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ckpt_core.errors import UsageError
from ckpt_core.sizes import parse_size

OptionValue = str | int | float | bool
"""The value of an option: the text that the command line has for it, or a plain value that is written as that text."""


def path_of(value: str | os.PathLike[str], name: str) -> str:
    """A path as text."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):
        raise UsageError(f"{name} must be a path", found=_shown(value), expected="text, or a pathlib.Path")
    if not path:
        raise UsageError(f"{name} is empty", expected="a path", fix="is a variable of the shell not set?")
    return path


def check_format(value: str | None, name: str, *, optional: bool = True) -> None:
    """The name of a format, or None where it may be left out."""
    if not isinstance(value, str) and not (optional and value is None):
        raise UsageError(f"{name} must be the name of a format", found=_shown(value), expected="text")


def check_count(value: int | None, name: str, said: str = "") -> None:
    """A whole number of at least 1, or None."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise UsageError(f"{said or name} must be a whole number", found=_shown(value))
    if value is not None and value < 1:
        raise UsageError(f"{said or name} must be at least 1", found=value)


def size_of(value: int | str | None, name: str) -> int | None:
    """A number of bytes of at least 1, or text such as `2GB`, or None."""
    if not isinstance(value, str):
        check_count(value, name)
        return value
    try:
        return parse_size(value)
    except UsageError as problem:
        raise UsageError(f"{name} must be a size", found=_shown(value), expected=problem.expected) from None


def check_executor(value: object) -> None:
    """A `concurrent.futures.Executor`, or None."""
    from concurrent.futures import Executor

    if value is not None and not isinstance(value, Executor):
        raise UsageError(
            "executor must be a concurrent.futures.Executor",
            found=_shown(value),
            expected="ProcessPoolExecutor(8), or Client(address).get_executor() of Dask",
        )


def options_of(options: Mapping[str, OptionValue] | None) -> dict[str, str]:
    """Options as text, by name."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise UsageError(
            "options must be a mapping of names to values", found=_shown(options), expected="{'name': 'value'}"
        )
    for name, value in options.items():
        if not isinstance(name, str) or not isinstance(value, str | int | float):
            raise UsageError(
                f"option {name!s:.60} must be given as text or as a plain value",
                found=_shown(value),
                expected="what the command line has after -o NAME=",
            )
    return {name: str(value) for name, value in options.items()}


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r:.60}"
