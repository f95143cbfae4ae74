"""Lines that differ from layer to layer: which layers have a thing, and a fact of those that lack it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.architecture import Facts, PerLayer
from ckpt_core.config.entry import AS_LEFT_OUT, REQUIRED, Entry, literal, uniform
from ckpt_core.config.rules import Rule
from ckpt_core.config.values import ValueType, checked
from ckpt_core.errors import CkptError, Refusal
from ckpt_core.lean import dataclass


@dataclass(frozen=True)
class ByLayer(Entry):
    """A key that says which layers have a thing, whose other facts are those of other lines."""

    key: str
    path: str
    rule: Rule
    default: object
    plain: object
    count: str
    null: object = AS_LEFT_OUT

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    @property
    def claims(self) -> tuple[str, ...]:
        return (f"{self.path}?",)

    @property
    def uses(self) -> tuple[str, ...]:
        return (self.path, f"{self.path}.*", self.count)

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        value = config.get(self.key)
        if value is None:
            value = self.default if self.key not in config or self.null is AS_LEFT_OUT else self.null
        if value is REQUIRED:
            raise CkptError(f"key {self.key!r} does not choose layers", found="null", expected=self.rule.words)
        if value is None or facts.present(self.path) is False or self.count not in facts:
            return
        layers = self.rule.read(value, facts[self.count])
        if layers is None:
            raise CkptError(
                f"key {self.key!r} does not choose layers",
                found=repr(value)[:80],
                expected=f"{self.rule.words} ({facts[self.count]} layers)",
            )
        if not all(layers):
            facts[f"{self.path}?"] = PerLayer(layers)

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        present = facts.present(self.path)
        if self.plain is not AS_LEFT_OUT and not isinstance(present, PerLayer):
            config[self.key] = self.plain
            return
        if self.count not in facts:  # another kind of model: its stacks have layers of their own
            raise Refusal(f"{self.key} chooses layers of one stack", found=f"no {self.count}", fact=self.count)
        layers = tuple(present) if isinstance(present, PerLayer) else (present,) * facts[self.count]
        value = self.rule.write(layers)
        if value is None:
            found = [index for index, here in enumerate(layers) if here]
            raise Refusal(
                f"{self.key} chooses {self.rule.words}",
                found=f"{self.path} in layers {found} of {len(layers)}",
                fact=f"{self.path}?",
            )
        config[self.key] = value

    def words(self) -> str:
        default = "" if self.default is None else f"; by default {literal(self.default)}"
        return f"which layers have `{self.path}`: {self.rule.words}{default}"


def by_layer(
    key: str,
    path: str,
    rule: Rule,
    *,
    default: object = None,
    plain: object = AS_LEFT_OUT,
    layers: str = "layers",
    null: object = AS_LEFT_OUT,
) -> ByLayer:
    """`key` says which layers have the thing at `path`, by a `rule`: `each()`, `every_nth()`, `first_layers()`, `indices()`, `~rule`.

    `default` is the value that an absent or null key means (None: every layer). `plain` is written where all layers are alike,
    in place of what the rule has for them. `layers` is the fact with their number. `null` is what null means, if not the same.
    """
    return ByLayer(key, path, rule, default, plain, layers, null)


@dataclass(frozen=True)
class InOtherLayers(Entry):
    """A key that says a fact of the layers that lack something; where no layer lacks it, the value is a note."""

    key: str
    path: str
    than: str
    unused: str
    fallback: str
    count: str
    type: ValueType | None
    default: object

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    @property
    def claims(self) -> tuple[str, ...]:
        return (self.path, f"{self.path}?")

    @property
    def uses(self) -> tuple[str, ...]:
        return (self.than, f"{self.than}.*", f"{self.than}?")

    def read(self, config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        value = config.get(self.key)
        value = self.default if value is None else checked(self.key, value, self.type)
        others = facts.present(self.than)
        if others is True:
            if value is not None:
                notes[self.unused] = value
            return
        if value is None:
            raise CkptError(f"key {self.key!r} is missing")
        facts[self.path] = value
        if isinstance(others, PerLayer):
            facts[f"{self.path}?"] = PerLayer(not here for here in others)

    def write(self, facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        others, here = facts.present(self.than), facts.present(self.path)
        lacking = PerLayer(not one for one in others) if isinstance(others, PerLayer) else not others
        if here != lacking:
            raise Refusal(
                f"every layer has either {self.path} or {self.than}",
                found=f"{self.path} in layers: {here}, {self.than}: {others}",
                fact=self.claims,
            )
        value = uniform(facts, self.path)
        if value is None:
            value = notes.get(self.unused) or (uniform(facts, self.fallback) if self.fallback else None)
        config[self.key] = value

    def words(self) -> str:
        return f"`{self.path}` of the layers without `{self.than}`; where every layer has it, note `{self.unused}`"


def in_other_layers(
    key: str,
    path: str,
    *,
    than: str,
    unused: str,
    fallback: str = "",
    layers: str = "layers",
    type: ValueType | None = None,
    default: object = None,
) -> InOtherLayers:
    """`key` says the fact at `path` of the layers that lack the thing at `than`: the width of an MLP beside experts.

    Where every layer has the thing, the value is kept as the note `unused`; to write such a model, the note is written, or the fact at
    `fallback`.
    """
    return InOtherLayers(key, path, than, unused, fallback, layers, type, default)
