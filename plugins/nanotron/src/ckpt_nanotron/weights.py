"""Which nanotron parameter holds what, and how tensor parallel ranks divide it.

A parameter with a split is stored sharded, one file per rank; one without is stored once. Where the sentence of
a split dimension is a sum (`q + k + v`, `gate + up`), nanotron cuts every term on its own ("contiguous chunks"),
which is what splitting g or f before the sentence applies means.
"""

from __future__ import annotations

from ckpt_core.sdk import Table, row

# fmt: off
MODEL = Table("model", rows=[
    row("token_position_embeddings.pp_block.token_embedding.weight", "v h", "embedding.tokens.weight", tp="v"),
    row("final_layer_norm.pp_block.weight",                          "h",   "final_norm.weight"),
    row("lm_head.pp_block.weight",                                   "v h", "head.weight",             tp="v"),
])

LAYER = Table("model.decoder.{l}.pp_block", to="layers.{l}", rows=[
    row("input_layernorm.weight",                 "h",                              "attention.norm.weight"),
    row("attn.qkv_proj.weight",                   "(q[g r d] + k[g d] + v[g d]) h", "attention.{part}.weight", tp="g"),
    row("attn.qkv_proj.bias",                     "(q[g r d] + k[g d] + v[g d])",   "attention.{part}.bias",   tp="g"),
    row("attn.o_proj.weight",                     "h (g r d)",                      "attention.out.weight",    tp="g"),
    row("post_attention_layernorm.weight",        "h",                              "mlp.norm.weight"),
    row("mlp.gate_up_proj.weight",                "((gate + up) f) h",              "mlp.{part}.weight",       tp="f"),
    row("mlp.down_proj.weight",                   "h f",                            "mlp.down.weight",         tp="f"),
    # The router is float32 whatever the model's dtype (main, nn/moe.py). Experts are input-major and never sharded.
    row("mlp.router.weight",                      "x h",                            "mlp.router.weight",       dtype="fp32"),
    row("mlp.experts.merged_gate_up_proj",        "x h ((gate + up) f)",            "mlp.experts.{part}.weight"),
    row("mlp.experts.merged_down_proj",           "x f h",                          "mlp.experts.down.weight"),
    row("mlp.shared_expert.gate_up_proj.weight",  "((gate + up) f) h",              "mlp.shared.{part}.weight", tp="f"),
    row("mlp.shared_expert.down_proj.weight",     "h f",                            "mlp.shared.down.weight",   tp="f"),
    row("mlp.shared_expert_gate.weight",          "1 h",                            "mlp.shared_gate.weight"),
])

HALF = (MODEL, LAYER)

# Rotary pairs side by side (GPT-J), the only order there was before September 2024: e pairs of c = 2 elements.
INTERLEAVED = (MODEL, LAYER.replace(
    row("attn.qkv_proj.weight", "(q[g r (e c + o)] + k[g (e c + o)] + v[g d]) h", "attention.{part}.weight", tp="g"),
    row("attn.qkv_proj.bias",   "(q[g r (e c + o)] + k[g (e c + o)] + v[g d])",   "attention.{part}.bias",   tp="g"),
))

STARCODER_MODEL = Table("model", rows=[
    row("token_embeddings.pp_block.token_embedding.weight", "v h", "embedding.tokens.weight", tp="v"),
    row("final_layer_norm.pp_block.weight",                 "h",   "final_norm.weight"),
    row("final_layer_norm.pp_block.bias",                   "h",   "final_norm.bias"),
])

_STARCODER_BLOCK = [
    row("ln_1.weight",      "h",   "attention.norm.weight"),
    row("ln_1.bias",        "h",   "attention.norm.bias"),
    row("ln_2.weight",      "h",   "mlp.norm.weight"),
    row("ln_2.bias",        "h",   "mlp.norm.bias"),
    row("ff.c_fc.weight",   "f h", "mlp.up.weight",   tp="f"),
    row("ff.c_fc.bias",     "f",   "mlp.up.bias",     tp="f"),
    row("ff.c_proj.weight", "h f", "mlp.down.weight", tp="f"),
    row("ff.c_proj.bias",   "h",   "mlp.down.bias"),
]

# Which attention there is follows from the flag grouped_query, not from the number of heads: CausalSelfGQA, also of one
# key-value head, or CausalSelfMQA (0.4, models/starcoder2.py, GPTBlock).
STARCODER_GROUPED = (STARCODER_MODEL, Table("model.decoder.{l}.pp_block", to="layers.{l}", rows=[
    *_STARCODER_BLOCK,
    row("attn.query_key_value.weight", "(g (q[r] + k + v) d) h", "attention.{part}.weight", tp="g"),
    row("attn.query_key_value.bias",   "(g (q[r] + k + v) d)",   "attention.{part}.bias",   tp="g"),
    row("attn.dense.weight",           "h (g r d)",              "attention.out.weight",    tp="g"),
    row("attn.dense.bias",             "h",                      "attention.out.bias"),
]))

# One key-value head, which every rank holds whole.
STARCODER_MULTI = (STARCODER_MODEL, Table("model.decoder.{l}.pp_block", to="layers.{l}", rows=[
    *_STARCODER_BLOCK,
    row("attn.qkv.q.weight",  "(g r d) h",         "attention.q.weight",      tp="g r"),
    row("attn.qkv.q.bias",    "(g r d)",           "attention.q.bias",        tp="g r"),
    row("attn.qkv.kv.weight", "((k + v) g d) h",   "attention.{part}.weight"),
    row("attn.qkv.kv.bias",   "((k + v) g d)",     "attention.{part}.bias"),
    row("attn.o.weight",      "h (g r d)",         "attention.out.weight",    tp="g r"),
    row("attn.o.bias",        "h",                 "attention.out.bias"),
]))
# fmt: on
