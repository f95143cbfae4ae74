"""Models of Bridge whose layers are not those of a usual GPTModel: a class says so (Gemma 2 and 3), or the function that makes the layers.

Their sources are `gemma2_provider.py`, `gemma3_provider.py`, `exaone4_provider.py` and `minimax_m2_provider.py` of Megatron-Bridge 0.6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Config,
    Facts,
    configs,
    decided,
    fact_is,
    ignore,
    key_is,
    schema,
    values,
)
from ckpt_megatron.args.norms import USUAL
from ckpt_megatron.bridge.uneven import SPEC as UNEVEN_SPEC
from ckpt_megatron.bridge.uneven import UNEVEN_CLASS, is_uneven, uneven
from ckpt_megatron.transformer_config.fields import SPEC, short, spec_of, usual
from ckpt_megatron.transformer_config.gemma import AROUND, gemma2, gemma3, scalar_of

MODELS = "megatron.bridge.models"
_FUNCTIONS = "megatron.core.activations"
GEMMA2_CLASS = f"{MODELS}.gemma.gemma2_provider.Gemma2ModelProvider"
LLADA_CLASS = "megatron.bridge.diffusion.models.llada15.llada15_provider.LLaDA15ModelProvider"
GEMMA3_CLASS = f"{MODELS}.gemma.gemma3_provider.Gemma3ModelProvider"
ORIGIN = ignore("hf_model_id", why="the name of the model it was imported from")
# The specs of these classes, and of models that are a GPTModelProvider with a spec of their own.
_GEMMA2_SPEC = f"{MODELS}.gemma.gemma2_provider.gemma2_layer_spec"
_GEMMA3_SPEC = f"{MODELS}.gemma.gemma3_provider.gemma3_layer_spec"
_LLADA_SPEC = "megatron.bridge.diffusion.models.llada15.llada15_provider._llada15_layer_spec"
_EXAONE4_SPEC = f"{MODELS}.exaone.exaone4.exaone4_provider.exaone4_layer_spec"
_MINIMAX_SPEC = f"{MODELS}.minimax_m2.minimax_m2_provider.minimax_m2_layer_spec"
# OLMoE's is the same function on one tensor parallel rank, and only there (OLMoESelfAttention).
_WHOLE = ("minimax_m2_layer_spec", "olmoe_layer_spec")
_AFTER = ("final_norm", "attention.out_norm", "mlp.out_norm")


def made_by(owner: str, spec: str, *names: str, claims: tuple[str, ...] = (), written: bool = True) -> configs.Entry:
    """The layers of the class `owner` are made by the function `spec`, or by another of one of `names` that does the same; every one of
    `claims` is then true. Not `written`: the class takes it by itself.
    """
    known = (short(spec), *names)

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        name = spec_of(config)
        if short(name) not in known and (name or written):
            raise CkptError(
                f"key {SPEC!r} makes other layers than those of {owner}", found=name[:120], expected=known[0]
            )
        facts.update(dict.fromkeys(claims, True))

    return decided(
        [SPEC],
        list(claims),
        read=read,
        values={SPEC: [{"_call_": False, "_target_": spec}]} if written else {},
        why=f"the layers that {known[0]} makes",
    )


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
    scalar = scalar_of(scale)
    if scalar != facts["attention.head_dim"]:
        facts["attention.scale"] = scalar**-0.5 if isinstance(scalar, int) else scale


def _usual_scale(head_dim: int) -> float:
    return head_dim**-0.5


def _models(name: str, *lines: configs.Entry | Sequence[configs.Entry], alike: Sequence[str] = USUAL) -> Config:
    return usual(name, _FUNCTIONS, yarn=True, alike=alike).replace(name, ORIGIN, *lines)


_AROUND = usual("", _FUNCTIONS, yarn=True, alike=AROUND)

# fmt: off
GEMMA2 = gemma2(_AROUND, "Megatron-Bridge's Gemma2ModelProvider",
    ORIGIN,
    made_by("Gemma2ModelProvider", _GEMMA2_SPEC),
    decided(["window_size"], ["attention.window", "attention.window?"], read=_read_every_other, uses=["layers"],
            values={"window_size": [configs.value_of("attention.window", by=_before), None]},
            why="every second layer has the window, the first among them"),
)

GEMMA3 = gemma3(_AROUND, "Megatron-Bridge's Gemma3ModelProvider",
    ORIGIN,
    made_by("Gemma3ModelProvider", _GEMMA3_SPEC),
    decided(["softmax_scale"], ["attention.scale"], read=_read_scale, uses=["attention.head_dim"], tolerance=1e-12,
            values={"softmax_scale": [configs.value_of("attention.head_dim", by=_usual_scale), configs.value_of("attention.scale")]},
            why="what multiplies the scores"),
    key_is("is_vision_language", False, or_absent=True, written=False, why="positions of images then see each other"),
    before=0,
)

EXAONE4 = _models("Megatron-Bridge's GPTModelProvider with EXAONE 4's layers",
    made_by("EXAONE 4", _EXAONE4_SPEC),
    alike=_AFTER,
)

WHOLE = _models("Megatron-Bridge's GPTModelProvider with MiniMax M2's layers",
    made_by("MiniMax M2", _MINIMAX_SPEC, *_WHOLE, claims=("attention.qk_norm_whole",)),
)

LLADA = _models("Megatron-Bridge's LLaDA15ModelProvider",
    made_by("LLaDA15ModelProvider", _LLADA_SPEC, written=False),  # a private name, which Bridge refuses to load
    fact_is("causal", False),
)

UNEVEN = uneven(_models(""), made_by("LlamaNemotronHeterogeneousProvider", UNEVEN_SPEC))
# fmt: on

_BY_CLASS = {
    "Gemma2ModelProvider": GEMMA2,
    "Gemma3ModelProvider": GEMMA3,
    "LLaDA15ModelProvider": LLADA,
    "LlamaNemotronHeterogeneousProvider": UNEVEN,
}
_BY_SPEC = {"exaone4_layer_spec": EXAONE4, **dict.fromkeys(_WHOLE, WHOLE)}


def unusual_table(class_name: str, fields: Mapping[str, Any]) -> Config | None:
    """The table of a class (the last part of its name) whose layers are unusual, with these fields; None of all others."""
    of_class = (table for name, table in _BY_CLASS.items() if class_name.startswith(name))
    return next(of_class, None) or _BY_SPEC.get(short(spec_of(fields)))


def unusual_for(facts: Facts) -> tuple[str | None, Config] | None:
    """The class (None: a GPTModelProvider) and the table of a model whose layers are unusual; None for all others."""
    if facts.get("attention.qk_norm_whole"):
        return None, WHOLE
    if facts.get("kind") == "decoder" and facts.get("causal") is False:
        return LLADA_CLASS, LLADA
    if is_uneven(facts):
        return UNEVEN_CLASS, UNEVEN
    if facts.present("attention.out_norm") is False:
        return None
    if facts.present("attention.norm") is False:
        return None, EXAONE4
    return (GEMMA3_CLASS, GEMMA3) if facts.present("attention.qk_norm") is not False else (GEMMA2_CLASS, GEMMA2)
