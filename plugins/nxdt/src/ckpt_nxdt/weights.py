"""Which NxDT tensor holds what, and how tensor parallel ranks divide it.

A job's model is either transformers' with parallel layers (model_source hf) or a Megatron GPT (model_source
megatron). Names hold the global index of a layer, whatever the pipeline. The sentences describe one rank, so a
`gate_up_proj` is [gate_t; up_t] on every rank; weights are [out, in], and rotary pairs half-split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckpt_core.sdk import Table, drop, layouts, row


@dataclass(frozen=True, slots=True)
class Heads:
    """How ranks count through query groups g and the r query heads of each, for q and o_proj and for k and v.

    It matters where ranks outnumber key-value heads, so that each of these has copies (kv_size_multiplier): "g r"
    puts the copies on neighbouring ranks, "r g" on ranks a stride apart.
    """

    q: str
    kv: str

    @property
    def fused(self) -> str:
        """The split of a tensor that holds q, k and v."""
        return self.q if self.q == self.kv else f"q: {self.q}; k v: {self.kv}"


HEADS = {
    "trn1": Heads("r g", "r g"),
    # parallel_state.arrange_kv_groups: the ranks of one key-value head are neighbours.
    "trn2": Heads("g r", "g r"),
    # AWS's converter for trn2 tiles k and v as for trn1, and leaves q as it is: ranks then pair heads wrongly.
    "trn2 aws-converter": Heads("g r", "r g"),
}

# fmt: off
HF_MODEL = Table("", rows=[
    row("model.embed_tokens.weight", "v h", "embedding.tokens.weight", tp="v"),
    row("model.norm.weight",         "h",   "final_norm.weight"),
    row("lm_head.weight",            "v h", "head.weight",             tp="v"),
    # NxDT never ties: both matrices are stored, and a tied model's are equal.
    row("lm_head.weight",            "v h", "embedding.tokens.weight", tp="v", when="head.tied", copy=True),
    drop("*.rotary_emb.inv_freq",    why="computed from the base"),
])


def hf_attention(qkv: str, heads: Heads) -> list[layouts.Row]:
    """The attention of the hf style: its inputs as the job's qkv_linear and fuse_qkv have them."""
    return {
        # qkv_linear: False, with fuse_qkv: False or grouped queries
        "split": [
            row("self_attn.q_proj.weight",            "(g r d) h",                      "attention.q.weight",      tp="g"),
            row("self_attn.k_proj.weight",            "(g d) h",                        "attention.k.weight",      tp="g"),
            row("self_attn.v_proj.weight",            "(g d) h",                        "attention.v.weight",      tp="g"),
            row("self_attn.o_proj.weight",            "h (g r d)",                      "attention.out.weight",    tp="g"),
        ],
        # qkv_linear: True, fuse_qkv: False
        "linear": [
            row("self_attn.qkv_proj.weight_q",        "(g r d) h",                      "attention.q.weight",      tp=heads.q),
            row("self_attn.qkv_proj.weight_k",        "(g d) h",                        "attention.k.weight",      tp=heads.kv),
            row("self_attn.qkv_proj.weight_v",        "(g d) h",                        "attention.v.weight",      tp=heads.kv),
            row("self_attn.o_proj.weight",            "h (g r d)",                      "attention.out.weight",    tp=heads.q),
        ],
        # qkv_linear: True, fuse_qkv: True
        "fused": [
            row("self_attn.qkv_proj.weight_qkv",      "(q[g r d] + k[g d] + v[g d]) h", "attention.{part}.weight", tp=heads.fused),
            row("self_attn.o_proj.weight",            "h (g r d)",                      "attention.out.weight",    tp=heads.q),
        ],
        # qkv_linear: False, fuse_qkv: True, as many key-value heads as heads
        "coalesced": [
            row("self_attn.qkv_proj.weight",          "(q[g r d] + k[g d] + v[g d]) h", "attention.{part}.weight", tp="g"),
            row("self_attn.o_proj.weight",            "h (g r d)",                      "attention.out.weight",    tp="g"),
        ],
    }[qkv]


HF_NORMS = [
    row("input_layernorm.weight",                     "h",                              "attention.norm.weight"),
    row("post_attention_layernorm.weight",            "h",                              "mlp.norm.weight"),
]
HF_MLP = [
    row("mlp.gate_up_proj.weight",                    "((gate + up) f) h",              "mlp.{part}.weight",       tp="f"),
    row("mlp.down_proj.weight",                       "h f",                            "mlp.down.weight",         tp="f"),
]


def experts(module: str) -> list[layouts.Row]:
    """A mixture below `module`; its experts are input-major, unlike every other linear layer."""
    return [
        row(f"{module}.router.linear_router.weight",            "x h",                    "mlp.router.weight"),
        row(f"{module}.expert_mlps.mlp_op.gate_up_proj.weight", "x h ((gate + up) f)",    "mlp.experts.{part}.weight", tp="f", ep="x"),
        row(f"{module}.expert_mlps.mlp_op.down_proj.weight",    "x f h",                  "mlp.experts.down.weight",   tp="f", ep="x"),
    ]


MEGATRON_MODEL = Table("language_model", rows=[
    row("embedding.word_embeddings.weight",  "v h", "embedding.tokens.weight", tp="v"),
    row("encoder.final_layernorm.weight",    "h",   "final_norm.weight"),
    row("output_layer.weight",               "v h", "head.weight",             tp="v"),
    row("output_layer.weight",               "v h", "embedding.tokens.weight", tp="v", when="head.tied", copy=True),
    drop("*.rotary_emb.inv_freq",            why="computed from the base"),
])

# With as many key-value heads as heads there is one tensor for all three.
MEGATRON_MULTI_HEAD = {
    "native":        row("self_attention.query_key_value.weight", "(g (q[r] + k + v) d) h",         "attention.{part}.weight", tp="g"),
    "aws-converter": row("self_attention.query_key_value.weight", "(q[g r d] + k[g d] + v[g d]) h", "attention.{part}.weight", tp="g"),
}
MEGATRON_GROUPED = {
    "native":        row("self_attention.key_value.weight",       "(g (k + v) d) h",                "attention.{part}.weight", tp="g"),
    "aws-converter": row("self_attention.key_value.weight",       "((k + v) g d) h",                "attention.{part}.weight", tp="g"),
}
MEGATRON_QUERY = row("self_attention.query.weight",    "(g r d) h",         "attention.q.weight",    tp="g")
MEGATRON_LAYER = [
    row("input_layernorm.weight",                      "h",                 "attention.norm.weight"),
    row("self_attention.dense.weight",                 "h (g r d)",         "attention.out.weight",  tp="g"),
    row("post_attention_layernorm.weight",             "h",                 "mlp.norm.weight"),
    row("mlp.dense_h_to_4h.weight",                    "((gate + up) f) h", "mlp.{part}.weight",     tp="f"),
    row("mlp.dense_4h_to_h.weight",                    "h f",               "mlp.down.weight",       tp="f"),
    *experts("mlp.moe"),
]
# fmt: on


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Everything besides the ranks that decides where an element lies.

    `style` is hf or megatron; `qkv` one of the names in `hf_attention`, `separate` for megatron; `hardware` is trn1 or
    trn2; `layout` is native or aws-converter.
    """

    style: str
    qkv: str
    hardware: str = "trn1"
    layout: str = "native"

    @property
    def heads(self) -> Heads:
        broken = self.hardware == "trn2" and self.layout == "aws-converter"
        return HEADS["trn2 aws-converter" if broken else self.hardware]

    def tables(self, multi_head: bool) -> Sequence[Table]:
        """The tables of a model; `multi_head`: it has as many key-value heads as heads."""
        if self.style == "hf":
            layer = [*hf_attention(self.qkv, self.heads), *HF_MLP, *experts("mlp"), *HF_NORMS]
            return HF_MODEL, Table("model.layers.{l}", to="layers.{l}", rows=layer)
        if multi_head:
            attention = [MEGATRON_MULTI_HEAD[self.layout]]
        else:
            attention = [MEGATRON_QUERY, MEGATRON_GROUPED[self.layout]]
        layers = Table("language_model.encoder.layers.{l}", to="layers.{l}", rows=[*attention, *MEGATRON_LAYER])
        return MEGATRON_MODEL, layers
