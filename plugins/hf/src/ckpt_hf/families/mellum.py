"""Mellum 2 (JetBrains): Qwen 3's mixtures with windows, whose layers rotate by other angles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import configs, ignore, key, layouts
from ckpt_hf import heads
from ckpt_hf.common import ALL_BIASES_OR_NONE, Family, dense_width, head_dim, layers_with_experts, typed_windows
from ckpt_hf.families.qwen import QWEN3_LAYER, QWEN3_MOE
from ckpt_hf.predictors import LEFT
from ckpt_hf.rotary import rotary_by_window
from ckpt_hf.weights import EXPERTS, MODEL, NAMES


def _no_window(index: int, layers: int, config: Mapping[str, Any]) -> bool:
    return False


# fmt: off
MELLUM = QWEN3_MOE.replace("MellumForCausalLM",
    head_dim(default=128),
    typed_windows(1024, _no_window, "none does"),
    rotary_by_window(default_theta=500000.0, sliding_theta=10000.0, by_four=False),
    dense_width(),
    layers_with_experts(dense=0),
    key("num_experts", "mlp.moe.experts", also=["num_local_experts"], default=64, null=configs.REQUIRED),
    key("num_experts_per_tok", "mlp.moe.router.top_k", default=8),
    key("moe_intermediate_size", "mlp.moe.ffn", default=896),
    key("norm_topk_prob", "mlp.moe.router.normalise", default=True),
    ignore("num_nextn_predict_layers", "num_mtp_layers", "mtp_layer_types", "mtp_mlp_layer_types",
           why="the layers that predict further tokens take no part in the model, and are not kept"),
)
# fmt: on

FAMILIES = [
    Family(
        "mellum",
        MELLUM,
        layouts.Tables([MODEL, QWEN3_LAYER.extend(*EXPERTS)], [NAMES]),
        leftovers=LEFT,
        rewrites=ALL_BIASES_OR_NONE,
        heads=(heads.BARE,),
    )
]
