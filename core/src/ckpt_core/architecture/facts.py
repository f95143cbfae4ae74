"""An architecture as a flat table of facts, and back: the ground that config fields stand on.

Frameworks write flat configs with one value for all layers (`num_attention_heads: 32`) and now and
then a pattern (`no_rope_layers: [1, 1, 1, 0]`). `Facts` bridges the two views:

    facts["attention.heads"]        32, the value of every layer that has one
    facts["attention.window"]       4096, though only some layers have a window ...
    facts["attention.window?"]      ... namely PerLayer((True, False, True, False))
    facts["layers"]                 how many layers there are
    facts["kind"]                   "decoder", "encoder" or "encoder-decoder"

A value that differs between layers is a `PerLayer`. In an encoder-decoder the paths of a stack carry
its name (`encoder.attention.heads`); otherwise they carry none. Those of a vision tower begin with `vision.`: `vision.attention.heads`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

from ckpt_core.architecture.schema import Architecture, Layer, RotaryKind, Stack, Vision
from ckpt_core.architecture.serial import field_types, is_schema_class, optional_of
from ckpt_core.architecture.validity import validate
from ckpt_core.errors import CkptError, did_you_mean


class PerLayer(tuple):
    """One value per layer of a stack; None where a layer has no such thing."""

    __slots__ = ()


class Facts(dict[str, Any]):
    """A flat view of an architecture; see the module's docstring for the paths."""

    def present(self, path: str) -> bool | PerLayer:
        """Whether the optional thing at `path` exists: True, False, or a PerLayer of both."""
        if f"{path}?" in self:
            return self[f"{path}?"]
        return any(key == path or key.startswith(f"{path}.") for key in self)


_RELATIVE = 1e-12
_KINDS = {"decoder": ("decoder",), "encoder": ("encoder",), "encoder-decoder": ("encoder", "decoder")}


def facts_of(architecture: Architecture) -> Facts:
    """The facts of `architecture`. Things that do not exist have no entry."""
    facts = Facts()
    stacks = {name: stack for name in ("encoder", "decoder") if (stack := getattr(architecture, name)) is not None}
    facts["kind"] = "-".join(stacks)
    for field in dataclasses.fields(Architecture):
        if field.name not in ("encoder", "decoder", "vision"):
            _collect(facts, field.name, field_types(Architecture)[field.name], [getattr(architecture, field.name)])
    if architecture.vision is not None:
        for field in dataclasses.fields(Vision):
            if field.name != "stack":
                value = getattr(architecture.vision, field.name)
                _collect(facts, f"vision.{field.name}", field_types(Vision)[field.name], [value])
        _collect_stack(facts, "vision.", architecture.vision.stack)
    for name, stack in stacks.items():
        _collect_stack(facts, f"{name}." if len(stacks) == 2 else "", stack)
    return facts


def _collect_stack(facts: Facts, prefix: str, stack: Stack) -> None:
    facts[f"{prefix}layers"] = len(stack.layers)
    for field in dataclasses.fields(Stack):
        if field.name != "layers":
            _collect(facts, f"{prefix}{field.name}", field_types(Stack)[field.name], [getattr(stack, field.name)])
    for field in dataclasses.fields(Layer):
        column = [getattr(layer, field.name) for layer in stack.layers]
        _collect(facts, f"{prefix}{field.name}", field_types(Layer)[field.name], column)


def same_value(one: object, two: object) -> bool:
    """Whether two values of a fact are one: numbers to within a relative 1e-12, all others exactly.

    Formats compute a scale from other numbers, each in an order of its own, and the last bits of a float64 follow the order.
    """
    if isinstance(one, tuple) and isinstance(two, tuple):
        return len(one) == len(two) and all(map(same_value, one, two))
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=_RELATIVE)
    return one == two


def differing(one: Facts, two: Facts) -> list[str]:
    """The paths, sorted, at which two models differ.

    A scale of scores that is not said is the usual one, and so are the range of a yarn and its rounding. Beside the factor of a
    yarn's cosines, the numbers that it would follow from say nothing.
    """
    return [
        path
        for path in sorted(one.keys() | two.keys())
        if not same_value(_said_or_usual(one, path), _said_or_usual(two, path))
    ]


_YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
"""What a yarn has that does not say it."""


def _said_or_usual(facts: Facts, path: str) -> object:
    owner, _, field = path.rpartition(".")
    if facts.get(f"{owner}.kind") == RotaryKind.YARN:
        if field in ("mscale", "mscale_all_dim") and f"{owner}.attention_factor" in facts:
            return None
        return facts.get(path, _YARN.get(field))
    if path in facts or field != "scale":
        return facts.get(path)
    widths = [facts.get(f"{owner}.{name}", 0) for name in ("head_dim", "nope_dim", "rope_dim")]
    usual = owner.endswith("attention") and all(isinstance(width, int) for width in widths) and any(widths)
    return sum(widths) ** -0.5 if usual else None


def _collect(facts: Facts, path: str, annotation: Any, column: list) -> None:
    """Enter one field, given its value in every layer (or once, outside layers)."""
    annotation, _ = optional_of(annotation)
    present = [value is not None for value in column]
    if not any(present):
        return
    if not all(present):
        facts[f"{path}?"] = PerLayer(present)
    if is_schema_class(annotation):
        for field in dataclasses.fields(annotation):
            inner = [None if value is None else getattr(value, field.name) for value in column]
            _collect_inner(facts, f"{path}.{field.name}", field_types(annotation)[field.name], inner, present)
        return
    values = {value for value in column if value is not None}
    facts[path] = values.pop() if len(values) == 1 else PerLayer(column)


def _collect_inner(facts: Facts, path: str, annotation: object, column: list, owner: list[bool]) -> None:
    """Like `_collect`, but layers without the owner do not count as layers without the field."""
    kept = [value for value, exists in zip(column, owner, strict=True) if exists]
    if all(owner) or any(value is None for value in kept):
        _collect(facts, path, annotation, column)
        return
    inner = Facts()
    _collect(inner, path, annotation, kept)
    for key, value in inner.items():
        spread = iter(value) if isinstance(value, PerLayer) else None
        facts[key] = value if spread is None else PerLayer(next(spread) if exists else None for exists in owner)


def architecture_of(facts: Facts, source: str) -> Architecture:
    """The architecture that `facts` describe, validated; unknown or missing facts are errors naming `source`."""
    kind = facts.get("kind")
    if kind not in _KINDS:
        raise CkptError("no such kind of model", file=source, found=kind, expected=" | ".join(_KINDS))
    unknown = sorted(facts.keys() - _paths_of(kind))
    if unknown:
        raise CkptError(
            "facts that the schema does not know",
            file=source,
            found=", ".join(unknown),
            fix=did_you_mean(unknown[0], _paths_of(kind)),
        )
    owners = {owner for path in facts for owner in _owners(path)}
    values: dict[str, object] = {
        name: _build_stack(facts, prefix, owners, source)
        for name, prefix in zip(_KINDS[kind], _prefixes(kind), strict=True)
    }
    values |= _build_fields(facts, "", Architecture, None, owners, source)
    if "vision" in owners:
        values["vision"] = _build_vision(facts, owners, source)
    return validate(_construct(Architecture, values, "", source), source)


def _build_stack(facts: Facts, prefix: str, owners: set[str], source: str) -> Stack:
    count = facts.get(f"{prefix}layers")
    if type(count) is not int or not 0 < count <= 100_000:
        raise CkptError(
            "no model has this number of layers",
            file=source,
            found=f"{prefix}layers = {count!r}",
            expected="1 to 100000",
        )
    varying = [value for key, value in facts.items() if isinstance(value, PerLayer) and key.startswith(prefix)]
    built: dict[str, Layer] = {}
    shared: dict[Layer, Layer] = {}

    def layer(index: int) -> Layer:
        said = repr([value[index : index + 1] for value in varying])
        if said not in built:
            values = _build_fields(facts, prefix, Layer, index, owners, source)
            new = _construct(Layer, values, f"{prefix}layers.{index}", source)
            built[said] = shared.setdefault(new, new)  # equal layers share one object
        return built[said]

    layers = tuple(layer(index) for index in range(count))
    values = _build_fields(facts, prefix, Stack, None, owners, source)
    return _construct(Stack, {"layers": layers, **values}, prefix, source)


def _build_vision(facts: Facts, owners: set[str], source: str) -> Vision:
    stack = _build_stack(facts, "vision.", owners, source)
    fields = _build_fields(facts, "vision.", Vision, None, owners, source)
    return _construct(Vision, {"stack": stack, **fields}, "vision", source)


def _build_fields(
    facts: Facts, prefix: str, cls: type, index: int | None, owners: set[str], source: str
) -> dict[str, object]:
    """The fields of `cls` that the facts give in layer `index`, but for stacks and layers."""
    values: dict[str, object] = {}
    for name, annotation, is_class in _fields(cls):
        path = f"{prefix}{name}"
        # most things that a model could have it does not have: no fact lies below their path
        if is_class and path not in owners and f"{path}?" not in facts:
            continue
        if not _at(facts.get(f"{path}?", True), index, path, source):
            continue
        if is_class:
            inner = _build_fields(facts, f"{path}.", annotation, index, owners, source)
            if inner:
                values[name] = _construct(annotation, inner, path, source)
        elif path in facts:
            value = _at(facts[path], index, path, source)
            if value is not None:
                values[name] = _typed(annotation, value, path, source)
    return values


@functools.cache
def _fields(cls: type) -> tuple[tuple[str, Any, bool], ...]:
    """The fields of a schema class, but for stacks and layers: name, type, and whether that is such a class."""
    found = []
    for field in dataclasses.fields(cls):
        annotation, _ = optional_of(field_types(cls)[field.name])
        if annotation not in (Stack, Vision) and field.name != "layers":
            found.append((field.name, annotation, is_schema_class(annotation)))
    return tuple(found)


@functools.cache
def _owners(path: str) -> tuple[str, ...]:
    """The paths that `path` lies below."""
    return tuple(path[:end] for end, character in enumerate(path) if character == ".")


def _prefixes(kind: str) -> list[str]:
    """What the paths of each stack begin with."""
    names = _KINDS[kind]
    return [f"{name}." if len(names) == 2 else "" for name in names]


@functools.cache
def every_path() -> frozenset[str]:
    """Every path that facts of any model may have, and those above it."""
    paths = frozenset[str]().union(*map(_paths_of, _KINDS))
    return paths | {owner for path in paths for owner in _owners(path)}


@functools.cache
def _paths_of(kind: str) -> frozenset[str]:
    """Every path that facts of this kind of model may have."""
    paths = {"kind", *_walk(Architecture, ""), *_walk(Vision, "vision.")}
    for prefix in [*_prefixes(kind), "vision."]:
        paths |= {f"{prefix}layers", *_walk(Stack, prefix), *_walk(Layer, prefix)}
    return frozenset(paths)


def _typed(annotation: Any, value: Any, path: str, source: str) -> object:
    """A leaf of the annotated type; whole numbers pass for floats, names for enums."""
    if annotation is float and type(value) is int:
        return float(value)
    if type(value) is annotation:
        return value
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        try:
            return annotation(value)
        except ValueError:
            raise CkptError(f"{path} has no value {value!r}", file=source, expected=" | ".join(annotation)) from None
    if typing.get_origin(annotation) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(typing.get_args(annotation)[0], item, path, source) for item in value)
    raise CkptError(
        f"{path} has a value of the wrong type",
        file=source,
        found=repr(value)[:80],
        expected=getattr(annotation, "__name__", str(annotation)),
    )


def _walk(cls: type, prefix: str) -> Iterator[str]:
    for name, annotation, is_class in _fields(cls):
        yield f"{prefix}{name}?"
        if is_class:
            yield from _walk(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _at(value: object, index: int | None, path: str, source: str) -> object:
    if not isinstance(value, PerLayer):
        return value
    if index is None or index >= len(value):
        raise CkptError(f"{path} gives {len(value)} values", file=source, expected="one value per layer")
    return value[index]


def _construct(cls: type, values: dict[str, Any], path: str, source: str) -> Any:
    missing = [name for name in _required(cls) if name not in values]
    if missing:
        raise CkptError(f"{path or 'architecture'} lacks {', '.join(missing)}", file=source)
    return cls(**values)


@functools.cache
def _required(cls: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING)


@functools.cache
def default_of(path: str) -> object:
    """The schema's default of the field at a fact's `path`; `dataclasses.MISSING` if it has none.

    This is what "does not happen" means: a format that can't say a field may still hold its default.
    """
    parts = path.split(".")
    roots = [Layer, Stack, Architecture]
    if parts[0] == "vision":
        parts, roots = parts[1:], [Layer, Stack, Vision]
    if parts[0] in ("encoder", "decoder"):
        parts = parts[1:]
    cls: Any = next((root for root in roots if parts[0] in field_types(root)), None)
    for part in parts[:-1]:
        cls, _ = optional_of(field_types(cls)[part])
    field = next((f for f in dataclasses.fields(cls) if f.name == parts[-1]), None) if cls else None
    if field is None:
        raise KeyError(path)
    return field.default
