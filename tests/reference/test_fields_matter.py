"""Every field of the schema means something: changing it changes what the reference computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from ckpt_core.architecture import Architecture, Layer, RelativeBias
from ckpt_core.testing.examples import example_architectures
from ckpt_core.testing.functions import apart, outputs
from ckpt_core.testing.variations import variations
from ckpt_tests.random_model import RandomModel

MOVED = 1e-6  # of the largest output; what is inert may still round otherwise
EXAMPLES = example_architectures()


def moved(base: Architecture, varied: Architecture) -> float:
    """How far the outputs of two models are apart, in units of the largest one."""
    if _reads(base) != _reads(varied):
        return math.inf
    one, two = outputs(RandomModel(base), RandomModel(varied))
    return apart(one, two) / float(one.abs().max())


def _reads(model: Architecture) -> tuple[object, ...]:
    """What the inputs of a model are made for."""
    seen = model.vision
    if seen is None:
        return (model.patches is None,)
    images = seen.patch, seen.channels, seen.frames, seen.image, seen.projector.merge
    return *images, seen.token, seen.video_token


def _relative(architecture: Architecture) -> bool:
    return any(stack.relative_bias is not None for stack in architecture.stacks.values())


def _first_model_of_each_fact() -> dict[tuple[str, bool], tuple[Architecture, Architecture]]:
    """Every variation of every example, and whether it is inert, in the first model that it is a variation of."""
    found: dict[tuple[str, bool], tuple[Architecture, Architecture]] = {}
    for base in EXAMPLES.values():
        if len(base.stacks) == 1:
            for fact, varied in variations(base).items():
                if not fact.startswith("attention.relative_bias_scale") or _relative(base):
                    found.setdefault((fact, varied.inert), (base, varied.architecture))
    return found


FACTS = _first_model_of_each_fact()


@pytest.mark.parametrize("fact", [fact for fact, inert in FACTS if not inert])
def test_a_changed_fact_changes_the_output(fact: str) -> None:
    assert moved(*FACTS[fact, False]) > MOVED


@pytest.mark.parametrize("fact", [fact for fact, inert in FACTS if inert])
def test_what_is_inert_is(fact: str) -> None:
    assert moved(*FACTS[fact, True]) <= MOVED


def _in_decoder(change: Callable[[Layer], Layer]) -> Callable[[Architecture], Architecture]:
    def whole(model: Architecture) -> Architecture:
        return replace(model, decoder=replace(model.decoder, layers=tuple(map(change, model.decoder.layers))))

    return whole


BUCKETS = RelativeBias(buckets=26, max_distance=64, bidirectional=True)
# What only a model with an encoder and a decoder has.
CROSSED: dict[str, Callable[[Architecture], Architecture]] = {
    "cross_attention.scale": _in_decoder(lambda x: replace(x, cross_attention=replace(x.cross_attention, scale=0.3))),
    "cross_attention.norm": _in_decoder(lambda x: replace(x, cross_attention=replace(x.cross_attention, norm=None))),
    "cross_attention": _in_decoder(lambda x: replace(x, cross_attention=None)),
    "relative_bias_scale": _in_decoder(lambda x: replace(x, attention=replace(x.attention, relative_bias_scale=3.0))),
    "relative_bias": lambda model: replace(model, decoder=replace(model.decoder, relative_bias=None)),
    "relative_bias of the encoder": lambda model: replace(model, encoder=replace(model.encoder, relative_bias=None)),
    "cross_relative_bias": lambda model: replace(model, decoder=replace(model.decoder, cross_relative_bias=BUCKETS)),
    "final_norm of the encoder": lambda model: replace(model, encoder=replace(model.encoder, final_norm=None)),
}


@pytest.mark.parametrize("fact", CROSSED)
def test_a_changed_fact_of_two_stacks_changes_the_output(fact: str) -> None:
    assert moved(EXAMPLES["t5"], CROSSED[fact](EXAMPLES["t5"])) > MOVED
