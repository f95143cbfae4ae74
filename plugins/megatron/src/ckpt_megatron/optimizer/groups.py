"""The groups of an optimizer: by what Megatron divides its parameters, and what it says of each group.

Parameters with weight decay come first, then vectors and biases, which have none; those of experts that expert parallel ranks share out are
apart (core 0.16, optimizer/__init__.py, `_get_param_groups`). A loader finds its groups by `_IDENTITY`, and takes from the file whatever else they say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ckpt_core.sdk import errors, ledgers, reading
from ckpt_megatron.found import RankShare

__all__ = [
    "KEYS",
    "ORDER",
    "DecayRule",
    "Divided",
    "body_of",
    "check_divided",
    "decay_rule",
    "members_of",
    "place_of",
    "said_of",
    "united",
    "written_groups",
]

DROP = "convert the weights alone, with --training-state drop"
KEYS = (
    *("is_expert_parallel", "is_expert", "is_decoupled_lr", "default_config", "optimizer"),
    *("wd_mult", "lr_mult", "start_wd", "end_wd"),
    *("pre_wd_mult", "pre_lr_mult", "pre_mult_wd", "pre_mult_lr"),  # as FusedAdam's groups were saved before core 0.12
)
"""What Megatron says of a group besides the hyper-parameters of Adam."""
_EXPERTS = ".experts."
_QK_NORMS = ("q_layernorm.", "k_layernorm.")
_EMBEDDING = "embedding"
# What args of Megatron-LM and Bridge say of weight decay
CONDITION = "no_weight_decay_cond_type"
EMBEDDING_STD = "embedding_init_method_std"
QWEN3_NEXT = "qwen3_next"
QK_DECAYED = "apply_wd_to_qk_layernorm"


class Divided(NamedTuple):
    """By what Megatron divides parameters into groups: whether they are of experts, and whether they are without weight decay."""

    experts: bool
    undecayed: bool


ORDER = tuple(Divided(experts, undecayed) for experts in (False, True) for undecayed in (False, True))
"""The groups in the order in which Megatron has them; with experts apart, the last two are of an optimizer of their own."""


class DecayRule(NamedTuple):
    """Which parameters a run decays: matrices, and neither vectors nor biases, but for two kinds of which runs are told: norms of queries and keys, and embeddings."""

    qk_norms: bool = False
    embeddings: bool = True


USUAL = DecayRule()
"""What a run does that was told nothing."""


def place_of(name: str, axes: int, apart: bool = True, rule: DecayRule = USUAL) -> Divided:
    """The group of a parameter by its name and the number of its axes; `apart`: experts have groups of their own."""
    if any(norm in name for norm in _QK_NORMS) and rule.qk_norms:
        decayed = True
    else:
        decayed = not name.endswith(".bias") and axes != 1 and (rule.embeddings or _EMBEDDING not in name)
    return Divided(apart and _EXPERTS in name, not decayed)


def decay_rule(args: Mapping[str, Any], bodies: Sequence[Mapping[str, Any]], file: str) -> DecayRule:
    """The rule of the run that has these `args` and these groups. `NotCarried` for a condition that is not known.

    Norms of queries and keys are decayed as those of Qwen3-Next are (core 0.16, optimizer/__init__.py, `get_standard_config_overrides`). With
    --embedding-init-method-std core 0.14 and 0.15 leave embeddings undecayed (training/training.py, `default_skip_embedding_weight_decay`); core
    0.16 decays them again. Its groups tell it: they say `default_config`.
    """
    kind = args.get(CONDITION)
    if kind not in (None, QK_DECAYED, QWEN3_NEXT):
        raise errors.NotCarried(
            "which parameters have weight decay is decided by a condition that is not known",
            file=file,
            found=f"{CONDITION} = {kind!r:.60}",
            expected=f"none, {QK_DECAYED} or {QWEN3_NEXT}",
            fix=DROP,
        )
    skips = args.get(EMBEDDING_STD) is not None and not any("default_config" in body for body in bodies)
    return DecayRule(bool(args.get(QK_DECAYED)) or kind is not None, not skips)


def said_of(body: Mapping[str, Any]) -> Divided:
    """Which parameters a group says it has."""
    return Divided(bool(body.get("is_expert_parallel")), body.get("wd_mult", body.get("pre_wd_mult", 1.0)) == 0.0)


def check_divided(bodies: Sequence[Mapping[str, Any]], file: str) -> None:
    """`NotCarried` for groups that differ in more than `Divided` tells: by --decoupled-lr an embedding has a rate of its own, with muP matrices have."""
    known: dict[Divided, Mapping[str, Any]] = {}
    for body in bodies:
        told = known.setdefault(said_of(body), body)
        if others := [key for key in (*body, *told) if key not in _OWN and body.get(key) != told.get(key)]:
            key = others[0]
            raise errors.NotCarried(
                f"groups of the optimizer have another {key} each, and which parameters are in which can't be told",
                file=file,
                found=f"{key} {told.get(key)!r:.60} and {body.get(key)!r:.60}",
                expected="groups with weight decay, without it, and of experts",
                fix=DROP,
            )


_OWN = ("params", "step")  # of a group: an empty one has no step


def united(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """The groups in the files of all ranks, each once. `FormatError`, naming a file, where ranks step a group otherwise than each other.

    Until core 0.13 a rank has the groups of its own parameters alone, in the order of its model: a stage whose layers are dense has none of experts, and
    where the first parameter of a stage is a norm, the groups change places (optimizer/__init__.py, `_get_param_groups`).
    """
    own = {file: {said_of(body): body for body in bodies} for file, bodies in found.items()}
    every: dict[Divided, Mapping[str, Any]] = {}
    for of_file in own.values():
        every = of_file | every
    reading.adam.check_groups(
        {file: [of_file.get(place, every[place]) for place in every] for file, of_file in own.items()}
    )
    return list(every.values())


def members_of(
    bodies: Sequence[Mapping[str, Any]], shares: Sequence[RankShare], file: str, args: Mapping[str, Any]
) -> list[list[str]]:
    """The parameters of each group by the names of the tables, as Megatron divides them in a run with these `args`."""
    check_divided(bodies, file)
    rule = decay_rule(args, bodies, file)
    apart = any(said_of(body).experts for body in bodies)
    left: dict[Divided, dict[str, None]] = {}
    for share in shares:
        for name, copies in share.tensors.items():
            left.setdefault(place_of(name, len(copies[0][0].origin), apart, rule), {})[name] = None
    found = [list(left.pop(said_of(body), ())) for body in bodies]
    if left:
        (name, *_), *_ = left.values()
        raise errors.NotCarried(f"{name!r} is in no group of the optimizer", file=file, fix=DROP)
    return found


def written_groups(
    training: reading.Training, places: Mapping[Divided, Sequence[str]]
) -> tuple[list[reading.Group], list[ledgers.Loss]]:
    """The groups of a state that is written, for the canonical parameters in each of these `places`, and what of them changes.

    Vectors and biases are not decayed, whatever the file says: the schedule multiplies the weight decay of the command line by `wd_mult`.
    """
    if training.optimizer != reading.ADAMW and any(group.weight_decay for group in training.groups):
        raise errors.NotCarried(
            "the source adds weight decay to the gradients (L2), and Megatron-LM decays the weights (AdamW)",
            fix=DROP,
        )
    if len({group.lr for group in training.groups if group.parameters}) > 1:
        raise errors.NotCarried(
            "the groups of the source have different learning rates, and Megatron-LM's schedule gives all of them one",
            found=", ".join(sorted({f"{group.lr:.9g}" for group in training.groups})),
            fix=DROP,
        )
    return reading.regrouped(training, list(places.values()), [0.0 if place.undecayed else None for place in places])


def body_of(group: reading.Group, place: Divided, step: int, fused: bool, rates: Mapping[str, float]) -> dict[str, Any]:
    """What a file says of a group.

    `fused`: TransformerEngine's or Apex' FusedAdam counts the steps of a group, torch's AdamW those of a parameter. `rates` are the `max_lr` and
    `min_lr` of the schedule, where they are known: without them a run has those of its command line.
    """
    body: dict[str, Any] = {
        "is_expert_parallel": place.experts,
        "default_config": True,
        "wd_mult": 0.0 if place.undecayed else 1.0,
        "lr_mult": 1.0,
        "is_decoupled_lr": False,
        **rates,
    }
    said = reading.adam.said_by(group, [], reading.ADAMW)
    for key in ("initial_lr", "params", *(_OF_TORCH if fused else ())):
        del said[key]
    return body | said | ({"bias_correction": True, "step": step} if fused else {})


# Hyper-parameters of torch's AdamW alone.
_OF_TORCH = ("amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay")
