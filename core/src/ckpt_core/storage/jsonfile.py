"""JSON and YAML from strangers: bounded, without duplicate keys, and with numbers read as numbers."""

from __future__ import annotations

import json
import math
import os
import re
from typing import Any

import yaml

from ckpt_core.errors import FormatError
from ckpt_core.storage.files import read_small

_DEPTH = 64


def parse_json(data: bytes, file: str) -> object:
    """The value of a JSON text; `FormatError` for bad syntax, a key given twice, NaN, or absurd nesting."""

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in items:
            if key in found:
                raise FormatError(f"key {key!r} occurs twice in one JSON object", file=file)
            found[key] = value
        return found

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_int=_integer)
    except FormatError:
        raise
    except RecursionError:
        raise FormatError("JSON nested too deeply", file=file, expected=f"at most {_DEPTH} levels") from None
    except ValueError as error:
        raise FormatError(f"not valid JSON: {error}", file=file) from None


def _integer(digits: str) -> int:
    if len(digits) > 40:
        raise ValueError("an integer of more than 40 digits")
    return int(digits)


def read_json(path: str | os.PathLike) -> object:
    """The value in a JSON file."""
    return parse_json(read_small(path), os.fspath(path))


def read_json_object(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file; anything else is a `FormatError`."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise FormatError("the JSON text is not an object", file=path, found=type(value).__name__)
    return value


class _Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, where `1e-5` is a string; training configs mean the number (YAML 1.2)."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            self._aliases = getattr(self, "_aliases", 0) + 1
            if self._aliases > 1000:
                raise yaml.YAMLError("more than 1000 aliases")
        self._depth = getattr(self, "_depth", 0) + 1
        if self._depth > _DEPTH:
            raise yaml.YAMLError(f"nested deeper than {_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*(?:[eE][-+]?[0-9]+)|[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|\.inf|\.nan)$"
    ),
    list("-+0123456789."),
)


def parse_yaml(data: bytes, file: str) -> object:
    """The value of a YAML text, with plain tags only."""
    try:
        return yaml.load(data.decode("utf-8"), Loader=_Loader)
    except RecursionError:
        raise FormatError("YAML nested too deeply", file=file) from None
    except (yaml.YAMLError, ValueError) as error:
        raise FormatError(f"not valid YAML: {' '.join(str(error).split())}", file=file) from None


class _Dumper(yaml.SafeDumper):
    """Writes floats so that YAML 1.1 readers take them for floats: `1.0e-05`, never `1e-05`."""


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)
    if math.isfinite(value) and "e" in text and "." not in text:
        text = text.replace("e", ".0e", 1)
    return (
        dumper.represent_scalar("tag:yaml.org,2002:float", text)
        if math.isfinite(value)
        else dumper.represent_float(value)
    )


_Dumper.add_representer(float, _represent_float)


def dump_yaml(value: object) -> str:
    """A YAML text in the order of the given mappings."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=False)
