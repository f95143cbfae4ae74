"""Qwen 2 and 3, dense and mixtures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Facts,
    Table,
    configs,
    decided,
    drop,
    fact_is,
    key,
    key_is,
    layouts,
    rewrites,
    row,
    rules,
    schema,
    values,
)
from ckpt_hf import predictors as predicting
from ckpt_hf import weights
from ckpt_hf.common import (
    ALL_BIASES_OR_NONE,
    NORMS,
    QKV_BIASES,
    SCALED_AND_CENTRED,
    Family,
    alias,
    code_of_its_author,
    dense_width,
    groups,
    head_dim,
    norms,
    unbiased,
    windows,
)
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.weights import EXPERTS, LAYER, MODEL, NAMES, QK_NORMS


def _from_layer(index: int, config: Mapping[str, Any]) -> bool:
    return index >= config.get("max_window_layers", 28)


def _every_other(index: int, config: Mapping[str, Any]) -> bool:
    # Qwen2MoeConfig, transformers 5: every other layer, below max_window_layers
    return (index + 1) % 2 == 1 and index < config.get("max_window_layers", 28)


def _read_sparse_layers(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    dense, step = set(config.get("mlp_only_layers") or []), config.get("decoder_sparse_step", 1)
    none = 0 in (config.get("num_experts"), config.get("num_local_experts"))
    sparse = schema.PerLayer(
        index not in dense and not none and (index + 1) % step == 0 for index in range(facts["layers"])
    )
    if not all(sparse):
        facts["mlp.moe?"] = sparse


def _read_window(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    window = config.get("sliding_window", 4096)
    used = values.checked("use_sliding_window", config.get("use_sliding_window", False), values.flag)
    if used and window is not None:
        if config.get("max_window_layers", 0) != 0:
            raise CkptError(
                "key 'max_window_layers': the versions of transformers differ in which layers then slide",
                found=config["max_window_layers"],
                expected="0, every layer",
            )
        facts["attention.window"] = window


_SPARSE = ("decoder_sparse_step", "mlp_only_layers")
_WINDOW = ("use_sliding_window", "sliding_window", "max_window_layers")
_LOCAL_EXPERTS = ("num_experts", "num_local_experts")

# fmt: off
_ROUTER = [
    key("num_experts_per_tok", "mlp.moe.router.top_k"),
    key("moe_intermediate_size", "mlp.moe.ffn"),
    key("norm_topk_prob", "mlp.moe.router.normalise", default=False),
    fact_is("mlp.moe.router.score", "softmax"),
    key("num_hidden_layers", "layers", type=values.layers),
    dense_width(),
    decided(_SPARSE, ["mlp.moe?"], read=_read_sparse_layers, uses=["layers", "mlp.moe.*", *_LOCAL_EXPERTS],
            values={_SPARSE: [(1, configs.layers_of("mlp.moe", ~rules.indices()))]},
            why="every n-th layer is a mixture, but for those of mlp_only_layers; none is where there are no experts"),
]

QWEN2 = LLAMA.replace("Qwen2ForCausalLM",
    groups(32),
    *(fact_is(bias, True) for bias in QKV_BIASES),
    windows(_from_layer, default=4096, by_count=True),
    alias("rotary_emb_base", "rope_theta"),  # of CodeQwen1.5
    unbiased("mlp_bias"),
    without=["attention_bias"],
)

# MiMo, whose class is beside its files, is Qwen 2 with layers that predict further tokens.
MIMO = QWEN2.replace("MiMoForCausalLM", predicting.predictors())

QWEN2_MOE = QWEN2.replace("Qwen2MoeForCausalLM",
    groups(16),
    key("num_experts", "mlp.moe.experts"),
    _ROUTER,
    key("shared_expert_intermediate_size", "mlp.moe.shared.ffn", type=values.whole),
    fact_is("mlp.moe.shared.gate", True),
    key("qkv_bias", *QKV_BIASES, default=True, null=False),
    windows(_every_other, default=4096, by_count=True),
)

QWEN3 = LLAMA.replace("Qwen3ForCausalLM",
    groups(32),
    head_dim(default=128),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in (*NORMS, "attention.qk_norm")), default=1e-6),
    norms("rms", "attention.qk_norm"),
    windows(_from_layer, default=4096, by_count=True),
    unbiased("mlp_bias", "qkv_bias"),
)

QWEN3_MOE = QWEN3.replace("Qwen3MoeForCausalLM",
    groups(4),
    head_dim(),
    # transformers 5 saves num_local_experts, which version 4 does not read; both read num_experts
    key("num_experts", "mlp.moe.experts", also=["num_local_experts"], default=128, null=configs.REQUIRED),
    _ROUTER,
    decided(_WINDOW, ["attention.window", "attention.window?"], read=_read_window, uses=["layers"],
            values={_WINDOW: [(True, configs.value_of("attention.window"), 0), (False, None, configs.value_of("layers"))]},
            why="all layers have a window, or none: the versions of transformers differ in which layers max_window_layers chooses"),
    # Qwen3-Coder says what every Qwen3-MoE is
    key_is("use_qk_norm", True, or_absent=True, written=False),
    key_is("shared_expert_intermediate_size", 0, or_absent=True, written=False),
    without=["layer_types"],
)

SHARED_EXPERT = (
    row("mlp.shared_expert.gate_proj.weight", "f h", "mlp.shared.gate.weight"),
    row("mlp.shared_expert.up_proj.weight",   "f h", "mlp.shared.up.weight"),
    row("mlp.shared_expert.down_proj.weight", "h f", "mlp.shared.down.weight"),
    row("mlp.shared_expert_gate.weight",      "1 h", "mlp.shared_gate.weight"),
)

MIMO_BLOCK = Table(predicting.MIMO, to=predicting.BLOCK, rows=LAYER.rows)

QWEN3_LAYER = LAYER.extend(
    *QK_NORMS,
)
# fmt: on


def _with_shared_experts(model: rewrites.Rewritable) -> rewrites.Rewritable:
    return rewrites.zero_shared_experts(rewrites.folded_attention_scale(model))


FAMILIES = [
    Family("qwen2", QWEN2, weights.LLAMA),
    Family("qwen3", QWEN3, layouts.Tables([MODEL, QWEN3_LAYER]), rewrites=ALL_BIASES_OR_NONE),
    # Every Qwen2-MoE has shared experts, in each layer of experts.
    Family(
        "qwen2_moe",
        QWEN2_MOE,
        layouts.Tables([MODEL, LAYER.extend(*EXPERTS, *SHARED_EXPERT)], [NAMES]),
        rewrites=(*SCALED_AND_CENTRED, _with_shared_experts),
    ),
    Family(
        "qwen3_moe",
        QWEN3_MOE,
        layouts.Tables([MODEL, QWEN3_LAYER.extend(*EXPERTS)], [NAMES]),
        rewrites=ALL_BIASES_OR_NONE,
    ),
    Family(
        "mimo",
        MIMO,
        layouts.Tables([MODEL, LAYER, predicting.MIMO_PREDICTOR, MIMO_BLOCK]),
        leftovers=Table(
            rows=[drop("model.mtp_layers.*", why="the layers that predict further tokens, which are not kept")]
        ),
        as_stored=predicting.stored_predictors,
        losses=code_of_its_author("qwen2"),
        heads=(),
    ),
]
