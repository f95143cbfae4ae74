"""Llamas whose queries grow with their position: Llama 4, a mixture, and Ministral 3 (llama4.cpp, mistral3.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, by_layer, configs, decided, key, key_is, layouts, rules, schema, values
from ckpt_gguf import weights
from ckpt_gguf.config import CHOSEN, DENSE, LLAMA, NO_BIASES, PERIOD, ROUTER, Model, always, no_rope
from ckpt_gguf.rotary import FREQUENCIES, STRETCHING, rotary

_TEMPERATURE = "attention.temperature"


def _read_growing(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    key = "attention.temperature_scale"
    scale = values.checked(key, config.get(key, 0.0), values.number)
    if scale:
        interval = facts.get("attention.rotary.scaling.original_positions")
        if interval is None:
            raise CkptError(
                "the length that queries grow by is that of a scaling, and there is none",
                found=f"attention.temperature_scale = {scale}",
            )
        facts.update({f"{_TEMPERATURE}.interval": interval, f"{_TEMPERATURE}.scale": scale, f"{_TEMPERATURE}.shift": 0})


def _read_kinds_of_layers(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """Enters chunks and norms of the layers that rotate, and queries that grow in the others, as llama.cpp has them in its code."""
    present = facts.present("attention.rotary")
    rotates = present if isinstance(present, schema.PerLayer) else schema.PerLayer([present] * facts["layers"])
    facts["attention.chunk"] = 8192
    # Maverick, with 128 experts, has no norms
    if facts["mlp.moe.experts"] != 128:
        facts.update(
            {
                "attention.qk_norm.kind": "rms",
                "attention.qk_norm.weight": False,
                "attention.qk_norm.eps": facts["attention.norm.eps"],
            }
        )
        facts["attention.qk_norm_after_rotary"] = True if all(rotates) else rotates
    if not all(rotates):
        facts["attention.chunk?"] = rotates
        if "attention.qk_norm.kind" in facts:
            facts["attention.qk_norm?"] = rotates
        facts.update({f"{_TEMPERATURE}.interval": 8192, f"{_TEMPERATURE}.scale": 0.1, f"{_TEMPERATURE}.shift": 1})
        facts[f"{_TEMPERATURE}?"] = schema.PerLayer(not one for one in rotates)


_KINDS = [
    "attention.chunk",
    "attention.chunk?",
    "attention.qk_norm.*",
    "attention.qk_norm?",
    "attention.qk_norm_after_rotary",
]

# fmt: off
LLAMA4 = DENSE.replace("llama4",
    rotary(always=False, loads=(FREQUENCIES,)),
    no_rope(),
    key_is(PERIOD, 4, or_absent=True, written=False),
    decided([], [*_KINDS, f"{_TEMPERATURE}.*", f"{_TEMPERATURE}?"], read=_read_kinds_of_layers, values={},
            uses=["layers", "attention.rotary.*", "attention.rotary?", "attention.norm.eps", "mlp.moe.experts"],
            why="chunks of 8192 and norms of q and k where a layer rotates, and queries that grow every 8192 positions where not"),
    by_layer("interleave_moe_layer_step", "mlp.moe", rules.every_nth()),
    configs.in_other_layers("feed_forward_length", "mlp.ffn", than="mlp.moe", unused="unused_ffn", fallback="mlp.moe.ffn", type=values.whole),
    key("expert_feed_forward_length", "mlp.moe.ffn", "mlp.moe.shared.ffn", type=values.whole),
    *CHOSEN,
    *always({f"{ROUTER}.score": "sigmoid", f"{ROUTER}.on_input": True}),
    without=NO_BIASES,
)

MISTRAL3 = LLAMA.replace("mistral3",
    rotary(loads=STRETCHING, multiplier=1.0, bounds=True),
    decided(["attention.temperature_scale"], [f"{_TEMPERATURE}.*"], read=_read_growing, uses=["attention.rotary.*"],
            values={"attention.temperature_scale": [configs.value_of(f"{_TEMPERATURE}.scale"), configs.LEFT_OUT]},
            why="every layer's queries grow by the length of the scaling"),
)
# fmt: on

_LLAMA4_LAYER = weights.PAIRED_LAYER.extend(*weights.EXPERTS, *weights.SHARED_EXPERT)

MODELS = [
    Model("llama4", LLAMA4, layouts.Tables([weights.MODEL, _LLAMA4_LAYER]), ("llama4_text",)),
    Model("mistral3", MISTRAL3, layouts.Tables([weights.MODEL, weights.PAIRED_LAYER]), ("ministral3",)),
]
