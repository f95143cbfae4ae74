"""What torchtitan calls the tensors of its models (models/*/model/state_dict_adapter.py, 0.1 to 0.3.0).

Weights are [out, in]; those of experts are [experts, out, in] of one tensor.
"""

from __future__ import annotations

from ckpt_core.sdk import Table, drop, layouts, row

# fmt: off
# Names changed at different times, so each is a choice of its own.
HEAD = layouts.Choice("head", ("lm_head", "output"), default="lm_head",
    help="the name of the head: output.weight until 0.2")
QKV = layouts.Choice("qkv", ("qkv_linear", "bare"), default="qkv_linear",
    help="whether queries, keys and values lie in a module of their own, which also fuses them while it runs (since 0.3)")
EXPERTS = layouts.Choice("experts", ("routed_experts", "bare"), default="routed_experts",
    help="names of the tensors of experts: moe.experts.w1 and moe.expert_bias until 0.2")
ROTARY = layouts.Choice("rotary", ("pairs", "halves"),
    help="llama3 rotates neighbouring elements of a head (ComplexRoPE), qwen3 the two halves (CosSinRoPE)")

# Latent attention rotates neighbours, as DeepSeek's own files have it.
ELEMENTS = layouts.fragment("elements", [
    ("d",           {"rotary": "halves"}),
    ("(e c + o)",   {"rotary": "pairs"}),
])

MODEL = Table(rows=[
    row("tok_embeddings.weight", "v h", "embedding.tokens.weight"),
    row("norm.weight",           "h",   "final_norm.weight"),
    row("lm_head.weight",        "v h", "head.weight",                                          under={"head": "lm_head"}),
    row("output.weight",         "v h", "head.weight",                                          under={"head": "output"}),
    # With enable_weight_tying both names are stored.
    row("lm_head.weight",        "v h", "embedding.tokens.weight", when="head.tied", copy=True, under={"head": "lm_head"}),
    row("output.weight",         "v h", "embedding.tokens.weight", when="head.tied", copy=True, under={"head": "output"}),
    # models/deepseek_v3/mtp.py (0.3.0) gives the first of them the state before the final norm, where everyone else gives the one after it
    drop("mtp_layers.*",         why="multi-token prediction layers, on which the model's own outputs do not depend"),
    drop("freqs_cis",            why="computed from theta"),  # a buffer of the first versions
])

LAYER = Table("layers.{l}", to="layers.{l}", rows=[
    row("attention_norm.weight",   "h",         "attention.norm.weight"),
    row("ffn_norm.weight",         "h",         "mlp.norm.weight"),
    row("attention.qkv_linear.wq.weight",       "(g r <elements>) h",  "attention.q.weight",  under={"qkv": "qkv_linear"}),
    row("attention.qkv_linear.wk.weight",       "(g <elements>) h",    "attention.k.weight",  under={"qkv": "qkv_linear"}),
    row("attention.qkv_linear.wv.weight",       "(g d) h",             "attention.v.weight",  when="attention", under={"qkv": "qkv_linear"}),
    row("attention.qkv_linear.wq.bias",         "(g r <elements>)",    "attention.q.bias",    under={"qkv": "qkv_linear"}),
    row("attention.qkv_linear.wk.bias",         "(g <elements>)",      "attention.k.bias",    under={"qkv": "qkv_linear"}),
    row("attention.qkv_linear.wv.bias",         "(g d)",               "attention.v.bias",    under={"qkv": "qkv_linear"}),
    row("attention.wq.weight",                  "(g r <elements>) h",  "attention.q.weight",  under={"qkv": "bare"}),
    row("attention.wk.weight",                  "(g <elements>) h",    "attention.k.weight",  under={"qkv": "bare"}),
    row("attention.wv.weight",                  "(g d) h",             "attention.v.weight",  when="attention", under={"qkv": "bare"}),
    row("attention.wq.bias",                    "(g r <elements>)",    "attention.q.bias",    under={"qkv": "bare"}),
    row("attention.wk.bias",                    "(g <elements>)",      "attention.k.bias",    under={"qkv": "bare"}),
    row("attention.wv.bias",                    "(g d)",               "attention.v.bias",    under={"qkv": "bare"}),
    row("attention.wo.weight",     "h (g r d)", "attention.out.weight", when="attention"),
    row("attention.q_norm.weight", "<elements>", "attention.q_norm.weight", when="attention"),
    row("attention.k_norm.weight", "<elements>", "attention.k_norm.weight"),
    row("feed_forward.w1.weight",  "f h",       "mlp.gate.weight"),
    row("feed_forward.w3.weight",  "f h",       "mlp.up.weight"),
    row("feed_forward.w2.weight",  "h f",       "mlp.down.weight"),
])

MIXTURE = Table("layers.{l}", to="layers.{l}", rows=[
    row("moe.router.gate.weight",                         "x h",   "mlp.router.weight"),
    row("moe.routed_experts.inner_experts.w1_EFD",        "x f h", "mlp.experts.gate.weight", under={"experts": "routed_experts"}),
    row("moe.routed_experts.inner_experts.w3_EFD",        "x f h", "mlp.experts.up.weight",   under={"experts": "routed_experts"}),
    row("moe.routed_experts.inner_experts.w2_EDF",        "x h f", "mlp.experts.down.weight", under={"experts": "routed_experts"}),
    row("moe.experts.w1",                                 "x f h", "mlp.experts.gate.weight", under={"experts": "bare"}),
    row("moe.experts.w3",                                 "x f h", "mlp.experts.up.weight",   under={"experts": "bare"}),
    row("moe.experts.w2",                                 "x h f", "mlp.experts.down.weight", under={"experts": "bare"}),
    row("moe.shared_experts.w1.weight",                   "f h",   "mlp.shared.gate.weight"),
    row("moe.shared_experts.w3.weight",                   "f h",   "mlp.shared.up.weight"),
    row("moe.shared_experts.w2.weight",                   "h f",   "mlp.shared.down.weight"),
    # a float32 buffer
    row("moe.expert_bias_E",                              "x",     "mlp.router.correction_bias", dtype="fp32", under={"experts": "routed_experts"}),
    row("moe.expert_bias",                                "x",     "mlp.router.correction_bias", dtype="fp32", under={"experts": "bare"}),
])

LATENT = Table("layers.{l}", to="layers.{l}", rows=[
    row("attention.wq.weight",      "(g (q_nope[dn] + q_rope[e c])) h",  "attention.{part}.weight", when="!latent_attention.q_rank"),
    row("attention.wq_a.weight",    "ql h",                              "attention.q_down.weight"),
    row("attention.q_norm.weight",  "ql",                                "attention.q_norm.weight", when="latent_attention"),
    row("attention.wq_b.weight",    "(g (q_nope[dn] + q_rope[e c])) ql", "attention.{part}.weight", when="latent_attention.q_rank"),
    row("attention.wkv_a.weight",   "(kv_down[kl] + k_rope[e c]) h",     "attention.{part}.weight", when="latent_attention"),
    row("attention.kv_norm.weight", "kl",                                "attention.kv_norm.weight"),
    row("attention.wkv_b.weight",   "(g (k_nope[dn] + v[dv])) kl",       "attention.{part}.weight", when="latent_attention"),
    row("attention.wo.weight",      "h (g dv)",                          "attention.out.weight",    when="latent_attention"),
])
# fmt: on

TABLES = layouts.Tables([MODEL, LAYER, MIXTURE, LATENT], [HEAD, QKV, EXPERTS, ROTARY], [ELEMENTS])
RELEASES: dict[str, dict[str, layouts.Value]] = {
    "0.3": {"head": "lm_head", "qkv": "qkv_linear", "experts": "routed_experts"},
    "0.2": {"head": "output", "qkv": "bare", "experts": "bare"},
}
"""The names of a release, as the choices that make them."""
BIAS = {"routed_experts": "moe.expert_bias_E", "bare": "moe.expert_bias"}
"""The bias of the scores of experts, which every mixture of torchtitan has, by the choice `experts`."""
