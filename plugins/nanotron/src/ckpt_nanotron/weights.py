"""Which nanotron parameter holds what, and how tensor parallel ranks divide it.

A parameter with a split is stored sharded, one file per rank; one without is stored once. Where the sentence of
a split dimension is a sum (`q + k + v`, `gate + up`), nanotron cuts every term on its own ("contiguous chunks"),
which is what splitting g or f before the sentence applies means.
"""

from __future__ import annotations

from ckpt_core.sdk import Table, layouts, row

# fmt: off
CHOICES = [
    layouts.Choice("model", ("llama", "qwen2", "starcoder2"), default="llama", help="nanotron's model class"),
    layouts.Choice("rope_interleaved", (False, True), default=False,
                   help="llama, qwen2: the two elements of a rotary pair are neighbours (GPT-J), the only order before September 2024"),
    layouts.Choice("grouped_query", (False, True), default=False,
                   help="starcoder2: CausalSelfGQA, also of one key-value head, or CausalSelfMQA (0.4, models/starcoder2.py, GPTBlock)"),
]

# e pairs of c = 2 elements
QKV = layouts.fragment("qkv", [
    ("(q[g r d] + k[g d] + v[g d])",                     {"rope_interleaved": False}),
    ("(q[g r (e c + o)] + k[g (e c + o)] + v[g d])",     {"rope_interleaved": True}),
])

MODEL = Table("model", under={"model": ("llama", "qwen2")}, rows=[
    row("token_position_embeddings.pp_block.token_embedding.weight", "v h", "embedding.tokens.weight", tp="v"),
    row("final_layer_norm.pp_block.weight",                          "h",   "final_norm.weight"),
    row("lm_head.pp_block.weight",                                   "v h", "head.weight",             tp="v"),
])

LAYER = Table("model.decoder.{l}.pp_block", to="layers.{l}", under={"model": ("llama", "qwen2")}, rows=[
    row("input_layernorm.weight",                 "h",                              "attention.norm.weight"),
    row("attn.qkv_proj.weight",                   "<qkv> h",                        "attention.{part}.weight", tp="g"),
    row("attn.qkv_proj.bias",                     "<qkv>",                          "attention.{part}.bias",   tp="g"),
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

STARCODER_MODEL = Table("model", under={"model": "starcoder2"}, rows=[
    row("token_embeddings.pp_block.token_embedding.weight", "v h", "embedding.tokens.weight", tp="v"),
    row("final_layer_norm.pp_block.weight",                 "h",   "final_norm.weight"),
    row("final_layer_norm.pp_block.bias",                   "h",   "final_norm.bias"),
])

STARCODER_LAYER = Table("model.decoder.{l}.pp_block", to="layers.{l}", under={"model": "starcoder2"}, rows=[
    row("ln_1.weight",                 "h",                      "attention.norm.weight"),
    row("ln_1.bias",                   "h",                      "attention.norm.bias"),
    row("ln_2.weight",                 "h",                      "mlp.norm.weight"),
    row("ln_2.bias",                   "h",                      "mlp.norm.bias"),
    row("ff.c_fc.weight",              "f h",                    "mlp.up.weight",           tp="f"),
    row("ff.c_fc.bias",                "f",                      "mlp.up.bias",             tp="f"),
    row("ff.c_proj.weight",            "h f",                    "mlp.down.weight",         tp="f"),
    row("ff.c_proj.bias",              "h",                      "mlp.down.bias"),
    row("attn.query_key_value.weight", "(g (q[r] + k + v) d) h", "attention.{part}.weight", tp="g",   under={"grouped_query": True}),
    row("attn.query_key_value.bias",   "(g (q[r] + k + v) d)",   "attention.{part}.bias",   tp="g",   under={"grouped_query": True}),
    row("attn.dense.weight",           "h (g r d)",              "attention.out.weight",    tp="g",   under={"grouped_query": True}),
    row("attn.dense.bias",             "h",                      "attention.out.bias",                under={"grouped_query": True}),
    # One key-value head, which every rank holds whole.
    row("attn.qkv.q.weight",           "(g r d) h",              "attention.q.weight",      tp="g r", under={"grouped_query": False}),
    row("attn.qkv.q.bias",             "(g r d)",                "attention.q.bias",        tp="g r", under={"grouped_query": False}),
    row("attn.qkv.kv.weight",          "((k + v) g d) h",        "attention.{part}.weight",           under={"grouped_query": False}),
    row("attn.qkv.kv.bias",            "((k + v) g d)",          "attention.{part}.bias",             under={"grouped_query": False}),
    row("attn.o.weight",               "h (g r d)",              "attention.out.weight",    tp="g r", under={"grouped_query": False}),
    row("attn.o.bias",                 "h",                      "attention.out.bias",                under={"grouped_query": False}),
])

TABLES = layouts.Tables([MODEL, LAYER, STARCODER_MODEL, STARCODER_LAYER], CHOICES, [QKV])
# fmt: on
