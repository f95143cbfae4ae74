"""Qwen 2 and 3, dense and mixtures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Facts,
    PerLayer,
    Refusal,
    custom,
    fact_is,
    key,
    key_is,
    layouts,
    rewrites,
    row,
    uniform,
)
from ckpt_hf import weights
from ckpt_hf.common import (
    NORMS,
    Family,
    alias,
    enter_sparse_layers,
    enter_windows,
    groups,
    head_dim,
    layer_count,
    norms,
    unbiased,
    windowed_layers,
    windows,
    written_sparse_layers,
)
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.weights import EXPERTS, LAYER, MODEL, NAMES


def _from_layer(index: int, config: Mapping[str, Any]) -> bool:
    return index >= config.get("max_window_layers", 28)


def _every_other(index: int, config: Mapping[str, Any]) -> bool:
    # Qwen2MoeConfig, transformers 5: every other layer, below max_window_layers
    return (index + 1) % 2 == 1 and index < config.get("max_window_layers", 28)


def _read_qkv_bias(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    facts.update({f"attention.{part}_bias": config.get("qkv_bias", True) for part in "qkv"})


def _write_qkv_bias(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    biases = {uniform(facts, f"attention.{part}_bias") for part in "qkv"}
    if len(biases) > 1:
        raise Refusal("qkv_bias is one value for q, k and v", found=str(biases))
    config["qkv_bias"] = biases.pop()


def _read_sparse_layers(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    count, step = layer_count(config), config.get("decoder_sparse_step", 1)
    dense = set(config.get("mlp_only_layers") or [])
    none = 0 in (config.get("num_experts"), config.get("num_local_experts"))
    sparse = PerLayer(index not in dense and not none and (index + 1) % step == 0 for index in range(count))
    enter_sparse_layers(facts, notes, config.get("intermediate_size"), sparse)


def _write_sparse_layers(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    sparse = written_sparse_layers(facts, notes, config)
    config["decoder_sparse_step"] = 1
    config["mlp_only_layers"] = [index for index, moe in enumerate(sparse) if not moe]


def _read_experts(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    given = {key: config[key] for key in ("num_experts", "num_local_experts") if key in config}
    if len(set(given.values())) > 1:
        raise CkptError("keys 'num_experts' and 'num_local_experts' disagree", found=str(given))
    facts["mlp.moe.experts"] = next(iter(given.values()), 128)


def _read_window(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    window, used = config.get("sliding_window", 4096), config.get("use_sliding_window", False)
    if type(used) is not bool:
        raise CkptError("key 'use_sliding_window' is neither true nor false", found=repr(used)[:60])
    if used and window is not None:
        if config.get("max_window_layers", 0) != 0:
            raise CkptError(
                "key 'max_window_layers': the versions of transformers differ in which layers then slide",
                found=config["max_window_layers"],
                expected="0, every layer",
            )
        enter_windows(facts, window, PerLayer([True] * layer_count(config)))


def _write_window(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
    present = windowed_layers(facts)
    if any(present) and not all(present):
        raise Refusal("sliding_window is for all layers", found=f"attention.window? = {present}")
    config["use_sliding_window"] = any(present)
    config["sliding_window"] = uniform(facts, "attention.window")
    config["max_window_layers"] = 0 if any(present) else facts["layers"]


# fmt: off
_ROUTER = [
    key("num_experts_per_tok", "mlp.moe.router.top_k"),
    key("moe_intermediate_size", "mlp.moe.ffn"),
    key("norm_topk_prob", "mlp.moe.router.normalise", default=False),
    fact_is("mlp.moe.router.score", "softmax"),
    custom(["intermediate_size", "decoder_sparse_step", "mlp_only_layers", "num_hidden_layers"], ["mlp.ffn", "mlp.ffn?", "mlp.moe?", "layers"],
           read=_read_sparse_layers, write=_write_sparse_layers),
]

QWEN2 = LLAMA.replace("Qwen2ForCausalLM",
    groups(32),
    *(fact_is(f"attention.{part}_bias", True) for part in "qkv"),
    windows(_from_layer, default=4096, by_count=True),
    alias("rotary_emb_base", "rope_theta"),  # of CodeQwen1.5
    unbiased("mlp_bias"),
    without=["attention_bias"],
)

QWEN2_MOE = QWEN2.replace("Qwen2MoeForCausalLM",
    groups(16),
    key("num_experts", "mlp.moe.experts"),
    _ROUTER,
    key("shared_expert_intermediate_size", "mlp.moe.shared.ffn"),
    fact_is("mlp.moe.shared.gate", True),
    custom(["qkv_bias"], [f"attention.{part}_bias" for part in "qkv"], read=_read_qkv_bias, write=_write_qkv_bias),
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
    custom(["num_experts", "num_local_experts"], ["mlp.moe.experts"], read=_read_experts,
           write=lambda facts, notes, config: config.update(num_experts=uniform(facts, "mlp.moe.experts"))),
    _ROUTER,
    custom(["use_sliding_window", "sliding_window", "max_window_layers"], ["attention.window", "attention.window?"],
           read=_read_window, write=_write_window),
    # Qwen3-Coder says what every Qwen3-MoE is
    key_is("use_qk_norm", True, or_absent=True, written=False),
    key_is("shared_expert_intermediate_size", 0, or_absent=True, written=False),
    without=["layer_types"],
)

_SHARED = (
    row("mlp.shared_expert.gate_proj.weight", "f h", "mlp.shared.gate.weight"),
    row("mlp.shared_expert.up_proj.weight",   "f h", "mlp.shared.up.weight"),
    row("mlp.shared_expert.down_proj.weight", "h f", "mlp.shared.down.weight"),
    row("mlp.shared_expert_gate.weight",      "1 h", "mlp.shared_gate.weight"),
)

QWEN3_LAYER = LAYER.extend(
    row("self_attn.q_norm.weight", "d", "attention.q_norm.weight"),
    row("self_attn.k_norm.weight", "d", "attention.k_norm.weight"),
)
# fmt: on

FAMILIES = [
    Family("qwen2", QWEN2, weights.LLAMA),
    Family("qwen3", QWEN3, layouts.Tables([MODEL, QWEN3_LAYER])),
    # Every Qwen2-MoE has shared experts, in each layer of experts.
    Family(
        "qwen2_moe",
        QWEN2_MOE,
        layouts.Tables([MODEL, LAYER.extend(*EXPERTS, *_SHARED)], [NAMES]),
        rewrite=lambda model: rewrites.zero_shared_experts(rewrites.folded_attention_scale(model)),
    ),
    Family("qwen3_moe", QWEN3_MOE, layouts.Tables([MODEL, QWEN3_LAYER.extend(*EXPERTS)], [NAMES])),
]
