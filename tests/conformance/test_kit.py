"""The kit itself: its examples and variations reach every corner of the schema, and its checkpoints are sound."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt_core import open_checkpoint
from ckpt_core.architecture import Architecture, Classifier, from_json, parameters, to_json
from ckpt_core.testing import example, example_architectures, variations, write_ir

VARIED = ("llama", "gpt2", "moe", "latent", "t5", "vit")

# Fields that have one value yet.
ALONE = {("Classifier", "pooling")}
# What is varied by hand in models that hold it, not as a variation of another.
NOT_VARIED = {"LatentAttention", "RelativeBias", "Patches", "Classifier"}


def values_of(value: object) -> Iterator[tuple[str, str, object]]:
    """(class, field, value) of everything inside an architecture."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            yield type(value).__name__, field.name, inner
            yield from values_of(inner)
    elif isinstance(value, tuple):
        for item in dict.fromkeys(value):
            yield from values_of(item)


def all_architectures() -> Iterator[Architecture]:
    examples = example_architectures()
    yield from examples.values()
    for name in VARIED[:3]:
        yield from (variation.architecture for variation in variations(examples[name]).values())


def test_every_field_of_the_schema_is_varied() -> None:
    seen: dict[tuple[str, str], set[object]] = {}
    for architecture in all_architectures():
        for cls, field, value in values_of(architecture):
            seen.setdefault((cls, field), set()).add(value)
    same = {key for key, values in seen.items() if len(values) < 2 and key[0] not in NOT_VARIED}
    assert same == set() or same <= ALONE, f"fields that no example or variation changes: {sorted(same - ALONE)}"
    assert {cls for cls, _ in seen} >= NOT_VARIED


@pytest.mark.parametrize("name", example_architectures())
def test_axes_have_different_sizes(name: str) -> None:
    """Within each parameter, no two axes have the same size."""
    for parameter in parameters(example(name)).values():
        if "classifier.dense" in parameter.name or "embedding.patches" in parameter.name:
            continue  # square by their nature
        sizes = [size for size in parameter.shape if size > 1]
        assert len(sizes) == len(set(sizes)), str(parameter)


@pytest.mark.parametrize("name", example_architectures())
def test_examples_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    architecture = example(name)
    assert from_json(to_json(architecture)) == architecture
    with open_checkpoint(write_ir(tmp_path / "ir", architecture)) as checkpoint:
        assert checkpoint.architecture == architecture
        assert list(checkpoint) == list(parameters(architecture))


def test_a_variation_is_named() -> None:
    found = variations(example("llama"))
    theta = found["attention.rotary.theta"]
    assert theta.named_in("it has no attention.rotary.theta")
    assert theta.named_in("rope_theta: theta is fixed")
    assert not theta.named_in("this does not fit")
    assert Classifier.__name__ not in found
