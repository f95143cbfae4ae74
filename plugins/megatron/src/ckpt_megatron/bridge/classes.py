"""Models of Bridge whose layers are not those of a usual GPTModel: a class says so (Gemma 2 and 3), or the function that makes the layers.

Their sources are `gemma2_provider.py`, `gemma3_provider.py`, `exaone4_provider.py` and `minimax_m2_provider.py` of Megatron-Bridge 0.6.
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
from ckpt_megatron.args.norms import USUAL
from ckpt_megatron.args.yarn import FIELDS
from ckpt_megatron.transformer_config.config_fields import inert
from ckpt_megatron.transformer_config.fields import SPEC, scaled_embedding, short, spec_of, usual

MODELS = "megatron.bridge.models"
_FUNCTIONS = "megatron.core.activations"
GEMMA2_CLASS = f"{MODELS}.gemma.gemma2_provider.Gemma2ModelProvider"
GEMMA3_CLASS = f"{MODELS}.gemma.gemma3_provider.Gemma3ModelProvider"
ORIGIN = ignore("hf_model_id", why="the name of the model it was imported from")
# The specs of these classes, and of models that are a GPTModelProvider with a spec of their own.
_GEMMA2_SPEC = f"{MODELS}.gemma.gemma2_provider.gemma2_layer_spec"
_GEMMA3_SPEC = f"{MODELS}.gemma.gemma3_provider.gemma3_layer_spec"
_EXAONE4_SPEC = f"{MODELS}.exaone.exaone4.exaone4_provider.exaone4_layer_spec"
_MINIMAX_SPEC = f"{MODELS}.minimax_m2.minimax_m2_provider.minimax_m2_layer_spec"
# OLMoE's is the same function on one tensor parallel rank, and only there (OLMoESelfAttention).
_WHOLE = ("minimax_m2_layer_spec", "olmoe_layer_spec")
OUT_EPS = 1e-5
"""The epsilon of norms on the outputs of blocks, whatever layernorm_epsilon says: TERowParallelLinearLayerNorm gives TENorm none."""

_AROUND = ("attention.norm", "mlp.norm", "final_norm", "attention.out_norm", "mlp.out_norm")
_AFTER = ("final_norm", "attention.out_norm", "mlp.out_norm")


def _made_by(owner: str, spec: str, *names: str, claims: tuple[str, ...] = ()) -> configs.Entry:
    """The layers of the class `owner` are made by the function `spec`, or by another of one of `names` that does the same; every one of
    `claims` is then true.
    """
    known = (short(spec), *names)

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        name = spec_of(config)
        if short(name) not in known:
            raise CkptError(
                f"key {SPEC!r} makes other layers than those of {owner}", found=name[:120], expected=known[0]
            )
        facts.update(dict.fromkeys(claims, True))

    return decided(
        [SPEC],
        list(claims),
        read=read,
        values={SPEC: [{"_call_": False, "_target_": spec}]},
        why=f"the layers that {known[0]} makes",
    )


def _read_divided(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    scalar = values.checked("query_pre_attn_scalar", config.get("query_pre_attn_scalar", 224), values.positive)
    if scalar != facts["attention.head_dim"]:
        facts["attention.scale"] = scalar**-0.5


def _scalar_of(scale: float) -> float:
    scalar = scale**-2
    return round(scalar) if math.isclose(scalar, round(scalar), rel_tol=1e-12) else scalar


def _read_every_other(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    given = config.get("window_size")
    if not given:
        return
    if not isinstance(given, list | tuple) or len(given) != 2 or given[1] != 0 or given[0] < 0:
        raise CkptError("key 'window_size' is not (w - 1, 0)", found=str(given)[:40])
    present = schema.PerLayer(index % 2 == 0 for index in range(facts["layers"]))
    facts["attention.window"] = given[0] + 1
    if not all(present):
        facts["attention.window?"] = present


def _before(window: int) -> list[int]:
    return [window - 1, 0]


def _read_scale(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    scale = config.get("softmax_scale")
    scale = 256**-0.5 if scale is None else values.checked("softmax_scale", scale, values.positive)
    scalar = _scalar_of(scale)
    if scalar != facts["attention.head_dim"]:
        facts["attention.scale"] = scalar**-0.5 if isinstance(scalar, int) else scale


def _usual_scale(head_dim: int) -> float:
    return head_dim**-0.5


_ROTATED = (
    "position_embedding_type",
    "seq_length",
    "rotary_base",
    "rotary_percent",
    "rope_scaling_factor",
    "interleaved_attn_pattern",
    "window_size",
)


def _local_and_global() -> configs.Custom:
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
            facts["attention.window"] = values.checked("window_size", config.get("window_size"), values.whole)
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
            "window_size": configs.uniform(facts, "attention.window") or 512,
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


def _models(name: str, *lines: configs.Entry | Sequence[configs.Entry], alike: Sequence[str] = USUAL) -> Config:
    return usual(name, _FUNCTIONS, yarn=True, alike=alike).replace(name, ORIGIN, *lines)


# fmt: off
GEMMA2 = _models("Megatron-Bridge's Gemma2ModelProvider",
    scaled_embedding(),
    _made_by("Gemma2ModelProvider", _GEMMA2_SPEC),
    decided(["query_pre_attn_scalar"], ["attention.scale"], read=_read_divided, uses=["attention.head_dim"], tolerance=1e-12,
            values={"query_pre_attn_scalar": [configs.value_of("attention.head_dim"), configs.value_of("attention.scale", by=_scalar_of)]},
            why="scores are divided by the square root of the field"),
    ignore("softmax_scale", why="the class reads query_pre_attn_scalar"),
    key("attn_logit_softcapping", "attention.softcap", default=50.0, null=None),
    key("final_logit_softcapping", "head.softcap", default=30.0, null=None),
    decided(["window_size"], ["attention.window", "attention.window?"], read=_read_every_other, uses=["layers"],
            values={"window_size": [configs.value_of("attention.window", by=_before), None]},
            why="every second layer has the window, the first among them"),
    ignore("window_attn_skip_freq", why="the class has a pattern of its own"),
    alike=_AROUND,
)

GEMMA3 = _models("Megatron-Bridge's Gemma3ModelProvider",
    scaled_embedding(),
    _made_by("Gemma3ModelProvider", _GEMMA3_SPEC),
    decided(["softmax_scale"], ["attention.scale"], read=_read_scale, uses=["attention.head_dim"], tolerance=1e-12,
            values={"softmax_scale": [configs.value_of("attention.head_dim", by=_usual_scale), configs.value_of("attention.scale")]},
            why="what multiplies the scores"),
    _local_and_global(),
    *(inert(field) for field in (*FIELDS.keys, *LATENT_ROTARY_KEYS, "no_rope_freq") if field not in _ROTATED),
    key_is("rope_scaling", False, None, or_absent=True, written=False),
    key_is("seq_len_interpolation_factor", None, or_absent=True, written=False),
    key_is("is_vision_language", False, or_absent=True, written=False, why="positions of images then see each other"),
    ignore("window_attn_skip_freq", why="the class has a pattern of its own"),
    alike=_AROUND,
)

EXAONE4 = _models("Megatron-Bridge's GPTModelProvider with EXAONE 4's layers",
    _made_by("EXAONE 4", _EXAONE4_SPEC),
    # its hybrid models, which Bridge has not been seen to build right
    inert("window_size"),
    inert("window_attn_skip_freq"),
    alike=_AFTER,
)

WHOLE = _models("Megatron-Bridge's GPTModelProvider with MiniMax M2's layers",
    _made_by("MiniMax M2", _MINIMAX_SPEC, *_WHOLE, claims=("attention.qk_norm_whole",)),
)
# fmt: on

_BY_CLASS = {"Gemma2ModelProvider": GEMMA2, "Gemma3ModelProvider": GEMMA3}
_BY_SPEC = {"exaone4_layer_spec": EXAONE4, **dict.fromkeys(_WHOLE, WHOLE)}


def unusual_table(class_name: str, fields: Mapping[str, Any]) -> Config | None:
    """The table of a class (the last part of its name) whose layers are unusual, with these fields; None of all others."""
    of_class = (table for name, table in _BY_CLASS.items() if class_name.startswith(name))
    return next(of_class, None) or _BY_SPEC.get(short(spec_of(fields)))


def unusual_for(facts: Facts) -> tuple[str | None, Config] | None:
    """The class (None: a GPTModelProvider) and the table of a model whose layers are unusual; None for all others."""
    if facts.get("attention.qk_norm_whole"):
        return None, WHOLE
    if facts.present("attention.out_norm") is False:
        return None
    if facts.present("attention.norm") is False:
        return None, EXAONE4
    return (GEMMA3_CLASS, GEMMA3) if facts.present("attention.qk_norm") is not False else (GEMMA2_CLASS, GEMMA2)


def another_epsilon(facts: Facts) -> float | None:
    """The epsilon of norms on the outputs of blocks, where there are some and Bridge computes them with another one."""
    if facts.present("attention.out_norm") is False:
        return None
    eps = configs.uniform(facts, "attention.out_norm.eps")
    return None if eps == OUT_EPS else eps


def post_norms(facts: Facts) -> list[ledgers.Loss]:
    """What Bridge computes otherwise of a model whose norms on outputs have another epsilon."""
    eps = another_epsilon(facts)
    if eps is None:
        return []
    why = f"Bridge itself computes them with {OUT_EPS:g}, whatever layernorm_epsilon says; layernorm_epsilon is taken, {eps:g}"
    return [ledgers.Loss("assumed", "the epsilon of norms on the outputs of blocks", why)]
