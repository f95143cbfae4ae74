"""EXAONE 4, dense and mixtures: norms on q and k, and on the outputs of dense blocks; the hybrid ones rotate in layers with a window only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, configs, decided, key, layouts, row, schema, values
from ckpt_hf import heads
from ckpt_hf.common import (
    ALL_BIASES_OR_NONE,
    WINDOWED,
    Family,
    dense_width,
    enter_windows,
    given_windows,
    groups,
    layers_with_experts,
    norms,
    unbiased,
)
from ckpt_hf.common import NORMS as INPUT_NORMS
from ckpt_hf.families.deepseek import PREDICTORS_LEFT, SHARED_EXPERTS, SIGMOID_ROUTER, groups_by_two_best
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.predictors import LEFT
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import EXPERTS, LAYER, MODEL, NAMES, QK_NORMS

_NORMS = ("attention.out_norm", "mlp.out_norm", "attention.qk_norm", "final_norm")
_WINDOW = ("sliding_window", "layer_types", "sliding_window_pattern")


def _read_windows(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    window, layers = config.get("sliding_window", 4096), facts["layers"]
    present = given_windows(config, layers)
    if present is None:
        if window is None:
            raise CkptError("key 'layer_types' is missing, and transformers has no rule without a sliding_window")
        period = values.checked("sliding_window_pattern", config.get("sliding_window_pattern", 4), values.whole)
        present = schema.PerLayer((index + 1) % period != 0 for index in range(layers))
    enter_windows(facts, window, present)
    if window is None and not facts.present("attention.rotary"):
        raise CkptError("key 'sliding_window' is null, and every layer then rotates")
    # where any layer may slide, those that do not have no positions (modeling_exaone4.py)
    if window is not None and not all(present):
        facts["attention.rotary?"] = present


# fmt: off
EXAONE4 = LLAMA.replace("Exaone4ForCausalLM",
    groups(32),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in _NORMS), default=1e-5),
    norms("rms", *_NORMS),
    decided(_WINDOW, ["attention.window", "attention.window?", "attention.rotary?"], read=_read_windows, uses=["layers", "attention.rotary.*"],
            values={_WINDOW[:2]: [(configs.value_of("attention.window"), WINDOWED), (None, WINDOWED), (4096, WINDOWED)]},
            why="layer_types says which layers have a window; the others do not rotate, unless sliding_window is null"),
    rotary_keys(always=False),
    unbiased("attention_bias", "mlp_bias"),
    without=["attention.norm.kind", "mlp.norm.kind"],
)

EXAONE4_LAYER = LAYER.without("input_layernorm.weight", "post_attention_layernorm.weight").extend(
    *QK_NORMS,
    row("post_attention_layernorm.weight",   "h", "attention.out_norm.weight"),
    row("post_feedforward_layernorm.weight", "h", "mlp.out_norm.weight"),
)

EXAONE_MOE = EXAONE4.replace("ExaoneMoeForCausalLM",
    key("rms_norm_eps", *(f"{norm}.eps" for norm in (*INPUT_NORMS, "attention.qk_norm")), default=1e-5),
    norms("rms", *INPUT_NORMS, "attention.qk_norm"),
    key("num_hidden_layers", "layers", type=values.layers),
    dense_width(),
    layers_with_experts(dense=1, counted="first_k_dense_replace"),
    key("moe_intermediate_size", "mlp.moe.ffn"),
    key("num_experts", "mlp.moe.experts", also=["num_local_experts"], default=64),
    key("num_shared_experts", "mlp.moe.shared.ffn", default=1, null=configs.REQUIRED, type=values.whole, times="moe_intermediate_size"),
    key("num_experts_per_tok", "mlp.moe.router.top_k", default=8),
    key("norm_topk_prob", "mlp.moe.router.normalise", default=True),
    key("routed_scaling_factor", "mlp.moe.router.scale", default=2.5),
    groups_by_two_best(1, 1, experts="num_experts"),
    SIGMOID_ROUTER,
    PREDICTORS_LEFT,
    without=[f"{block}.out_norm.kind" for block in ("attention", "mlp")],
)

EXAONE_MOE_LAYER = LAYER.extend(
    *QK_NORMS,
    *EXPERTS,
    *SHARED_EXPERTS,
    row("mlp.e_score_correction_bias",      "x", "mlp.router.correction_bias", dtype="fp32", under={"names": "stored"}),
    row("mlp.gate.e_score_correction_bias", "x", "mlp.router.correction_bias", dtype="fp32", under={"names": "held"}),
)
# fmt: on

FAMILIES = [
    Family("exaone4", EXAONE4, layouts.Tables([MODEL, EXAONE4_LAYER]), rewrites=ALL_BIASES_OR_NONE),
    Family(
        "exaone_moe",
        EXAONE_MOE,
        layouts.Tables([MODEL, EXAONE_MOE_LAYER], [NAMES]),
        leftovers=LEFT,
        rewrites=ALL_BIASES_OR_NONE,
        heads=(heads.BARE,),
    ),
]
