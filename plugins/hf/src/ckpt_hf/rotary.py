"""Rotary positions in an HF config, as transformers 4 and 5 write them.

Version 4: `rope_theta` beside `rope_scaling` {"rope_type" (older: "type"), "factor", ...}.
Version 5: `rope_parameters` {"rope_type", "rope_theta", "factor", ...}. Version 4 does not know that key and
silently takes theta = 10000, so both forms are written; where a file has both, they must agree.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_core.architecture import Facts, RotaryKind
from ckpt_core.architecture.schema import SCALING_FIELDS
from ckpt_core.errors import CkptError, Refusal, did_you_mean
from ckpt_core.layout import Custom, custom, uniform

# transformers' names of the fields of `RotaryScaling`
_NAMES = {
    "factor": "factor",
    "original_positions": "original_max_position_embeddings",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "attention_factor": "attention_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "truncate": "truncate",
    "short_factors": "short_factor",
    "long_factors": "long_factor",
}
_WHOLE = {"original_positions"}
_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
# Version 5 fills in the length trained for where the config leaves it out (modeling_rope_utils.standardize_rope_params).
_DEFAULT_ORIGINAL = {RotaryKind.LLAMA3, RotaryKind.YARN, RotaryKind.LONGROPE}


def rotary_keys(path: str = "attention.rotary", *, default_theta: float = 10000.0, always: bool = True) -> Custom:
    """The config line for all rotary keys; `default_theta` is the class's own. `always`: every layer of it rotates."""

    def read(config: Mapping[str, object], facts: Facts, notes: dict[str, object]) -> None:
        four, five = _version4(config, default_theta), _version5(config, default_theta)
        if four is not None and five is not None and four != five:
            raise CkptError(
                "rope_parameters and rope_theta/rope_scaling disagree",
                found=f"transformers 5 reads {five}, transformers 4 reads {four}",
                fix="delete the wrong one from config.json",
            )
        for name, value in (five or four or {"theta": default_theta, "fraction": 1.0}).items():
            facts[f"{path}.{name}"] = value

    def write(facts: Facts, notes: Mapping[str, object], config: dict[str, object]) -> None:
        theta = uniform(facts, f"{path}.theta")
        if theta is None and always:
            raise Refusal("it always rotates", found="no rotary positions")
        if theta is None:
            return
        fraction, kind = uniform(facts, f"{path}.fraction"), uniform(facts, f"{path}.scaling.kind")
        scaling: dict[str, object] = {} if kind is None else {"rope_type": str(kind)}
        for name, key in _NAMES.items():
            value = uniform(facts, f"{path}.scaling.{name}")
            if value is not None:
                scaling[key] = list(value) if isinstance(value, tuple) else value
        config["rope_theta"] = theta
        config["rope_scaling"] = scaling or None
        config["rope_parameters"] = {"rope_type": "default", **scaling, "rope_theta": theta}
        if fraction != 1.0:
            config["partial_rotary_factor"] = config["rope_parameters"]["partial_rotary_factor"] = fraction

    keys = ["rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"]
    return custom(keys, [f"{path}.*"], read=read, write=write)


def _version4(config: Mapping[str, object], default_theta: float) -> dict[str, object] | None:
    theta, scaling = config.get("rope_theta"), config.get("rope_scaling")
    if theta is None and scaling is None:
        return None
    given = {"rope_theta": theta, "partial_rotary_factor": config.get("partial_rotary_factor")}
    return _facts({**(_object(scaling, "rope_scaling") or {}), **{k: v for k, v in given.items() if v is not None}}, config, default_theta)


def _version5(config: Mapping[str, object], default_theta: float) -> dict[str, object] | None:
    given = _object(config.get("rope_parameters"), "rope_parameters")
    if given is None:
        return None
    outside = {key: config[key] for key in ("rope_theta", "partial_rotary_factor") if config.get(key) is not None}
    return _facts({**outside, **given}, config, default_theta)


def _object(value: object, key: str) -> dict[str, object] | None:
    if value is None or isinstance(value, dict):
        return value
    raise CkptError(f"key {key!r} is not an object", found=repr(value)[:60])


def _facts(given: Mapping[str, object], config: Mapping[str, object], default_theta: float) -> dict[str, object]:
    """The facts below `rotary` that one flat set of rotary parameters says."""
    kind = given.get("rope_type", given.get("type", "default"))
    facts: dict[str, object] = {
        "theta": _number(given.get("rope_theta", default_theta), "rope_theta"),
        "fraction": _number(given.get("partial_rotary_factor", 1.0), "partial_rotary_factor"),
    }
    if kind != "default" and kind not in set(RotaryKind):
        raise CkptError("unknown rope_type", found=kind, expected=", ".join(["default", *RotaryKind]))
    known = {key for name, key in _NAMES.items() if kind != "default" and name in frozenset().union(*SCALING_FIELDS[RotaryKind(kind)])}
    for key in given:
        if key not in known | _COMMON:
            raise CkptError(f"unknown rotary parameter {key!r} for rope_type={kind}", fix=did_you_mean(key, known))
    if kind == "default":
        return facts
    facts["scaling.kind"] = RotaryKind(kind)
    for name, key in _NAMES.items():
        value = given.get(key)
        if value is not None:
            facts[f"scaling.{name}"] = _scaling_value(name, value, key)
    if RotaryKind(kind) in _DEFAULT_ORIGINAL and "scaling.original_positions" not in facts and config.get("max_position_embeddings"):
        facts["scaling.original_positions"] = config.get("original_max_position_embeddings", config["max_position_embeddings"])
    if RotaryKind(kind) is RotaryKind.DYNAMIC:
        facts["scaling.max_positions"] = config.get("max_position_embeddings")
    return facts


def _scaling_value(name: str, value: object, key: str) -> object:
    if isinstance(value, list):
        return tuple(_number(item, key) for item in value)
    if isinstance(value, bool):
        return value
    return int(_number(value, key)) if name in _WHOLE else _number(value, key)


def _number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CkptError(f"{key} is not a number", found=repr(value)[:60])
    return float(value)
