"""A model as NeMo's ViT has it."""

from __future__ import annotations

from dataclasses import replace

from ckpt_core.architecture import Layer, facts_of
from ckpt_core.errors import Refusal
from ckpt_core.rewrite import Model, folded_attention_scale, folded_patch_bias, map_layers, resized_images, zero_biases
from ckpt_nemo.vit.weights import CONVOLUTION


def fitted(model: Model, patch_layer: str, image_size: str | None) -> Model:
    """Biases everywhere but on the patches of a convolution, and the usual attention scale; for the image size asked for."""
    architecture = model.architecture
    if architecture.patches is None or architecture.encoder is None or architecture.decoder is not None:
        found = f"kind = {facts_of(architecture)['kind']}" + ("" if architecture.patches else ", no patches")
        raise Refusal("NeMo's ViT is an encoder that reads images", found=found)
    model = folded_attention_scale(model)
    if image_size is not None:
        model = resized_images(model, image_size)
    if patch_layer == CONVOLUTION:
        model = folded_patch_bias(model)
    return _with_biases(model, patches=patch_layer != CONVOLUTION)


def _with_biases(model: Model, patches: bool) -> Model:
    """Zero biases where NeMo's layers have one and the model has none."""

    def biased(layer: Layer) -> Layer:
        mlp = replace(layer.mlp, up_bias=True, down_bias=True)
        if layer.attention is None:
            return replace(layer, mlp=mlp)
        return replace(
            layer, mlp=mlp, attention=replace(layer.attention, q_bias=True, k_bias=True, v_bias=True, out_bias=True)
        )

    architecture = map_layers(model.architecture, biased)
    if architecture.patches is not None and patches:
        architecture = replace(architecture, patches=replace(architecture.patches, bias=True))
    if architecture == model.architecture:
        return model
    return zero_biases(model, architecture)
