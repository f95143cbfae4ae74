"""Which tensor of a GGUF file holds what, for each architecture of llama.cpp (src/models, b10605).

Matrices are `[out, in]` as in transformers, and experts are stacked. Norms, biases, routers and learned positions are float32 whatever
the type of the file (conversion/base.py, prepare_tensors).
"""

from __future__ import annotations

from ckpt_core.sdk import Table, drop, layouts, row

# fmt: off
EMBEDDING = row("token_embd.weight",  "v h", "embedding.tokens.weight")
NORM =      row("output_norm.weight", "h",   "final_norm.weight", dtype="fp32")
NORM_BIAS = row("output_norm.bias",   "h",   "final_norm.bias",   dtype="fp32")
HEAD =      row("output.weight",      "v h", "head.weight")
# What stretches the angles is read as a part of the config.
FREQUENCIES = [drop(name, why="read with the rotary positions") for name in ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")]

MODEL = Table(rows=[EMBEDDING, NORM, HEAD, *FREQUENCIES])
MODEL_WITH_BIAS = MODEL.extend(NORM_BIAS)
UNROTATED_MODEL = Table(rows=[EMBEDDING, NORM, HEAD])
UNROTATED_MODEL_WITH_BIAS = UNROTATED_MODEL.extend(NORM_BIAS)
MODEL_WITH_POSITIONS = UNROTATED_MODEL_WITH_BIAS.extend(row("position_embd.weight", "p h", "positions.weight", dtype="fp32"))

LAYER = Table("blk.{l}", to="layers.{l}", rows=[
    row("attn_norm.weight",   "h",         "attention.norm.weight", dtype="fp32"),
    row("attn_q.weight",      "(g r d) h", "attention.q.weight"),
    row("attn_q.bias",        "(g r d)",   "attention.q.bias",      dtype="fp32"),
    row("attn_k.weight",      "(g d) h",   "attention.k.weight"),
    row("attn_k.bias",        "(g d)",     "attention.k.bias",      dtype="fp32"),
    row("attn_v.weight",      "(g d) h",   "attention.v.weight"),
    row("attn_v.bias",        "(g d)",     "attention.v.bias",      dtype="fp32"),
    row("attn_output.weight", "h (g r d)", "attention.out.weight"),
    row("attn_output.bias",   "h",         "attention.out.bias",    dtype="fp32"),
    row("ffn_norm.weight",    "h",         "mlp.norm.weight",       dtype="fp32"),
    row("ffn_gate.weight",    "f h",       "mlp.gate.weight"),
    row("ffn_gate.bias",      "f",         "mlp.gate.bias",         dtype="fp32"),
    row("ffn_up.weight",      "f h",       "mlp.up.weight"),
    row("ffn_up.bias",        "f",         "mlp.up.bias",           dtype="fp32"),
    row("ffn_down.weight",    "h f",       "mlp.down.weight"),
    row("ffn_down.bias",      "h",         "mlp.down.bias",         dtype="fp32"),
])

QKV = tuple(f"attn_{part}.{kind}" for part in "qkv" for kind in ("weight", "bias"))
MLP = tuple(f"ffn_{part}.{kind}" for part in ("gate", "up", "down") for kind in ("weight", "bias"))

# The two elements of a rotary pair are neighbours: ggml's NORM mode rotates those of Llama and of what converts as it does.
PAIRED_LAYER = LAYER.replace(
    row("attn_q.weight", "(g r (e c + o)) h", "attention.q.weight"),
    row("attn_q.bias",   "(g r (e c + o))",   "attention.q.bias", dtype="fp32"),
    row("attn_k.weight", "(g (e c + o)) h",   "attention.k.weight"),
    row("attn_k.bias",   "(g (e c + o))",     "attention.k.bias", dtype="fp32"),
)

EXPERTS = (
    row("ffn_gate_inp.weight",  "x h",   "mlp.router.weight", dtype="fp32"),
    row("ffn_gate_exps.weight", "x f h", "mlp.experts.gate.weight"),
    row("ffn_up_exps.weight",   "x f h", "mlp.experts.up.weight"),
    row("ffn_down_exps.weight", "x h f", "mlp.experts.down.weight"),
)
# Of Mixtral there are files of before llama.cpp stacked experts.
MIXTRALS_EXPERTS = (
    EXPERTS[0],
    row("ffn_gate_exps.weight", "x f h", "mlp.experts.gate.weight", under={"experts": "stacked"}),
    row("ffn_up_exps.weight",   "x f h", "mlp.experts.up.weight",   under={"experts": "stacked"}),
    row("ffn_down_exps.weight", "x h f", "mlp.experts.down.weight", under={"experts": "stacked"}),
    row("ffn_gate.{x}.weight",  "f h",   "mlp.experts.gate.weight", under={"experts": "single"}),
    row("ffn_up.{x}.weight",    "f h",   "mlp.experts.up.weight",   under={"experts": "single"}),
    row("ffn_down.{x}.weight",  "h f",   "mlp.experts.down.weight", under={"experts": "single"}),
)

SHARED_EXPERT = (
    row("ffn_gate_shexp.weight", "f h", "mlp.shared.gate.weight"),
    row("ffn_up_shexp.weight",   "f h", "mlp.shared.up.weight"),
    row("ffn_down_shexp.weight", "h f", "mlp.shared.down.weight"),
)

OFFSET = row("exp_probs_b.bias", "x", "mlp.router.correction_bias", dtype="fp32")

# One row, which llama.cpp loads as a vector.
SHARED_GATE = row("ffn_gate_inp_shexp.weight", "1 h", "mlp.shared_gate.weight", dtype="fp32")

QK_NORMS = (
    row("attn_q_norm.weight", "d", "attention.q_norm.weight", dtype="fp32"),
    row("attn_k_norm.weight", "d", "attention.k_norm.weight", dtype="fp32"),
)
WHOLE_QK_NORMS = (
    row("attn_q_norm.weight", "(g r d)", "attention.q_norm.weight", dtype="fp32"),
    row("attn_k_norm.weight", "(g d)",   "attention.k_norm.weight", dtype="fp32"),
)
LAYER_NORM_BIASES = (
    row("attn_norm.bias", "h", "attention.norm.bias", dtype="fp32"),
    row("ffn_norm.bias",  "h", "mlp.norm.bias",       dtype="fp32"),
)
OUT_NORMS = (
    row("post_attention_norm.weight", "h", "attention.out_norm.weight", dtype="fp32"),
    row("post_ffw_norm.weight",       "h", "mlp.out_norm.weight",       dtype="fp32"),
)

# Queries, keys and values in one tensor, one after the other, each with its heads.
FUSED_QKV = (
    row("attn_qkv.weight", "((q[g r] + k[g] + v[g]) d) h", "attention.{part}.weight"),
    row("attn_qkv.bias",   "((q[g r] + k[g] + v[g]) d)",   "attention.{part}.bias", dtype="fp32"),
)


# Gemma's norms hold 1 + weight, of what its own files keep less one (conversion/gemma.py adds it, in float32).
LESS_ONE = layouts.plus_one.inverse()
GEMMA_MODEL = MODEL.replace(
    row("output_norm.weight", "h", "final_norm.weight", dtype="fp32", via=LESS_ONE),
)
GEMMA_LAYER = LAYER.replace(
    row("attn_norm.weight", "h", "attention.norm.weight", dtype="fp32", via=LESS_ONE),
    row("ffn_norm.weight",  "h", "mlp.norm.weight",       dtype="fp32", via=LESS_ONE),
)
GEMMA2_LAYER = GEMMA_LAYER.extend(
    row("post_attention_norm.weight", "h", "attention.out_norm.weight", dtype="fp32", via=LESS_ONE),
    row("post_ffw_norm.weight",       "h", "mlp.out_norm.weight",       dtype="fp32", via=LESS_ONE),
)
GEMMA3_LAYER = GEMMA2_LAYER.extend(
    row("attn_q_norm.weight", "d", "attention.q_norm.weight", dtype="fp32", via=LESS_ONE),
    row("attn_k_norm.weight", "d", "attention.k_norm.weight", dtype="fp32", via=LESS_ONE),
)

MIXTRAL_LAYER = PAIRED_LAYER.without(*MLP).extend(*MIXTRALS_EXPERTS)
QWEN3_LAYER = LAYER.extend(*QK_NORMS)
QWEN2_MOE_LAYER = LAYER.without(*MLP).extend(*EXPERTS, *SHARED_EXPERT, SHARED_GATE)
QWEN3_MOE_LAYER = LAYER.without(*MLP).extend(*EXPERTS, *QK_NORMS)
DENSE_FIRST_LAYER = QWEN3_LAYER.extend(*EXPERTS, *SHARED_EXPERT, OFFSET)
OLMOE_LAYER = LAYER.without(*MLP).extend(*EXPERTS, *WHOLE_QK_NORMS)
OLMO2_LAYER = LAYER.without("attn_norm.weight", "ffn_norm.weight").extend(*OUT_NORMS, *WHOLE_QK_NORMS)
LAYER_NORM_LAYER = LAYER.extend(*LAYER_NORM_BIASES)
FUSED_LAYER = LAYER.without(*QKV).extend(*LAYER_NORM_BIASES, *FUSED_QKV)
PHI3_LAYER = LAYER.without(*QKV, *MLP).extend(
    FUSED_QKV[0],
    row("ffn_up.weight",   "((gate + up) f) h", "mlp.{part}.weight"),
    row("ffn_down.weight", "h f",               "mlp.down.weight"),
)

# Latent attention as llama.cpp runs it: keys are absorbed into the queries, so that their half of kv_b is kept transposed for each head.
DEEPSEEK2_LAYER = LAYER.without(*QKV, "attn_output.weight", "attn_output.bias").extend(
    row("attn_q.weight",           "(g (q_nope[dn] + q_rope[e c])) h",  "attention.{part}.weight", when="!latent_attention.q_rank"),
    row("attn_q_a.weight",         "ql h",                              "attention.q_down.weight"),
    row("attn_q_a_norm.weight",    "ql",                                "attention.q_norm.weight", dtype="fp32"),
    row("attn_q_b.weight",         "(g (q_nope[dn] + q_rope[e c])) ql", "attention.{part}.weight", when="latent_attention.q_rank"),
    row("attn_kv_a_mqa.weight",    "(kv_down[kl] + k_rope[e c]) h",     "attention.{part}.weight"),
    row("attn_kv_a_norm.weight",   "kl",                                "attention.kv_norm.weight", dtype="fp32"),
    row("attn_k_b.weight",         "g kl dn",                           "attention.k_nope.weight"),
    row("attn_v_b.weight",         "g dv kl",                           "attention.v.weight"),
    row("attn_output.weight",      "h (g dv)",                          "attention.out.weight"),
    OFFSET,
    *EXPERTS,
    *SHARED_EXPERT,
)
# fmt: on


# The layers that predict further tokens are numbered on after the others. Copies of embedding and head may lie beside them.
AFTER = "blk.{after}"
# fmt: off
PREDICTORS = (
    Table(AFTER, to="predictors.{l}", rows=[
        row("nextn.enorm.weight",            "h",                      "embed_norm.weight",  dtype="fp32"),
        row("nextn.hnorm.weight",            "h",                      "hidden_norm.weight", dtype="fp32"),
        row("nextn.eh_proj.weight",          "i ((embed + hidden) h)", "{part}.weight"),
        row("nextn.shared_head_norm.weight", "h",                      "out_norm.weight",    dtype="fp32"),
    ]),
    Table(AFTER, rows=[
        row("nextn.embed_tokens.weight",     "v h", "embedding.tokens.weight", copy=True),
        row("nextn.shared_head_head.weight", "v h", "head.weight",             copy=True),
        row("nextn.shared_head_head.weight", "v h", "embedding.tokens.weight", copy=True, when="head.tied"),
    ]),
)
"""Their tables but for that of the block, which has the rows of a layer: `Table(AFTER, to=BLOCK, rows=LAYER.rows)`."""
BLOCK = "predictors.{l}.layer"
DEEPSEEK2_PREDICTOR = Table(AFTER, to=BLOCK, rows=DEEPSEEK2_LAYER.rows)
# fmt: on
