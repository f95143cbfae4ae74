"""A model as NeMo's ViT has it."""

from __future__ import annotations

from dataclasses import replace

from ckpt_core.sdk import Refusal, facts_of, rewrites, schema
from ckpt_nemo.vit.weights import CONVOLUTION


def expressed_for(model: rewrites.Rewritable, patch_layer: str, image_size: str | None) -> rewrites.Rewritable:
    """Biases everywhere but on the patches of a convolution, and the usual attention scale; for the image size asked for."""
    architecture = model.architecture
    if architecture.patches is None or architecture.encoder is None or architecture.decoder is not None:
        found = f"kind = {facts_of(architecture)['kind']}" + ("" if architecture.patches else ", no patches")
        raise Refusal("NeMo's ViT is an encoder that reads images", found=found)
    model = rewrites.folded_attention_scale(model)
    if image_size is not None:
        model = rewrites.resized_images(model, image_size)
    if patch_layer == CONVOLUTION:
        model = rewrites.folded_patch_bias(model)
    return _with_biases(model, patches=patch_layer != CONVOLUTION)


def _with_biases(model: rewrites.Rewritable, patches: bool) -> rewrites.Rewritable:
    """Zero biases where NeMo's layers have one and the model has none."""

    def biased(layer: schema.Layer) -> schema.Layer:
        layer = rewrites.map_mlp(layer, lambda old: replace(old, up_bias=True, down_bias=True))
        return rewrites.map_attentions(
            layer, lambda old: replace(old, q_bias=True, k_bias=True, v_bias=True, out_bias=True)
        )

    architecture = rewrites.map_layers(model.architecture, biased)
    if architecture.patches is not None and patches:
        architecture = replace(architecture, patches=replace(architecture.patches, bias=True))
    if architecture == model.architecture:
        return model
    return rewrites.zero_biases(model, architecture)
