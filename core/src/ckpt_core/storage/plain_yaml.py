"""PyYAML held to plain data: without tags of its own kinds, duplicate keys, or aliases that stand for very much."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import Resolver
from yaml.scanner import Scanner

from ckpt_core.storage.block_yaml import float_text

_MOST_NODES = 100_000  # of 1.5 KB each: PyYAML notes where everything begins and ends
_MOST_VALUES = 1_000_000


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

    def __init__(self, stream: str, depth: int) -> None:
        _Events.__init__(self, stream)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)
        self._depth, self._open, self._nodes = depth, 0, 0
        self._measured: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._open += 1
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise yaml.YAMLError(f"it holds more than {_MOST_NODES} values")
        if self._open > self._depth:
            raise yaml.YAMLError(f"nested deeper than {self._depth} levels")
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
        if depth > self._depth or size > _MOST_VALUES:
            raise yaml.YAMLError(f"its aliases unfold to more than {self._depth} levels or {_MOST_VALUES} values")
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


def value_of(text: str, depth: int) -> object:
    """The value of a YAML text, nested in at most `depth` levels; `ValueError` says what is wrong with it."""
    try:
        return _Loader(text, depth).get_single_data()
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        # All but the first two come from PyYAML's own constructors: `!!bool maybe`, `!!timestamp x`.
        said = " ".join(str(error).split())
        if "exceeded maximum nesting depth" in said:  # libyaml's own limit is 1000, in one collection of brackets
            said = f"nested deeper than {depth} levels"
        raise ValueError(said) from None


class _Dumper(yaml.SafeDumper):
    """Writes floats so that YAML 1.1 readers take them for floats: `1.0e-05`, never `1e-05`."""


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    return (
        dumper.represent_scalar("tag:yaml.org,2002:float", float_text(value))
        if math.isfinite(value)
        else dumper.represent_float(value)
    )


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    value.encode()  # PyYAML writes half of a surrogate pair as an escape, which libyaml refuses
    return dumper.represent_str(value)


_Dumper.add_representer(float, _represent_float)
_Dumper.add_representer(str, _represent_text)


def text_of(value: object) -> str:
    """A YAML text in the order of the given mappings. `UnicodeEncodeError` for text that is not Unicode, as a path with other bytes is."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=False)
