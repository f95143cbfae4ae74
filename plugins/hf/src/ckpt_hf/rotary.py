"""Rotary positions in an HF config, as transformers 4 and 5 write them.

Version 4: `rope_theta` beside `rope_scaling` {"rope_type" (older: "type"), "factor", ...}.
Version 5: `rope_parameters` {"rope_type", "rope_theta", "factor", ...}. Version 4 does not know that key and
silently takes theta = 10000, so both forms are written; where a file has both, they must agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, Refusal, configs, custom, errors, schema

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
_DEFAULT_ORIGINAL = {schema.RotaryKind.LLAMA3, schema.RotaryKind.YARN, schema.RotaryKind.LONGROPE}


def rotary_keys(
    path: str = "attention.rotary",
    *,
    default_theta: float = 10000.0,
    always: bool = True,
    partial: float | None = None,
    theta_key: str = "rope_theta",
    fraction_key: str = "partial_rotary_factor",
) -> configs.Custom:
    """The config line for all rotary keys; `default_theta` is the class's own. `always`: every layer of it rotates.

    `partial`: the fraction of a head that the class rotates where no key says it. Most classes have no such key and
    rotate whole heads whatever it says; they get None.
    """
    outside = {"rope_theta": theta_key, "partial_rotary_factor": fraction_key}
    known = dict.fromkeys([*outside, *outside.values()])

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        flat = {common: _agreed(config, common, key) for common, key in outside.items()}
        given = {key: value for key, value in flat.items() if value is not None}
        scaling, parameters = (_object(config.get(key), key) for key in ("rope_scaling", "rope_parameters"))
        four = {**(scaling or {}), **given} if scaling is not None or given else None
        five = {**given, **parameters} if parameters is not None else None
        readings = [_facts(one, config, default_theta, partial) for one in (four, five) if one is not None]
        if len(readings) == 2 and readings[0] != readings[1]:
            raise CkptError(
                f"rope_parameters and {theta_key}/rope_scaling disagree",
                found=f"transformers 5 reads {readings[1]}, transformers 4 reads {readings[0]}",
                fix="delete the wrong one from config.json",
            )
        for name, value in (readings or [_facts({}, config, default_theta, partial)])[0].items():
            facts[f"{path}.{name}"] = value

    def write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        theta = configs.uniform(facts, f"{path}.theta")
        if theta is None and always:
            raise Refusal("it always rotates", found=f"no {path}: no rotary positions")
        if theta is None:
            return
        fraction, kind = configs.uniform(facts, f"{path}.fraction"), configs.uniform(facts, f"{path}.scaling.kind")
        if partial is None and fraction != 1.0:
            raise Refusal("it always rotates whole heads", found=f"{path}.fraction = {fraction}")
        if kind is schema.RotaryKind.PROPORTIONAL and fraction != 1.0:
            raise Refusal(
                "transformers then rotates whole heads",
                found=f"{path}.fraction = {fraction} with {path}.scaling.kind = {kind}",
            )
        scaling: dict[str, Any] = {} if kind is None else {"rope_type": str(kind)}
        for name, key in _NAMES.items():
            value = configs.uniform(facts, f"{path}.scaling.{name}")
            if value is not None:
                scaling[key] = list(value) if isinstance(value, tuple) else value
        config[theta_key] = theta
        config["rope_scaling"] = scaling or None
        config["rope_parameters"] = {"rope_type": "default", **scaling, "rope_theta": theta}
        if kind is schema.RotaryKind.DYNAMIC:  # it stretches what is longer than this
            config["max_position_embeddings"] = configs.uniform(facts, f"{path}.scaling.max_positions")
        if partial is not None:
            config[fraction_key] = config["rope_parameters"]["partial_rotary_factor"] = fraction

    return custom(
        [*known, "rope_scaling", "rope_parameters", "max_position_embeddings"],
        [f"{path}.*"],
        read=read,
        write=write,
        uses=["original_max_position_embeddings"],
        why="said twice, as version 4 says it and as version 5 does, which must agree; each kind of scaling has parameters of its own",
    )


def _agreed(config: Mapping[str, Any], common: str, own: str) -> object:
    """The value of a key that a class calls by a name of its own; transformers 4 saved both."""
    values = {key: config[key] for key in dict.fromkeys((own, common)) if config.get(key) is not None}
    if len(values) == 2 and len({float(_number(value, key)) for key, value in values.items()}) > 1:
        raise CkptError(f"keys {own!r} and {common!r} disagree", found=str(values))
    return next(iter(values.values()), None)


def _object(value: object, key: str) -> dict[str, Any] | None:
    if value is None or isinstance(value, dict):
        return value
    raise CkptError(f"key {key!r} is not an object", found=repr(value)[:60])


def _facts(
    given: Mapping[str, Any], config: Mapping[str, Any], default_theta: float, partial: float | None
) -> dict[str, Any]:
    """The facts below `rotary` that one flat set of rotary parameters says."""
    kind = given.get("rope_type", given.get("type", "default"))
    facts: dict[str, Any] = {
        "theta": _number(given.get("rope_theta", default_theta), "rope_theta"),
        "fraction": _number(
            given.get("partial_rotary_factor", 1.0 if partial is None else partial), "partial_rotary_factor"
        ),
    }
    if partial is None and facts["fraction"] != 1.0:
        raise CkptError(
            "this class rotates whole heads, and ignores partial_rotary_factor",
            found=facts["fraction"],
            fix="delete the key from config.json",
        )
    if kind != "default" and kind not in set(schema.RotaryKind):
        raise CkptError("unknown rope_type", found=kind, expected=", ".join(["default", *schema.RotaryKind]))
    known = {
        key
        for name, key in _NAMES.items()
        if kind != "default" and name in frozenset().union(*schema.SCALING_FIELDS[schema.RotaryKind(kind)])
    }
    for key in given:
        if key not in known | _COMMON:
            raise CkptError(
                f"unknown rotary parameter {key!r} for rope_type={kind}", fix=errors.did_you_mean(key, known)
            )
    if kind == "default":
        return facts
    if schema.RotaryKind(kind) is schema.RotaryKind.PROPORTIONAL and facts["fraction"] != 1.0:
        raise CkptError("partial_rotary_factor is not supported for rope_type=proportional", found=facts["fraction"])
    facts["scaling.kind"] = schema.RotaryKind(kind)
    for name, key in _NAMES.items():
        value = given.get(key)
        if value is not None:
            facts[f"scaling.{name}"] = _scaling_value(name, value, key)
    positions = config.get("max_position_embeddings")
    if schema.RotaryKind(kind) in _DEFAULT_ORIGINAL and "scaling.original_positions" not in facts and positions:
        facts["scaling.original_positions"] = config.get("original_max_position_embeddings", positions)
    if schema.RotaryKind(kind) is schema.RotaryKind.DYNAMIC:
        facts["scaling.max_positions"] = positions
    if schema.RotaryKind(kind) is schema.RotaryKind.LONGROPE and "scaling.factor" not in facts and positions:
        # transformers stretches by the ratio of the two lengths where no factor is given
        facts["scaling.factor"] = _number(positions, "max_position_embeddings") / int(
            facts["scaling.original_positions"]
        )
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
