"""The tables that families share: which tensor of a transformers model holds which parameter.

Names are those on disk, which transformers keeps stable while its in-memory modules change (version 5 fuses
experts in memory, and still saves them one by one). Weights are `[out, in]`; rotary pairs are half-split, the
canonical order, except where a sentence says (e c).
"""

from __future__ import annotations

from ckpt_core.sdk import Table, drop, layouts, row

# fmt: off
NAMES = layouts.Choice("names", ("stored", "held"), default="stored",
    help="names of tensors as save_pretrained has them, or as transformers 5 holds them in memory, where these differ (bare state dicts)")

LM_HEAD = (
    row("lm_head.weight", "v h", "head.weight"),
    # A tied head is left out by save_pretrained, but many files carry the copy.
    row("lm_head.weight", "v h", "embedding.tokens.weight", when="head.tied", copy=True),
)

MODEL = Table(rows=[
    row("model.embed_tokens.weight", "v h", "embedding.tokens.weight"),
    row("model.norm.weight",         "h",   "final_norm.weight"),
    *LM_HEAD,
    drop("model.rotary_emb.inv_freq",       why="computed from theta"),
])

LAYER = Table("model.layers.{l}", to="layers.{l}", rows=[
    row("input_layernorm.weight",          "h",         "attention.norm.weight"),
    row("self_attn.q_proj.weight",         "(g r d) h", "attention.q.weight"),
    row("self_attn.q_proj.bias",           "(g r d)",   "attention.q.bias"),
    row("self_attn.k_proj.weight",         "(g d) h",   "attention.k.weight"),
    row("self_attn.k_proj.bias",           "(g d)",     "attention.k.bias"),
    row("self_attn.v_proj.weight",         "(g d) h",   "attention.v.weight"),
    row("self_attn.v_proj.bias",           "(g d)",     "attention.v.bias"),
    row("self_attn.o_proj.weight",         "h (g r d)", "attention.out.weight"),
    row("self_attn.o_proj.bias",           "h",         "attention.out.bias"),
    row("post_attention_layernorm.weight", "h",         "mlp.norm.weight"),
    row("mlp.gate_proj.weight",            "f h",       "mlp.gate.weight"),
    row("mlp.gate_proj.bias",              "f",         "mlp.gate.bias"),
    row("mlp.up_proj.weight",              "f h",       "mlp.up.weight"),
    row("mlp.up_proj.bias",                "f",         "mlp.up.bias"),
    row("mlp.down_proj.weight",            "h f",       "mlp.down.weight"),
    row("mlp.down_proj.bias",              "h",         "mlp.down.bias"),
    # transformers before 4.31 saved this buffer
    drop("self_attn.rotary_emb.inv_freq",  why="computed from theta"),
])

LLAMA = layouts.Tables([MODEL, LAYER])

# The MLP rows of a layer, for families that name them otherwise.
MLP = tuple(f"mlp.{part}_proj.{kind}" for part in ("gate", "up", "down") for kind in ("weight", "bias"))

LAYER_NORM_BIASES = (
    row("input_layernorm.bias",          "h", "attention.norm.bias"),
    row("post_attention_layernorm.bias", "h", "mlp.norm.bias"),
)
MODEL_WITH_BIAS = MODEL.extend(row("model.norm.bias", "h", "final_norm.bias"))

# Norms of q and k: one for the elements of each head, or one over all heads together.
QK_NORMS = (
    row("self_attn.q_norm.weight", "d", "attention.q_norm.weight"),
    row("self_attn.k_norm.weight", "d", "attention.k_norm.weight"),
)
WHOLE_QK_NORMS = (
    row("self_attn.q_norm.weight", "(g r d)", "attention.q_norm.weight"),
    row("self_attn.k_norm.weight", "(g d)",   "attention.k_norm.weight"),
)

# Rotated elements lie in adjacent pairs (e c); those that do not rotate follow them (o).
ADJACENT = (
    row("self_attn.q_proj.weight", "(g r (e c + o)) h", "attention.q.weight"),
    row("self_attn.q_proj.bias",   "(g r (e c + o))",   "attention.q.bias"),
    row("self_attn.k_proj.weight", "(g (e c + o)) h",   "attention.k.weight"),
    row("self_attn.k_proj.bias",   "(g (e c + o))",     "attention.k.bias"),
)

EXPERTS = (
    row("mlp.gate.weight",                  "x h",                 "mlp.router.weight"),
    row("mlp.experts.{x}.gate_proj.weight", "f h",                 "mlp.experts.gate.weight",   under={"names": "stored"}),
    row("mlp.experts.{x}.up_proj.weight",   "f h",                 "mlp.experts.up.weight",     under={"names": "stored"}),
    row("mlp.experts.{x}.down_proj.weight", "h f",                 "mlp.experts.down.weight",   under={"names": "stored"}),
    row("mlp.experts.gate_up_proj",         "x ((gate + up) f) h", "mlp.experts.{part}.weight", under={"names": "held"}),
    row("mlp.experts.down_proj",            "x h f",               "mlp.experts.down.weight",   under={"names": "held"}),
)

# Qwen3-VL's experts lie fused in the files: on the Hub with the input first, as no other's do, and with the output first where
# transformers 5 saved a model that it had made itself. It tells them by their shapes (conversion_mapping.py, `Transpose(check_dims=True)`).
INPUT_FIRST = (
    row("mlp.experts.gate_up_proj", "x h ((gate + up) f)", "mlp.experts.{part}.weight"),
    row("mlp.experts.down_proj",    "x f h",               "mlp.experts.down.weight"),
)

# The layers of what began in fairseq: OPT, Blenderbot.
FAIRSEQ_ATTENTION = (
    row("self_attn_layer_norm.weight",    "h",         "attention.norm.weight"),
    row("self_attn_layer_norm.bias",      "h",         "attention.norm.bias"),
    row("self_attn.q_proj.weight",        "(g r d) h", "attention.q.weight"),
    row("self_attn.q_proj.bias",          "(g r d)",   "attention.q.bias"),
    row("self_attn.k_proj.weight",        "(g d) h",   "attention.k.weight"),
    row("self_attn.k_proj.bias",          "(g d)",     "attention.k.bias"),
    row("self_attn.v_proj.weight",        "(g d) h",   "attention.v.weight"),
    row("self_attn.v_proj.bias",          "(g d)",     "attention.v.bias"),
    row("self_attn.out_proj.weight",      "h (g r d)", "attention.out.weight"),
    row("self_attn.out_proj.bias",        "h",         "attention.out.bias"),
)

FAIRSEQ_MLP = (
    row("final_layer_norm.weight", "h",   "mlp.norm.weight"),
    row("final_layer_norm.bias",   "h",   "mlp.norm.bias"),
    row("fc1.weight",              "f h", "mlp.up.weight"),
    row("fc1.bias",                "f",   "mlp.up.bias"),
    row("fc2.weight",              "h f", "mlp.down.weight"),
    row("fc2.bias",                "h",   "mlp.down.bias"),
)
# fmt: on
