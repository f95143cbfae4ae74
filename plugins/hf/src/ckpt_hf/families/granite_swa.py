"""Granite Swash: Granite 3, dense and mixtures, with sinks, and with windows in all layers but every fourth; some layers may not rotate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, configs, decided, fact_is, key, layouts, row, schema
from ckpt_hf import heads
from ckpt_hf.common import NORMS, Family, groups, typed_windows
from ckpt_hf.families.granite import GRANITE, GRANITE_LAYER, GRANITE_MOE_SHARED, GRANITE_MOE_SHARED_LAYER
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import MODEL

_THETAS = "layer_rope_theta"


def _slides(index: int, layers: int, config: Mapping[str, Any]) -> bool:
    return index % 4 != 0


def _read_rotated(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    thetas, theta = config.get(_THETAS), facts["attention.rotary.theta"]
    if thetas is None:
        return
    if not isinstance(thetas, list) or len(thetas) != facts["layers"] or {*thetas} - {0, theta}:
        raise CkptError(
            f"key {_THETAS!r} is not a theta for each layer, that of all, or 0 where a layer does not rotate",
            found=str(thetas)[:80],
            expected=f"{facts['layers']} of {theta} and 0",
        )
    if not all(thetas):
        facts["attention.rotary?"] = schema.PerLayer(bool(one) for one in thetas)


def _thetas(facts: Facts) -> list[float]:
    present, layers = facts.present("attention.rotary"), facts["layers"]
    rotates = present if isinstance(present, schema.PerLayer) else (present,) * layers
    return [facts["attention.rotary.theta"] if one else 0 for one in rotates]


# fmt: off
_SWASH = [
    typed_windows(128, _slides, "all but every fourth, from the first on"),
    fact_is("attention.sinks", True),
    rotary_keys(always=False),
    decided([_THETAS], ["attention.rotary?"], read=_read_rotated, uses=["layers", "attention.rotary.theta"],
            values={_THETAS: [configs.Said(_thetas, "the theta of each layer, 0 where it does not rotate", _thetas)]},
            why="the layers whose theta is 0 do not rotate"),
]

GRANITE_SWA = GRANITE.replace("GraniteSWAForCausalLM",
    *_SWASH,
    groups(4),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    key("tie_word_embeddings", "head.tied", default=True),
)
GRANITE_MOE_SWA = GRANITE_MOE_SHARED.replace("GraniteMoeSWAForCausalLM", *_SWASH)

# The class multiplies by sigmoid(logsumexp - sink), which is a sink among the exponentials (modular_granite_swa.py)
_SINKS = row("self_attn.sinks", "(g r)", "attention.sinks.weight")
# fmt: on

FAMILIES = [
    Family("granite_swa", GRANITE_SWA, layouts.Tables([MODEL, GRANITE_LAYER.extend(_SINKS)]), heads=(heads.BARE,)),
    Family(
        "granitemoe_swa",
        GRANITE_MOE_SWA,
        # files have the names that transformers 5 holds in memory
        layouts.Tables([MODEL, GRANITE_MOE_SHARED_LAYER.extend(_SINKS)], decided={"names": "held"}),
        heads=(heads.BARE,),
    ),
]
