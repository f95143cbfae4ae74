"""DeepSeek V2 and V3: latent attention, a few dense layers below mixtures with shared experts.

Rotated elements lie in interleaved pairs, (e c); version 3 files may say `rope_interleave: false` for halves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Custom,
    Facts,
    PerLayer,
    Refusal,
    RotaryKind,
    Table,
    custom,
    drop,
    fact_is,
    ignore,
    key,
    key_is,
    layouts,
    row,
    uniform,
)
from ckpt_hf.common import (
    Family,
    divides,
    enter_sparse_layers,
    layer_count,
    norms,
    positive,
    written_sparse_layers,
)
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import EXPERTS, LAYER, MODEL, NAMES

_LATENT = "latent_attention"
_EPS = 1e-6  # of the norms of latents, whatever rms_norm_eps says


def _write_heads(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    config["num_attention_heads"] = config["num_key_value_heads"] = uniform(facts, f"{_LATENT}.heads")
    if config["num_attention_heads"] is None:
        raise Refusal("its attention is latent", found=f"no {_LATENT}.heads")


def _heads(default: int | None) -> Custom:
    """There is one key and one value per head. `default`: how many the class has where `num_key_value_heads` is left out."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        heads, keys = positive(config, "num_attention_heads"), config.get("num_key_value_heads", default)
        if keys not in (heads, None):
            raise CkptError("key 'num_key_value_heads' differs from num_attention_heads", found=keys, expected=heads)
        facts[f"{_LATENT}.heads"] = heads

    return custom(["num_attention_heads", "num_key_value_heads"], [f"{_LATENT}.heads"], read=read, write=_write_heads)


def _read_query(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    rank = config.get("q_lora_rank", 1536)
    if rank is not None:
        facts.update({f"{_LATENT}.q_rank": rank, f"{_LATENT}.q_norm.kind": "rms", f"{_LATENT}.q_norm.eps": _EPS})


def _write_query(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    rank = config["q_lora_rank"] = uniform(facts, f"{_LATENT}.q_rank")
    norm = f"{_LATENT}.q_norm"
    usual = (
        {"kind": "rms", "eps": _EPS, "weight": True, "bias": False, "zero_centred": False} if rank is not None else {}
    )
    found = {path.rpartition(".")[2]: value for path, value in facts.items() if path.startswith(f"{norm}.")}
    for name in usual | found:
        if found.get(name) != usual.get(name):
            raise Refusal(f"{norm}.{name} is always {usual.get(name)}", found=found.get(name))


def _scale(facts: Facts) -> float | None:
    """The scale of the scores: yarn's `mscale_all_dim` enters it squared; None where it is the usual one."""
    rotary = f"{_LATENT}.rotary.scaling"
    stretch, factor = facts.get(f"{rotary}.mscale_all_dim"), facts.get(f"{rotary}.factor")
    if facts.get(f"{rotary}.kind") is not RotaryKind.YARN or not stretch or not factor or factor <= 1:
        return None
    width = facts.get(f"{_LATENT}.nope_dim", 0) + facts.get(f"{_LATENT}.rope_dim", 0)
    return width**-0.5 * (0.1 * stretch * math.log(factor) + 1.0) ** 2


def _read_scale(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    scale = _scale(facts)
    if scale is not None:
        facts[f"{_LATENT}.scale"] = scale


def _write_scale(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    dims: list[Any] = [uniform(facts, f"{_LATENT}.{name}") for name in ("nope_dim", "rope_dim")]
    if None in dims:
        return  # another kind of attention, which other lines refuse
    usual = sum(dims) ** -0.5
    found: Any
    found, wanted = uniform(facts, f"{_LATENT}.scale") or usual, _scale(facts) or usual
    if not math.isclose(found, wanted, rel_tol=1e-9):
        raise Refusal(
            "the scale of scores follows from its rotary positions",
            found=f"{_LATENT}.scale = {found}",
            expected=str(wanted),
        )


def _read_layers(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    dense = config.get("first_k_dense_replace")
    if type(dense) is not int or dense < 0:
        raise CkptError("key 'first_k_dense_replace' is not a number of layers", found=repr(dense)[:60])
    if dense >= layer_count(config):
        raise CkptError(
            "key 'first_k_dense_replace' leaves no layer with experts",
            found=f"{dense} of {config['num_hidden_layers']} layers",
        )
    sparse = PerLayer(index >= dense for index in range(layer_count(config)))
    enter_sparse_layers(facts, notes, config.get("intermediate_size"), sparse)


def _write_layers(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    sparse = written_sparse_layers(facts, notes, config)
    dense = sparse.index(True)
    if not all(sparse[dense:]):
        raise Refusal("its dense layers are the first ones", found=f"mlp.moe? = {sparse}")
    config["first_k_dense_replace"] = dense


def _read_shared(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any], default: int) -> None:
    if config.get("moe_intermediate_size") is not None:
        facts["mlp.moe.shared.ffn"] = positive(config, "n_shared_experts", default) * positive(
            config, "moe_intermediate_size"
        )


def _write_shared(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    shared: Any = uniform(facts, "mlp.moe.shared.ffn")
    width: Any = uniform(facts, "mlp.moe.ffn")
    if not shared or not width or shared % width:
        raise Refusal(
            "its shared expert is as wide as some of the others",
            found=f"mlp.moe.shared.ffn = {shared} with mlp.moe.ffn = {width}",
        )
    config["n_shared_experts"] = shared // width


def _shared(default: int) -> Custom:
    return custom(["n_shared_experts"], ["mlp.moe.shared.ffn"], write=_write_shared,
                  read=lambda config, facts, notes: _read_shared(config, facts, notes, default))  # fmt: skip


def _dense_layers(default: int) -> Custom:
    return custom(["first_k_dense_replace", "intermediate_size", "num_hidden_layers"], ["mlp.ffn", "mlp.ffn?", "mlp.moe?", "layers"],
                  write=_write_layers,
                  read=lambda config, facts, notes: _read_layers({"first_k_dense_replace": default, **config}, facts, notes))  # fmt: skip


_ROUTER = "mlp.moe.router"
_GROUPING = [f"{_ROUTER}.groups", f"{_ROUTER}.group_top_k", f"{_ROUTER}.group_score"]


def _enter_groups(config: Mapping[str, Any], facts: Facts, score: str, count: int, best: int) -> None:
    experts = config.get("n_routed_experts")
    if type(experts) is int and experts % count:
        raise CkptError(f"n_routed_experts={experts} is not a multiple of n_group={count}")
    facts.update(zip(_GROUPING, (count, best, score), strict=True))


def _read_groups_v2(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    method = config.get("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise CkptError(
            "key 'topk_method' has a value that is not supported",
            found=repr(method)[:60],
            expected="greedy, group_limited_greedy",
        )
    if method != "greedy":  # which looks at no group, whatever n_group says
        _enter_groups(config, facts, "max", positive(config, "n_group"), positive(config, "topk_group"))


def _write_groups_v2(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    count, best, score = (uniform(facts, path) for path in _GROUPING)
    if count is not None and score != "max":
        raise Refusal("its groups are scored by their best expert", found=f"{_GROUPING[2]} = {score}")
    config.update(topk_method="greedy" if count is None else "group_limited_greedy", n_group=count, topk_group=best)


def _read_groups_v3(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    count, best = positive(config, "n_group", 8), positive(config, "topk_group", 4)
    if (count, best) != (1, 1):
        _enter_groups(config, facts, "top2", count, best)


def _write_groups_v3(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    count, best, score = (uniform(facts, path) for path in _GROUPING)
    if count is not None and score != "top2":
        raise Refusal("its groups are scored by their two best experts", found=f"{_GROUPING[2]} = {score}")
    config.update(n_group=count or 1, topk_group=best or 1)


def _read_interleave(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """An arrangement of tensors, and no fact (see `FAMILIES`)."""
    if type(config.get("rope_interleave", True)) is not bool:
        raise CkptError("key 'rope_interleave' is neither true nor false", found=repr(config["rope_interleave"])[:60])


_GROUP_KEYS = ["n_group", "topk_group"]

# fmt: off
_BASE = LLAMA.replace("DeepSeek",
    key("kv_lora_rank", f"{_LATENT}.kv_rank", default=512),
    key("qk_nope_head_dim", f"{_LATENT}.nope_dim", default=128),
    key("qk_rope_head_dim", f"{_LATENT}.rope_dim", default=64),
    key("v_head_dim", f"{_LATENT}.value_dim", default=128),
    custom(["q_lora_rank"], [f"{_LATENT}.q_rank", f"{_LATENT}.q_norm.*"], read=_read_query, write=_write_query),
    key("rms_norm_eps", f"{_LATENT}.norm.eps", "mlp.norm.eps", "final_norm.eps", default=1e-6),
    norms("rms", f"{_LATENT}.norm"),
    norms("rms", f"{_LATENT}.kv_norm", eps=_EPS),
    key_is("attention_bias", False, or_absent=True),  # of the down projections, where the schema has none
    ignore("head_dim", "qk_head_dim", why="follows from qk_nope_head_dim and qk_rope_head_dim"),
    rotary_keys(f"{_LATENT}.rotary"),
    custom([], [f"{_LATENT}.scale"], read=_read_scale, write=_write_scale),
    key("moe_intermediate_size", "mlp.moe.ffn"),
    key_is("moe_layer_freq", 1, or_absent=True, written=False),
    ignore("aux_loss_alpha", "seq_aux", why="training only"),
    ignore("ep_size", why="how to run it, not what it computes"),
    without=["num_attention_heads", "num_key_value_heads", "attention.norm.kind", "mlp_bias"],
)

DEEPSEEK_V2 = _BASE.replace("DeepseekV2ForCausalLM",
    _heads(None),
    _dense_layers(0),
    key("n_routed_experts", "mlp.moe.experts"),
    key("num_experts_per_tok", f"{_ROUTER}.top_k"),
    key("routed_scaling_factor", f"{_ROUTER}.scale", default=1.0),
    custom(["topk_method", *_GROUP_KEYS], _GROUPING, read=_read_groups_v2, write=_write_groups_v2),
    fact_is(f"{_ROUTER}.score", "softmax"),
    # the class of transformers ignores it, the code that came with the first files does not
    key_is("norm_topk_prob", False, or_absent=True),
    key_is("scoring_func", "softmax", or_absent=True),
    key_is("mlp_bias", False, or_absent=True),  # of the dense and shared MLPs, but not of the experts
    _shared(2),
)

DEEPSEEK_V3 = _BASE.replace("DeepseekV3ForCausalLM",
    _heads(128),
    _dense_layers(3),
    key("n_routed_experts", "mlp.moe.experts"),
    key("num_experts_per_tok", f"{_ROUTER}.top_k", default=8),
    key("norm_topk_prob", f"{_ROUTER}.normalise", default=True),
    key("routed_scaling_factor", f"{_ROUTER}.scale", default=2.5),
    custom(_GROUP_KEYS, _GROUPING, read=_read_groups_v3, write=_write_groups_v3),
    fact_is(f"{_ROUTER}.score", "sigmoid"),
    fact_is(f"{_ROUTER}.correction_bias", True),
    key_is("topk_method", "noaux_tc", or_absent=True),
    key_is("scoring_func", "sigmoid", or_absent=True),
    custom(["rope_interleave"], [], read=_read_interleave, write=lambda facts, notes, config: config.update(rope_interleave=True)),
    _shared(1),
    # the layers that predict further tokens take no part in the model, and are not kept
    custom(["num_nextn_predict_layers"], [], read=lambda config, facts, notes: None,
           write=lambda facts, notes, config: config.update(num_nextn_predict_layers=0)),
)


ROPE_INTERLEAVE = layouts.Choice("rope_interleave", (True, False), default=True,
    help="the two elements of a rotary pair are neighbours, or lie in the two halves of the rotated elements")

ROPE = layouts.fragment("rope", [
    ("e c", {"rope_interleave": True}),
    ("c e", {"rope_interleave": False}),
])

DEEPSEEK_LAYER = LAYER.without(*(f"self_attn.{part}_proj.{kind}" for part in "qkvo" for kind in ("weight", "bias")), "input_layernorm.weight").extend(
    row("input_layernorm.weight",              "h",                                   "attention.norm.weight"),
    row("self_attn.q_proj.weight",             "(g (q_nope[dn] + q_rope[<rope>])) h",  "attention.{part}.weight", when="!latent_attention.q_rank"),
    row("self_attn.q_a_proj.weight",           "ql h",                                "attention.q_down.weight"),
    row("self_attn.q_a_layernorm.weight",      "ql",                                  "attention.q_norm.weight"),
    row("self_attn.q_b_proj.weight",           "(g (q_nope[dn] + q_rope[<rope>])) ql", "attention.{part}.weight", when="latent_attention.q_rank"),
    row("self_attn.kv_a_proj_with_mqa.weight", "(kv_down[kl] + k_rope[<rope>]) h",     "attention.{part}.weight"),
    row("self_attn.kv_a_layernorm.weight",     "kl",                                  "attention.kv_norm.weight"),
    row("self_attn.kv_b_proj.weight",          "(g (k_nope[dn] + v[dv])) kl",         "attention.{part}.weight"),
    row("self_attn.o_proj.weight",             "h (g dv)",                            "attention.out.weight"),
    row("mlp.shared_experts.gate_proj.weight", "f h",                                 "mlp.shared.gate.weight"),
    row("mlp.shared_experts.up_proj.weight",   "f h",                                 "mlp.shared.up.weight"),
    row("mlp.shared_experts.down_proj.weight", "h f",                                 "mlp.shared.down.weight"),
    # in float32 in every file: it decides between experts whose scores are close
    row("mlp.gate.e_score_correction_bias",    "x",                                   "mlp.router.correction_bias", dtype="fp32"),
    *EXPERTS,
)

TABLES = layouts.Tables([MODEL, DEEPSEEK_LAYER], [NAMES, ROPE_INTERLEAVE], [ROPE])
# fmt: on


FAMILIES = [
    Family(
        "deepseek_v2",
        DEEPSEEK_V2,
        layouts.Tables([MODEL, DEEPSEEK_LAYER], [NAMES], [ROPE], decided={"rope_interleave": True}),
        divides,
    ),
    Family(
        "deepseek_v3",
        DEEPSEEK_V3,
        TABLES,
        arrangement="rope_interleave",
        leftovers=Table(
            rows=[
                drop(
                    "model.layers.{layers}.*",
                    why="the layer that predicts a further token; transformers does not load it",
                )
            ]
        ),
    ),
]
