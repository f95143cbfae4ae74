"""The kit itself: its examples and variations reach every corner of the schema, and its checkpoints are sound."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt_core import open_checkpoint
from ckpt_core.architecture import Architecture, Classifier, from_json, parameters, to_json
from ckpt_core.checkpoint import Placement
from ckpt_core.errors import Problems
from ckpt_core.layout import BoundTables, Table, row
from ckpt_core.storage.dtypes import FP32
from ckpt_core.testing import example, example_architectures, variations, write_ir
from ckpt_core.testing.laws.sentences import layers_out_of_order, ranks_out_of_order

VARIED = ("llama", "gpt2", "moe", "latent", "t5", "vit")

# Fields that have one value yet.
ALONE = {("Classifier", "pooling")}
# What is varied by hand in models that hold it, not as a variation of another.
NOT_VARIED = {"LatentAttention", "RelativeBias", "Patches", "Classifier", "Indexer", "Temperature", "Transform"}


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
    for name in (*VARIED[:3], "delta", "mamba", "one-block", "seeing", "seeing-whole"):
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
        if re.search(r"(classifier|head)\.dense|embedding\.patches", parameter.name):
            continue  # square by their nature
        if re.search(r"vision\.(patches|projector|taps)", parameter.name):
            continue  # squares of pixels, and of patches
        if re.search(r"predictors\.\d+\.(embed|hidden)\.weight", parameter.name):
            continue  # each half of a predictor's projection, too: sentences say which of its axes is which
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


def test_exchanged_layers_and_ranks_are_seen() -> None:
    """By the names in files; that a reader exchanges them back is no excuse."""
    tables = [Table("block{l}", to="layers.{l}", rows=[row("down", "h f", "mlp.down.weight", tp="f")])]
    bound = BoundTables(tables, example("llama"))

    def placed(name: Callable[[int], int], file: Callable[[int], int]) -> list[Placement]:
        halves = [BoundTables._natives(bound, {"tp": (rank, 2)}, Problems("")) for rank in (0, 1)]
        return [
            Placement(replace(native, name=f"block{name(native.layer)}.down"), FP32, f"rank-{file(rank)}", 0)
            for rank, natives in enumerate(halves)
            for native in natives
        ]

    right = placed(lambda layer: layer, lambda rank: rank)
    assert [*layers_out_of_order(right, {}), *ranks_out_of_order(right)] == []
    layers = placed(lambda layer: 5 - layer, lambda rank: rank)
    assert (
        next(layers_out_of_order(layers, {})) == "layer 0 is called 'block5.down' in rank-0, and layer 1 'block4.down'"
    )
    ranks = placed(lambda layer: layer, lambda rank: 1 - rank)
    assert next(ranks_out_of_order(ranks)) == "rank-1 holds what comes before rank-0 of 'block0.down'"
