"""Which Megatron tensor holds what, and how its ranks divide it.

Names are those of the modules of Megatron-Core's local layer spec, with global layer and expert indices; what
other versions and specs call them is in `names`. A sentence describes the tensor of one rank, so a gated
`linear_fc1` is [gate_t; up_t] on each rank and [gate; up] where all ranks' parts lie together (torch_dist).
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_core.sdk import Architecture, Native, Refusal, Table, drop, layouts, row
from ckpt_megatron.config import decoder_of

# fmt: off
MODEL: list[layouts.Row | layouts.Drop] = [
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
    # The main model's outputs do not depend on it.
    drop("mtp.*",                               why="multi-token prediction layers"),
]

NORMS = [
    row("input_layernorm.weight",               "h", "attention.norm.weight"),
    row("input_layernorm.bias",                 "h", "attention.norm.bias"),
    row("pre_mlp_layernorm.weight",             "h", "mlp.norm.weight"),
    row("pre_mlp_layernorm.bias",               "h", "mlp.norm.bias"),
]

ATTENTION = [
    row("self_attention.linear_qkv.weight",     "(g (q[r] + k + v) d) h", "attention.{part}.weight", tp="g"),
    row("self_attention.linear_qkv.bias",       "(g (q[r] + k + v) d)",   "attention.{part}.bias",   tp="g"),
    row("self_attention.q_layernorm.weight",    "d",                      "attention.q_norm.weight"),
    row("self_attention.q_layernorm.bias",      "d",                      "attention.q_norm.bias"),
    row("self_attention.k_layernorm.weight",    "d",                      "attention.k_norm.weight"),
    row("self_attention.k_layernorm.bias",      "d",                      "attention.k_norm.bias"),
    row("self_attention.core_attention.softmax_offset", "(g r)",          "attention.sinks.weight",  tp="g r"),
    row("self_attention.linear_proj.weight",    "h (g r d)",              "attention.out.weight",    tp="g r"),
    row("self_attention.linear_proj.bias",      "h",                      "attention.out.bias"),
]

# The order of q, k and v by checkpoint_version; every rank's tensor is arranged so by itself.
QKV_ORDERS = {
    "0":   "((q[r] + k + v) g d)",   # until September 2020: [3, heads, head_dim]
    "1.0": "(g d (q[r] + k + v))",   # until 12 October 2020: [heads, head_dim, 3]
    "2.0": "(g (q[r] + k + v) d)",   # since, and in 3.0 and Megatron-Core: [groups, r + 2, head_dim]
    # --rotary-interleaved: e pairs of c = 2 neighbouring elements (GPT-J)
    "interleaved": "(g (q[r (e c + o)] + k[(e c + o)] + v[d]))",
}

# Latent attention. The rotated rows are always interleaved pairs, as in DeepSeek's own files.
LATENT = [
    row("self_attention.linear_q_proj.weight",       "(g (q_nope[dn] + q_rope[e c])) h",  "attention.{part}.weight", tp="g", when="!latent_attention.q_rank"),
    row("self_attention.linear_q_down_proj.weight",  "ql h",                              "attention.q_down.weight"),
    row("self_attention.q_layernorm.weight",         "ql",                                "attention.q_norm.weight"),
    row("self_attention.linear_q_up_proj.weight",    "(g (q_nope[dn] + q_rope[e c])) ql", "attention.{part}.weight", tp="g", when="latent_attention.q_rank"),
    row("self_attention.linear_kv_down_proj.weight", "(kv_down[kl] + k_rope[e c]) h",     "attention.{part}.weight"),
    row("self_attention.kv_layernorm.weight",        "kl",                                "attention.kv_norm.weight"),
    row("self_attention.linear_kv_up_proj.weight",   "(g (k_nope[dn] + v[dv])) kl",       "attention.{part}.weight", tp="g"),
    row("self_attention.linear_proj.weight",         "h (g dv)",                          "attention.out.weight",    tp="g"),
    row("self_attention.linear_proj.bias",           "h",                                 "attention.out.bias"),
]
# --mla-down-proj-fusion (0.17)
FUSED_DOWN = row("self_attention.linear_qkv_down_proj.weight", "(q_down[ql] + kv_down[kl] + k_rope[e c]) h", "attention.{part}.weight")

GATED = [
    row("mlp.linear_fc1.weight",                "((gate + up) f) h", "mlp.{part}.weight", tp="f"),
    row("mlp.linear_fc1.bias",                  "((gate + up) f)",   "mlp.{part}.bias",   tp="f"),
]
PLAIN = [
    row("mlp.linear_fc1.weight",                "f h",               "mlp.up.weight",     tp="f"),
    row("mlp.linear_fc1.bias",                  "f",                 "mlp.up.bias",       tp="f"),
]
DOWN = [
    row("mlp.linear_fc2.weight",                "h f",               "mlp.down.weight",   tp="f"),
    row("mlp.linear_fc2.bias",                  "h",                 "mlp.down.bias"),
]

ROUTER = [
    row("mlp.router.weight",                    "x h",               "mlp.router.weight"),
    row("mlp.router.bias",                      "x",                 "mlp.router.bias"),
    # A float32 buffer whatever the model's dtype (moe/router.py, _maintain_float32_expert_bias).
    row("mlp.router.expert_bias",               "x",                 "mlp.router.correction_bias", dtype="fp32"),
    row("mlp.shared_experts.linear_fc2.weight", "h f",               "mlp.shared.down.weight",     tp="f"),
    row("mlp.shared_experts.linear_fc2.bias",   "h",                 "mlp.shared.down.bias"),
    row("mlp.shared_experts.gate_weight",       "1 h",               "mlp.shared_gate.weight"),
]
SHARED_GATED = [
    row("mlp.shared_experts.linear_fc1.weight", "((gate + up) f) h", "mlp.shared.{part}.weight",   tp="f"),
    row("mlp.shared_experts.linear_fc1.bias",   "((gate + up) f)",   "mlp.shared.{part}.bias",     tp="f"),
]
SHARED_PLAIN = [
    row("mlp.shared_experts.linear_fc1.weight", "f h",               "mlp.shared.up.weight",       tp="f"),
    row("mlp.shared_experts.linear_fc1.bias",   "f",                 "mlp.shared.up.bias",         tp="f"),
]

EXPERTS_DOWN = [
    row("mlp.experts.local_experts.{x}.linear_fc2.weight", "h f",               "mlp.experts.down.weight",   tp="f", ep="x"),
    row("mlp.experts.local_experts.{x}.linear_fc2.bias",   "h",                 "mlp.experts.down.bias",             ep="x"),
]
EXPERTS_GATED = [
    row("mlp.experts.local_experts.{x}.linear_fc1.weight", "((gate + up) f) h", "mlp.experts.{part}.weight", tp="f", ep="x"),
    row("mlp.experts.local_experts.{x}.linear_fc1.bias",   "((gate + up) f)",   "mlp.experts.{part}.bias",   tp="f", ep="x"),
    *EXPERTS_DOWN,
]
EXPERTS_PLAIN = [
    row("mlp.experts.local_experts.{x}.linear_fc1.weight", "f h",               "mlp.experts.up.weight",     tp="f", ep="x"),
    row("mlp.experts.local_experts.{x}.linear_fc1.bias",   "f",                 "mlp.experts.up.bias",       tp="f", ep="x"),
    *EXPERTS_DOWN,
]
# GroupedMLP (until 0.16): stored as [h, x * 2f] and [x * f, h], but used as .view(x, h, 2f) and .view(x, f, h).
EXPERTS_GROUPED_GATED = [
    row("mlp.experts.weight1",                  "x h ((gate + up) f)", "mlp.experts.{part}.weight", tp="f", ep="x"),
    row("mlp.experts.weight2",                  "x f h",               "mlp.experts.down.weight",   tp="f", ep="x"),
]
EXPERTS_GROUPED_PLAIN = [
    row("mlp.experts.weight1",                  "x h f",               "mlp.experts.up.weight",     tp="f", ep="x"),
    row("mlp.experts.weight2",                  "x f h",               "mlp.experts.down.weight",   tp="f", ep="x"),
]
# fmt: on

# Tensors that ranks cut into equal blocks of rows without regard to what the rows are.
ROW_BLOCKS = frozenset(
    {
        # Column-parallel in the local spec; in the TE spec too until 0.13, and since 0.14 whole on every rank.
        "self_attention.linear_q_down_proj.weight",
        "self_attention.linear_kv_down_proj.weight",
        "self_attention.linear_qkv_down_proj.weight",
    }
)
QKV = frozenset({"self_attention.linear_qkv.weight", "self_attention.linear_qkv.bias"})


def tables(
    architecture: Architecture, *, order: str = "2.0", grouped: bool = False, fused_down: bool = False, tp: int = 1
) -> tuple[Table, Table]:
    """The tables of one model: the order of q, k, v (see `QKV_ORDERS`), the kind of experts, the number of ranks."""
    layers = decoder_of(architecture).layers
    usual, gated = layers[0].attention, layers[0].mlp.gated
    attention: list[layouts.Row] = LATENT if usual is None else _attention(order, divided=usual.groups % tp == 0)
    if usual is None and fused_down:
        attention = [FUSED_DOWN, *(line for line in attention if line.native not in ROW_BLOCKS)]
    experts: list[layouts.Row]
    if grouped:
        experts = EXPERTS_GROUPED_GATED if gated else EXPERTS_GROUPED_PLAIN
    else:
        experts = EXPERTS_GATED if gated else EXPERTS_PLAIN
    dense: list[layouts.Row] = [
        *(GATED if gated else PLAIN),
        *DOWN,
        *ROUTER,
        *(SHARED_GATED if gated else SHARED_PLAIN),
    ]
    return Table(rows=MODEL), Table("decoder.layers.{l}", to="layers.{l}", rows=[*NORMS, *attention, *dense, *experts])


def _attention(order: str, divided: bool) -> list[layouts.Row]:
    """`divided` False: there are more ranks than groups, and linear_qkv is cut into blocks of rows (see `in_blocks`)."""
    rows: list[layouts.Row] = []
    for line in ATTENTION:
        if line.native in QKV:
            inside = QKV_ORDERS[order]
            line = replace(line, sentence=f"{inside} h" if line.sentence.endswith(" h") else inside)
            line = line if divided else replace(line, splits=())
        elif order == "interleaved" and line.sentence == "d":
            line = replace(line, sentence="(e c + o)")
        rows.append(line)
    return rows


def in_blocks(native: Native) -> bool:
    """Whether ranks hold blocks of rows of this tensor, or all of it, whatever its sentence says."""
    name = native.row.native
    return name in ROW_BLOCKS or (name in QKV and not native.row.splits)


def is_expert(native: Native) -> bool:
    """Whether expert parallel ranks divide this tensor, and expert tensor parallel ranks its width."""
    return "ep" in dict(native.row.splits)


def row_block(native: Native, rank: int, ranks: int) -> Native:
    """The rows that one of `ranks` equal blocks holds."""
    if native.shape[0] % ranks:
        raise Refusal(f"tp={ranks} does not divide the {native.shape[0]} rows of {native.name}")
    rows = native.shape[0] // ranks
    pieces = []
    for piece in native.pieces:
        for tile in piece.tile.cut_native(0, rank * rows, (rank + 1) * rows):
            base = (tile.native_base[0] - rank * rows, *tile.native_base[1:])
            pieces.append(layouts.Part(piece.parameter, layouts.Tile(tile.links, tile.canonical_base, base)))
    return Native(native.name, (rows, *native.shape[1:]), tuple(pieces), native.row, native.layer)
