"""DeepSeek V2, V3 and V3.2, and Youtu, which is dense: latent attention, a few dense layers below mixtures with shared experts; in V3.2 an indexer.

Rotated elements lie in interleaved pairs, (e c); version 3 files may say `rope_interleave: false` for halves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Facts,
    Table,
    by_layer,
    configs,
    decided,
    drop,
    fact_is,
    ignore,
    key,
    key_is,
    layouts,
    row,
    rules,
    schema,
    values,
)
from ckpt_hf import heads
from ckpt_hf.common import (
    Family,
    code_of_its_author,
    dense_width,
    divides,
    layers_with_experts,
    norms,
)
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.predictors import AFTER, BLOCK, NUMBERED_ON, predictors, stored_predictors
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import EXPERTS, LAYER, MODEL, NAMES

_LATENT = "latent_attention"
_EPS = 1e-6  # of the norms of latents, whatever rms_norm_eps says


def _scale(facts: Facts) -> float | None:
    """The scale of the scores: yarn's `mscale_all_dim` enters it squared; None where it is the usual one."""
    rotary = f"{_LATENT}.rotary.scaling"
    stretch, factor = facts.get(f"{rotary}.mscale_all_dim"), facts.get(f"{rotary}.factor")
    if facts.get(f"{rotary}.kind") is not schema.RotaryKind.YARN or not stretch or not factor or factor <= 1:
        return None
    width = facts.get(f"{_LATENT}.nope_dim", 0) + facts.get(f"{_LATENT}.rope_dim", 0)
    return width**-0.5 * (0.1 * stretch * math.log(factor) + 1.0) ** 2


def _read_scale(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    scale = _scale(facts)
    if scale is not None:
        facts[f"{_LATENT}.scale"] = scale


def dense_layers(default: int) -> list[configs.Entry]:
    """The first layers have no experts; how many, `first_k_dense_replace` says, or `default`."""
    return [
        key("num_hidden_layers", "layers", type=values.layers),
        dense_width(),
        by_layer(
            "first_k_dense_replace",
            "mlp.moe",
            rules.some(~rules.first_layers()),
            default=default,
            null=configs.REQUIRED,
        ),
    ]


_ROUTER = "mlp.moe.router"
_GROUPING = [f"{_ROUTER}.groups", f"{_ROUTER}.group_top_k", f"{_ROUTER}.group_score"]


def _enter_groups(
    config: Mapping[str, Any], facts: Facts, score: str, count: int, best: int, experts: str = "n_routed_experts"
) -> None:
    of = config.get(experts)
    if type(of) is int and of % count:
        raise CkptError(f"{experts}={of} is not a multiple of n_group={count}")
    facts.update(zip(_GROUPING, (count, best, score), strict=True))


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    return values.checked(key, config.get(key, default), values.whole)


def _read_groups_v2(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    method = config.get("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise CkptError(
            "key 'topk_method' has a value that is not supported",
            found=repr(method)[:60],
            expected="greedy, group_limited_greedy",
        )
    if method != "greedy":  # which looks at no group, whatever n_group says
        _enter_groups(config, facts, "max", _size(config, "n_group"), _size(config, "topk_group"))


def groups_by_two_best(count: int, best: int, *, experts: str = "n_routed_experts") -> configs.Entry:
    """`n_group` and `topk_group`; `count` and `best` are the class's own where a config leaves them out. `experts` counts the experts."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        given = _size(config, "n_group", count), _size(config, "topk_group", best)
        if given != (1, 1):
            _enter_groups(config, facts, "top2", *given, experts=experts)

    return decided(
        _GROUP_KEYS,
        _GROUPING,
        read=read,
        values={_GROUP_KEYS: [(1, 1), _GROUPS]},
        uses=[experts],
        why="the best groups are chosen first, by their two best experts each; one group of one is not a choice",
    )


# Experts are chosen by the sigmoids of their logits and a learned offset, which takes no part in their shares.
SIGMOID_ROUTER = [fact_is(f"{_ROUTER}.score", "sigmoid"), fact_is(f"{_ROUTER}.correction_bias", True)]
# Of classes of whose layers that predict further tokens nothing is known but their names.
PREDICTORS_LEFT = ignore(
    "num_nextn_predict_layers",
    why="the layers that predict further tokens take no part in the model, and are not kept",
    written=lambda facts: 0,
)

_GROUP_KEYS = ("n_group", "topk_group")
_GROUPS = (configs.value_of(_GROUPING[0]), configs.value_of(_GROUPING[1]))

_INDEXER = f"{_LATENT}.indexer"


def indexer(heads: int, width: int, count: int) -> list[configs.Entry]:
    """The keys of an indexer, whose norm has an epsilon of its own."""
    return [
        key("index_n_heads", f"{_INDEXER}.heads", default=heads),
        key("index_head_dim", f"{_INDEXER}.head_dim", default=width),
        key("index_topk", f"{_INDEXER}.top_k", default=count),
        *norms("layer", f"{_INDEXER}.norm", eps=1e-6, bias=True),
        *ignore("layer_types", why="every layer has one kind of attention, and the cache is chosen by it"),
    ]


# fmt: off
_BASE = LLAMA.replace("DeepSeek",
    key("kv_lora_rank", f"{_LATENT}.kv_rank", default=512),
    key("qk_nope_head_dim", f"{_LATENT}.nope_dim", default=128),
    key("qk_rope_head_dim", f"{_LATENT}.rope_dim", default=64),
    key("v_head_dim", f"{_LATENT}.value_dim", default=128),
    key("q_lora_rank", f"{_LATENT}.q_rank", default=1536, null=None, type=values.whole),
    configs.where(f"{_LATENT}.q_rank", norms("rms", f"{_LATENT}.q_norm", eps=_EPS)),
    key("rms_norm_eps", f"{_LATENT}.norm.eps", "mlp.norm.eps", "final_norm.eps", default=1e-6),
    norms("rms", f"{_LATENT}.norm"),
    norms("rms", f"{_LATENT}.kv_norm", eps=_EPS),
    key_is("attention_bias", False, or_absent=True),  # of the down projections, where the schema has none
    ignore("head_dim", "qk_head_dim", why="follows from qk_nope_head_dim and qk_rope_head_dim"),
    rotary_keys(f"{_LATENT}.rotary"),
    decided([], [f"{_LATENT}.scale"], read=_read_scale, values={}, tolerance=1e-9,
            uses=[f"{_LATENT}.rotary.*", f"{_LATENT}.nope_dim", f"{_LATENT}.rope_dim"],
            why="the scale of scores follows from the rotary positions: mscale_all_dim enters it squared"),
    key("moe_intermediate_size", "mlp.moe.ffn"),
    key_is("moe_layer_freq", 1, or_absent=True, written=False),
    ignore("aux_loss_alpha", "seq_aux", why="training only"),
    ignore("ep_size", why="how to run it, not what it computes"),
    without=["num_attention_heads", "num_key_value_heads", "attention.norm.kind", "mlp_bias"],
)

DEEPSEEK_V2 = _BASE.replace("DeepseekV2ForCausalLM",
    key("num_attention_heads", f"{_LATENT}.heads", type=values.whole),
    configs.repeats("num_key_value_heads", "num_attention_heads"),
    dense_layers(0),
    key("n_routed_experts", "mlp.moe.experts"),
    key("num_experts_per_tok", f"{_ROUTER}.top_k"),
    key("routed_scaling_factor", f"{_ROUTER}.scale", default=1.0),
    decided(["topk_method", *_GROUP_KEYS], _GROUPING, read=_read_groups_v2, uses=["n_routed_experts"],
            values={("topk_method", *_GROUP_KEYS): [("greedy", None, None), ("group_limited_greedy", *_GROUPS)]},
            why="with group_limited_greedy the best groups are chosen first, by their best expert each"),
    fact_is(f"{_ROUTER}.score", "softmax"),
    # the class of transformers ignores it, the code that came with the first files does not
    key_is("norm_topk_prob", False, or_absent=True),
    key_is("scoring_func", "softmax", or_absent=True),
    key_is("mlp_bias", False, or_absent=True),  # of the dense and shared MLPs, but not of the experts
    key("n_shared_experts", "mlp.moe.shared.ffn", default=2, null=configs.REQUIRED, type=values.whole, times="moe_intermediate_size"),
)

DEEPSEEK_V3 = _BASE.replace("DeepseekV3ForCausalLM",
    key("num_attention_heads", f"{_LATENT}.heads", type=values.whole),
    configs.repeats("num_key_value_heads", "num_attention_heads", default=128),
    dense_layers(3),
    key("n_routed_experts", "mlp.moe.experts"),
    key("num_experts_per_tok", f"{_ROUTER}.top_k", default=8),
    key("norm_topk_prob", f"{_ROUTER}.normalise", default=True),
    key("routed_scaling_factor", f"{_ROUTER}.scale", default=2.5),
    groups_by_two_best(8, 4),
    SIGMOID_ROUTER,
    key_is("topk_method", "noaux_tc", or_absent=True),
    key_is("scoring_func", "sigmoid", or_absent=True),
    key_is("rope_interleave", True, False, or_absent=True),  # an arrangement of tensors, and not a fact (see `FAMILIES`)
    key("n_shared_experts", "mlp.moe.shared.ffn", default=1, null=configs.REQUIRED, type=values.whole, times="moe_intermediate_size"),
    predictors(),
)

YOUTU = _BASE.replace("YoutuForCausalLM",
    key("num_attention_heads", f"{_LATENT}.heads", type=values.whole),
    configs.repeats("num_key_value_heads", "num_attention_heads", default=16),
    key_is("rope_interleave", True, False, or_absent=True),  # an arrangement of tensors, and not a fact (see `FAMILIES`)
    key("tie_word_embeddings", "head.tied", default=True),
    ignore("embedding_initializer_range", why="training only"),
    key_is("mlp_bias", False, or_absent=True, written=False),
    without=["mlp.moe.ffn", "moe_layer_freq"],
)

DEEPSEEK_V32 = DEEPSEEK_V3.replace("DeepseekV32ForCausalLM",
    key("q_lora_rank", f"{_LATENT}.q_rank", default=1536, null=configs.REQUIRED, type=values.whole),
    key("n_routed_experts", "mlp.moe.experts", also=["num_local_experts", "num_experts"]),
    key_is("rope_interleave", True, or_absent=True, written=False),
    key_is("mlp_bias", False, or_absent=True),
    layers_with_experts(3, counted="first_k_dense_replace"),
    indexer(64, 128, 2048),
)

ROPE_INTERLEAVE = layouts.Choice("rope_interleave", (True, False), default=True,
    help="the two elements of a rotary pair are neighbours, or lie in the two halves of the rotated elements")

ROPE = layouts.fragment("rope", [
    ("e c", {"rope_interleave": True}),
    ("c e", {"rope_interleave": False}),
])

SHARED_EXPERTS = (
    row("mlp.shared_experts.gate_proj.weight", "f h", "mlp.shared.gate.weight"),
    row("mlp.shared_experts.up_proj.weight",   "f h", "mlp.shared.up.weight"),
    row("mlp.shared_experts.down_proj.weight", "h f", "mlp.shared.down.weight"),
)
# in float32 in every file: it decides between experts whose scores are close
CORRECTION = row("mlp.gate.e_score_correction_bias", "x", "mlp.router.correction_bias", dtype="fp32")

LATENT_LAYER = LAYER.without(*(f"self_attn.{part}_proj.{kind}" for part in "qkvo" for kind in ("weight", "bias")), "input_layernorm.weight").extend(
    row("input_layernorm.weight",              "h",                                   "attention.norm.weight"),
    row("self_attn.q_proj.weight",             "(g (q_nope[dn] + q_rope[<rope>])) h",  "attention.{part}.weight", when="!latent_attention.q_rank"),
    row("self_attn.q_a_proj.weight",           "ql h",                                "attention.q_down.weight"),
    row("self_attn.q_a_layernorm.weight",      "ql",                                  "attention.q_norm.weight"),
    row("self_attn.q_b_proj.weight",           "(g (q_nope[dn] + q_rope[<rope>])) ql", "attention.{part}.weight", when="latent_attention.q_rank"),
    row("self_attn.kv_a_proj_with_mqa.weight", "(kv_down[kl] + k_rope[<rope>]) h",     "attention.{part}.weight"),
    row("self_attn.kv_a_layernorm.weight",     "kl",                                  "attention.kv_norm.weight"),
    row("self_attn.kv_b_proj.weight",          "(g (k_nope[dn] + v[dv])) kl",         "attention.{part}.weight"),
    row("self_attn.o_proj.weight",             "h (g dv)",                            "attention.out.weight"),
)

DEEPSEEK_LAYER = LATENT_LAYER.extend(
    *SHARED_EXPERTS,
    CORRECTION,
    *EXPERTS,
)

# The latent of the queries, and the block's input, make a query for each head of the indexer, and a key and weights of the heads.
INDEXER = (
    row("self_attn.indexer.wq_b.weight",         "(gi <index>) ql", "attention.index_q.weight"),
    row("self_attn.indexer.wk.weight",           "<index> h",       "attention.index_k.weight"),
    row("self_attn.indexer.k_norm.weight",       "<index>",         "attention.index_norm.weight"),
    row("self_attn.indexer.k_norm.bias",         "<index>",         "attention.index_norm.bias"),
    row("self_attn.indexer.weights_proj.weight", "gi h",            "attention.index_heads.weight"),
)

PREDICTING_LAYER = Table(rows=[drop("model.layers.{layers}.*", why="the layer that predicts a further token; transformers does not load it")])

# Elements of the indexer lie in halves in the files of DeepSeek, and in adjacent pairs in those of GLM.
INDEX_ROPE = layouts.fragment("index", [
    ("di", {"index_interleave": False}),
    ("(e c + o)", {"index_interleave": True}),
])
INDEXED_LAYER = DEEPSEEK_LAYER.extend(*INDEXER)
INDEXED = (MODEL, INDEXED_LAYER, *NUMBERED_ON, Table(AFTER, to=BLOCK, rows=INDEXED_LAYER.rows))

TABLES = layouts.Tables([MODEL, DEEPSEEK_LAYER, *NUMBERED_ON, Table(AFTER, to=BLOCK, rows=DEEPSEEK_LAYER.rows)], [NAMES, ROPE_INTERLEAVE], [ROPE])
# fmt: on


FAMILIES = [
    Family(
        "deepseek_v2",
        DEEPSEEK_V2,
        layouts.Tables([MODEL, DEEPSEEK_LAYER], [NAMES], [ROPE], decided={"rope_interleave": True}),
        divides,
        heads=(heads.BARE, heads.SCORED),
    ),
    Family(
        "deepseek_v3",
        DEEPSEEK_V3,
        TABLES,
        arrangement="rope_interleave",
        leftovers=PREDICTING_LAYER,
        as_stored=stored_predictors,
    ),
    Family(
        "youtu",
        YOUTU,
        layouts.Tables([MODEL, LATENT_LAYER], [ROPE_INTERLEAVE], [ROPE]),
        divides,
        arrangement="rope_interleave",
        heads=(heads.BARE,),
    ),
    Family(
        "deepseek_v32",
        DEEPSEEK_V32,
        layouts.Tables(
            INDEXED, [NAMES], [ROPE, INDEX_ROPE], decided={"rope_interleave": True, "index_interleave": False}
        ),
        leftovers=PREDICTING_LAYER,
        as_stored=stored_predictors,
        heads=(heads.BARE,),
    ),
    # Kimi K2 has DeepSeek's class under a model_type of its own, and says every key.
    Family(
        "kimi_k2",
        DEEPSEEK_V3,
        TABLES,
        arrangement="rope_interleave",
        leftovers=PREDICTING_LAYER,
        as_stored=stored_predictors,
        other_names=("KimiK2ForCausalLM",),
        losses=code_of_its_author("deepseek_v3"),
        heads=(),
    ),
]
