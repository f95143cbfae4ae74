"""Rotary positions of latent attention (multi_latent_attention.py), which scale the scores too.

Nothing but these args is looked at: not --use-rope-scaling, --rotary-seq-len-interpolation-factor or --no-rope-freq.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, Refusal, configs, schema
from ckpt_megatron.args.values import Args, given, positive

# MLATransformerConfig until core 0.13, of which the args lack some of these keys
_DEFAULTS = {
    "rotary_scaling_factor": 40.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
LATENT_ROTARY_KEYS = tuple(_DEFAULTS)
_ROTARY = "latent_attention.rotary"
_TWO_SCALES = "the scale of the scores follows from mscale until core 0.13, and from mscale_all_dim since"


def read_latent_rotary(args: Args, facts: Facts) -> None:
    """Enter the rotary positions, and the scale of the scores where it is not the usual one."""
    kind = args.get("rope_type") or "yarn"
    if kind not in ("rope", "yarn"):
        raise CkptError("key 'rope_type' has a value that is not supported", found=repr(kind), expected="rope or yarn")
    value = {key: given(args, key, default) for key, default in _DEFAULTS.items()}
    factor, mscale, all_dim = value["rotary_scaling_factor"], value["mscale"], value["mscale_all_dim"]
    scale = _usual_scale(facts) * _stretch(factor, _mscale_of_scores(args, factor, mscale, all_dim)) ** 2
    if scale != _usual_scale(facts):
        facts["latent_attention.scale"] = scale
    facts[f"{_ROTARY}.theta"] = positive(args, "rotary_base", 10000.0)
    if kind == "rope" and given(args, "rotary_percent", 1.0) != 1.0:  # yarn does not look at it
        raise CkptError("key 'rotary_percent' has a value that is not supported", found=args["rotary_percent"])
    facts[f"{_ROTARY}.fraction"] = 1.0
    if kind == "rope" or factor == 1.0:
        return
    scaling = {
        "kind": schema.RotaryKind.YARN,
        "factor": factor,
        "original_positions": value["original_max_position_embeddings"],
        "beta_fast": value["beta_fast"],
        "beta_slow": value["beta_slow"],
    }
    if bool(mscale) == bool(all_dim) or _stretch(factor, mscale) == _stretch(factor, 1.0):
        scaling |= {"mscale": mscale, "mscale_all_dim": all_dim}
    else:  # elsewhere mscale counts only together with mscale_all_dim
        scaling["attention_factor"] = _stretch(factor, mscale) / _stretch(factor, all_dim)
    facts.update({f"{_ROTARY}.scaling.{name}": said for name, said in scaling.items()})


def _mscale_of_scores(args: Args, factor: float, mscale: float, all_dim: float) -> float:
    """Which of the two scales the scores: mscale until core 0.13, mscale_all_dim since.

    Args tell no version, but rope_type came with 0.13, and layernorm_epsilon back with 0.16.
    """
    if "rope_type" not in args:
        return mscale
    if "layernorm_epsilon" not in args and _stretch(factor, mscale) != _stretch(factor, all_dim):
        raise CkptError(
            _TWO_SCALES,
            found=f"mscale = {mscale}, mscale_all_dim = {all_dim}, and nothing tells the version",
            expected="two equal values",
        )
    return all_dim


def check_any_version(args: Args) -> None:
    """`Refusal` where written args, in a place that tells no version, mean one scale in one and another in the next."""
    factor, mscale, all_dim = args["rotary_scaling_factor"], args["mscale"], args["mscale_all_dim"]
    if _stretch(factor, mscale) != _stretch(factor, all_dim):
        raise Refusal(
            _TWO_SCALES,
            found=f"{_ROTARY}.scaling.mscale = {mscale}, {_ROTARY}.scaling.mscale_all_dim = {all_dim}",
            expected="two equal values, where nothing tells the version",
        )


def write_latent_rotary(facts: Facts, args: dict[str, Any]) -> None:
    """Enter the args; `Refusal` for what they cannot say, or if they do not imply the attention scale."""
    if configs.uniform(facts, f"{_ROTARY}.fraction") != 1.0:
        raise Refusal("latent attention rotates all of its rotary elements", found=f"{_ROTARY}.fraction")
    if facts.present(_ROTARY) is not True:
        raise Refusal("latent attention rotates in every layer", found=f"{_ROTARY}? = {facts.present(_ROTARY)}")
    prefix = f"{_ROTARY}.scaling."
    scaling = {name.removeprefix(prefix): configs.uniform(facts, name) for name in facts if name.startswith(prefix)}
    kind = scaling.pop("kind", None)
    if kind is None:
        args |= {"rope_type": "rope", "rotary_scaling_factor": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}
    elif kind is schema.RotaryKind.YARN:
        args |= _yarn(scaling)
    else:
        raise Refusal(
            "it has no such scaling of rotary positions", found=f"{prefix}kind = {kind}", expected="yarn, or none"
        )
    wanted = facts.get("latent_attention.scale") or _usual_scale(facts)
    implied = _usual_scale(facts) * _stretch(args["rotary_scaling_factor"], args["mscale_all_dim"]) ** 2
    if not math.isclose(wanted, implied, rel_tol=1e-6):
        raise Refusal(
            "no argument sets the scale of latent attention, it follows from mscale_all_dim",
            found=f"latent_attention.scale = {wanted}",
            expected=f"{implied} for mscale_all_dim = {args['mscale_all_dim']}",
        )


def _yarn(scaling: Mapping[str, Any]) -> dict[str, Any]:
    if scaling.get("attention_factor") is not None or scaling.get("truncate") is False:
        raise Refusal("yarn has no attention_factor and rounds its range", found=str(dict(scaling)))
    mscale, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim") or 0.0
    if (mscale not in (None, 1.0)) if not all_dim else not mscale:
        # elsewhere one of them counts only together with the other
        raise Refusal("yarn with one of mscale and mscale_all_dim", found=f"mscale={mscale} mscale_all_dim={all_dim}")
    return {
        "rope_type": "yarn",
        "rotary_scaling_factor": scaling["factor"],
        "original_max_position_embeddings": scaling["original_positions"],
        "beta_fast": scaling.get("beta_fast") or _DEFAULTS["beta_fast"],
        "beta_slow": scaling.get("beta_slow") or _DEFAULTS["beta_slow"],
        "mscale": 1.0 if mscale is None else mscale,
        "mscale_all_dim": all_dim,
    }


def _usual_scale(facts: Facts) -> float:
    width: int = configs.uniform(facts, "latent_attention.nope_dim") + configs.uniform(
        facts, "latent_attention.rope_dim"
    )
    return 1 / math.sqrt(width)


def _stretch(factor: float, mscale: float) -> float:
    """_yarn_get_mscale (yarn_rotary_pos_embedding.py)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
