"""Which Megatron tensor holds what, and how its ranks divide it.

Names are those of the modules of Megatron-Core's local layer spec, with global layer and expert indices; what
other versions and specs call them is in `names`. A sentence describes the tensor of one rank, so a gated
`linear_fc1` is [gate_t; up_t] on each rank and [gate; up] where all ranks' parts lie together (torch_dist).
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_core.sdk import Table, drop, layouts, row

__all__ = [
    "ATTENTION",
    "EXPERTS",
    "FC2",
    "HEAD",
    "INTERLEAVED",
    "LAYER",
    "MODEL",
    "NORMS",
    "ROUTER",
    "TABLES",
    "VERSION",
]

# fmt: off
INTERLEAVED = layouts.Choice("rotary_interleaved", (False, True), default=False,
    help="the two elements of a rotary pair are neighbours (--rotary-interleaved, as in GPT-J)")
"""The order of the elements of rotary pairs."""
VERSION = layouts.Choice("checkpoint_version", (0.0, 1.0, 2.0, 3.0), default=3.0,
    help="the order of q, k and v in their tensor, which Megatron-LM has changed twice")
"""The version of the checkpoint, which the state of a file says."""
CHOICES = [
    INTERLEAVED,
    VERSION,
    layouts.Choice("experts", ("sequential", "grouped"), default="sequential",
                   help="a tensor for each expert, or (GroupedMLP of the local spec, until 0.16) one for all of a rank"),
    # Column-parallel in the local spec; in the TE spec too until 0.13, and since 0.14 whole on every rank.
    layouts.Choice("mla_down_proj", ("whole", "rows"), default="whole",
                   help="latent attention: every rank holds the down projections, or a block of their rows"),
    layouts.Choice("mla_down_proj_fusion", (False, True), default=False,
                   help="latent attention: one tensor for both down projections (--mla-down-proj-fusion, 0.17)"),
    # Until core 0.18 they lie in halves; since then the field dsa_indexer_rope_interleaved says it, which is true of GLM-5.
    layouts.Choice("index_interleaved", (True, False), default=True,
                   help="indexers: the two elements of a rotary pair are neighbours"),
]

# The order of q, k and v; every rank's tensor is arranged so by itself.
ORDER = layouts.fragment("qkv", [
    # until September 2020: [3, heads, head_dim]
    ("((q[r] + k + v) g d)",                       {"checkpoint_version": 0.0,        "rotary_interleaved": False}),
    # until 12 October 2020: [heads, head_dim, 3]
    ("(g d (q[r] + k + v))",                       {"checkpoint_version": 1.0,        "rotary_interleaved": False}),
    # since, and in Megatron-Core: [groups, r + 2, head_dim]
    ("(g (q[r] + k + v) d)",                       {"checkpoint_version": (2.0, 3.0), "rotary_interleaved": False}),
    # e pairs of c = 2 neighbouring elements
    ("(g (q[r (e c + o)] + k[(e c + o)] + v[d]))", {"rotary_interleaved": True}),
])
HEAD = layouts.fragment("head", [
    ("d",                                          {"rotary_interleaved": False}),
    ("(e c + o)",                                  {"rotary_interleaved": True}),
])
"""The elements of one head, as a norm of queries or keys has them."""
INDEX = layouts.fragment("index", [
    ("di",                                         {"index_interleaved": False}),
    ("(e c + o)",                                  {"index_interleaved": True}),
])

MODEL = Table(rows=[
    row("embedding.word_embeddings.weight",     "v h", "embedding.tokens.weight", tp="v"),
    row("embedding.position_embeddings.weight", "p h", "positions.weight"),
    row("decoder.final_layernorm.weight",       "h",   "final_norm.weight"),
    row("decoder.final_layernorm.bias",         "h",   "final_norm.bias"),
    row("output_layer.weight",                  "v h", "head.weight",             tp="v"),
    # With a tied head, the last of several pipeline stages holds a copy of the embedding.
    row("output_layer.weight",                  "v h", "embedding.tokens.weight", tp="v", when="head.tied", copy=True),
    drop("*_extra_state",                       why="fp8 scales, or nothing"),
    drop("*rotary_pos_emb.inv_freq",            why="computed from the base"),
    drop("*.local_tokens_per_expert",           why="counts of the last step"),
])
"""What lies outside of the layers."""

NORMS = [
    row("input_layernorm.weight",               "h", "attention.norm.weight", when="!mamba"),
    row("input_layernorm.bias",                 "h", "attention.norm.bias",   when="!mamba"),
    # a layer of Falcon-H1 has one norm before both of its blocks (falconh1_layer.py)
    row("norm.weight",                          "h", "attention.norm.weight", when="mamba"),
    row("norm.bias",                            "h", "attention.norm.bias",   when="mamba"),
    row("input_layernorm.weight",               "h", "delta.norm.weight"),
    row("input_layernorm.weight",               "h", "mamba.norm.weight"),
    row("pre_mlp_layernorm.weight",             "h", "mlp.norm.weight"),
    row("pre_mlp_layernorm.bias",               "h", "mlp.norm.bias"),
]
"""The rows of a layer's norms."""

QKV = [
    row("self_attention.linear_qkv.weight",     "<qkv> h", "attention.{part}.weight", tp="g",    when="attention.groups%tp=0 !attention.out_gate"),
    row("self_attention.linear_qkv.bias",       "<qkv>",   "attention.{part}.bias",   tp="g",    when="attention.groups%tp=0 !attention.out_gate"),
    # More ranks than groups: blocks of rows, whatever the rows are.
    row("self_attention.linear_qkv.weight",     "<qkv> h", "attention.{part}.weight", tp="rows", when="attention.groups%tp!=0 !attention.out_gate"),
    row("self_attention.linear_qkv.bias",       "<qkv>",   "attention.{part}.bias",   tp="rows", when="attention.groups%tp!=0 !attention.out_gate"),
    # --attention-output-gate: the gates of a group's heads follow its queries
    row("self_attention.linear_qkv.weight",     "(g (q[r] + gate[r] + k + v) d) h", "attention.{part}.weight", tp="g", when="attention.out_gate", under={"rotary_interleaved": False}),
    row("self_attention.linear_qkv.bias",       "(g (q[r] + gate[r] + k + v) d)",   "attention.{part}.bias",   tp="g", when="attention.out_gate", under={"rotary_interleaved": False}),
]

ATTENTION = [
    row("self_attention.q_layernorm.weight",    "<head>",    "attention.q_norm.weight", when="attention !attention.qk_norm_whole"),
    row("self_attention.q_layernorm.bias",      "<head>",    "attention.q_norm.bias",   when="attention"),
    row("self_attention.k_layernorm.weight",    "<head>",    "attention.k_norm.weight", when="!attention.qk_norm_whole"),
    row("self_attention.k_layernorm.bias",      "<head>",    "attention.k_norm.bias"),
    # Norms on the whole width of q and k, which Bridge alone has (FullDimQNorm): the ranks share their weights as they share the heads.
    row("self_attention.q_layernorm.weight",    "(g r <head>)", "attention.q_norm.weight", tp="g r", when="attention attention.qk_norm_whole"),
    row("self_attention.k_layernorm.weight",    "(g <head>)",   "attention.k_norm.weight", tp="g",   when="attention.qk_norm_whole"),
    row("self_attention.core_attention.softmax_offset", "(g r)", "attention.sinks.weight",  tp="g r"),
    row("self_attention.linear_proj.weight",    "h (g r d)", "attention.out.weight",    tp="g r", when="attention"),
    row("self_attention.linear_proj.bias",      "h",         "attention.out.bias",                when="attention"),
    # TERowParallelLinearLayerNorm, which Bridge alone has
    row("self_attention.linear_proj.post_layernorm.weight", "h", "attention.out_norm.weight"),
]
"""The rows of attention but for q, k and v."""

# The rotated rows are always interleaved pairs, as in DeepSeek's own files.
LATENT = [
    row("self_attention.linear_qkv_down_proj.weight", "(q_down[ql] + kv_down[kl] + k_rope[e c]) h", "attention.{part}.weight",            under={"mla_down_proj_fusion": True, "mla_down_proj": "whole"}),
    row("self_attention.linear_qkv_down_proj.weight", "(q_down[ql] + kv_down[kl] + k_rope[e c]) h", "attention.{part}.weight", tp="rows", under={"mla_down_proj_fusion": True, "mla_down_proj": "rows"}),
    row("self_attention.linear_q_proj.weight",        "(g (q_nope[dn] + q_rope[e c])) h",  "attention.{part}.weight",  tp="g", when="!latent_attention.q_rank"),
    row("self_attention.linear_q_down_proj.weight",   "ql h",                              "attention.q_down.weight",             under={"mla_down_proj_fusion": False, "mla_down_proj": "whole"}),
    row("self_attention.linear_q_down_proj.weight",   "ql h",                              "attention.q_down.weight", tp="rows",  under={"mla_down_proj_fusion": False, "mla_down_proj": "rows"}),
    row("self_attention.q_layernorm.weight",          "ql",                                "attention.q_norm.weight",          when="latent_attention"),
    row("self_attention.linear_q_up_proj.weight",     "(g (q_nope[dn] + q_rope[e c])) ql", "attention.{part}.weight", tp="g",  when="latent_attention.q_rank"),
    row("self_attention.linear_kv_down_proj.weight",  "(kv_down[kl] + k_rope[e c]) h",     "attention.{part}.weight",             under={"mla_down_proj_fusion": False, "mla_down_proj": "whole"}),
    row("self_attention.linear_kv_down_proj.weight",  "(kv_down[kl] + k_rope[e c]) h",     "attention.{part}.weight", tp="rows",  under={"mla_down_proj_fusion": False, "mla_down_proj": "rows"}),
    row("self_attention.kv_layernorm.weight",         "kl",                                "attention.kv_norm.weight"),
    row("self_attention.linear_kv_up_proj.weight",    "(g (k_nope[dn] + v[dv])) kl",       "attention.{part}.weight", tp="g",  when="latent_attention"),
    row("self_attention.linear_proj.weight",          "h (g dv)",                          "attention.out.weight",    tp="g",  when="latent_attention"),
    row("self_attention.linear_proj.bias",            "h",                                 "attention.out.bias",               when="latent_attention"),
]

# An indexer is whole on every rank (parallel_mode "duplicated", experimental_attention_variant/dsa.py).
INDEXER = [
    row("self_attention.core_attention.indexer.linear_wq_b.weight",         "(gi <index>) ql", "attention.index_q.weight"),
    row("self_attention.core_attention.indexer.linear_wk.weight",           "<index> h",       "attention.index_k.weight"),
    row("self_attention.core_attention.indexer.k_norm.weight",              "<index>",         "attention.index_norm.weight"),
    row("self_attention.core_attention.indexer.k_norm.bias",                "<index>",         "attention.index_norm.bias"),
    row("self_attention.core_attention.indexer.linear_weights_proj.weight", "gi h",            "attention.index_heads.weight"),
]

# What torch_dist keeps of gated_delta_net.py: each part of in_proj and conv1d under a name of its own (_split_tensor_factory).
DELTA = [
    row("self_attention.in_proj.weight.query",  "(g dk) h",     "delta.q.weight",         tp="g"),
    row("self_attention.in_proj.weight.key",    "(g dk) h",     "delta.k.weight",         tp="g"),
    row("self_attention.in_proj.weight.value",  "(g r dv) h",   "delta.v.weight",         tp="g"),
    row("self_attention.in_proj.weight.z",      "(g r dv) h",   "delta.z.weight",         tp="g"),
    row("self_attention.in_proj.weight.beta",   "(g r) h",      "delta.b.weight",         tp="g"),
    row("self_attention.in_proj.weight.alpha",  "(g r) h",      "delta.a.weight",         tp="g"),
    row("self_attention.conv1d.weight.query",   "(g dk) 1 t",   "delta.q_conv.weight",    tp="g"),
    row("self_attention.conv1d.weight.key",     "(g dk) 1 t",   "delta.k_conv.weight",    tp="g"),
    row("self_attention.conv1d.weight.value",   "(g r dv) 1 t", "delta.v_conv.weight",    tp="g"),
    row("self_attention.A_log",                 "(g r)",        "delta.a_log.weight",     tp="g"),
    row("self_attention.dt_bias",               "(g r)",        "delta.dt_bias.weight",   tp="g"),
    row("self_attention.out_norm.weight",       "dv",           "delta.head_norm.weight", when="delta.norm.zero_centred", via=layouts.plus_one),
    row("self_attention.out_norm.weight",       "dv",           "delta.head_norm.weight", when="!delta.norm.zero_centred"),
    row("self_attention.out_proj.weight",       "h (g r dv)",   "delta.out.weight",       tp="g"),
]

# What torch_dist keeps of mamba_mixer.py, whose in_proj and conv1d are split in the same way; in memory it is conv1d_weight.
_OF_MIXER = [
    row("in_proj.weight.z",               "(g r d) h",    "mamba.z.weight",          tp="g"),
    row("in_proj.weight.x",               "(g r d) h",    "mamba.x.weight",          tp="g"),
    row("in_proj.weight.B",               "(g n) h",      "mamba.b.weight",          tp="g"),
    row("in_proj.weight.C",               "(g n) h",      "mamba.c.weight",          tp="g"),
    row("in_proj.weight.dt",              "(g r) h",      "mamba.dt.weight",         tp="g"),
    row("conv1d.weight.x",                "(g r d) 1 t",  "mamba.x_conv.weight",     tp="g"),
    row("conv1d.weight.B",                "(g n) 1 t",    "mamba.b_conv.weight",     tp="g"),
    row("conv1d.weight.C",                "(g n) 1 t",    "mamba.c_conv.weight",     tp="g"),
    row("conv1d.bias.x",                  "(g r d)",      "mamba.x_conv.bias",       tp="g"),
    row("conv1d.bias.B",                  "(g n)",        "mamba.b_conv.bias",       tp="g"),
    row("conv1d.bias.C",                  "(g n)",        "mamba.c_conv.bias",       tp="g"),
    row("A_log",                          "(g r)",        "mamba.a_log.weight",      tp="g"),
    row("D",                              "(g r)",        "mamba.skip.weight",       tp="g"),
    row("dt_bias",                        "(g r)",        "mamba.dt_bias.weight",    tp="g"),
    row("norm.weight",                    "(g r d)",      "mamba.gated_norm.weight", tp="g"),
    row("out_proj.weight",                "h (g r d)",    "mamba.out.weight",        tp="g"),
]
MAMBA = [
    *(replace(one, native=f"mixer.{one.native}", when="!attention") for one in _OF_MIXER),
    *(replace(one, native=f"mamba_mixer.{one.native}", when="attention") for one in _OF_MIXER),
]

FC1 = [
    row("mlp.linear_fc1.weight",                "((gate + up) f) h", "mlp.{part}.weight",        tp="f", when="mlp.gated"),
    row("mlp.linear_fc1.bias",                  "((gate + up) f)",   "mlp.{part}.bias",          tp="f", when="mlp.gated"),
    row("mlp.linear_fc1.weight",                "f h",               "mlp.up.weight",            tp="f", when="!mlp.gated"),
    row("mlp.linear_fc1.bias",                  "f",                 "mlp.up.bias",              tp="f", when="!mlp.gated"),
]
FC2 = [
    row("mlp.linear_fc2.weight",                "h f",               "mlp.down.weight",          tp="f"),
    row("mlp.linear_fc2.bias",                  "h",                 "mlp.down.bias"),
    row("mlp.linear_fc2.post_layernorm.weight", "h",                 "mlp.out_norm.weight"),
]
"""The rows of the second linear layer of an MLP."""

ROUTER = [
    row("mlp.router.weight",                    "x h",               "mlp.router.weight"),
    row("mlp.router.bias",                      "x",                 "mlp.router.bias"),
    # A float32 buffer whatever the model's dtype (moe/router.py, _maintain_float32_expert_bias).
    row("mlp.router.expert_bias",               "x",                 "mlp.router.correction_bias", dtype="fp32"),
    # On every rank alike (parallel_mode "duplicated", moe/moe_layer.py)
    row("mlp.fc1_latent_proj.weight",           "m h",               "mlp.latent_in.weight"),
    row("mlp.fc2_latent_proj.weight",           "h m",               "mlp.latent_out.weight"),
    row("mlp.shared_experts.linear_fc2.weight", "h f",               "mlp.shared.down.weight",   tp="f"),
    row("mlp.shared_experts.linear_fc2.bias",   "h",                 "mlp.shared.down.bias"),
    row("mlp.shared_experts.gate_weight",       "1 h",               "mlp.shared_gate.weight"),
    row("mlp.shared_experts.linear_fc1.weight", "((gate + up) f) h", "mlp.shared.{part}.weight", tp="f", when="mlp.gated"),
    row("mlp.shared_experts.linear_fc1.bias",   "((gate + up) f)",   "mlp.shared.{part}.bias",   tp="f", when="mlp.gated"),
    row("mlp.shared_experts.linear_fc1.weight", "f h",               "mlp.shared.up.weight",     tp="f", when="!mlp.gated"),
    row("mlp.shared_experts.linear_fc1.bias",   "f",                 "mlp.shared.up.bias",       tp="f", when="!mlp.gated"),
]
"""The rows of a router, and of what experts share."""

EXPERTS = [
    row("mlp.experts.local_experts.{x}.linear_fc1.weight", "((gate + up) f) h", "mlp.experts.{part}.weight", tp="f", ep="x", when="mlp.gated"),
    row("mlp.experts.local_experts.{x}.linear_fc1.bias",   "((gate + up) f)",   "mlp.experts.{part}.bias",   tp="f", ep="x", when="mlp.gated"),
    row("mlp.experts.local_experts.{x}.linear_fc1.weight", "f h",               "mlp.experts.up.weight",     tp="f", ep="x", when="!mlp.gated"),
    row("mlp.experts.local_experts.{x}.linear_fc1.bias",   "f",                 "mlp.experts.up.bias",       tp="f", ep="x", when="!mlp.gated"),
    row("mlp.experts.local_experts.{x}.linear_fc2.weight", "h f",               "mlp.experts.down.weight",   tp="f", ep="x"),
    row("mlp.experts.local_experts.{x}.linear_fc2.bias",   "h",                 "mlp.experts.down.bias",             ep="x"),
]
"""The rows of experts that are a module each."""
# GroupedMLP (until 0.16): stored as [h, x * 2f] and [x * f, h], but used as .view(x, h, 2f) and .view(x, f, h).
GROUPED_EXPERTS = [
    row("mlp.experts.weight1",                  "x h ((gate + up) f)", "mlp.experts.{part}.weight", tp="f", ep="x", when="mlp.gated"),
    row("mlp.experts.weight1",                  "x h f",               "mlp.experts.up.weight",     tp="f", ep="x", when="!mlp.gated"),
    row("mlp.experts.weight2",                  "x f h",               "mlp.experts.down.weight",   tp="f", ep="x"),
]

PREDICTOR = [
    row("enorm.weight",                         "h",                      "embed_norm.weight"),
    row("enorm.bias",                           "h",                      "embed_norm.bias"),
    row("hnorm.weight",                         "h",                      "hidden_norm.weight"),
    row("hnorm.bias",                           "h",                      "hidden_norm.bias"),
    row("eh_proj.weight",                       "i ((embed + hidden) h)", "{part}.weight",        tp="i"),
    row("final_layernorm.weight",               "h",                      "out_norm.weight"),
    row("final_layernorm.bias",                 "h",                      "out_norm.bias"),
]
"""The rows of a layer of multi-token prediction but for those of its block."""

BLOCK = [*NORMS, *QKV, *ATTENTION, *LATENT, *INDEXER, *DELTA, *MAMBA, *FC1, *FC2, *ROUTER]
"""The rows of a layer but for those of its experts."""

LAYER = "decoder.layers.{l}"
"""What the names of a layer's tensors begin with."""
MTP_BLOCK = "mtp.layers.{l}.transformer_layer"

TABLES = layouts.Tables(
    [
        MODEL,
        Table(LAYER, to="layers.{l}", rows=BLOCK),
        Table(LAYER, to="layers.{l}", rows=EXPERTS,         under={"experts": "sequential"}),
        Table(LAYER, to="layers.{l}", rows=GROUPED_EXPERTS, under={"experts": "grouped"}),
        Table("mtp.layers.{l}", to="predictors.{l}", rows=PREDICTOR),
        Table(MTP_BLOCK, to="predictors.{l}.layer", rows=BLOCK),
        Table(MTP_BLOCK, to="predictors.{l}.layer", rows=EXPERTS,         under={"experts": "sequential"}),
        Table(MTP_BLOCK, to="predictors.{l}.layer", rows=GROUPED_EXPERTS, under={"experts": "grouped"}),
    ],
    CHOICES,
    [ORDER, HEAD, INDEX],
)
"""The tables of a GPTModel."""
# fmt: on


def is_expert(native: layouts.Native) -> bool:
    """Whether expert parallel ranks divide this tensor, and expert tensor parallel ranks its width."""
    return "ep" in dict(native.row.splits)
