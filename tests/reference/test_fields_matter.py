"""Every field of the schema means something: changing it changes what the reference computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support.random_model import RandomModel

from ckpt_core.architecture import Architecture, Layer, RelativeBias
from ckpt_core.reference import Inputs, forward, random_inputs
from ckpt_core.testing.examples import example_architectures
from ckpt_core.testing.variations import variations

POSITIONS = 70  # more than every window, and than every length that a rotary scaling was trained for
MOVED = 1e-7  # of the largest output; an equal computation gives equal bits
INERT = {
    "tokens.padded_vocabulary",  # padding rows are no tokens
    "kind",  # a lone stack is called encoder or decoder; what it does is `causal`
}
EXAMPLES = example_architectures()


torch.set_num_threads(1)


def output(architecture: Architecture, inputs: Inputs) -> torch.Tensor:
    *_, last = forward(RandomModel(architecture), inputs)
    return last.values


def differs(base: Architecture, varied: Architecture) -> bool:
    if (base.patches is None) != (varied.patches is None):
        return True
    inputs = random_inputs([base, varied], POSITIONS)
    one, two = output(base, inputs), output(varied, inputs)
    if one.shape[:-1] != two.shape[:-1]:
        return True
    columns = min(one.shape[-1], two.shape[-1])
    one, two = one[..., :columns], two[..., :columns]
    return float((one - two).abs().max()) > MOVED * float(one.abs().max())


def _relative(architecture: Architecture) -> bool:
    return any(stack.relative_bias is not None for stack in architecture.stacks.values())


def _first_model_of_each_fact() -> dict[str, tuple[Architecture, Architecture]]:
    """Every variation of every example, each in the first model that it is a variation of."""
    found: dict[str, tuple[Architecture, Architecture]] = {}
    for base in EXAMPLES.values():
        if len(base.stacks) == 1:
            for fact, varied in variations(base).items():
                if not fact.startswith("attention.relative_bias_scale") or _relative(base):
                    found.setdefault(fact, (base, varied.architecture))
    return found


FACTS = _first_model_of_each_fact()


@pytest.mark.parametrize("fact", [fact for fact in FACTS if fact not in INERT])
def test_a_changed_fact_changes_the_output(fact: str) -> None:
    assert differs(*FACTS[fact])


@pytest.mark.parametrize("fact", sorted(INERT))
def test_what_is_inert_is(fact: str) -> None:
    assert not differs(*FACTS[fact])


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
    assert differs(EXAMPLES["t5"], CROSSED[fact](EXAMPLES["t5"]))
