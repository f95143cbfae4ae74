"""dots.llm1: Qwen 3's attention, and DeepSeek's experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Facts, configs, decided, key, key_is, layouts, schema, values
from ckpt_hf import heads
from ckpt_hf.common import (
    ALL_BIASES_OR_NONE,
    NORMS,
    WINDOWED,
    Family,
    enter_windows,
    given_windows,
    groups,
    norms,
    unbiased,
)
from ckpt_hf.families.deepseek import CORRECTION, SHARED_EXPERTS, SIGMOID_ROUTER, dense_layers, groups_by_two_best
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.weights import EXPERTS, LAYER, MODEL, NAMES, QK_NORMS

_WINDOW = ("sliding_window", "layer_types", "max_window_layers")


def _read_windows(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    window, first = config.get("sliding_window", 4096), config.get("max_window_layers", 62)
    rule = schema.PerLayer(window is not None and index >= first for index in range(facts["layers"]))
    present = given_windows(config, facts["layers"]) or rule
    enter_windows(facts, window, present)


# fmt: off
DOTS1 = LLAMA.replace("Dots1ForCausalLM",
    groups(32),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in (*NORMS, "attention.qk_norm")), default=1e-6),
    norms("rms", "attention.qk_norm"),
    decided(_WINDOW, ["attention.window", "attention.window?"], read=_read_windows, uses=["layers"],
            values={_WINDOW[:2]: [(configs.value_of("attention.window"), WINDOWED), (None, WINDOWED)]},
            why="layer_types says which layers have a window; without it those from max_window_layers on"),
    dense_layers(0),
    key("moe_intermediate_size", "mlp.moe.ffn"),
    key("n_routed_experts", "mlp.moe.experts", also=["num_local_experts"]),
    key("n_shared_experts", "mlp.moe.shared.ffn", type=values.whole, times="moe_intermediate_size"),
    key("num_experts_per_tok", "mlp.moe.router.top_k"),
    key("norm_topk_prob", "mlp.moe.router.normalise", default=False),
    key("routed_scaling_factor", "mlp.moe.router.scale", default=1.0),
    groups_by_two_best(1, 1),
    SIGMOID_ROUTER,
    key_is("moe_layer_freq", 1, or_absent=True, written=False),
    key_is("scoring_func", "noaux_tc", "sigmoid", or_absent=True, written=False),  # the published files say noaux_tc of both
    key_is("topk_method", "noaux_tc", or_absent=True, written=False),
    unbiased("mlp_bias"),
)

DOTS1_LAYER = LAYER.extend(
    *QK_NORMS,
    CORRECTION,
    *SHARED_EXPERTS,
    *EXPERTS,
)
# fmt: on

FAMILIES = [
    Family(
        "dots1", DOTS1, layouts.Tables([MODEL, DOTS1_LAYER], [NAMES]), rewrites=ALL_BIASES_OR_NONE, heads=(heads.BARE,)
    )
]
