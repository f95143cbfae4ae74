"""`io.json` of NeMo 2: a graph of calls, as fiddle stores it, read as plain data and written again. It describes models and adapters.

    {"root": {"type": "ref", "key": K}, "objects": {K: OBJECT, ...}, "refcounts": {...}, "version": "0.0.1"}

    value     {"type": "leaf", "value": 3, "paths": [...]}, {"type": "ref", "key": K},
              {"type": "pyref", "module": M, "name": N} (a class, a function, a dtype), an OBJECT, or bare text
    OBJECT    {"type": pyref, "items": [[element, value], ...], "metadata": ..., "paths": ["<root>.model.config"]}

A call is an object of type `fiddle...Config`, whose metadata says what it calls. Nothing is imported or called.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from ckpt_core.sdk import FormatError, schema, torch_files
from ckpt_megatron.transformer_config import dotted

__all__ = ["Call", "NamedObject", "plain_of", "read_graph", "write_graph"]

_CALLS = ("fiddle._src.config.Config", "fiddle._src.partial.Partial")
_METADATA = ("fiddle._src.config", "BuildableTraverserMetadata")
_ELEMENT = re.compile(r"(?:Attr\(name='(.*)'\)|Key\(key='(.*)'\)|(?:Index\(index|Key\(key)=(\d+)\))", re.DOTALL)
_DEPTH, _STEPS = 64, 1_000_000


@schema.dataclass(frozen=True)
class NamedObject:
    """A class, a function or a dtype: named, not called."""

    name: str


@schema.dataclass(frozen=True)
class Call:
    """A call of the class or function `target` that was put off."""

    target: str
    arguments: dict[str, Any] = field(default_factory=dict)


def plain_of(value: Any) -> Any:
    """A value of a graph as model.yaml says it."""
    if isinstance(value, NamedObject):
        return value.name
    if isinstance(value, Call):
        return {"_target_": value.target, **{name: plain_of(item) for name, item in value.arguments.items()}}
    if isinstance(value, list):
        return [plain_of(item) for item in value]
    return value


def read_graph(value: object, file: str) -> Any:
    """The root of a graph: `Call`s, `NamedObject`s, dicts, lists and plain values."""
    if not isinstance(value, dict) or not isinstance(value.get("objects"), dict) or "root" not in value:
        raise FormatError(
            "this is not a graph of fiddle's", file=file, found=torch_files.brief(value), expected="root, objects"
        )
    return _Reader(value["objects"], file).value(value["root"], 0)


class _Reader:
    def __init__(self, objects: Mapping[str, Any], file: str) -> None:
        self._objects, self._file = objects, file
        self._done: dict[str, Any] = {}
        self._open: set[str] = set()
        self._steps = 0

    def value(self, value: Any, depth: int) -> Any:
        self._steps += 1
        if depth > _DEPTH or self._steps > _STEPS:
            raise FormatError(
                "the graph is too deep or too large", file=self._file, expected=f"at most {_DEPTH} levels"
            )
        if not isinstance(value, dict):
            return value
        kind = value.get("type")
        if kind == "leaf":
            return value.get("value")
        if kind == "pyref":
            return NamedObject(self._name(value))
        if kind == "ref":
            return self._referred(value.get("key"), depth)
        return self._object(value, depth)

    def _referred(self, key: object, depth: int) -> Any:
        if not isinstance(key, str) or key not in self._objects:
            raise FormatError("a reference leads nowhere", file=self._file, found=torch_files.brief(key))
        if key in self._open:
            raise FormatError("an object refers to itself", file=self._file, found=repr(key)[:60])
        if key not in self._done:
            self._open.add(key)
            self._done[key] = self._object(self._objects[key], depth + 1)
            self._open.discard(key)
        return self._done[key]

    def _object(self, value: Any, depth: int) -> Any:
        items = value.get("items") if isinstance(value, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, list) and len(item) == 2 for item in items):
            raise FormatError("an object of the graph has no items", file=self._file, found=torch_files.brief(value))
        held = {self._element(element): self.value(item, depth + 1) for element, item in items}
        if len(held) != len(items):
            raise FormatError(
                "an object gives an item twice", file=self._file, found=", ".join(str(i[0]) for i in items)[:120]
            )
        kind = self._name(value.get("type"))
        if kind == "builtins.dict":
            return held
        if kind in ("builtins.list", "builtins.tuple"):
            return list(held.values())
        return Call(self._called(value, depth) if kind in _CALLS else kind, held)

    def _called(self, value: Mapping[str, Any], depth: int) -> str:
        metadata = value.get("metadata")
        if isinstance(metadata, dict) and metadata.get("type") == "ref":
            metadata = self._objects.get(str(metadata.get("key")))
        items = metadata.get("items") if isinstance(metadata, dict) else None
        for item in items if isinstance(items, list) else []:
            if isinstance(item, list) and len(item) == 2 and self._element(item[0]) == "fn_or_cls":
                called = self.value(item[1], depth + 1)
                if isinstance(called, NamedObject):
                    return called.name
        raise FormatError(
            "nothing says what is called", file=self._file, found=torch_files.brief(metadata), expected="fn_or_cls"
        )

    def _element(self, text: object) -> str:
        match = _ELEMENT.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise FormatError("an item of the graph has no name", file=self._file, found=torch_files.brief(text))
        return next(part for part in match.groups() if part is not None)

    def _name(self, value: object) -> str:
        if isinstance(value, dict) and isinstance(value.get("module"), str) and isinstance(value.get("name"), str):
            return dotted(f"{value['module']}.{value['name']}")
        raise FormatError(
            "a type of the graph has no name", file=self._file, found=torch_files.brief(value), expected="module, name"
        )


# --- writing -----------------------------------------------------------------------------------------------------------


def write_graph(root: Call) -> dict[str, Any]:
    """The graph of a call, with what fiddle needs to make it again and no more."""
    writer = _Writer()
    key = writer.call(root, "<root>")
    return {
        "root": {"type": "ref", "key": key},
        "objects": writer.objects,
        "refcounts": dict.fromkeys(writer.objects, 1),
        "version": "0.0.1",
    }


def _pyref(name: str) -> dict[str, str]:
    module, _, leaf = name.rpartition(".")
    return {"type": "pyref", "module": module, "name": leaf}


class _Writer:
    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}

    def call(self, call: Call, path: str) -> str:
        """Enter a call, what it is given first; returns its key."""
        items = [
            [f"Attr(name='{name}')", self.value(value, f"{path}.{name}")] for name, value in call.arguments.items()
        ]
        called = [
            ["Attr(name='fn_or_cls')", _pyref(call.target)],
            ["Attr(name='argument_names')", self._ref("tuple", self._sequence("tuple", list(call.arguments)))],
            ["Attr(name='argument_tags')", self._ref("dict", self._mapping())],
            ["Attr(name='argument_history')", self._ref("dict", self._mapping())],
        ]
        # fiddle wants the class itself as the metadata of its metadata
        module, name = _METADATA
        own = {"type": "pyref", "module": module, "name": name}
        metadata = self._ref("metadata", {"type": own, "items": called, "metadata": own})
        body = {"type": _pyref(_CALLS[0]), "items": items, "metadata": metadata, "paths": [path]}
        return str(self._ref(_snake(call.target), body)["key"])

    def value(self, value: Any, path: str) -> dict[str, Any]:
        if isinstance(value, Call):
            return {"type": "ref", "key": self.call(value, path)}
        if isinstance(value, NamedObject):
            return {**_pyref(value.name), "paths": [path]}
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            items = [self.value(item, f"{path}[{index}]") for index, item in enumerate(value)]
            return self._ref(kind, {**self._sequence(kind, items), "paths": [path]})
        return {"type": "leaf", "value": value, "paths": [path]}

    def _ref(self, stem: str, body: dict[str, Any]) -> dict[str, Any]:
        number = 1
        while f"{stem}_{number}" in self.objects:
            number += 1
        self.objects[f"{stem}_{number}"] = body
        return {"type": "ref", "key": f"{stem}_{number}"}

    def _sequence(self, kind: str, items: list[Any]) -> dict[str, Any]:
        return {
            "type": _pyref(f"builtins.{kind}"),
            "items": [[f"Index(index={index})", item] for index, item in enumerate(items)],
            "metadata": None,
        }

    def _mapping(self) -> dict[str, Any]:
        return {"type": _pyref("builtins.dict"), "items": [], "metadata": self._sequence("tuple", [])}


def _snake(name: str) -> str:
    """`Llama31Config` as `llama31_config`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(".")[2]).lower()
