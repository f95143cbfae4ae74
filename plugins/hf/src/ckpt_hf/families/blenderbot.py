"""Blenderbot: an encoder-decoder with learned positions, pre-LayerNorm, biases everywhere, and a bias on the logits."""

from __future__ import annotations

from dataclasses import replace

from ckpt_core.sdk import (
    Architecture,
    Config,
    Table,
    configs,
    derived,
    fact_is,
    ignore,
    key,
    key_is,
    layouts,
    note,
    rewrites,
    row,
    schema,
    values,
)
from ckpt_hf.common import ALL_BIASES_OR_NONE, GENERIC, Family, activation, norms, scaled_embedding
from ckpt_hf.families.t5 import BLOCKS, MLPS, NORMS, STACKS
from ckpt_hf.weights import FAIRSEQ_ATTENTION, FAIRSEQ_MLP, LM_HEAD

_BIASES = [f"{block}.{part}_bias" for block in BLOCKS for part in ("q", "k", "v", "out")]
_BIASES += [f"{mlp}.{part}_bias" for mlp in MLPS for part in ("up", "down")]


# fmt: off
BLENDERBOT = Config("", GENERIC).replace("BlenderbotForConditionalGeneration",
    fact_is("kind", "encoder-decoder"),
    key_is("is_encoder_decoder", True, or_absent=True),
    fact_is("encoder.causal", False),
    fact_is("decoder.causal", True),
    key("d_model", "hidden"),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    key("encoder_layers", "encoder.layers", default=2),
    key("decoder_layers", "decoder.layers", default=24),
    key("encoder_attention_heads", "encoder.attention.heads", "encoder.attention.groups"),
    key("decoder_attention_heads", *(f"{block}.{fact}" for block in BLOCKS[1:] for fact in ("heads", "groups"))),
    [derived(None, f"{block}.head_dim", f"d_model / {block.partition('.')[0]}_attention_heads") for block in BLOCKS],
    key("encoder_ffn_dim", "encoder.mlp.ffn", default=10240),
    key("decoder_ffn_dim", "decoder.mlp.ffn", default=10240),
    key("activation_function", *(f"{mlp}.activation" for mlp in MLPS), default="gelu", via=activation("gelu", "gelu_new")),
    [fact_is(f"{mlp}.gated", False) for mlp in MLPS],
    # nn.LayerNorm's own default, which no key changes
    norms("layer", *NORMS, bias=True, eps=1e-5),
    [fact_is(bias, True) for bias in _BIASES],
    scaled_embedding("scale_embedding", "d_model", default=False),
    key("max_position_embeddings", *(f"{stack}.positions.count" for stack in STACKS), default=128, null=configs.REQUIRED, type=values.whole,
        noted="max_positions"),
    fact_is("head.bias", True),
    key("tie_word_embeddings", "head.tied", default=True),
    note("decoder_start_token_id", "decoder_start", null=True),
    ignore("dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop", "init_std", "classifier_dropout", "classif_dropout",
           why="training only"),
    ignore("num_hidden_layers", why="another name of encoder_layers, saved beside it"),
    ignore("add_bias_logits", "add_final_layer_norm", "do_blenderbot_90_layernorm", "extra_layer_norm", "extra_pos_embeddings",
           "force_bos_token_to_be_generated", "layernorm_variant", "normalize_before", "normalize_embedding", "static_position_embeddings",
           "variant", "save_step", why="of the class of 2020, read by no version since 4.0"),
    without=["max_position_embeddings"],
)


_CROSS = [
    row("encoder_attn_layer_norm.weight", "h",         "cross_attention.norm.weight"),
    row("encoder_attn_layer_norm.bias",   "h",         "cross_attention.norm.bias"),
    row("encoder_attn.q_proj.weight",     "(g r d) h", "cross_attention.q.weight"),
    row("encoder_attn.q_proj.bias",       "(g r d)",   "cross_attention.q.bias"),
    row("encoder_attn.k_proj.weight",     "(g d) h",   "cross_attention.k.weight"),
    row("encoder_attn.k_proj.bias",       "(g d)",     "cross_attention.k.bias"),
    row("encoder_attn.v_proj.weight",     "(g d) h",   "cross_attention.v.weight"),
    row("encoder_attn.v_proj.bias",       "(g d)",     "cross_attention.v.bias"),
    row("encoder_attn.out_proj.weight",   "h (g r d)", "cross_attention.out.weight"),
    row("encoder_attn.out_proj.bias",     "h",         "cross_attention.out.bias"),
]

MODEL = Table(rows=[
    row("model.shared.weight",                  "v h", "embedding.tokens.weight"),
    row("model.encoder.embed_tokens.weight",    "v h", "embedding.tokens.weight", copy=True),
    row("model.decoder.embed_tokens.weight",    "v h", "embedding.tokens.weight", copy=True),
    row("model.encoder.embed_positions.weight", "p h", "encoder.positions.weight"),
    row("model.decoder.embed_positions.weight", "p h", "decoder.positions.weight"),
    row("model.encoder.layer_norm.weight",      "h",   "encoder.final_norm.weight"),
    row("model.encoder.layer_norm.bias",        "h",   "encoder.final_norm.bias"),
    row("model.decoder.layer_norm.weight",      "h",   "decoder.final_norm.weight"),
    row("model.decoder.layer_norm.bias",        "h",   "decoder.final_norm.bias"),
    *LM_HEAD,
    row("final_logits_bias",                    "1 v", "head.bias"),
])

TABLES = layouts.Tables([
    MODEL,
    Table("model.encoder.layers.{l}", to="encoder.layers.{l}", rows=[*FAIRSEQ_ATTENTION, *FAIRSEQ_MLP]),
    Table("model.decoder.layers.{l}", to="decoder.layers.{l}", rows=[*FAIRSEQ_ATTENTION, *_CROSS, *FAIRSEQ_MLP]),
])
# fmt: on


def _biased(layer: schema.Layer) -> schema.Layer:
    layer = rewrites.map_attentions(
        layer, lambda old: replace(old, q_bias=True, k_bias=True, v_bias=True, out_bias=True)
    )
    return rewrites.map_mlp(layer, lambda old: replace(old, up_bias=True, down_bias=True))


def _as_blenderbot(model: rewrites.Rewritable) -> rewrites.Rewritable:
    """Scores at the usual scale, logits at none, and a bias (of zeros where there was none) on every projection."""
    if len(model.architecture.stacks) < 2:
        return model
    model = rewrites.uncentred_norms(
        rewrites.folded_logit_scale(rewrites.folded_head_scale(rewrites.folded_attention_scale(model)))
    )
    head = model.architecture.head
    biased = rewrites.map_layers(model.architecture, _biased)
    biased = replace(biased, head=None if head is None else replace(head, bias=True))
    if biased == model.architecture:
        return model
    return rewrites.zero_biases(model, biased)


def _has_own_head(architecture: Architecture) -> bool:
    """Version 5 of transformers then ties nothing: not the embeddings of the two stacks either."""
    return architecture.head is not None and not architecture.head.tied


FAMILIES = [
    Family(
        "blenderbot",
        BLENDERBOT,
        TABLES,
        rewrites=(*ALL_BIASES_OR_NONE, _as_blenderbot),
        loads_copies=_has_own_head,
        heads=(),
    )
]
