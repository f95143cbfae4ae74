"""Which tensor of a NeMo T5 holds what. Layer numbers are those of the whole stack; see `files` for ranks.

NeMo r1.16, token_level_encoder_decoder.py: the module `enc_dec_model` of the model holds another one of that name.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_core.sdk import Table, layouts, row

ROOT = "enc_dec_model"
TOKENS = f"{ROOT}.encoder_embedding.word_embeddings.weight"
DECODER_TOKENS = f"{ROOT}.decoder_embedding.word_embeddings.weight"
LAST_STAGE_TOKENS = f"{ROOT}.word_embeddings.weight"
LAYERS = {stack: f"{ROOT}.{ROOT}.{stack}.model.layers" for stack in ("encoder", "decoder")}
_TABLE = "relative_position_embedding.relative_position_embedding.weight"
RELATIVE_TABLES = tuple(f"{ROOT}.{name}_{_TABLE}" for name in ("encoder", "decoder", "decoder_cross_attention"))


@dataclass(frozen=True)
class Blocks:
    """Whose fused rows are blocks [q; k; v] of each rank (megatron_legacy) rather than [q, k, v] of each head."""

    encoder: bool = False
    decoder: bool = False
    cross: bool = False


def tables(blocks: Blocks, *, own_columns: bool = False) -> tuple[Table, ...]:
    """The tables of a model. `own_columns`: the relative bias of a rank has the columns of its own heads alone.

    Every rank stores the whole table, and trains only those columns: the others are stale.
    """
    relative_tp = "g" if own_columns else None
    # fmt: off
    model = Table(ROOT, rows=[
        row("encoder_embedding.word_embeddings.weight",     "v h",     "embedding.tokens.weight", tp="v"),
        row("encoder_embedding.position_embeddings.weight", "p h",     "encoder.positions.weight"),
        row("decoder_embedding.word_embeddings.weight",     "v h",     "embedding.tokens.weight", tp="v", copy=True),
        row("decoder_embedding.position_embeddings.weight", "p h",     "decoder.positions.weight"),
        row(f"encoder_{_TABLE}",                            "b (g r)", "encoder.relative_bias.weight", tp=relative_tp),
        row(f"decoder_{_TABLE}",                            "b (g r)", "decoder.relative_bias.weight", tp=relative_tp),
        row(f"decoder_cross_attention_{_TABLE}",            "b (g r)", "decoder.cross_relative_bias.weight", tp=relative_tp),
        row(f"{ROOT}.encoder.model.final_layernorm.weight", "h",       "encoder.final_norm.weight"),
        row(f"{ROOT}.encoder.model.final_layernorm.bias",   "h",       "encoder.final_norm.bias"),
        row(f"{ROOT}.decoder.model.final_layernorm.weight", "h",       "decoder.final_norm.weight"),
        row(f"{ROOT}.decoder.model.final_layernorm.bias",   "h",       "decoder.final_norm.bias"),
        row("tokens_head.weight",                           "v h",     "head.weight", tp="v"),
        row("tokens_head.bias",                             "v",       "head.bias", tp="v"),
        # on the last pipeline stage, where that has no embedding of its own
        row("word_embeddings.weight",                       "v h",     "embedding.tokens.weight", tp="v", copy=True),
    ])
    # fmt: on
    return model, _encoder(blocks), _decoder(blocks)


def _encoder(blocks: Blocks) -> Table:
    # post_attention_layernorm is the norm of what follows the attention: of the MLP here, of the cross attention below.
    rows = [*_self_attention(blocks.encoder), *_norm("post_attention_layernorm", "mlp"), *_MLP]
    return Table(f"{LAYERS['encoder']}.{{l}}", to="encoder.layers.{l}", rows=rows)


def _decoder(blocks: Blocks) -> Table:
    rows = [
        *_self_attention(blocks.decoder),
        *_norm("post_attention_layernorm", "cross_attention"),
        *_cross_attention(blocks.cross),
        *_norm("post_inter_attention_layernorm", "mlp"),
        *_MLP,
    ]
    return Table(f"{LAYERS['decoder']}.{{l}}", to="decoder.layers.{l}", rows=rows)


def _norm(native: str, canonical: str) -> list[layouts.Row]:
    return [row(f"{native}.{part}", "h", f"{canonical}.norm.{part}") for part in ("weight", "bias")]


# The rows of a fused projection: head by head, or in blocks.
_QKV = {False: "(g (q[r] + k + v) d)", True: "((q[g r] + k[g] + v[g]) d)"}
_KV = {False: "(g (k + v) d)", True: "((k + v) g d)"}


def _self_attention(blocks: bool) -> list[layouts.Row]:
    return [
        *_norm("input_layernorm", "attention"),
        row("self_attention.query_key_value.weight", f"{_QKV[blocks]} h", "attention.{part}.weight", tp="g"),
        row("self_attention.query_key_value.bias", _QKV[blocks], "attention.{part}.bias", tp="g"),
        *_output("self_attention", "attention"),
    ]


def _cross_attention(blocks: bool) -> list[layouts.Row]:
    return [
        row("inter_attention.query.weight", "(g r d) h", "cross_attention.q.weight", tp="g"),
        row("inter_attention.query.bias", "(g r d)", "cross_attention.q.bias", tp="g"),
        row("inter_attention.key_value.weight", f"{_KV[blocks]} h", "cross_attention.{part}.weight", tp="g"),
        row("inter_attention.key_value.bias", _KV[blocks], "cross_attention.{part}.bias", tp="g"),
        *_output("inter_attention", "cross_attention"),
    ]


def _output(native: str, canonical: str) -> list[layouts.Row]:
    return [
        row(f"{native}.head_scale_tensor", "1 (g r) 1 1", f"{canonical}.head_scale.weight", tp="g"),
        row(f"{native}.dense.weight", "h (g r d)", f"{canonical}.out.weight", tp="g"),
        row(f"{native}.dense.bias", "h", f"{canonical}.out.bias"),
    ]


# fmt: off
_MLP = [
    # the first factor is the one that the activation is applied to; without a gate there is one alone
    row("mlp.dense_h_to_4h.weight",   "f h", "mlp.gate.weight", tp="f"),
    row("mlp.dense_h_to_4h.bias",     "f",   "mlp.gate.bias",   tp="f"),
    row("mlp.dense_h_to_4h_2.weight", "f h", "mlp.up.weight",   tp="f", when="mlp.gated"),
    row("mlp.dense_h_to_4h_2.bias",   "f",   "mlp.up.bias",     tp="f", when="mlp.gated"),
    row("mlp.dense_h_to_4h.weight",   "f h", "mlp.up.weight",   tp="f", when="!mlp.gated"),
    row("mlp.dense_h_to_4h.bias",     "f",   "mlp.up.bias",     tp="f", when="!mlp.gated"),
    row("mlp.dense_4h_to_h.weight",   "h f", "mlp.down.weight", tp="f"),
    row("mlp.dense_4h_to_h.bias",     "h",   "mlp.down.bias"),
]
# fmt: on
