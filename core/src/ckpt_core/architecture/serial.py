"""Architectures as JSON and back: strict, versioned, and short.

Fields at their default are left out. Equal neighbouring layers are written once with a `count`.
Decoding accepts exactly the schema: an unknown field, a missing one or a wrong type is an error
that names the path and the nearest known field.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import types
import typing
from typing import Any, TypeGuard

from ckpt_core.architecture.schema import SCHEMA_VERSION, Architecture, Layer
from ckpt_core.architecture.validity import validate
from ckpt_core.errors import CkptError, did_you_mean


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """The resolved annotations of a schema class."""
    return typing.get_type_hints(cls)


def optional_of(annotation: Any) -> tuple[Any, bool]:
    """`X | None` as (X, True); anything else as (itself, False)."""
    if isinstance(annotation, types.UnionType) and type(None) in annotation.__args__:
        (inner,) = (argument for argument in annotation.__args__ if argument is not type(None))
        return inner, True
    return annotation, False


def is_schema_class(annotation: object) -> TypeGuard[type]:
    """Whether an annotation is a class of the schema, with fields of its own."""
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def to_json(architecture: Architecture) -> dict[str, object]:
    """The architecture as plain JSON values."""
    return {"schema": SCHEMA_VERSION, **_encode(architecture)}


def dumps(architecture: Architecture) -> str:
    """The text of an `architecture.json`."""
    return json.dumps(to_json(architecture), indent=2) + "\n"


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            field.name: _encode_layers(getattr(value, field.name))
            if field.name == "layers"
            else _encode(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.default is dataclasses.MISSING or getattr(value, field.name) != field.default
        }
    if isinstance(value, enum.Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value


def _encode_layers(layers: tuple[Layer, ...]) -> list[object]:
    runs: list[list] = []
    for layer in layers:
        if runs and runs[-1][1] == layer:
            runs[-1][0] += 1
        else:
            runs.append([1, layer])
    return [{"count": count, **_encode(layer)} for count, layer in runs]


def from_json(value: object, source: str = "architecture.json") -> Architecture:
    """The architecture that `value` (parsed JSON) describes, validated."""
    if not isinstance(value, dict):
        raise CkptError("an architecture is a JSON object", file=source, found=type(value).__name__)
    body = dict(value)
    version = body.pop("schema", None)
    if version != SCHEMA_VERSION:
        raise CkptError(
            "unknown architecture schema",
            file=source,
            found=version,
            expected=SCHEMA_VERSION,
            fix="use the ckpt version that wrote it",
        )
    return validate(_decode(Architecture, body, "", source), source)


def _decode(annotation: Any, value: Any, path: str, source: str) -> Any:
    annotation, optional = optional_of(annotation)
    if value is None and optional:
        return None
    if is_schema_class(annotation):
        return _decode_object(annotation, value, path, source)
    if typing.get_origin(annotation) is tuple:
        if not isinstance(value, list):
            raise _wrong(path, value, "a list", source)
        element = typing.get_args(annotation)[0]
        if element is Layer:
            return _decode_layers(value, path, source)
        return tuple(_decode(element, item, f"{path}[{index}]", source) for index, item in enumerate(value))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        if value not in [member.value for member in annotation]:
            raise _wrong(path, value, " | ".join(member.value for member in annotation), source)
        return annotation(value)
    if annotation is float and type(value) is int:
        return float(value)
    if type(value) is not annotation:
        raise _wrong(path, value, annotation.__name__, source)
    return value


def _decode_object(cls: type, value: object, path: str, source: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(path, value, f"an object ({cls.__name__})", source)
    hints = field_types(cls)
    for key in value:
        if key not in hints:
            raise CkptError(f"unknown field {_join(path, key)!r}", file=source, fix=did_you_mean(key, hints))
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.name not in value:
            raise CkptError(f"missing field {_join(path, field.name)!r}", file=source)
    return cls(**{key: _decode(hints[key], item, _join(path, key), source) for key, item in value.items()})


def _decode_layers(value: list, path: str, source: str) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    for index, run in enumerate(value):
        here = f"{path}[{index}]"
        if not isinstance(run, dict):
            raise _wrong(here, run, "an object (Layer)", source)
        body = dict(run)
        count = body.pop("count", 1)
        if type(count) is not int or not 0 < count <= 100_000:
            raise _wrong(f"{here}.count", count, "an int from 1 to 100000", source)
        layers.extend([_decode_object(Layer, body, here, source)] * count)
    return tuple(layers)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _wrong(path: str, value: object, expected: str, source: str) -> CkptError:
    return CkptError(
        f"field {path!r} has the wrong type or value", file=source, found=repr(value)[:80], expected=expected
    )
