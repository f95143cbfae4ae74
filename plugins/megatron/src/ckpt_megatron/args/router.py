"""The router of experts: topk_routing_with_score_function (moe/moe_utils.py)."""

from __future__ import annotations

from typing import Any

from ckpt_core.sdk import CkptError, Facts, Refusal, configs, decided
from ckpt_megatron.args.values import Args, flag, given, positive

_DENSE = {
    "moe_router_topk": 2,
    "moe_router_score_function": "softmax",
    "moe_router_pre_softmax": False,
    "moe_router_topk_scaling_factor": None,
    "moe_router_enable_expert_bias": False,
    "moe_router_num_groups": None,
    "moe_router_group_topk": None,
}
ROUTER_KEYS = tuple(_DENSE)
"""The arguments that say how a router chooses experts."""
ROUTER_FACTS = tuple(
    f"mlp.moe.router.{name}"
    for name in (
        "top_k", "score", "normalise", "scale", "bias", "correction_bias", "groups", "group_top_k", "group_score",
    )
)  # fmt: skip
"""What they say; what else a router may do, no argument says."""
_LOSSES = (None, "none", "aux_loss", "seq_aux_loss", "global_aux_loss")  # in training alone; "sinkhorn" always routes
_ROUTER = "mlp.moe.router"
# A group is scored by the sum of its best topk / group_topk experts, where HF takes the best one or the best two.
_GROUP_SCORES = {1: "max", 2: "top2"}


def read_router(args: Args, facts: Facts) -> None:
    """Enter the facts of the router of a model with experts."""
    top_k, score = args.get("moe_router_topk", 2), args.get("moe_router_score_function") or "softmax"
    before = flag(args, "moe_router_pre_softmax")
    facts[f"{_ROUTER}.top_k"], facts[f"{_ROUTER}.score"] = top_k, score
    # The softmax is over the chosen logits unless it comes before the choice; chosen sigmoids are divided by their sum.
    facts[f"{_ROUTER}.normalise"] = (not before) if score == "softmax" else top_k > 1
    facts[f"{_ROUTER}.scale"] = args.get("moe_router_topk_scaling_factor") or 1.0
    facts[f"{_ROUTER}.correction_bias"] = flag(args, "moe_router_enable_expert_bias")
    # It alone decides whether groups count; one group of all experts (GLM-4.5 by Bridge) is not a choice.
    if args.get("moe_router_group_topk") and args.get("moe_router_num_groups") != 1:
        groups, chosen = positive(args, "moe_router_num_groups", 0), positive(args, "moe_router_group_topk", 0)
        facts[f"{_ROUTER}.groups"], facts[f"{_ROUTER}.group_top_k"] = groups, chosen
        facts[f"{_ROUTER}.group_score"] = _group_score(top_k, chosen, score == "softmax" and not before)


def _group_score(top_k: int, chosen: int, on_logits: bool) -> str:
    kind = _GROUP_SCORES.get(top_k // chosen)
    if kind is None or (kind == "top2" and on_logits):
        raise CkptError(
            "groups of experts are scored in a way that is not supported",
            found=f"moe_router_topk = {top_k}, moe_router_group_topk = {chosen}"
            + (", before the softmax" if on_logits else ""),
            expected="a quotient of 1 or 2",
        )
    return kind


def router_of_dense() -> dict[str, Any]:
    """The args of a router in a model that has none."""
    return dict(_DENSE)


def write_router(facts: Facts, args: dict[str, Any]) -> None:
    """Enter the args of the router of a model with experts."""
    said = {
        name: configs.uniform(facts, f"{_ROUTER}.{name}") for name in ("top_k", "score", "normalise", "scale", "bias")
    }
    top_k, score, normalise = said["top_k"], said["score"], said["normalise"]
    biased = configs.uniform(facts, f"{_ROUTER}.correction_bias")
    groups, chosen = configs.uniform(facts, f"{_ROUTER}.groups"), configs.uniform(facts, f"{_ROUTER}.group_top_k")
    if score == "sigmoid" and normalise != (top_k > 1):
        raise Refusal(
            "chosen sigmoid scores are always divided by their sum", found=f"{_ROUTER}.normalise = {normalise}"
        )
    if biased and score != "sigmoid":
        raise Refusal("only a sigmoid router has expert_bias", found=f"{_ROUTER}.score = {score}")
    if said["bias"] and not configs.uniform(facts, "mlp.up_bias"):
        raise Refusal("the router has a bias only with add_bias_linear", found=f"{_ROUTER}.bias = True")
    if groups is not None:
        wanted = configs.uniform(facts, f"{_ROUTER}.group_score")
        on_logits = wanted == "top2" and score == "softmax" and normalise
        if _GROUP_SCORES.get(top_k // chosen) != wanted or on_logits:
            raise Refusal(
                "a group of experts is scored by the sum of its best topk / group_topk experts",
                found=f"{_ROUTER}.group_score = {wanted}, top_k = {top_k}, group_top_k = {chosen}",
            )
    args |= {
        "moe_router_topk": top_k,
        "moe_router_score_function": score,
        "moe_router_pre_softmax": score == "softmax" and not normalise,
        "moe_router_topk_scaling_factor": None if said["scale"] == 1.0 else said["scale"],
        "moe_router_enable_expert_bias": bool(biased),
        "moe_router_num_groups": groups,
        "moe_router_group_topk": chosen,
    }


_CAPACITY, _BALANCING = "moe_expert_capacity_factor", "moe_router_load_balancing_type"


def undisturbed() -> configs.Entry:
    """Every token reaches the experts that score best, however many others do: no capacity, no Sinkhorn routing."""
    why = "every token reaches the experts that score best: no capacity, no Sinkhorn routing"
    return decided([_CAPACITY, _BALANCING], [], read=_check_undisturbed, values={_CAPACITY: [None]}, why=why)


def _check_undisturbed(args: Args, facts: Facts, notes: dict[str, Any]) -> None:
    if given(args, _CAPACITY, -1) >= 0:  # TransformerConfig takes a negative one for none
        raise CkptError(f"args.{_CAPACITY} drops tokens, which is not supported", found=args[_CAPACITY])
    kinds = args.get(_BALANCING)
    for kind in kinds if isinstance(kinds, list | tuple) else [kinds]:
        if kind not in _LOSSES:
            raise CkptError(f"args.{_BALANCING} routes in a way that is not supported", found=repr(kind)[:80])
