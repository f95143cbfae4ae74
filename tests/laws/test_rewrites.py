"""A rewrite says the same function with another architecture, or leaves the model as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ckpt_core.api import read_checkpoint
from ckpt_core.architecture import Activation, Architecture, parameters
from ckpt_core.checkpoint import Checkpoint
from ckpt_core.opened import OpenCheckpoint
from ckpt_core.rewrite import (
    Rewritable,
    folded_attention_scale,
    folded_embedding_scale,
    folded_head_scale,
    folded_layer_scale,
    folded_logit_scale,
    folded_patch_bias,
    gated_relu,
    map_attentions,
    map_layers,
    normed_logit_scale,
    own_relative_bias,
    plain_relu,
    shared_relative_bias,
    tied_head,
    uncentred_norms,
    untied_head,
    vocabulary_rows,
    without_predictors,
    without_zero_biases,
    without_zero_shared_experts,
    zero_biases,
    zero_shared_experts,
)
from ckpt_core.testing import example, write_ir
from ckpt_core.testing.examples import ABSENT, calm_numbers
from ckpt_core.testing.functions import apart, outputs

TOLERANCE = 1e-4
SCALE = {"attention__scale": 0.0625}
NORMED = {"attention__qk_norm__kind": "rms", "attention__qk_norm__eps": 1e-4}
CENTRED = {f"{norm}__zero_centred": True for norm in ("attention__norm", "mlp__norm", "final_norm")}
PREDICTORS_CENTRED = {f"predictors__{part}_norm__zero_centred": True for part in ("embed", "hidden", "out")}
RELU = {"mlp__activation": Activation.RELU, "mlp__gated": False}
HEADS = {"encoder__attention__scale": 0.3, "decoder__cross_attention__scale": 0.2}
BIASED = {f"attention__{part}_bias": True for part in ("q", "k", "v")}
UNSHARED = {"mlp__moe__shared": ABSENT}
TABLES = {
    "relative_bias__buckets": 26,
    "relative_bias__max_distance": 64,
    "relative_bias__bidirectional": False,
    "attention__relative_bias_scale": 0.5,
}


def all_biases(model: Rewritable) -> Rewritable:
    def biased(layer):
        return map_attentions(layer, lambda one: replace(one, q_bias=True, k_bias=True, v_bias=True, out_bias=True))

    return zero_biases(model, map_layers(model.architecture, biased))


def there_and_back(
    there: Callable[[Rewritable], Rewritable], back: Callable[[Rewritable], Rewritable]
) -> Callable[[Rewritable], Rewritable]:
    def both(model: Rewritable) -> Rewritable:
        gone = there(model)
        returned = back(gone)
        assert returned is not gone
        return returned

    return both


EXACT: dict[str, tuple[Architecture, Callable[[Rewritable], Rewritable]]] = {
    "attention scale": (example("llama", layers=2, **SCALE), folded_attention_scale),
    "attention scale of biased queries": (example("llama", layers=2, **SCALE, **BIASED), folded_attention_scale),
    "attention scale of normed queries": (example("llama", layers=2, **SCALE, **NORMED), folded_attention_scale),
    "attention scale of queries with a whole LayerNorm": (
        example(
            "llama",
            layers=2,
            **SCALE,
            **{**NORMED, "attention__qk_norm__kind": "layer", "attention__qk_norm__bias": True},
            attention__qk_norm_whole=True,
        ),
        folded_attention_scale,
    ),
    "attention scale of one": (example("t5", **HEADS), lambda model: folded_attention_scale(model, 1.0)),
    "head scale": (example("gpt2", layers=2, attention__head_scale=True), folded_head_scale),
    "relative bias of every layer": (example("llama", layers=2, **TABLES), own_relative_bias),
    "relative bias of all layers": (
        example("llama", layers=2, **TABLES),
        there_and_back(own_relative_bias, shared_relative_bias),
    ),
    "zero biases": (example("qwen", layers=2), all_biases),
    "no zero biases": (example("llama", layers=2), there_and_back(all_biases, without_zero_biases)),
    "no zero bias of outputs": (
        example("qwen", layers=2),
        there_and_back(all_biases, lambda model: without_zero_biases(model, ".attention.out.bias")),
    ),
    "shared experts of zeros": (example("moe", layers=2, **UNSHARED), zero_shared_experts),
    "shared experts of zeros in some layers": (example("moe-mixed", **UNSHARED), zero_shared_experts),
    "no shared experts of zeros": (
        example("moe", layers=2, **UNSHARED),
        there_and_back(zero_shared_experts, without_zero_shared_experts),
    ),
    "gated relu": (example("gpt2", layers=2, **RELU), gated_relu),
    "plain relu": (example("gpt2", layers=2, **RELU), there_and_back(gated_relu, plain_relu)),
    "vocabulary rows": (example("llama-padded", layers=2), lambda model: vocabulary_rows(model, 224)),
    "untied head": (example("llama-tied", layers=2), untied_head),
    "tied head": (example("llama-tied", layers=2), there_and_back(untied_head, tied_head)),
    "logit scale": (example("llama", layers=2, head__scale=0.5, head__bias=True), folded_logit_scale),
    "logit scale of a tied head": (example("llama-tied", layers=2, head__scale=0.5), folded_logit_scale),
    "logit scale in the norm": (
        example("gpt2", layers=2, head__scale=0.5, head__bias=True),
        lambda model: normed_logit_scale(model, 0.75),
    ),
    "embedding scale": (example("llama", layers=2, tokens__scale=11.5), folded_embedding_scale),
    "embedding scale of a tied head": (example("llama-tied", layers=2, tokens__scale=11.5), folded_embedding_scale),
    "embedding scale before a norm": (example("bloom", layers=2, tokens__scale=11.5), folded_embedding_scale),
    "centred norms": (example("llama", layers=2, **CENTRED), uncentred_norms),
    "layer scale": (example("vit", layers=2, layer_scale=True), folded_layer_scale),
    "attention scale of predictors": (example("predicting", layers=2, **SCALE), folded_attention_scale),
    "head scale of predictors": (example("predicting", layers=2, attention__head_scale=True), folded_head_scale),
    "no zero biases of predictors": (
        example("predicting", layers=2),
        there_and_back(all_biases, without_zero_biases),
    ),
    "plain relu of predictors": (
        example("predicting", layers=2, **RELU),
        there_and_back(gated_relu, plain_relu),
    ),
    "embedding scale before predictors": (
        example("predicting", layers=2, tokens__scale=11.5, head__tied=True),
        folded_embedding_scale,
    ),
    "centred norms of predictors": (
        example("predicting", layers=2, **CENTRED, **PREDICTORS_CENTRED),
        uncentred_norms,
    ),
    "patch bias": (example("vit", layers=2), folded_patch_bias),
}
UNTOUCHED: dict[str, tuple[Architecture, Callable[[Rewritable], Rewritable]]] = {
    "attention scale of queries normed without weights": (
        example("llama", layers=2, **SCALE, **NORMED, attention__qk_norm__weight=False),
        folded_attention_scale,
    ),
    "attention scale of queries with a centred norm": (
        example("llama", layers=2, **SCALE, **NORMED, attention__qk_norm__zero_centred=True),
        folded_attention_scale,
    ),
    "layer scale behind a norm": (
        example("gpt2", layers=2, layer_scale=True, attention__out_norm__kind="rms", attention__out_norm__eps=1e-4),
        folded_layer_scale,
    ),
    "shared experts that have values": (example("moe", layers=2), without_zero_shared_experts),
    "experts that are shared already": (example("moe", layers=2), zero_shared_experts),
    "biases that have values": (
        example("qwen", layers=2, attention__out_bias=True),
        lambda model: without_zero_biases(model, ".attention.out.bias"),
    ),
    "logit scale of what predictors read": (
        example("predicting", layers=2, head__scale=0.5),
        lambda model: normed_logit_scale(model, 0.75),
    ),
    "predictors that there are not": (example("llama", layers=2), without_predictors),
    "norms of both kinds": (
        example("llama", layers=2, **{**CENTRED, "final_norm__zero_centred": False}),
        uncentred_norms,
    ),
}


def opened(architecture: Architecture, folder: Path) -> tuple[Checkpoint, Rewritable]:
    source = read_checkpoint(write_ir(folder / "ir", architecture, values=calm_numbers))
    return source, Rewritable(source.architecture, source.tensors, files=source.files)


@pytest.mark.parametrize("name", EXACT)
def test_a_rewrite_is_the_same_function(name: str, tmp_path: Path) -> None:
    architecture, rewrite = EXACT[name]
    source, model = opened(architecture, tmp_path)
    written = rewrite(model)
    assert written.rewrites
    assert written.tensors.keys() == parameters(written.architecture).keys()
    with (
        OpenCheckpoint(source) as before,
        OpenCheckpoint(replace(source, architecture=written.architecture, tensors=written.tensors)) as after,
    ):
        assert apart(*outputs(before, after)) <= TOLERANCE


@pytest.mark.parametrize("name", UNTOUCHED)
def test_what_no_rewrite_can_say_is_left(name: str, tmp_path: Path) -> None:
    architecture, rewrite = UNTOUCHED[name]
    _, model = opened(architecture, tmp_path)
    assert rewrite(model) is model


def test_a_bias_that_a_predictor_alone_needs_stays_in_the_last_layer(tmp_path: Path) -> None:
    _, model = opened(example("predicting", layers=2), tmp_path)
    biased = all_biases(model)
    own = "predictors.1.layer.attention.out.bias"
    tensors = {**biased.tensors, own: replace(biased.tensors[own], fill=1.0)}
    written = without_zero_biases(replace(biased, tensors=tensors))
    kept = [layer.attention.out_bias for layer in written.architecture.decoder.layers]
    assert kept == [False, True]
    assert [name for name in written.tensors if name.endswith(".bias")] == [
        f"{block}.attention.out.bias" for block in ("layers.1", "predictors.0.layer", "predictors.1.layer")
    ]


def test_without_predictors_the_own_logits_are_the_same(tmp_path: Path) -> None:
    source, model = opened(example("predicting", layers=2), tmp_path)
    left = without_predictors(model)
    assert left.architecture == example("llama", layers=2)
    assert left.tensors.keys() == parameters(left.architecture).keys()
    with (
        OpenCheckpoint(source) as before,
        OpenCheckpoint(replace(source, architecture=left.architecture, tensors=left.tensors)) as after,
    ):
        one, two = outputs(before, after)
        assert torch.equal(one[:, : two.shape[1]], two)
