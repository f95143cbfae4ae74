"""A model as Megatron's GPTModel has it, and the ranks that can share it."""

from __future__ import annotations

from dataclasses import replace

from ckpt_core.sdk import Activation, Architecture, Refusal, errors, facts_of, layouts, rewrites, schema
from ckpt_megatron.config import decoder_of
from ckpt_megatron.layout import FileLayout, padded
from ckpt_megatron.weights import TABLES


def expressed_for(model: rewrites.Rewritable, multiple: int, *, by_fields: bool = False) -> rewrites.Rewritable:
    """Biases on all linear layers or none, a vocabulary padded to a `multiple` of rows, and the usual attention scale.

    `by_fields`: a config class describes the model, which has a field for the scale and every kind of GELU.
    """
    tokens, kind = model.architecture.tokens, facts_of(model.architecture)["kind"]
    if tokens is None or kind != "decoder":
        raise Refusal(
            "Megatron's GPTModel is a decoder that reads tokens",
            found=f"kind = {kind}" + ("" if tokens else ", no tokens"),
        )
    if not by_fields or not _one_scale(model.architecture):
        model = rewrites.folded_attention_scale(model)
    model = with_biases(model, fused_gelu=not by_fields)
    return rewrites.vocabulary_rows(model, padded(tokens.vocabulary, multiple, tp=1))


def _one_scale(architecture: Architecture) -> bool:
    """Whether one number is the attention scale of all layers."""
    return len({layer.attention.scale for layer in decoder_of(architecture).layers if layer.attention}) < 2


def with_biases(model: rewrites.Rewritable, *, fused_gelu: bool = False, always: bool = False) -> rewrites.Rewritable:
    """Zero biases where Megatron has them only all together: a zero bias changes nothing.

    --add-bias-linear gives one to every linear layer, --add-qkv-bias to q, k and v, and a LayerNorm always has one.
    `fused_gelu`: GELU's tanh form is only reached through a bias. `always`: the framework has no layers without biases.
    """
    layers = decoder_of(model.architecture).layers
    mlps = [layer.mlp for layer in layers if layer.mlp]
    tanh = any(mlp.activation is Activation.GELU_TANH and not mlp.gated for mlp in mlps)
    every = always or (fused_gelu and tanh) or any(_has_linear_bias(layer) for layer in layers)
    inputs = every or any(_has_input_bias(layer) for layer in layers)

    def biased(layer: schema.Layer) -> schema.Layer:
        mlp = layer.mlp and replace(layer.mlp, norm=_and_norm_bias(layer.mlp.norm))
        if mlp and every and not (mlp.moe and mlp.moe.shared):  # shared experts have no biases
            mlp = replace(mlp, up_bias=True, down_bias=True)
        if layer.attention is None:
            return replace(layer, mlp=mlp)
        norm, qk_norm = _and_norm_bias(layer.attention.norm), _and_norm_bias(layer.attention.qk_norm)
        attention = replace(layer.attention, norm=norm, qk_norm=qk_norm)
        if inputs:
            out = every or attention.out_bias
            attention = replace(attention, q_bias=True, k_bias=True, v_bias=True, out_bias=out)
        return replace(layer, mlp=mlp, attention=attention)

    wanted = rewrites.map_layers(model.architecture, biased)
    decoder = decoder_of(wanted)
    decoder = replace(decoder, final_norm=_and_norm_bias(decoder.final_norm))
    if (old := decoder.predictors) is not None:
        embed_norm, hidden_norm = _with_norm_bias(old.embed_norm), _with_norm_bias(old.hidden_norm)
        out_norm = _and_norm_bias(old.out_norm)
        predictors = replace(old, embed_norm=embed_norm, hidden_norm=hidden_norm, out_norm=out_norm)
        decoder = replace(decoder, predictors=predictors)
    wanted = replace(wanted, decoder=decoder)
    return rewrites.zero_biases(model, wanted)


def _has_linear_bias(layer: schema.Layer) -> bool:
    if layer.attention is not None:
        out = layer.attention.out_bias
    else:
        out = layer.latent_attention is not None and layer.latent_attention.bias
    return out or (layer.mlp is not None and (layer.mlp.up_bias or layer.mlp.down_bias))


def _has_input_bias(layer: schema.Layer) -> bool:
    attention = layer.attention
    return attention is not None and (attention.q_bias or attention.k_bias or attention.v_bias)


def _with_norm_bias(norm: schema.Norm) -> schema.Norm:
    return norm if norm.kind != "layer" else replace(norm, bias=True)


def _and_norm_bias(norm: schema.Norm | None) -> schema.Norm | None:
    return None if norm is None else _with_norm_bias(norm)


def biased_experts(architecture: Architecture) -> bool:
    """Whether experts have biases, which no tensor parallel ranks divide since core 0.15 (transformer_config.py)."""
    mlps = [layer.mlp for layer in decoder_of(architecture).layers if layer.mlp]
    return any(mlp.moe and (mlp.up_bias or mlp.down_bias) for mlp in mlps)


def check_ranks(architecture: Architecture, layout: FileLayout) -> None:
    """`Refusal`s for what the ranks or the kind of files of `layout` cannot hold."""
    problems = errors.Problems(f"tp={layout.tp} pp={layout.pp} ep={layout.ep}")
    layers = decoder_of(architecture).layers
    attention = next((layer.attention for layer in layers if layer.attention), None)
    moe = any(layer.moe for layer in layers)
    if attention is not None:
        heads, groups = attention.heads, attention.groups
        shared = attention.qk_norm_whole
        able = [n for n in range(1, heads + 1) if not heads % n and (not groups % n or (not n % groups and not shared))]
        fix = f"--tp {' or '.join(map(str, able))}, as far as heads go"
        if heads % layout.tp:
            problems.add(Refusal(f"tp={layout.tp} does not divide the {heads} heads", fix=fix))
        if groups % layout.tp and layout.tp % groups:
            problems.add(
                Refusal(f"tp={layout.tp} neither divides the {groups} query groups nor is a multiple of them", fix=fix)
            )
        if shared and groups % layout.tp:
            problems.add(
                Refusal(
                    f"tp={layout.tp} does not divide the {groups} query groups, whose norm the ranks share", fix=fix
                )
            )
    if layout.names == "legacy":
        if decoder_of(architecture).predictors is not None:
            problems.add(
                Refusal(
                    "the models before Megatron-Core have no layers of multi-token prediction",
                    fix="use -o names=te, or leave them out with -o predictors=drop",
                )
            )
        if attention is None or attention.qk_norm or attention.sinks or moe:
            problems.add(
                Refusal(
                    "the models before Megatron-Core have no latent attention, query norms, sinks or experts",
                    fix="use -o names=te",
                )
            )
        elif layout.version < 2 and attention.groups != attention.heads:
            problems.add(
                Refusal(f"checkpoint_version {layout.version:g} has no groups of heads", fix="use -o names=te")
            )
        problems.raise_any()
    if layout.ep > 1 and not moe:
        problems.add(Refusal("expert parallel ranks need experts", found=f"ep={layout.ep}", fix="leave --ep out"))
    mlps = [layer.mlp for layer in layers if layer.mlp]
    clamped = any(mlp.clamp is not None or mlp.up_offset for mlp in mlps)
    if layout.container == "torch" and layout.tp > 1 and clamped and biased_experts(architecture):
        problems.add(
            Refusal(
                "the versions that clamp divide no experts with biases over tensor parallel ranks, as torch files would",
                found=f"tp={layout.tp}, mlp.clamp = {mlps[-1].clamp}, mlp.up_offset = {mlps[-1].up_offset}",
                fix="use -o container=torch_dist, or expert parallel ranks alone",
            )
        )
    if layout.grouped and layout.names == "local" and moe and mlps[-1].up_bias:
        problems.add(Refusal("grouped experts of the local spec have no biases"))
    problems.raise_any()
    # raises where an axis is not divided; what a model sees with is a matter of its class
    layouts.BoundTables(TABLES, replace(architecture, vision=None)).natives(
        {"tp": (0, layout.tp), "ep": (0, layout.ep)}
    )
