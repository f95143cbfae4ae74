"""Rotary positions in the metadata of a GGUF file, and in the tensors that stretch them.

    rope.freq_base, rope.dimension_count                      theta, and how many elements of a head rotate
    rope.scaling.type                                         none, linear, yarn or longrope
    rope_freqs.weight                                         one divisor of every angle, as llama3 scaling computes them
    rope_factors_short.weight, rope_factors_long.weight       those of longrope

Llama 3's scaling is kept by what it computes alone. Its numbers are found again in the divisors, of which every one that lies between the
two lengths says a line; where too few do, the divisors are read as a longrope whose two lists are the same, which is the same function.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ckpt_core.sdk import CkptError, Facts, Refusal, configs, custom, schema, values

FREQUENCIES = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
STRETCHING = (FREQUENCIES, SHORT, LONG)
"""The tensors that stretch the angles. In a config they are keys, with a list of numbers."""

_BASE, _WIDTH = "rope.freq_base", "rope.dimension_count"
_TYPE, _FACTOR, _ORIGINAL, _COSINES = (
    f"rope.scaling.{name}" for name in ("type", "factor", "original_context_length", "attn_factor")
)
_LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"
_OLD_FACTOR = "rope.scale_linear"
_KEYS = (_BASE, _WIDTH, _TYPE, _FACTOR, _ORIGINAL, _COSINES, _LOG_MULTIPLIER, _OLD_FACTOR, *STRETCHING)
_BOUNDS = {"beta_fast": "rope.scaling.yarn_beta_fast", "beta_slow": "rope.scaling.yarn_beta_slow"}
_YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
_NEAR = 5e-6  # of divisors that others computed in float32


def rotary(
    path: str = "attention.rotary",
    *,
    head_dim: str = "attention.head_dim",
    partial: bool = False,
    always: bool = True,
    latent: bool = False,
    loads: Collection[str] = (),
    named: bool = False,
    unscaled: str = "",
    truncates: bool = True,
    multiplier: float | None = None,
    bounds: bool = False,
) -> configs.Custom:
    """The line of all rotary keys. `partial`: a part of a head may rotate. `always`: every layer does. `loads` are the tensors of
    `STRETCHING` that llama.cpp loads of this architecture: of others it refuses a file that has one. `named`: its converter says the
    type of scaling where there is none, too.

    `head_dim` is the fact of how wide what may rotate is. `latent`: another line says it by `rope.dimension_count`, and yarn has a
    multiplier that enters the scale of the scores (deepseek2). `multiplier`: how much of yarn's is in the files, where llama.cpp reads
    one. `bounds`: it reads the bounds of the ramp. `unscaled`: layers with this thing, a window, have no scaling (olmo2).
    `truncates`: yarn's ramp ends at whole elements, as llama.cpp has it whatever the model is (ggml_rope_yarn_corr_dims).
    """
    unread = {*([_WIDTH] if latent else []), *([_LOG_MULTIPLIER] if multiplier is None else [])}
    own = (*(key for key in _KEYS if key not in unread), *(_BOUNDS.values() if bounds else ()))

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        size = facts[head_dim]
        unloaded = [tensor for tensor in STRETCHING if config.get(tensor) and tensor not in loads]
        if unloaded:
            raise CkptError("llama.cpp loads no such tensor of this architecture", found=unloaded[0])
        width = values.checked(_WIDTH, config.get(_WIDTH, size), values.whole)
        if width != size and not partial:
            raise CkptError("a whole head rotates", found=f"{_WIDTH} = {width}", expected=size)
        facts[f"{path}.theta"] = float(values.checked(_BASE, config.get(_BASE, 10000.0), values.positive))
        facts[f"{path}.fraction"] = width / size
        for name, value in _scaling_in(config, width, facts[f"{path}.theta"]):
            facts[f"{path}.scaling.{name}"] = value
        if config.get(_TYPE) == "yarn" and not truncates:
            facts[f"{path}.scaling.truncate"] = False
        without = facts.present(unscaled) if unscaled and f"{path}.scaling.kind" in facts else False
        if without is True:
            raise CkptError("no layer is without a window, and scaled", found=f"{_TYPE} = {config.get(_TYPE)}")
        if isinstance(without, schema.PerLayer):
            facts[f"{path}.scaling?"] = schema.PerLayer(not one for one in without)
        if multiplier and config.get(_TYPE) == "yarn" and (latent or config.get(_LOG_MULTIPLIER)):
            given = values.checked(_LOG_MULTIPLIER, config.get(_LOG_MULTIPLIER), values.positive)
            stretch = round(given / multiplier, 6)  # its two numbers are always one
            facts[f"{path}.scaling.mscale"] = facts[f"{path}.scaling.mscale_all_dim"] = stretch
        for name, key in _BOUNDS.items() if bounds and config.get(_TYPE) == "yarn" else ():
            facts[f"{path}.scaling.{name}"] = float(values.checked(key, config.get(key, _YARN[name]), values.positive))

    def write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        theta, fraction = configs.uniform(facts, f"{path}.theta"), configs.uniform(facts, f"{path}.fraction")
        if theta is None or (always and facts.present(path) is not True):
            raise Refusal("it always rotates", found=f"no {path}", fact=f"{path}.*")
        size = configs.uniform(facts, head_dim)
        width = fraction * size
        if width != int(width) or (fraction != 1.0 and not partial):
            expected = "a whole number of elements" if partial else "1, a whole head"
            raise Refusal(f"{_WIDTH} counts elements", found=f"{path}.fraction = {fraction}", expected=expected)
        unsaid = [name for name in ("sections", "interleaved", "axial") if configs.uniform(facts, f"{path}.{name}")]
        if unsaid:
            raise Refusal("no key says how angles are shared out", found=f"{path}.{unsaid[0]}", fact=f"{path}.*")
        scaled, without = facts.present(f"{path}.scaling"), facts.present(unscaled) if unscaled else False
        if scaled and _each(scaled, facts) != [not one for one in _each(without, facts)]:
            which = "layers without a window" if unscaled else "all layers"
            raise Refusal(f"{which} have the scaling", found=f"{path}.scaling in layers {scaled}", fact=f"{path}.*")
        config[_BASE] = theta
        if not latent:
            config[_WIDTH] = int(width)
        given = {
            name.removeprefix(f"{path}.scaling."): configs.uniform(facts, name)
            for name in facts
            if name.startswith(f"{path}.scaling.")
        }
        stretch = given.get("mscale_all_dim")
        # of others than deepseek2 it takes a mscale of 1 (llama-context.cpp)
        if (stretch is None if latent else stretch not in (None, 0.0, *([1.0] if multiplier else []))) and given.get(
            "kind"
        ) is schema.RotaryKind.YARN:
            expected = "a number" if latent else "1" if multiplier else "none"
            raise Refusal("llama.cpp has it so", found=f"{path}.scaling.mscale_all_dim = {stretch}", expected=expected)
        if not truncates:
            given.pop("truncate", None)
        if bounds and given.get("kind") is schema.RotaryKind.YARN:
            config.update({key: given.pop(name, None) or _YARN[name] for name, key in _BOUNDS.items()})
        if multiplier and stretch:
            config[_LOG_MULTIPLIER] = multiplier * stretch
        said = dict(_scaling_of(given, path, int(width), theta, config.get("context_length")))
        unloaded = [tensor for tensor in STRETCHING if tensor in said and tensor not in loads]
        if unloaded:
            kind = given.get("kind")
            raise Refusal(
                f"llama.cpp loads no {unloaded[0]} of this architecture",
                found=f"{path}.scaling.kind = {kind}",
                fact=f"{path}.*",
            )
        config.update({_TYPE: "none", **said} if named else said)

    return custom(
        own,
        [f"{path}.*"],
        read=read,
        write=write,
        uses=[
            head_dim,
            "context_length",
            "layers",
            *([_WIDTH] if latent else []),
            *([unscaled, f"{unscaled}?"] if unscaled else []),
        ],
        why="each kind of scaling has keys of its own, and llama3 and longrope are tensors",
    )


def _scaling_in(config: Mapping[str, Any], width: int, theta: float) -> Iterator[tuple[str, Any]]:
    """The facts of a scaling that the keys say."""
    kind = config.get(_TYPE)
    kind = "longrope" if config.get(LONG) and kind in (None, "none", "longrope") else kind
    factor = config.get(_FACTOR, config.get(_OLD_FACTOR))
    # zero is no factor (llama-model.cpp)
    factor = 1.0 if factor in (None, 0) else float(values.checked(_FACTOR, factor, values.positive))
    if kind != "longrope" and config.get(_COSINES, 1.0) != 1.0:
        # llama.cpp multiplies cosines and sines by it under every type (llama-context.cpp, b10605), and its converter never writes it
        raise CkptError(f"{_COSINES} beside a scaling that has none", found=config[_COSINES], expected="longrope, or 1")
    divisors = config.get(FREQUENCIES)
    if divisors:
        if kind in ("yarn", "longrope") or factor != 1.0:
            raise CkptError(f"{FREQUENCIES} beside another scaling", found=f"{_TYPE} = {kind}, {_FACTOR} = {factor}")
        _check_count(FREQUENCIES, divisors, width)
        yield from _of_divisors(divisors, width, theta, config.get("context_length"))
    elif kind == "longrope":
        yield from _longrope_in(config, width)
    elif kind == "yarn":
        yield "kind", schema.RotaryKind.YARN
        yield "factor", factor
        yield "original_positions", values.checked(_ORIGINAL, config.get(_ORIGINAL), values.whole)
    elif kind in (None, "none", "linear"):
        if factor != 1.0 and kind != "none":
            yield "kind", schema.RotaryKind.LINEAR
            yield "factor", factor
    else:
        raise CkptError(
            f"key {_TYPE!r} has an unknown value", found=repr(kind)[:60], expected="none, linear, yarn, longrope"
        )


def _scaling_of(
    given: Mapping[str, Any], path: str, width: int, theta: float, length: int | None
) -> Iterator[tuple[str, Any]]:
    """The keys that say a scaling. Raises `Refusal` naming what llama.cpp has no key for."""
    kind = given.get("kind")
    if kind is None:
        return
    for name in ("mscale", "mscale_all_dim", "attention_factor"):
        if given.get(name) is not None and not (kind is schema.RotaryKind.YARN or name == "attention_factor"):
            raise Refusal(f"no key says this of {kind}", found=f"{path}.scaling.{name} = {given[name]}")
    if kind is schema.RotaryKind.LINEAR:
        yield _TYPE, "linear"
        yield _FACTOR, given["factor"]
    elif kind is schema.RotaryKind.YARN:
        yield from _yarn_of(given, path)
    elif kind is schema.RotaryKind.LLAMA3:
        yield FREQUENCIES, divisors_of(given, width, theta)
    elif kind is schema.RotaryKind.LONGROPE:
        yield from _longrope_of(given, path, length)
    else:
        raise Refusal("llama.cpp has no such scaling", found=f"{path}.scaling.kind = {kind}", fact=f"{path}.scaling.*")


# --- yarn ------------------------------------------------------------------------------------------------------------


def _yarn_of(given: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """llama.cpp multiplies cosines and sines by 0.1 ln(factor) + 1, and takes the usual ends of the ramp (llama-context.cpp)."""
    for name, usual in _YARN.items():
        if given.get(name, usual) != usual:
            raise Refusal(f"llama.cpp has {usual} in its code", found=f"{path}.scaling.{name} = {given[name]}")
    multiplier = given.get("mscale_all_dim")
    usual = 1.0 if multiplier else 0.1 * math.log(given["factor"]) + 1.0 if given["factor"] > 1 else 1.0
    if given.get("mscale") != multiplier:
        raise Refusal(
            "llama.cpp takes the two for one",
            found=f"{path}.scaling.mscale = {given.get('mscale')}, {path}.scaling.mscale_all_dim = {multiplier}",
        )
    said = given.get("attention_factor")
    if said is not None and not math.isclose(said, usual, rel_tol=1e-6):
        raise Refusal(
            "llama.cpp computes it from the factor", found=f"{path}.scaling.attention_factor = {said}", expected=usual
        )
    yield _TYPE, "yarn"
    yield _FACTOR, given["factor"]
    yield _ORIGINAL, given["original_positions"]


# --- longrope --------------------------------------------------------------------------------------------------------


def _usual_cosines(factor: float | None, original: int) -> float:
    """What transformers multiplies cosines and sines by (modeling_rope_utils.py), and conversion/phi.py writes."""
    return 1.0 if not factor or factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def _longrope_in(config: Mapping[str, Any], width: int) -> Iterator[tuple[str, Any]]:
    original = values.checked(_ORIGINAL, config.get(_ORIGINAL), values.whole)
    length = values.checked("context_length", config.get("context_length"), values.whole)
    factor, cosines = length / original, float(values.checked(_COSINES, config.get(_COSINES, 1.0), values.positive))
    yield "kind", schema.RotaryKind.LONGROPE
    yield "original_positions", original
    if math.isclose(cosines, _usual_cosines(factor, original), rel_tol=1e-6):
        yield "factor", factor
    else:
        yield "attention_factor", cosines
    for name, key in (("short_factors", SHORT), ("long_factors", LONG)):
        _check_count(key, config.get(key), width)
        yield name, tuple(config[key])


def _longrope_of(given: Mapping[str, Any], path: str, length: int | None) -> Iterator[tuple[str, Any]]:
    original, factor, said = given["original_positions"], given.get("factor"), given.get("attention_factor")
    if given.get("max_positions") is not None:
        raise Refusal("context_length says it", found=f"{path}.scaling.max_positions = {given['max_positions']}")
    if factor is not None and length is not None and length / original != factor:
        raise Refusal(
            f"its factor is context_length / {_ORIGINAL}",
            found=f"{path}.scaling.factor = {factor}, with {length} / {original}",
            fix=f"say the length that it is for: -o context_length={round(factor * original)}",
        )
    yield _TYPE, "longrope"
    yield _ORIGINAL, original
    yield _COSINES, float(_usual_cosines(factor, original) if said is None else said)
    yield SHORT, list(given["short_factors"])
    yield LONG, list(given["long_factors"])


def _check_count(key: str, given: Sequence[float] | None, width: int) -> None:
    if not given or len(given) != width // 2 or not all(math.isfinite(one) and one > 0 for one in given):
        found = "none" if not given else f"{len(given)}, among them {min(given):g}"
        raise CkptError(f"{key} has not one positive number per angle", found=found, expected=f"{width // 2}")


# --- llama3 ----------------------------------------------------------------------------------------------------------


def _turns(width: int, theta: float) -> np.ndarray:
    """The turns per position of every angle, the inverse of its wavelength."""
    return theta ** (-np.arange(0, width, 2, dtype=np.float64) / width) / (2 * math.pi)


def divisors_of(given: Mapping[str, Any], width: int, theta: float) -> list[float]:
    """By what llama3 scaling divides every angle: 1 where it turns fast, the factor where slowly, and a blend between."""
    low, high = given["low_frequency_factor"], given["high_frequency_factor"]
    in_context = given["original_positions"] * _turns(width, theta)
    smooth = np.clip((in_context - low) / (high - low), 0.0, 1.0) if high > low else (in_context > low).astype(float)
    divisors = 1 / ((1 - smooth) / given["factor"] + smooth)
    return divisors.astype(np.float32).tolist()


def _of_divisors(divisors: Sequence[float], width: int, theta: float, length: Any) -> Iterator[tuple[str, Any]]:
    given = found_again(divisors, width, theta)
    if given is not None:
        yield "kind", schema.RotaryKind.LLAMA3
        yield from given.items()
        return
    yield "kind", schema.RotaryKind.LONGROPE
    yield "original_positions", values.checked("context_length", length, values.whole)
    yield "attention_factor", 1.0
    yield "short_factors", tuple(divisors)
    yield "long_factors", tuple(divisors)


def found_again(divisors: Sequence[float], width: int, theta: float) -> dict[str, Any] | None:
    """The numbers of a llama3 scaling with `low_frequency_factor` 1 that gives these divisors; None if there are none.

    Where an angle is blended, its blend is (original / (high - 1)) * turns - 1 / (high - 1): two of them say both numbers. A length is a
    whole number, and the end of the blend one of few digits.
    """
    given, turns = np.array(divisors, np.float64), _turns(width, theta)
    factor = float(given[-1])
    blended = (given > 1 + _NEAR) & (given < factor * (1 - _NEAR))
    if factor <= 1 or np.count_nonzero(blended) < 2:
        return None
    smooth = (1 / given[blended] - 1 / factor) / (1 - 1 / factor)
    slope, shift = np.polyfit(turns[blended], smooth, 1)
    if not shift < 0:
        return None
    found = {
        "factor": factor,
        "original_positions": round(float(slope / -shift)),
        "low_frequency_factor": 1.0,
        "high_frequency_factor": float(f"{1 - 1 / shift:.4g}"),
    }
    if not found["original_positions"] > 0 or not found["high_frequency_factor"] > 1:
        return None
    again = np.array(divisors_of(found, width, theta))
    return found if np.allclose(again, given, rtol=_NEAR, atol=0) else None


# --- windows that rotate by angles of their own ----------------------------------------------------------------------


def rotary_by_window(path: str = "attention.rotary", *, window: str = "attention.window") -> configs.Custom:
    """The line of Gemma 3: layers with a window have a theta of their own, `rope.freq_base_swa`, and no scaling."""
    own, known = "rope.freq_base_swa", (_BASE, _WIDTH, _TYPE, _FACTOR, "rope.freq_base_swa")

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        thetas = [float(values.checked(key, config.get(key, 10000.0), values.positive)) for key in (_BASE, own)]
        slides = _slides(facts, window)
        facts[f"{path}.theta"] = _by_layer([thetas[one] for one in slides])
        facts[f"{path}.fraction"] = 1.0
        if (
            values.checked(_WIDTH, config.get(_WIDTH, facts["attention.head_dim"]), values.whole)
            != facts["attention.head_dim"]
        ):
            raise CkptError("a whole head rotates", found=f"{_WIDTH} = {config[_WIDTH]}")
        factor = config.get(_FACTOR)
        if config.get(_TYPE, "none") not in ("none", "linear"):
            raise CkptError(
                f"key {_TYPE!r} has an unknown value", found=repr(config[_TYPE])[:60], expected="none, linear"
            )
        if factor and factor != 1.0 and config.get(_TYPE) != "none":
            facts[f"{path}.scaling.kind"] = schema.RotaryKind.LINEAR
            facts[f"{path}.scaling.factor"] = float(factor)
            if any(slides):
                facts[f"{path}.scaling?"] = schema.PerLayer(not one for one in slides)

    def write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        slides = _slides(facts, window)
        if configs.uniform(facts, f"{path}.fraction") != 1.0:
            raise Refusal("whole heads rotate", found=f"{path}.fraction = {facts.get(f'{path}.fraction')}")
        theta = facts.get(f"{path}.theta")
        given = list(theta) if isinstance(theta, schema.PerLayer) else [theta] * len(slides)
        thetas = {one: {given[index] for index, here in enumerate(slides) if here is one} for one in (False, True)}
        if None in given or any(len(found) > 1 for found in thetas.values()):
            raise Refusal("layers with a window rotate alike, and so do those without", found=f"{path}.theta = {theta}")
        full, sliding = ({*thetas[one]} or {10000.0} for one in (False, True))
        config[_BASE], config[own] = full.pop(), sliding.pop()
        config[_WIDTH] = configs.uniform(facts, "attention.head_dim")
        kind = configs.uniform(facts, f"{path}.scaling.kind")
        if kind is None:
            return
        present = facts.present(f"{path}.scaling")
        scaled = list(present) if isinstance(present, schema.PerLayer) else [present] * len(slides)
        if kind is not schema.RotaryKind.LINEAR or scaled != [not one for one in slides]:
            raise Refusal("layers without a window may have linear scaling", found=f"{path}.scaling.kind = {kind}")
        config[_TYPE], config[_FACTOR] = "linear", configs.uniform(facts, f"{path}.scaling.factor")

    return custom(
        known,
        [f"{path}.*"],
        read=read,
        write=write,
        uses=["layers", window, "attention.head_dim"],
        why="layers with a window rotate by an own theta, and are not scaled",
    )


def _slides(facts: Facts, window: str) -> list[bool]:
    return _each(facts.present(window), facts)


def _each(present: bool | schema.PerLayer, facts: Facts) -> list[bool]:
    return list(present) if isinstance(present, schema.PerLayer) else [present] * facts["layers"]


def _by_layer(column: list[float]) -> Any:
    return column[0] if len(set(column)) == 1 else schema.PerLayer(column)
