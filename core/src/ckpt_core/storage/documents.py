"""JSON and YAML from strangers: bounded, without duplicate keys, and with numbers read as numbers."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from typing import Any

from ckpt_core.errors import CkptError, FormatError
from ckpt_core.storage.bytes.stored import read_small

__all__ = [
    "dump_yaml",
    "parse_json",
    "parse_yaml",
    "read_json",
    "read_json_object",
    "read_yaml_object",
]

_DEPTH = 64
_DIGITS = 40
_PART = 1 << 16  # bytes that are looked at together
_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_MOST_JSON_MEMORY = 400 << 20  # the tokenizer.json of a vocabulary of 256k takes up to three quarters of it
_MOST_YAML_BYTES = 2 << 20


def parse_json(data: bytes, file: str, *, infinite: bool = False) -> object:
    """The value of a JSON text; `FormatError` for bad syntax, a key given twice, NaN, or absurd nesting or size.

    `infinite`: it may hold Infinity, as Python writes it and JSON has it not.
    """
    memory = _memory_of_json(data)
    if memory > _MOST_JSON_MEMORY:
        raise FormatError(
            "the JSON text holds too much",
            file=file,
            found=f"{len(data)} bytes that would take about {memory} bytes of memory",
            expected=f"at most {_MOST_JSON_MEMORY}",
        )

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(items)
        if len(found) != len(items):
            keys = Counter(key for key, _ in items)
            key = next(key for key, count in keys.items() if count > 1)
            raise FormatError(f"key {key!r} occurs twice in one JSON object", file=file)
        return found

    def constant(name: str) -> float:
        if infinite and name == "Infinity":
            return math.inf
        raise ValueError(f"{name} is not a number")

    too_deep = FormatError("JSON nested too deeply", file=file, expected=f"at most {_DEPTH} levels")
    integer = _integer if _has_long_number(data) else int  # most texts have none
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_int=integer, parse_constant=constant)
    except FormatError:
        raise
    except RecursionError:  # at 1000 levels in Python 3.11, and at 10,000 in 3.13
        raise too_deep from None
    except ValueError as error:
        raise FormatError(f"not valid JSON: {error}", file=file) from None
    if data.count(b"[") + data.count(b"{") > _DEPTH and _is_deep(value):
        raise too_deep
    return value


def _is_deep(value: object) -> bool:
    """Whether objects and arrays nest in more levels than whoever walks them has calls to spare."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_DEPTH):
        level = [
            inner
            for one in level
            for inner in (one.values() if type(one) is dict else one)
            if type(inner) in (dict, list)
        ]
        if not level:
            return False
    return True


def _memory_of_json(data: bytes) -> int:
    """About how many bytes the value of a JSON text takes in CPython, before any is made; more if texts have commas."""
    text = len(data) if data.isascii() else 4 * len(data)
    return text + 64 * data.count(b",") + 90 * data.count(b"[") + 64 * data.count(b"{") + 200 * data.count(b":")


def _has_long_number(data: bytes) -> bool:
    """Whether there are more than `_DIGITS` digits in a row."""
    row = b"0" * (_DIGITS + 1)
    return any(row in data[at : at + _PART + _DIGITS].translate(_ZEROS) for at in range(0, len(data), _PART))


def _integer(digits: str) -> int:
    if len(digits.removeprefix("-")) > _DIGITS:
        raise ValueError(f"an integer of more than {_DIGITS} digits")
    return int(digits)


def read_json(path: str | os.PathLike, *, infinite: bool = False) -> object:
    """The value in a JSON file. `infinite`: it may hold Infinity, which Python's own writer of JSON writes.

    `FormatError` for what is not JSON, for keys that occur twice, and for a file that is too large or too deep.
    """
    return parse_json(read_small(path), os.fspath(path), infinite=infinite)


def read_json_object(path: str | os.PathLike, *, infinite: bool = False) -> dict[str, Any]:
    """The object in a JSON file, as `read_json` reads it; anything else is a `FormatError`."""
    value = read_json(path, infinite=infinite)
    if not isinstance(value, dict):
        raise FormatError("the JSON text is not an object", file=path, found=type(value).__name__)
    return value


def parse_yaml(data: bytes, file: str) -> object:
    """The value of a YAML text, with plain tags only; `FormatError` for a key given twice, and absurd nesting or size."""
    if len(data) > _MOST_YAML_BYTES:
        raise FormatError(
            "the YAML text is too long", file=file, found=f"{len(data)} bytes", expected=f"at most {_MOST_YAML_BYTES}"
        )
    from ckpt_core.storage import plain_yaml  # PyYAML takes a while to import, and few formats have YAML

    try:
        return plain_yaml.value_of(data.decode("utf-8"), _DEPTH)
    except RecursionError:
        raise FormatError("YAML nested too deeply", file=file) from None
    except ValueError as error:
        raise FormatError(f"not valid YAML: {error}", file=file) from None


def read_yaml_object(path: str | os.PathLike) -> dict[str, Any]:
    """The mapping in a YAML file, empty if the file is; anything else is a `FormatError`."""
    value = parse_yaml(read_small(path), os.fspath(path))
    if value is not None and not isinstance(value, dict):
        raise FormatError("the YAML text is not a mapping", file=path, found=type(value).__name__)
    return value or {}


def dump_yaml(value: object) -> str:
    """A YAML text in the order of the given mappings; `CkptError` for text that is not Unicode."""
    from ckpt_core.storage import block_yaml

    try:
        return block_yaml.text_of(value)
    except block_yaml.Beyond:
        from ckpt_core.storage import plain_yaml

        try:
            return plain_yaml.text_of(value)
        except UnicodeEncodeError as error:
            raise CkptError(
                "text that is not Unicode can't be written as YAML",
                found=ascii(error.object),
                fix="if it is a path, give the folder a name in UTF-8: a config would name it",
            ) from None
