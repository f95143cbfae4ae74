"""Which NxDT tensor holds what, and how tensor parallel ranks divide it.

A job's model is either transformers' with parallel layers (model_source hf) or a Megatron GPT (model_source
megatron). Names hold the global index of a layer, whatever the pipeline. The sentences describe one rank, so a
`gate_up_proj` is [gate_t; up_t] on every rank; weights are [out, in], and rotary pairs half-split.
"""

from __future__ import annotations

from ckpt_core.sdk import Table, drop, layouts, row, schema

# fmt: off
CHOICES = [
    layouts.Choice("model_style", ("hf", "megatron"),
                   help="the job's model_source: transformers' model with parallel layers, or a Megatron GPT"),
    layouts.Choice("qkv", ("split", "linear", "fused", "coalesced"), default="split",
                   help="hf: what qkv_linear and fuse_qkv make of q, k and v"),
    layouts.Choice("hw_backend", ("trn1", "trn2"), default="trn1",
                   help="the hardware, which decides on what ranks the copies of a key-value head lie"),
    layouts.Choice("layout", ("native", "aws-converter"), default="native",
                   help="as NxDT trains, or as AWS's converter arranges it"),
]

# How ranks count through query groups g and the r query heads of each. It matters where ranks outnumber key-value heads, so
# that each of these has copies (kv_size_multiplier): "g r" puts the copies on neighbouring ranks (parallel_state.
# arrange_kv_groups), "r g" on ranks a stride apart.
Q = layouts.fragment("q", [
    ("r g",              {"hw_backend": "trn1"}),
    ("g r",              {"hw_backend": "trn2"}),
])
KV = layouts.fragment("kv", [
    ("r g",              {"hw_backend": "trn1"}),
    ("g r",              {"hw_backend": "trn2", "layout": "native"}),
    # AWS's converter for trn2 tiles k and v as for trn1, and leaves q as it is: ranks then pair heads wrongly.
    ("r g",              {"hw_backend": "trn2", "layout": "aws-converter"}),
])
Q_KV = layouts.fragment("q_kv", [
    ("r g",              {"hw_backend": "trn1"}),
    ("g r",              {"hw_backend": "trn2", "layout": "native"}),
    ("q: g r; k v: r g", {"hw_backend": "trn2", "layout": "aws-converter"}),
])

HF_MODEL = Table(under={"model_style": "hf"}, rows=[
    row("model.embed_tokens.weight", "v h", "embedding.tokens.weight", tp="v"),
    row("model.norm.weight",         "h",   "final_norm.weight"),
    row("lm_head.weight",            "v h", "head.weight",             tp="v"),
    # NxDT never ties: both matrices are stored, and a tied model's are equal.
    row("lm_head.weight",            "v h", "embedding.tokens.weight", tp="v", when="head.tied", copy=True),
    drop("*.rotary_emb.inv_freq",    why="computed from the base"),
])

HF_LAYER = Table("model.layers.{l}", to="layers.{l}", under={"model_style": "hf"}, rows=[
    # qkv_linear: False, with fuse_qkv: False or grouped queries
    row("self_attn.q_proj.weight",                      "(g r d) h",                      "attention.q.weight",      tp="g",      under={"qkv": "split"}),
    row("self_attn.k_proj.weight",                      "(g d) h",                        "attention.k.weight",      tp="g",      under={"qkv": "split"}),
    row("self_attn.v_proj.weight",                      "(g d) h",                        "attention.v.weight",      tp="g",      under={"qkv": "split"}),
    # qkv_linear: True, fuse_qkv: False
    row("self_attn.qkv_proj.weight_q",                  "(g r d) h",                      "attention.q.weight",      tp="<q>",    under={"qkv": "linear"}),
    row("self_attn.qkv_proj.weight_k",                  "(g d) h",                        "attention.k.weight",      tp="<kv>",   under={"qkv": "linear"}),
    row("self_attn.qkv_proj.weight_v",                  "(g d) h",                        "attention.v.weight",      tp="<kv>",   under={"qkv": "linear"}),
    # qkv_linear: True, fuse_qkv: True
    row("self_attn.qkv_proj.weight_qkv",                "(q[g r d] + k[g d] + v[g d]) h", "attention.{part}.weight", tp="<q_kv>", under={"qkv": "fused"}),
    # qkv_linear: False, fuse_qkv: True, as many key-value heads as heads
    row("self_attn.qkv_proj.weight",                    "(q[g r d] + k[g d] + v[g d]) h", "attention.{part}.weight", tp="g",      under={"qkv": "coalesced"}),
    row("self_attn.o_proj.weight",                      "h (g r d)",                      "attention.out.weight",    tp="<q>",    under={"qkv": ("linear", "fused")}),
    row("self_attn.o_proj.weight",                      "h (g r d)",                      "attention.out.weight",    tp="g",      under={"qkv": ("split", "coalesced")}),
    row("mlp.gate_up_proj.weight",                      "((gate + up) f) h",              "mlp.{part}.weight",       tp="f"),
    row("mlp.down_proj.weight",                         "h f",                            "mlp.down.weight",         tp="f"),
    # Experts are input-major, unlike every other linear layer.
    row("mlp.router.linear_router.weight",              "x h",                            "mlp.router.weight"),
    row("mlp.expert_mlps.mlp_op.gate_up_proj.weight",   "x h ((gate + up) f)",            "mlp.experts.{part}.weight", tp="f", ep="x"),
    row("mlp.expert_mlps.mlp_op.down_proj.weight",      "x f h",                          "mlp.experts.down.weight",   tp="f", ep="x"),
    row("input_layernorm.weight",                       "h",                              "attention.norm.weight"),
    row("post_attention_layernorm.weight",              "h",                              "mlp.norm.weight"),
])

MEGATRON_MODEL = Table("language_model", under={"model_style": "megatron"}, rows=[
    row("embedding.word_embeddings.weight",  "v h", "embedding.tokens.weight", tp="v"),
    row("encoder.final_layernorm.weight",    "h",   "final_norm.weight"),
    row("output_layer.weight",               "v h", "head.weight",             tp="v"),
    row("output_layer.weight",               "v h", "embedding.tokens.weight", tp="v", when="head.tied", copy=True),
    drop("*.rotary_emb.inv_freq",            why="computed from the base"),
])

MEGATRON_LAYER = Table("language_model.encoder.layers.{l}", to="layers.{l}", under={"model_style": "megatron"}, rows=[
    # With as many key-value heads as heads there is one tensor for all three.
    row("self_attention.query_key_value.weight",          "(g (q[r] + k + v) d) h",         "attention.{part}.weight", tp="g",
        when="attention.heads=attention.groups",  under={"layout": "native"}),
    row("self_attention.query_key_value.weight",          "(q[g r d] + k[g d] + v[g d]) h", "attention.{part}.weight", tp="g",
        when="attention.heads=attention.groups",  under={"layout": "aws-converter"}),
    row("self_attention.query.weight",                    "(g r d) h",                      "attention.q.weight",      tp="g",
        when="attention.heads!=attention.groups"),
    row("self_attention.key_value.weight",                "(g (k + v) d) h",                "attention.{part}.weight", tp="g",
        when="attention.heads!=attention.groups", under={"layout": "native"}),
    row("self_attention.key_value.weight",                "((k + v) g d) h",                "attention.{part}.weight", tp="g",
        when="attention.heads!=attention.groups", under={"layout": "aws-converter"}),
    row("input_layernorm.weight",                         "h",                              "attention.norm.weight"),
    row("self_attention.dense.weight",                    "h (g r d)",                      "attention.out.weight",    tp="g"),
    row("post_attention_layernorm.weight",                "h",                              "mlp.norm.weight"),
    row("mlp.dense_h_to_4h.weight",                       "((gate + up) f) h",              "mlp.{part}.weight",       tp="f"),
    row("mlp.dense_4h_to_h.weight",                       "h f",                            "mlp.down.weight",         tp="f"),
    row("mlp.moe.router.linear_router.weight",            "x h",                            "mlp.router.weight"),
    row("mlp.moe.expert_mlps.mlp_op.gate_up_proj.weight", "x h ((gate + up) f)",            "mlp.experts.{part}.weight", tp="f", ep="x"),
    row("mlp.moe.expert_mlps.mlp_op.down_proj.weight",    "x f h",                          "mlp.experts.down.weight",   tp="f", ep="x"),
])

TABLES = layouts.Tables([HF_MODEL, HF_LAYER, MEGATRON_MODEL, MEGATRON_LAYER], CHOICES, [Q, KV, Q_KV])
# fmt: on


@schema.dataclass(frozen=True, slots=True)
class Arrangement:
    """Everything besides the ranks that decides where an element lies: the choices of the tables.

    `qkv` is `separate` for megatron.
    """

    style: str
    qkv: str
    hardware: str = "trn1"
    layout: str = "native"

    @property
    def choices(self) -> dict[str, layouts.Value]:
        """Those of the tables."""
        made: dict[str, layouts.Value] = {"model_style": self.style, "hw_backend": self.hardware, "layout": self.layout}
        return {**made, "qkv": self.qkv} if self.style == "hf" else made
