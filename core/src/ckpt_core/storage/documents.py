"""JSON and YAML from strangers: bounded, without duplicate keys, and with numbers read as numbers."""

from __future__ import annotations

import json
import math
import os
import re
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import Resolver
from yaml.scanner import Scanner

from ckpt_core.errors import FormatError
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
_MOST_JSON_MEMORY = 400 << 20  # the tokenizer.json of a vocabulary of 256k takes up to three quarters of it
_MOST_YAML_BYTES = 2 << 20
_MOST_YAML_NODES = 100_000  # of 1.5 KB each: PyYAML notes where everything begins and ends
_MOST_YAML_VALUES = 1_000_000


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
        found: dict[str, object] = {}
        for key, value in items:
            if key in found:
                raise FormatError(f"key {key!r} occurs twice in one JSON object", file=file)
            found[key] = value
        return found

    def constant(name: str) -> float:
        if infinite and name == "Infinity":
            return math.inf
        raise ValueError(f"{name} is not a number")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_int=_integer, parse_constant=constant)
    except FormatError:
        raise
    except RecursionError:
        raise FormatError("JSON nested too deeply", file=file, expected=f"at most {_DEPTH} levels") from None
    except ValueError as error:
        raise FormatError(f"not valid JSON: {error}", file=file) from None


def _memory_of_json(data: bytes) -> int:
    """About how many bytes the value of a JSON text takes in CPython, before any is made; more if texts have commas."""
    text = len(data) if data.isascii() else 4 * len(data)
    return text + 64 * data.count(b",") + 90 * data.count(b"[") + 64 * data.count(b"{") + 200 * data.count(b":")


def _integer(digits: str) -> int:
    if len(digits) > 40:
        raise ValueError("an integer of more than 40 digits")
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


class _PythonEvents(Reader, Scanner, Parser):
    """The events of a YAML text by PyYAML alone, where it was built without libyaml; about ten times slower."""

    def __init__(self, stream: str) -> None:
        Reader.__init__(self, stream)
        Scanner.__init__(self)
        Parser.__init__(self)


_Events: Any = yaml.CSafeLoader.__mro__[1] if yaml.__with_libyaml__ else _PythonEvents  # its CParser


class _Loader(Composer, _Events, SafeConstructor, Resolver):  # Composer first: libyaml has one too, without limits
    """PyYAML follows YAML 1.1, where `1e-5` is a string; training configs mean the number (YAML 1.2).

    An alias may stand for very much: each node is (depth, size) with all that it stands for.
    """

    def __init__(self, stream: str) -> None:
        _Events.__init__(self, stream)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)
        self._open = self._nodes = 0
        self._measured: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._open += 1
        self._nodes += 1
        if self._nodes > _MOST_YAML_NODES:
            raise yaml.YAMLError(f"it holds more than {_MOST_YAML_NODES} values")
        if self._open > _DEPTH:
            raise yaml.YAMLError(f"nested deeper than {_DEPTH} levels")
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_alias and id(node) not in self._measured:
            raise yaml.YAMLError("an alias stands for what it is in")
        if not is_alias:
            self._measured[id(node)] = self._measure(node)
        self._open -= 1
        return node

    def _measure(self, node: yaml.Node | None) -> tuple[int, int]:
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
            seen: set[tuple[str, str]] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if (key.tag, key.value) in seen:
                    raise yaml.YAMLError(f"key {key.value!r} is given twice")
                seen.add((key.tag, key.value))
        depths, sizes = zip((0, 0), *(self._measured[id(part)] for part in inner), strict=True)
        depth, size = 1 + max(depths), 1 + sum(sizes)
        if depth > _DEPTH or size > _MOST_YAML_VALUES:
            raise yaml.YAMLError(f"its aliases unfold to more than {_DEPTH} levels or {_MOST_YAML_VALUES} values")
        return depth, size


def _refuse_tag(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    raise yaml.YAMLError(f"the tag {node.tag} is not plain data")


for _kind in ("set", "omap", "pairs", "binary"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _refuse_tag)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*(?:[eE][-+]?[0-9]+)|[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|\.inf|\.nan)$"
    ),
    list("-+0123456789."),
)


def parse_yaml(data: bytes, file: str) -> object:
    """The value of a YAML text, with plain tags only; `FormatError` for a key given twice, and absurd nesting or size."""
    if len(data) > _MOST_YAML_BYTES:
        raise FormatError(
            "the YAML text is too long", file=file, found=f"{len(data)} bytes", expected=f"at most {_MOST_YAML_BYTES}"
        )
    try:
        return _Loader(data.decode("utf-8")).get_single_data()
    except RecursionError:
        raise FormatError("YAML nested too deeply", file=file) from None
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        # All but the first two come from PyYAML's own constructors: `!!bool maybe`, `!!timestamp x`.
        said = " ".join(str(error).split())
        if "exceeded maximum nesting depth" in said:  # libyaml's own limit is 1000, in one collection of brackets
            said = f"nested deeper than {_DEPTH} levels"
        raise FormatError(f"not valid YAML: {said}", file=file) from None


def read_yaml_object(path: str | os.PathLike) -> dict[str, Any]:
    """The mapping in a YAML file, empty if the file is; anything else is a `FormatError`."""
    value = parse_yaml(read_small(path), os.fspath(path))
    if value is not None and not isinstance(value, dict):
        raise FormatError("the YAML text is not a mapping", file=path, found=type(value).__name__)
    return value or {}


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
