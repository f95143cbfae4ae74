"""Which tensor of a NeMo T5 holds what. Layer numbers are those of the whole stack; see `files` for ranks.

NeMo r1.16, token_level_encoder_decoder.py: the module `enc_dec_model` of the model holds another one of that name.
"""

from __future__ import annotations

from ckpt_core.sdk import Table, layouts, row, schema

ROOT = "enc_dec_model"
TOKENS = f"{ROOT}.encoder_embedding.word_embeddings.weight"
DECODER_TOKENS = f"{ROOT}.decoder_embedding.word_embeddings.weight"
LAST_STAGE_TOKENS = f"{ROOT}.word_embeddings.weight"
LAYERS = {stack: f"{ROOT}.{ROOT}.{stack}.model.layers" for stack in ("encoder", "decoder")}
_TABLE = "relative_position_embedding.relative_position_embedding.weight"
CROSS_TABLE = f"{ROOT}.decoder_cross_attention_{_TABLE}"
# and the stack whose heads they have columns for
RELATIVE_TABLES = {f"{ROOT}.encoder_{_TABLE}": "encoder", f"{ROOT}.decoder_{_TABLE}": "decoder", CROSS_TABLE: "decoder"}
HEAD_BIAS = f"{ROOT}.tokens_head.bias"


@schema.dataclass(frozen=True)
class Blocks:
    """Whose fused rows are blocks [q; k; v] of each rank (megatron_legacy) rather than [q, k, v] of each head."""

    encoder: bool = False
    decoder: bool = False
    cross: bool = False

    @property
    def choices(self) -> dict[str, layouts.Value]:
        """Those of the tables."""
        return {"blocks.encoder": self.encoder, "blocks.decoder": self.decoder, "blocks.cross": self.cross}


# fmt: off
CHOICES = [
    layouts.Choice("blocks.encoder", (False, True), default=False,
                   help="the encoder's q, k and v are blocks in each rank (megatron_legacy), and do not lie head by head"),
    layouts.Choice("blocks.decoder", (False, True), default=False,
                   help="the decoder's q, k and v are blocks in each rank (megatron_legacy), and do not lie head by head"),
    layouts.Choice("blocks.cross", (False, True), default=False,
                   help="the cross attention's k and v are blocks in each rank (megatron_legacy, since 1.13)"),
    layouts.Choice("relative_bias", ("whole", "own_heads"), default="whole",
                   help="every rank stores the whole table, and trains only the columns of its own heads: the others are stale"),
]

# The rows of a fused projection: head by head, or in blocks.
ENCODER_QKV = layouts.fragment("encoder_qkv", [
    ("(g (q[r] + k + v) d)",         {"blocks.encoder": False}),
    ("((q[g r] + k[g] + v[g]) d)",   {"blocks.encoder": True}),
])
DECODER_QKV = layouts.fragment("decoder_qkv", [
    ("(g (q[r] + k + v) d)",         {"blocks.decoder": False}),
    ("((q[g r] + k[g] + v[g]) d)",   {"blocks.decoder": True}),
])
CROSS_KV = layouts.fragment("cross_kv", [
    ("(g (k + v) d)",                {"blocks.cross": False}),
    ("((k + v) g d)",                {"blocks.cross": True}),
])

MODEL = Table(ROOT, rows=[
    row("encoder_embedding.word_embeddings.weight",     "v h",     "embedding.tokens.weight",             tp="v"),
    row("encoder_embedding.position_embeddings.weight", "p h",     "encoder.positions.weight"),
    row("decoder_embedding.word_embeddings.weight",     "v h",     "embedding.tokens.weight",             tp="v", copy=True),
    row("decoder_embedding.position_embeddings.weight", "p h",     "decoder.positions.weight"),
    row(f"encoder_{_TABLE}",                            "b (g r)", "encoder.relative_bias.weight",                under={"relative_bias": "whole"}),
    row(f"encoder_{_TABLE}",                            "b (g r)", "encoder.relative_bias.weight",        tp="g", under={"relative_bias": "own_heads"}),
    row(f"decoder_{_TABLE}",                            "b (g r)", "decoder.relative_bias.weight",                under={"relative_bias": "whole"}),
    row(f"decoder_{_TABLE}",                            "b (g r)", "decoder.relative_bias.weight",        tp="g", under={"relative_bias": "own_heads"}),
    row(f"decoder_cross_attention_{_TABLE}",            "b (g r)", "decoder.cross_relative_bias.weight",          under={"relative_bias": "whole"}),
    row(f"decoder_cross_attention_{_TABLE}",            "b (g r)", "decoder.cross_relative_bias.weight",  tp="g", under={"relative_bias": "own_heads"}),
    row(f"{ROOT}.encoder.model.final_layernorm.weight", "h",       "encoder.final_norm.weight"),
    row(f"{ROOT}.encoder.model.final_layernorm.bias",   "h",       "encoder.final_norm.bias"),
    row(f"{ROOT}.decoder.model.final_layernorm.weight", "h",       "decoder.final_norm.weight"),
    row(f"{ROOT}.decoder.model.final_layernorm.bias",   "h",       "decoder.final_norm.bias"),
    row("tokens_head.weight",                           "v h",     "head.weight",                         tp="v"),
    row("tokens_head.bias",                             "v",       "head.bias",                           tp="v"),
    # on the last pipeline stage, where that has no embedding of its own
    row("word_embeddings.weight",                       "v h",     "embedding.tokens.weight",             tp="v", copy=True),
])

_INPUT_NORM = [
    row("input_layernorm.weight",              "h",           "attention.norm.weight"),
    row("input_layernorm.bias",                "h",           "attention.norm.bias"),
]
_OUT = [
    row("self_attention.head_scale_tensor",    "1 (g r) 1 1", "attention.head_scale.weight", tp="g"),
    row("self_attention.dense.weight",         "h (g r d)",   "attention.out.weight",        tp="g"),
    row("self_attention.dense.bias",           "h",           "attention.out.bias"),
]
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

# post_attention_layernorm is the norm of what follows the attention: of the MLP here, of the cross attention below.
ENCODER = Table(f"{LAYERS['encoder']}.{{l}}", to="encoder.layers.{l}", rows=[
    *_INPUT_NORM,
    row("self_attention.query_key_value.weight", "<encoder_qkv> h", "attention.{part}.weight", tp="g"),
    row("self_attention.query_key_value.bias",   "<encoder_qkv>",   "attention.{part}.bias",   tp="g"),
    *_OUT,
    row("post_attention_layernorm.weight",       "h",               "mlp.norm.weight"),
    row("post_attention_layernorm.bias",         "h",               "mlp.norm.bias"),
    *_MLP,
])

DECODER = Table(f"{LAYERS['decoder']}.{{l}}", to="decoder.layers.{l}", rows=[
    *_INPUT_NORM,
    row("self_attention.query_key_value.weight", "<decoder_qkv> h", "attention.{part}.weight", tp="g"),
    row("self_attention.query_key_value.bias",   "<decoder_qkv>",   "attention.{part}.bias",   tp="g"),
    *_OUT,
    row("post_attention_layernorm.weight",       "h",               "cross_attention.norm.weight"),
    row("post_attention_layernorm.bias",         "h",               "cross_attention.norm.bias"),
    row("inter_attention.query.weight",          "(g r d) h",       "cross_attention.q.weight",      tp="g"),
    row("inter_attention.query.bias",            "(g r d)",         "cross_attention.q.bias",        tp="g"),
    row("inter_attention.key_value.weight",      "<cross_kv> h",    "cross_attention.{part}.weight", tp="g"),
    row("inter_attention.key_value.bias",        "<cross_kv>",      "cross_attention.{part}.bias",   tp="g"),
    row("inter_attention.head_scale_tensor",     "1 (g r) 1 1",     "cross_attention.head_scale.weight", tp="g"),
    row("inter_attention.dense.weight",          "h (g r d)",       "cross_attention.out.weight",    tp="g"),
    row("inter_attention.dense.bias",            "h",               "cross_attention.out.bias"),
    row("post_inter_attention_layernorm.weight", "h",               "mlp.norm.weight"),
    row("post_inter_attention_layernorm.bias",   "h",               "mlp.norm.bias"),
    *_MLP,
])
# fmt: on

TABLES = layouts.Tables([MODEL, ENCODER, DECODER], CHOICES, [ENCODER_QKV, DECODER_QKV, CROSS_KV])
