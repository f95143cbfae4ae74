"""What torchtitan's arguments until 0.2 and its configs since then say alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Activation, CkptError, Facts, configs, decided, fact_is, ignore, key, one_of, schema, values

NORMS = ("attention.norm", "mlp.norm", "final_norm")
LATENT = "latent_attention"
ROUTER = "mlp.moe.router"

_ROTARY = f"{LATENT}.rotary.scaling"
_GROUPS = ("num_expert_groups", "num_limited_groups")
_GROUPING = [f"{ROUTER}.groups", f"{ROUTER}.group_top_k", f"{ROUTER}.group_score"]
YARN = ("rope_factor", "original_seq_len", "beta_fast", "beta_slow")
"""The keys of yarn, besides `mscale`."""
YARN_CLAIMS = (f"{_ROTARY}.*", f"{LATENT}.scale")
YARN_USES = (f"{LATENT}.nope_dim", f"{LATENT}.rope_dim")
YARN_WHY = "yarn stretches the frequencies, and the square of mscale enters the scale of the scores"

DECODER = [
    fact_is("kind", "decoder"),
    fact_is("causal", True),
    fact_is("mlp.gated", True),
    fact_is("mlp.activation", Activation.SILU),
]


def _read_q_rank(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    if rank := values.checked("q_lora_rank", config["q_lora_rank"], values.count):
        facts[f"{LATENT}.q_rank"] = rank


def _read_bias(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    if config["load_balance_coeff"] is not None:
        facts[f"{ROUTER}.correction_bias"] = True


def enter_yarn(config: Mapping[str, Any], facts: Facts) -> None:
    """The facts of yarn. torchtitan rotates by the stretched frequencies alone, and multiplies the scores by the square of a factor (models/
    deepseek_v3, `softmax_scale`): in transformers' words both factors are `mscale`, and cancel out of the rotation."""
    factor = values.checked("rope_factor", config["rope_factor"], values.positive)
    facts[f"{_ROTARY}.kind"] = schema.RotaryKind.YARN
    facts[f"{_ROTARY}.factor"] = factor
    facts[f"{_ROTARY}.original_positions"] = values.checked(
        "original_seq_len", config["original_seq_len"], values.whole
    )
    for name in ("beta_fast", "beta_slow"):
        facts[f"{_ROTARY}.{name}"] = values.checked(name, config[name], values.positive)
    stretch = values.checked("mscale", config["mscale"], values.number)
    if not stretch:
        facts[f"{_ROTARY}.attention_factor"] = 1.0
        return
    facts[f"{_ROTARY}.mscale"] = facts[f"{_ROTARY}.mscale_all_dim"] = stretch
    width = facts[f"{LATENT}.nope_dim"] + facts[f"{LATENT}.rope_dim"]
    facts[f"{LATENT}.scale"] = width**-0.5 * (0.1 * stretch * math.log(factor) + 1.0) ** 2


def _read_groups(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    if config.get("num_expert_groups") is None:
        return
    count, best = (values.checked(key, config.get(key), values.whole) for key in _GROUPS)
    if config["num_experts"] % count:
        raise CkptError(f"num_experts={config['num_experts']} is not a multiple of num_expert_groups={count}")
    if (count, best) != (1, 1):
        facts.update(zip(_GROUPING, (count, best, "top2"), strict=True))


def groups() -> configs.Entry:
    """Routing that is limited to the best groups of experts (nodes), since 0.2.1."""
    return decided(
        _GROUPS,
        _GROUPING,
        read=_read_groups,
        values={_GROUPS: [(None, None), (configs.value_of(_GROUPING[0]), configs.value_of(_GROUPING[1]))]},
        uses=["num_experts"],
        why="the best groups are chosen first, by their two best experts each",
    )


# fmt: off
LATENT_SIZES = [
    key("n_heads", f"{LATENT}.heads"),
    decided(["q_lora_rank"], [f"{LATENT}.q_rank"], read=_read_q_rank, values={"q_lora_rank": [configs.value_of(f"{LATENT}.q_rank"), 0]},
            why="0 where queries are not compressed"),
    key("kv_lora_rank", f"{LATENT}.kv_rank"),
    key("qk_nope_head_dim", f"{LATENT}.nope_dim"),
    key("qk_rope_head_dim", f"{LATENT}.rope_dim"),
    key("v_head_dim", f"{LATENT}.value_dim"),
]
ROUTING = [
    key("top_k", f"{ROUTER}.top_k"),
    key("score_func", f"{ROUTER}.score", via=one_of({"softmax": "softmax", "sigmoid": "sigmoid"})),
    key("route_norm", f"{ROUTER}.normalise"),
    key("route_scale", f"{ROUTER}.scale"),
    groups(),
]
BIAS_ON_SCORES = decided(["load_balance_coeff"], [f"{ROUTER}.correction_bias"], read=_read_bias, values={"load_balance_coeff": [1e-3, None]},
    why="by how much training moves the bias on scores; null: there is none")
# transformers' mixture of Qwen 3 has no bias: what becomes of one that is not zero, the reader of the tensors asks
BIAS_ASKED_OF_TENSORS = ignore("load_balance_coeff", why="by how much training moves the bias on scores, if at all")
# fmt: on
