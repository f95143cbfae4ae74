"""EXAONE 3, 4 and mixtures: the hybrid ones rotate in layers with a window only (exaone.cpp, exaone4.cpp, exaone-moe.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, configs, decided, key, key_is, layouts, values
from ckpt_gguf import weights
from ckpt_gguf.config import (
    CORRECTED,
    DENSE,
    DENSE_FIRST,
    NO_BIASES,
    OUT_NORMS,
    PERIOD,
    QWEN3,
    ROUTED,
    SHARED_COUNT,
    SHARED_WIDTH,
    UNTIED,
    WINDOW,
    Model,
    every,
    norms,
    own_theta,
    pattern,
    read_rotated,
    rotated_with_window,
    score,
    windows,
)
from ckpt_gguf.rotary import FREQUENCIES, rotary

_LOADED = (FREQUENCIES,)


def _read_windows(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """Enters the windows that llama.cpp gives to the model of 64 layers alone; of others it leaves out what the keys say."""
    if facts["layers"] == 64:
        every(4, needed=True)(config, facts, notes)
        read_rotated(config, facts, notes)
    elif config.get(WINDOW):
        raise CkptError(f"key {WINDOW!r} is read of 64 layers alone", found=f"{facts['layers']} layers")


# fmt: off
EXAONE = DENSE.replace("exaone", rotary(loads=_LOADED), without=NO_BIASES)

EXAONE4 = DENSE.replace("exaone4",
    key("attention.layer_norm_rms_epsilon", *(f"{norm}.eps" for norm in (*OUT_NORMS, "attention.qk_norm", "final_norm")), type=values.positive),
    *norms("rms", *OUT_NORMS, "attention.qk_norm"),
    rotary(always=False, loads=_LOADED),
    decided([WINDOW, PERIOD], ["attention.window", "attention.window?", "attention.rotary?"], read=_read_windows, uses=["layers", "attention.rotary.*"],
            values={WINDOW: [configs.value_of("attention.window"), configs.LEFT_OUT], PERIOD: [pattern(4), configs.LEFT_OUT]},
            why="of 64 layers all but every fourth have a window, and these alone rotate; of others all rotate, and none has one"),
    without=[*NO_BIASES, "attention.norm.kind", "mlp.norm.kind"],
)

EXAONE_MOE = QWEN3.replace("exaone-moe",
    *DENSE_FIRST,
    *ROUTED,
    CORRECTED,
    SHARED_COUNT,
    *SHARED_WIDTH,
    score(),
    key_is("nextn_predict_layers", 0, or_absent=True, why="layers that predict further tokens are not read"),
    *windows(4, listed=True),
    own_theta(),
    rotary(always=False, loads=_LOADED),
    rotated_with_window(),
    *UNTIED,
    without=["output.weight"],
)

_EXAONE4_LAYER = weights.LAYER.without("attn_norm.weight", "ffn_norm.weight").extend(*weights.OUT_NORMS, *weights.QK_NORMS)
# fmt: on

MODELS = [
    Model("exaone", EXAONE, layouts.Tables([weights.MODEL, weights.LAYER]), ("exaone",)),
    Model("exaone4", EXAONE4, layouts.Tables([weights.MODEL, _EXAONE4_LAYER]), ("exaone4",), square=True),
    Model("exaone-moe", EXAONE_MOE, layouts.Tables([weights.MODEL, weights.DENSE_FIRST_LAYER]), ("exaone_moe",)),
]
