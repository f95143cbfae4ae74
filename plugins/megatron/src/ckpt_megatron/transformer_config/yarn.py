"""The fields `yarn_*`: YaRN of usual attention, of Bridge's GPTModelProvider since 0.4 (yarn_rotary_pos_embedding.py)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, Refusal, configs, schema
from ckpt_megatron.args.values import positive

_NUMBERS = {
    "yarn_rotary_scaling_factor": "factor",
    "yarn_original_max_position_embeddings": "original_positions",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
_MSCALES = ("yarn_mscale", "yarn_mscale_all_dim")
_ROUNDED = "yarn_correction_range_round_to_int"
YARN_KEYS = (*_NUMBERS, *_MSCALES, _ROUNDED)
_USUAL = {"beta_fast": 32.0, "beta_slow": 1.0}
_ROTARY = "attention.rotary"
_SCALING = f"{_ROTARY}.scaling"


def read_yarn(config: Mapping[str, Any], facts: Facts) -> None:
    """Enter the scaling of a model whose position_embedding_type is yarn."""
    scaling: dict[str, Any] = {"kind": schema.RotaryKind.YARN}
    for key, name in _NUMBERS.items():
        if config.get(key) is None:
            raise CkptError(f"key {key!r} is missing, and position_embedding_type is yarn", found="null")
        scaling[name] = positive(config, key, 1.0)
    # YarnRotaryEmbedding takes the whole head, whatever rotary_percent says, and no interpolation.
    facts[f"{_ROTARY}.fraction"] = 1.0
    scaling["truncate"] = bool(config.get(_ROUNDED))  # null, the default of Bridge, is False to Megatron-Core
    mscale, all_dim = (config.get(key) for key in _MSCALES)
    if mscale is not None and all_dim is not None:  # else both are left out (_yarn_get_concentration_factor)
        if mscale and all_dim:
            scaling |= {"mscale": mscale, "mscale_all_dim": all_dim}
        else:  # elsewhere one of them counts only together with the other
            factor = scaling["factor"]
            scaling["attention_factor"] = _stretch(factor, mscale) / _stretch(factor, all_dim)
    facts.update({f"{_SCALING}.{name}": value for name, value in scaling.items()})


def refuse_yarn_elsewhere(config: Mapping[str, Any]) -> None:
    """Attention stretches what it rotates wherever the factor is given (_yarn_get_concentration_factor_from_config)."""
    factor = config.get("yarn_rotary_scaling_factor")
    if factor is not None and factor > 1:
        raise CkptError(
            "key 'yarn_rotary_scaling_factor' scales rotary positions that are not of yarn",
            found=f"{factor}, position_embedding_type = {config.get('position_embedding_type')}",
            expected="position_embedding_type = yarn, or null",
        )


def write_yarn(facts: Facts, config: dict[str, Any]) -> None:
    """Enter the fields that say the scaling."""
    if configs.uniform(facts, f"{_ROTARY}.fraction") != 1.0:
        raise Refusal("yarn rotates whole heads", found=f"{_ROTARY}.fraction")
    said = {
        name: configs.uniform(facts, f"{_SCALING}.{name}") for name in (*_NUMBERS.values(), "mscale", "mscale_all_dim")
    }
    config |= {key: said[name] if said[name] is not None else _USUAL.get(name) for key, name in _NUMBERS.items()}
    config |= {"rotary_percent": 1.0, _ROUNDED: configs.uniform(facts, f"{_SCALING}.truncate") is not False}
    wanted = configs.uniform(facts, f"{_SCALING}.attention_factor")
    if wanted is not None:
        # no field says it; with mscale_all_dim of zero it follows from mscale alone
        config["yarn_mscale_all_dim"] = 0.0
        config["yarn_mscale"] = (wanted - 1.0) / (0.1 * math.log(said["factor"])) if said["factor"] > 1 else 0.0
        if not math.isclose(_stretch(said["factor"], config["yarn_mscale"]), wanted, rel_tol=1e-12):
            raise Refusal("yarn stretches nothing by a factor of one or less", found=f"attention_factor = {wanted}")
    elif said["mscale"] and said["mscale_all_dim"]:
        config |= {key: said[name] for key, name in zip(_MSCALES, ("mscale", "mscale_all_dim"), strict=True)}


def is_yarn(facts: Facts) -> bool:
    return configs.uniform(facts, f"{_SCALING}.kind") is schema.RotaryKind.YARN


def _stretch(factor: float, mscale: float) -> float:
    """_yarn_get_mscale."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
