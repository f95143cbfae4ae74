"""Flint: Qwen 3's attention with sinks, rotary positions in layers with a window only, and mixtures chosen by sigmoids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Facts, configs, decided, fact_is, key, layouts, row, rules, schema, values
from ckpt_hf import heads
from ckpt_hf.common import ALL_BIASES_OR_NONE, Family, head_dim, rotated_with_window, typed_windows
from ckpt_hf.families.qwen import QWEN3_LAYER, QWEN3_MOE, SHARED_EXPERT
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import EXPERTS, MODEL, NAMES


def _slides(index: int, layers: int, config: Mapping[str, Any]) -> bool:
    return index >= 2 and index % 4 != 1 and index != layers - 1


_SPARSE = ("decoder_sparse_step", "mlp_only_layers")


def _read_sparse(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    given = config.get("mlp_only_layers")
    dense, step = [0, 1] if given is None else given, config.get("decoder_sparse_step", 1)
    sparse = schema.PerLayer(index not in dense and (index + 1) % step == 0 for index in range(facts["layers"]))
    if not all(sparse):
        facts["mlp.moe?"] = sparse


# fmt: off
FLINT = QWEN3_MOE.replace("FlintForCausalLM",
    head_dim(default=128),
    fact_is("attention.sinks", True),
    typed_windows(513, _slides, "all but the first two, the last, and every fourth"),
    rotary_keys(always=False),
    rotated_with_window(),
    decided(_SPARSE, ["mlp.moe?"], read=_read_sparse, uses=["layers", "mlp.moe.*"],
            values={_SPARSE: [(1, configs.layers_of("mlp.moe", ~rules.indices()))]},
            why="every n-th layer is a mixture, but for those of mlp_only_layers, the first two without it"),
    key("num_experts", "mlp.moe.experts", also=["num_local_experts"], default=256, null=configs.REQUIRED),
    key("num_experts_per_tok", "mlp.moe.router.top_k", default=6),
    key("moe_intermediate_size", "mlp.moe.ffn", default=512),
    key("shared_expert_intermediate_size", "mlp.moe.shared.ffn", default=1024, type=values.whole),
    key("norm_topk_prob", "mlp.moe.router.normalise", default=True),
    fact_is("mlp.moe.router.score", "sigmoid"),
)

# in float32 in every file: the class keeps both so
FLINT_LAYER = QWEN3_LAYER.extend(
    row("self_attn.softmax_offset", "(g r)", "attention.sinks.weight", dtype="fp32", under={"names": "stored"}),
    row("self_attn.sinks",          "(g r)", "attention.sinks.weight", dtype="fp32", under={"names": "held"}),
    row("mlp.gate.weight",          "x h",   "mlp.router.weight",      dtype="fp32"),
    *EXPERTS[1:],
    *SHARED_EXPERT[:3],
)
# fmt: on

FAMILIES = [
    Family(
        "flint",
        FLINT,
        layouts.Tables([MODEL, FLINT_LAYER], [NAMES]),
        rewrites=ALL_BIASES_OR_NONE,
        heads=(heads.BARE,),
    )
]
