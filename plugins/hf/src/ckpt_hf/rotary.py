"""Rotary positions in an HF config, as transformers 4 and 5 write them.

Version 4: `rope_theta` beside `rope_scaling` {"rope_type" (older: "type"), "factor", ...}.
Version 5: `rope_parameters` {"rope_type", "rope_theta", "factor", ...}. Version 4 does not know that key and
silently takes theta = 10000, so both forms are written; where a file has both, they must agree.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
    null_theta: bool = False,
    partial: float | None = None,
    theta_key: str = "rope_theta",
    fraction_key: str = "partial_rotary_factor",
    width_key: str = "",
    alpha: bool = False,
    inert: Collection[str] = (),
    usual: Mapping[str, Any] | None = None,
    by_position: bool | str = False,
    by_length: bool = False,
    called: Mapping[str, str] | None = None,
    sections: tuple[int, ...] | None = None,
    interleaved: bool = False,
) -> configs.Custom:
    """The config line for all rotary keys; `default_theta` is the class's own. `always`: every layer of it rotates.
    `null_theta`: a theta of null says that none does (OLMo-Hybrid).

    `partial`: the fraction of a head that the class rotates where no key says it. Most classes have no such key and
    rotate whole heads whatever it says; they get None. `width_key`: a key that says the rotated elements of a head
    by their number, where there is no fraction. `alpha`: scaling "dynamic" with an `alpha` is another theta (Hunyuan).
    `inert`: parameters that the class takes, and that change nothing.
    `usual`: the scaling of the class where no key says one. `by_position`: among the parameters is one by which queries
    grow with their position (Ministral 3); a name is that of the one type, of several with this table, whose parameters have it. `by_length`: longrope is the only scaling, and says its factor of cosines and sines twice, for short
    and for long texts (Phi-3.5-MoE). `called`: what the class also calls kinds of scaling. `sections`: how the class shares out
    the angles between time, row and column where no parameter says it, `interleaved` or one section after the other, whatever is said.
    """
    outside = {"rope_theta": theta_key, "partial_rotary_factor": fraction_key}
    known = dict.fromkeys([*outside, *outside.values(), *([width_key] if width_key else [])])
    original = [_NAMES["original_positions"]]
    attention = path.rpartition(".")[0]
    head_dim, temperature = f"{attention}.head_dim", f"{attention}.temperature"

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        if null_theta and _theta_is_null(config, theta_key):
            return
        flat = {common: _agreed(config, common, key) for common, key in outside.items()}
        given = {key: value for key, value in flat.items() if value is not None}
        if width_key and config.get(width_key) is not None:
            fraction = _number(config[width_key], width_key) / facts[head_dim]
            if given.setdefault("partial_rotary_factor", fraction) != fraction:
                raise CkptError(
                    f"keys {width_key!r} and {fraction_key!r} disagree",
                    found=f"{config[width_key]} of {facts[head_dim]}, {given['partial_rotary_factor']}",
                )
        scaling, parameters = (_object(config.get(key), key) for key in ("rope_scaling", "rope_parameters"))
        scaling, parameters = (_renamed(_without(one, inert), called or {}) for one in (scaling, parameters))
        if usual is not None and scaling is None and parameters is None:
            if "rope_scaling" in config or "rope_parameters" in config:
                raise CkptError(
                    "the rotary scaling is null, which version 4 of transformers takes for none and version 5 for the class's own",
                    expected=f"rope_parameters = {dict(usual)}, or another scaling",
                )
            scaling = parameters = dict(usual)
        if by_length:
            scaling, parameters = (_with_one_factor(one, config) for one in (scaling, parameters))
        grows = by_position is True or (by_position and config.get("model_type") == by_position)
        if grows:
            growth = _growth(scaling, parameters)
            scaling, parameters = (_without(one, {_GROWTH}) for one in (scaling, parameters))
        if sections is not None:
            facts[f"{path}.sections"] = _sections(scaling, parameters) or sections
            facts[f"{path}.interleaved"] = interleaved
            scaling, parameters = (_without(one, _SHARES) for one in (scaling, parameters))
        if alpha:
            theta = given.get("rope_theta", default_theta)
            scaling, parameters = (_stretched(one, theta, facts[head_dim]) for one in (scaling, parameters))
        # transformers 5 writes a fraction beside rope_parameters, too (configuration_glm4.py), where the one inside counts
        by_four = scaling is not None or (given if parameters is None else "rope_theta" in given)
        # who writes rope_parameters and no rope_scaling, not even null, writes for version 5: a theta beside them is theirs
        flat_scaling = parameters if scaling is None and "rope_scaling" not in config else scaling
        four = {**(flat_scaling or {}), **given} if by_four else None
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
        if grows:
            # in steps as long as the context that the angles were trained for (modeling_ministral3.py)
            interval = facts.get(f"{path}.scaling.original_positions")
            if interval is None:
                raise CkptError(
                    f"{_GROWTH!r} needs original_max_position_embeddings beside it, and the rope_type has none"
                )
            facts[f"{temperature}.interval"], facts[f"{temperature}.scale"] = interval, growth

    def write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        theta = configs.uniform(facts, f"{path}.theta")
        if theta is None and always:
            raise Refusal("it always rotates", found=f"no {path}: no rotary positions")
        if theta is None:
            if null_theta:
                config[theta_key] = None
                config["rope_parameters"] = {"rope_type": "default", "rope_theta": None}
            return
        fraction, kind = configs.uniform(facts, f"{path}.fraction"), configs.uniform(facts, f"{path}.scaling.kind")
        if partial is None and fraction != 1.0:
            raise Refusal("it always rotates whole heads", found=f"{path}.fraction = {fraction}")
        if kind is schema.RotaryKind.PROPORTIONAL and fraction != 1.0:
            raise Refusal(
                "transformers then rotates whole heads",
                found=f"{path}.fraction = {fraction} with {path}.scaling.kind = {kind}",
            )
        scaling = _scaling({name: configs.uniform(facts, f"{path}.{name}") for name in _SCALING})
        if by_length and kind is not None:
            scaling = _with_both_factors(scaling)
        if by_position is True or (by_position and facts.present(temperature) is not False):
            scaling[_GROWTH] = _growth_of(facts, temperature, scaling)
        shares = [configs.uniform(facts, f"{path}.{name}") for name in ("sections", "interleaved")]
        if sections is not None and shares[0] is not None and shares[1] == interleaved:
            scaling = {"rope_type": "default", **scaling, "mrope_section": list(shares[0])}
            scaling |= {"mrope_interleaved": True} if interleaved else {}
        elif shares[0] is not None or sections is not None:
            usual_shares = "none" if sections is None else "interleaved" if interleaved else "one after the other"
            raise Refusal(
                f"its angles have sections: {usual_shares}",
                found=f"{path}.sections = {shares[0]}, {path}.interleaved = {shares[1]}",
            )
        config[theta_key] = theta
        config["rope_scaling"] = scaling or None
        config["rope_parameters"] = {"rope_type": "default", **scaling, "rope_theta": theta}
        if kind is schema.RotaryKind.DYNAMIC:  # it stretches what is longer than this
            config["max_position_embeddings"] = configs.uniform(facts, f"{path}.scaling.max_positions")
        if partial is not None:
            config[fraction_key] = config["rope_parameters"]["partial_rotary_factor"] = fraction
        if width_key:
            config[width_key] = int(fraction * configs.uniform(facts, head_dim))

    return custom(
        [*known, "rope_scaling", "rope_parameters", "max_position_embeddings", *(original if by_length else [])],
        [f"{path}.*", *([f"{temperature}.*", f"{temperature}?"] if by_position else [])],
        read=read,
        write=write,
        uses=[
            *([] if by_length else original),
            *([head_dim] if width_key or alpha else []),
            *(["model_type"] if isinstance(by_position, str) else []),
        ],
        why="said twice, as version 4 says it and as version 5 does, which must agree; each kind of scaling has parameters of its own",
    )


def _theta_is_null(config: Mapping[str, Any], theta_key: str) -> bool:
    """Whether the theta inside rope_parameters is null, or, where there is none, the one beside it."""
    inside = _object(config.get("rope_parameters"), "rope_parameters") or {}
    place, name = (inside, "rope_theta") if "rope_theta" in inside else (config, theta_key)
    return name in place and place[name] is None


def _without(given: dict[str, Any] | None, inert: Collection[str]) -> dict[str, Any] | None:
    return given and {key: value for key, value in given.items() if key not in inert}


_BY_LENGTH = ("short_mscale", "long_mscale")


def _with_one_factor(given: dict[str, Any] | None, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Parameters whose two factors of cosines and sines are one, under the usual name. `CkptError` where they differ."""
    if given is None or given.get("rope_type", given.get("type", "default")) == "default":
        return given
    factors = [given.get(name) for name in _BY_LENGTH]
    if factors[0] is None or factors[0] != factors[1] or given.get("rope_type", given.get("type")) != "longrope":
        raise CkptError(
            "the class has longrope alone, with one factor of cosines and sines for short texts and for long ones",
            found=", ".join(f"{name} = {value}" for name, value in zip(_BY_LENGTH, factors, strict=True)),
        )
    original = _NAMES["original_positions"]
    inside, outside = given.get(original), config.get(original)
    if outside is not None and inside not in (None, outside):
        raise CkptError(f"key {original!r} overrules another one", found=f"{outside}, and {inside}")
    rest = {key: value for key, value in given.items() if key not in _BY_LENGTH}
    length = {} if outside is None else {original: outside}
    return {**rest, **length, _NAMES["attention_factor"]: factors[0]}


def _with_both_factors(scaling: dict[str, Any]) -> dict[str, Any]:
    factor = scaling.get(_NAMES["attention_factor"])
    if scaling["rope_type"] != schema.RotaryKind.LONGROPE or factor is None:
        raise Refusal(
            "it has longrope alone, and needs its factor of cosines and sines",
            found=f"attention.rotary.scaling.kind = {scaling['rope_type']}, attention_factor = {factor}",
            fact="attention.rotary.scaling",
        )
    rest = {key: value for key, value in scaling.items() if key != _NAMES["attention_factor"]}
    return {**rest, **dict.fromkeys(_BY_LENGTH, factor)}


_SHARES = ("mrope_section", "mrope_interleaved")


def _sections(*given: dict[str, Any] | None) -> tuple[int, ...] | None:
    """How many angles turn by time, row and column; every object that says it must say the same."""
    said = [one["mrope_section"] for one in given if one is not None and one.get("mrope_section") is not None]
    for one in said:
        if one != said[0] or not isinstance(one, list) or not all(type(size) is int for size in one):
            raise CkptError("mrope_section is not one list of whole numbers", found=str(said)[:80])
    return tuple(said[0]) if said else None


_GROWTH = "llama_4_scaling_beta"


def _growth(*given: dict[str, Any] | None) -> float:
    """By how much queries grow; every object that is there must say the same number, without which the class computes nothing."""
    said = {one.get(_GROWTH) for one in given if one is not None}
    if len(said) != 1 or None in said:
        raise CkptError(f"rope_parameters and rope_scaling do not say one {_GROWTH!r}", found=str(said))
    return _number(said.pop(), _GROWTH)


def _growth_of(facts: Facts, path: str, scaling: Mapping[str, Any]) -> float:
    """The parameter that says the temperature at `path`. `Refusal` of one that the class can't say."""
    interval, scale, shift = (configs.uniform(facts, f"{path}.{name}") for name in ("interval", "scale", "shift"))
    if facts.present(path) is not True:
        raise Refusal(
            "its queries grow with their position in every layer", found=f"{path} in layers: {facts.present(path)}"
        )
    if shift or interval != scaling.get(_NAMES["original_positions"]):
        raise Refusal(
            "its queries grow in steps of the positions that the rotary scaling starts from, the first of them at the start",
            found=f"{path}.interval = {interval}, {path}.shift = {shift}",
            expected=f"{path}.interval = {scaling.get(_NAMES['original_positions'])}",
        )
    return scale


def _renamed(given: dict[str, Any] | None, called: Mapping[str, str]) -> dict[str, Any] | None:
    return given and {
        key: called.get(str(value), value) if key in ("rope_type", "type") else value for key, value in given.items()
    }


def _stretched(given: dict[str, Any] | None, theta: object, width: int) -> dict[str, Any] | None:
    """Parameters in which a fixed `alpha` stretches theta, as the theta that it makes (modeling_hunyuan_v1_dense.py)."""
    if given is None or given.get("rope_type", given.get("type")) != "dynamic" or not given.get("alpha"):
        return given
    if unknown := sorted(map(str, given.keys() - {*_COMMON, *_NAMES.values(), "alpha"})):
        raise CkptError(f"unknown key {unknown[0]!r} of rotary scaling", found=", ".join(unknown)[:80])
    base = _number(given.get("rope_theta", theta), "rope_theta")
    # the class reads none of the others beside it
    return {"rope_theta": base * _number(given["alpha"], "alpha") ** (width / (width - 2))}


def rotary_by_window(
    *,
    default_theta: float,
    sliding_theta: float,
    full_key: str = "rope_theta",
    sliding_key: str = "",
    scaled: bool = True,
    by_four: bool = True,
    path: str = "attention.rotary",
) -> configs.Custom:
    """The config line for rotary keys of a class whose layers with a window rotate by other angles than those without.

    Version 5 says it twice over, `rope_parameters` {"full_attention": {...}, "sliding_attention": {...}}; version 4 has `full_key` and
    `rope_scaling` for the layers without a window, and for the others `sliding_key`, or `full_key` again where there is none.
    `scaled`: whether version 4 of the class reads `rope_scaling`.
    `by_four`: version 4 has the class. Version 5 takes a `rope_scaling` that is null for no `rope_parameters` in classes that it has not.
    """

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        scaling, parameters = (_object(config.get(key), key) or {} for key in ("rope_scaling", "rope_parameters"))
        if parameters.keys() - _LAYER_KINDS:
            # transformers 5.12 takes a flat object for every layer, 5.24 for none (configuration_olmo3.py)
            raise CkptError(
                "key 'rope_parameters' has no object for each kind of layer, and the versions of transformers differ in what it then means",
                found=", ".join(parameters)[:80],
                expected=" and ".join(_LAYER_KINDS),
            )
        if scaling and not scaled:
            raise CkptError(
                "version 4 of the class reads no 'rope_scaling', and version 5 scales every layer by it",
                found=str(scaling)[:80],
            )
        theta, own = config.get(full_key), config.get(sliding_key) if sliding_key else None
        full, sliding = ({} | (_object(parameters.get(kind), kind) or {}) for kind in _LAYER_KINDS)
        full |= scaling
        full.setdefault("rope_theta", default_theta if theta is None else theta)
        sliding.setdefault("rope_theta", sliding_theta if own is None else own)
        if any(one.get("truncate") is False for one in (full, sliding)):
            raise CkptError(
                "transformers reads no 'truncate' of a kind of layer, and truncates (modeling_rope_utils.py, 5.24)",
                found="truncate = false",
                fix="delete the key from config.json: the model is then what transformers computes",
            )
        readings = [(full, sliding)]
        if not (theta is None and own is None and not scaling):
            whole = default_theta if theta is None else theta
            apart = (sliding_theta if own is None else own) if sliding_key else whole
            readings.append(({**scaling, "rope_theta": whole}, {"rope_theta": apart}))
        slides = _slides(facts)
        said = [tuple(_facts(one, config, default_theta, None) for one in reading) for reading in readings]
        there = [{slides_here: one[slides_here] for slides_here in slides} for one in said]
        if any(one != there[0] for one in there):
            raise CkptError(
                f"rope_parameters and {full_key}/{sliding_key or 'rope_scaling'} disagree",
                found=f"transformers 5 reads {said[0]}, transformers 4 reads {said[1]}",
                fix="say both kinds of layer in rope_parameters",
            )
        facts.update(_of_layers(path, [said[0][slides_here] for slides_here in slides]))

    def write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        slides = _slides(facts)
        if facts.present(path) is not True:
            raise Refusal("it always rotates", found=f"{path} in layers: {facts.present(path)}")
        of_kind: dict[bool, dict[str, Any]] = {}
        for index, slides_here in enumerate(slides):
            here = {name: _in_layer(facts, f"{path}.{name}", index) for name in ("theta", "fraction", *_SCALING)}
            if of_kind.setdefault(slides_here, here) != here:
                raise Refusal(
                    "layers with a window rotate alike, and so do those without",
                    found=f"layer {index}: {here}, and before it {of_kind[slides_here]}",
                )
        if any(said["fraction"] != 1.0 for said in of_kind.values()):
            raise Refusal("it always rotates whole heads", found=f"{path}.fraction = {facts[f'{path}.fraction']}")
        if any(said["scaling.truncate"] is False for said in of_kind.values()):
            raise Refusal(
                "it truncates the range of yarn, whatever is said of a kind of layer",
                found=f"{path}.scaling.truncate = False",
                fact=f"{path}.scaling.truncate",
            )
        usual = {False: {"theta": default_theta}, True: {"theta": sliding_theta}}
        full, sliding = (of_kind.get(kind, usual[kind]) for kind in (False, True))
        if not sliding_key and True not in of_kind:
            sliding = {"theta": full["theta"]}
        if not sliding_key and False not in of_kind:
            full = {"theta": sliding["theta"]}
        # version 4 has no scaling for layers with a window, nor always a theta: where it can't say the model, it is not told a part of it
        if by_four and not _scaling(sliding) and (sliding_key or full["theta"] == sliding["theta"]):
            if scaled or not _scaling(full):
                config[full_key] = full["theta"]
            if scaled:
                config["rope_scaling"] = _scaling(full) or None
            if sliding_key:
                config[sliding_key] = sliding["theta"]
        config["rope_parameters"] = {
            kind: {"rope_type": "default", **_scaling(said), "rope_theta": said["theta"]}
            for kind, said in zip(_LAYER_KINDS, (full, sliding), strict=True)
        }
        if full.get("scaling.kind") is schema.RotaryKind.DYNAMIC:
            config["max_position_embeddings"] = full["scaling.max_positions"]

    return custom(
        [
            full_key,
            *([sliding_key] if sliding_key else []),
            "rope_scaling",
            "rope_parameters",
            "max_position_embeddings",
        ],
        [f"{path}.*"],
        read=read,
        write=write,
        uses=["layers", "attention.window", "original_max_position_embeddings"],
        why="layers with a window and those without rotate by other angles; said twice, as version 4 says it and as version 5 does",
    )


_LAYER_KINDS = ("full_attention", "sliding_attention")
_SCALING = ("scaling.kind", *(f"scaling.{name}" for name in _NAMES), "scaling.max_positions")


def _slides(facts: Facts) -> list[bool]:
    windowed = facts.present("attention.window")
    return list(windowed) if isinstance(windowed, schema.PerLayer) else [windowed] * facts["layers"]


def _in_layer(facts: Facts, path: str, index: int) -> Any:
    value, there = facts.get(path), facts.get(f"{path}?", True)
    here = there[index] if isinstance(there, schema.PerLayer) else there
    return (
        (value[index] if isinstance(value, schema.PerLayer) else value)
        if here and _scaled(facts, path, index)
        else None
    )


def _scaled(facts: Facts, path: str, index: int) -> bool:
    owner, found, _ = path.partition(".scaling.")
    there = facts.get(f"{owner}.scaling?", True) if found else True
    return bool(there[index] if isinstance(there, schema.PerLayer) else there)


def _of_layers(path: str, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """What each layer says of its rotation, as facts of all of them."""
    found: dict[str, Any] = {}
    scaled = schema.PerLayer("scaling.kind" in said for said in layers)
    if any(scaled) and not all(scaled):
        found[f"{path}.scaling?"] = scaled
    for name in dict.fromkeys(name for said in layers for name in said):
        column = schema.PerLayer(said.get(name) for said in layers)
        lacking = schema.PerLayer(value is not None for value in column)
        if any(not here and owner for here, owner in zip(lacking, scaled, strict=True)):
            found[f"{path}.{name}?"] = lacking
        distinct = {value for value in column if value is not None}
        found[f"{path}.{name}"] = distinct.pop() if len(distinct) == 1 else column
    return found


def _scaling(said: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary parameters that facts below `rotary` say of a scaling; none for the usual angles."""
    if said.get("scaling.kind") is None:
        return {}
    values = {key: said.get(f"scaling.{name}") for name, key in _NAMES.items()}
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return {
        "rope_type": str(said["scaling.kind"]),
        **{key: value for key, value in listed.items() if value is not None},
    }


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
