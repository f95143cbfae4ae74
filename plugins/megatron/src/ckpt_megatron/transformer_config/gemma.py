"""Gemma 2 and 3 as the config classes of Megatron-Bridge and NeMo 2 have them: classes of their own, by which the layers are made.

Their sources are `gemma2_provider.py` and `gemma3_provider.py` of Megatron-Bridge 0.6, and `gemma2.py` and `gemma3.py` of NeMo 2.4.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Config,
    Facts,
    Refusal,
    configs,
    custom,
    decided,
    ignore,
    key,
    key_is,
    ledgers,
    schema,
    values,
)
from ckpt_megatron.args.latent_rotary import LATENT_ROTARY_KEYS
from ckpt_megatron.args.yarn import FIELDS
from ckpt_megatron.transformer_config.config_fields import inert
from ckpt_megatron.transformer_config.fields import scaled_embedding

OUT_EPS = 1e-5
"""The epsilon of norms on the outputs of blocks, whatever layernorm_epsilon says, in Bridge as in NeMo 2: TERowParallelLinearLayerNorm gives TENorm none."""
AROUND = ("attention.norm", "mlp.norm", "final_norm", "attention.out_norm", "mlp.out_norm")
"""The norms of a layer that has them around its blocks, and the final one."""


def _read_divided(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    scalar = values.checked("query_pre_attn_scalar", config.get("query_pre_attn_scalar", 224), values.positive)
    if scalar != facts["attention.head_dim"]:
        facts["attention.scale"] = scalar**-0.5


def scalar_of(scale: float) -> float:
    """The number whose square root divides the scores, whole where it is one to within rounding."""
    scalar = scale**-2
    return round(scalar) if math.isclose(scalar, round(scalar), rel_tol=1e-12) else scalar


_ROTATED = (
    "position_embedding_type",
    "seq_length",
    "rotary_base",
    "rotary_percent",
    "rope_scaling_factor",
    "interleaved_attn_pattern",
    "window_size",
)


def _local_and_global(before: int) -> configs.Custom:
    """Positions and windows of Gemma 3: layers with a window rotate by one base, those without by another, whose angles may be divided."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        if config.get("position_embedding_type") != "rope":
            raise CkptError(
                "key 'position_embedding_type' is not rope", found=repr(config.get("position_embedding_type"))
            )
        if config.get("seq_length") is not None:
            notes["max_positions"] = config["seq_length"]
        bases, layers = config.get("rotary_base"), facts["layers"]
        if not isinstance(bases, list | tuple) or len(bases) != 2:
            raise CkptError(
                "key 'rotary_base' is not a base for layers with a window and one for the others", found=str(bases)[:60]
            )
        local = _pattern(config.get("interleaved_attn_pattern", [5, 1]), layers)
        if any(local):
            facts["attention.window"] = values.checked("window_size", config.get("window_size"), values.whole) + before
            if not all(local):
                facts["attention.window?"] = schema.PerLayer(local)
        thetas = [float(bases[0 if slides else 1]) for slides in local]
        facts["attention.rotary.theta"] = thetas[0] if len({*thetas}) == 1 else schema.PerLayer(thetas)
        facts["attention.rotary.fraction"] = 1.0
        factor = values.checked("rope_scaling_factor", config.get("rope_scaling_factor", 1.0), values.positive)
        if factor != 1.0 and not all(local):
            facts["attention.rotary.scaling.kind"] = schema.RotaryKind.LINEAR
            facts["attention.rotary.scaling.factor"] = float(factor)
            if any(local):
                facts["attention.rotary.scaling?"] = schema.PerLayer(not slides for slides in local)

    def write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        layers = facts["layers"]
        local = _each(facts.present("attention.window"), layers)
        if facts.present("attention.rotary") is not True:
            raise Refusal("it always rotates", found=f"attention.rotary in layers: {facts.present('attention.rotary')}")
        if configs.uniform(facts, "attention.rotary.fraction") != 1.0:
            raise Refusal(
                "it always rotates whole heads",
                found=f"attention.rotary.fraction = {facts['attention.rotary.fraction']}",
            )
        scaled = _each(facts.present("attention.rotary.scaling"), layers)
        kind = configs.uniform(facts, "attention.rotary.scaling.kind")
        if kind not in (None, schema.RotaryKind.LINEAR) or (any(scaled) and scaled != [not slides for slides in local]):
            raise Refusal(
                "the layers without a window have one linear scaling of positions, and no others have any",
                found=f"attention.rotary.scaling.kind = {kind} in layers {[index for index, here in enumerate(scaled) if here]}",
            )
        thetas = _each(facts["attention.rotary.theta"], layers)
        bases = [_one_theta(thetas, local, slides, usual) for slides, usual in ((True, 10000.0), (False, 1000000.0))]
        config |= {
            "position_embedding_type": "rope",
            "seq_length": notes.get("max_positions") or 2048,
            "rotary_base": bases,
            "rotary_percent": 1.0,
            "rope_scaling_factor": configs.uniform(facts, "attention.rotary.scaling.factor") or 1.0,
            "interleaved_attn_pattern": _written_pattern(local),
            "window_size": (configs.uniform(facts, "attention.window") or 512) - before,
        }

    return custom(
        _ROTATED,
        ["positions.count", "attention.rotary.*", "attention.rotary?", "attention.window", "attention.window?"],
        read=read,
        write=write,
        uses=["num_layers", "layers"],
        why="layers with a window come in a pattern, and rotate by the first base; those without by the second, whose angles rope_scaling_factor divides",
    )


def _each(value: object, layers: int) -> list[Any]:
    return list(value) if isinstance(value, schema.PerLayer) else [value] * layers


def _pattern(given: object, layers: int) -> list[bool]:
    """Which layers have a window, by (how many in a row have one, how many then have none), or (since Bridge 0.7) by a kind for each."""
    if isinstance(given, list | tuple) and len(given) == layers and all(isinstance(kind, str) for kind in given):
        return [kind == "sliding_attention" for kind in given]
    if (
        not isinstance(given, list | tuple)
        or len(given) != 2
        or any(type(count) is not int for count in given)
        or sum(given) < 1
    ):
        raise CkptError("key 'interleaved_attn_pattern' is not two numbers of layers", found=str(given)[:60])
    return [index % sum(given) < given[0] for index in range(layers)]


def _written_pattern(local: list[bool]) -> list[int]:
    """The pattern of Gemma 3 itself where it says the layers, else the shortest one that does."""
    for pattern in itertools.chain([[5, 1]], _patterns(len(local))):
        if _pattern(pattern, len(local)) == local:
            return pattern
    raise Refusal(
        "layers with a window come in a pattern: some with one, then some without, and so on",
        found=f"attention.window in layers: {local}",
    )


def _patterns(layers: int) -> Iterator[list[int]]:
    yield from ([with_one, total - with_one] for total in range(1, layers + 1) for with_one in range(total + 1))


def _one_theta(thetas: list[float], local: list[bool], slides: bool, usual: float) -> float:
    found = {theta for theta, here in zip(thetas, local, strict=True) if here is slides}
    if len(found) > 1:
        raise Refusal(
            "layers with a window rotate alike, and so do those without", found=f"attention.rotary.theta = {thetas}"
        )
    return found.pop() if found else usual


# fmt: off
def gemma2(usual: Config, name: str, *lines: configs.Entry | Sequence[configs.Entry]) -> Config:
    """The table of Gemma 2, from that of usual models whose norms lie around blocks; `lines` say who makes the layers and which of them slide."""
    return usual.replace(name,
        scaled_embedding(),
        decided(["query_pre_attn_scalar"], ["attention.scale"], read=_read_divided, uses=["attention.head_dim"], tolerance=1e-12,
                values={"query_pre_attn_scalar": [configs.value_of("attention.head_dim"), configs.value_of("attention.scale", by=scalar_of)]},
                why="scores are divided by the square root of the field"),
        ignore("softmax_scale", why="the class reads query_pre_attn_scalar"),
        key("attn_logit_softcapping", "attention.softcap", default=50.0, null=None),
        key("final_logit_softcapping", "head.softcap", default=30.0, null=None),
        ignore("window_attn_skip_freq", why="the class has a pattern of its own"),
        *lines,
    )


def gemma3(usual: Config, name: str, *lines: configs.Entry | Sequence[configs.Entry], before: int) -> Config:
    """The table of Gemma 3, from that of usual models whose norms lie around blocks; a window of w has a field of w less `before`."""
    return usual.replace(name,
        scaled_embedding(),
        _local_and_global(before),
        *(inert(field) for field in (*FIELDS.keys, *LATENT_ROTARY_KEYS, "no_rope_freq") if field not in _ROTATED),
        key_is("rope_scaling", False, None, or_absent=True, written=False),
        key_is("seq_len_interpolation_factor", None, or_absent=True, written=False),
        ignore("window_attn_skip_freq", why="the class has a pattern of its own"),
        *lines,
    )
# fmt: on


def another_epsilon(facts: Facts) -> float | None:
    """The epsilon of norms on the outputs of blocks, where there are some and the framework computes them with another one."""
    if facts.present("attention.out_norm") is False:
        return None
    eps = configs.uniform(facts, "attention.out_norm.eps")
    return None if eps == OUT_EPS else eps


def post_norms(facts: Facts, framework: str) -> list[ledgers.Loss]:
    """What `framework` computes otherwise of a model whose norms on outputs have another epsilon."""
    eps = another_epsilon(facts)
    if eps is None:
        return []
    why = f"{framework} itself computes them with {OUT_EPS:g}, whatever layernorm_epsilon says; layernorm_epsilon is taken, {eps:g}"
    return [ledgers.Loss("assumed", "the epsilon of norms on the outputs of blocks", why)]
