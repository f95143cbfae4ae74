"""torchtitan's own arguments of a model until 0.2, for `--config`: a dump of TransformerModelArgs, Qwen3ModelArgs or DeepSeekV3ModelArgs, as JSON.

A model is built of one dataclass (models/*/model/args.py), and `json.dumps(dataclasses.asdict(args))` says all of it. A dump has every
field, so those of all releases have no default here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_core.sdk import (
    Config,
    Facts,
    by_layer,
    configs,
    decided,
    derived,
    fact_is,
    ignore,
    key,
    key_is,
    nested,
    note,
    rules,
    same_as,
    schema,
    values,
)
from ckpt_fsdp.titan.common import (
    BIAS_ASKED_OF_TENSORS,
    BIAS_ON_SCORES,
    DECODER,
    LATENT,
    LATENT_SIZES,
    NORMS,
    ROUTER,
    ROUTING,
    YARN,
    YARN_CLAIMS,
    YARN_USES,
    YARN_WHY,
    enter_yarn,
)

_LATENT_NORMS = (f"{LATENT}.norm", f"{LATENT}.kv_norm", "mlp.norm", "final_norm")


def _read_width(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """`FeedForward.__init__`: two thirds of four times `dim`, stretched, and rounded up."""
    wide = int(2 * 4 * config["dim"] / 3)
    multiplier, multiple = config["ffn_dim_multiplier"], config["multiple_of"]
    facts["mlp.ffn"] = multiple * math.ceil((wide if multiplier is None else int(multiplier * wide)) / multiple)


def _read_shared(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """`MoE.__init__`: one feed-forward, as wide as all shared experts; none for 0."""
    if count := values.checked("num_shared_experts", config["num_shared_experts"], values.count):
        facts["mlp.moe.shared.ffn"] = count * values.checked("moe_inter_dim", config["moe_inter_dim"], values.whole)


def _read_yarn(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    """`precompute_freqs_cis` stretches where the sequences of the training are longer than the original ones."""
    if config["max_seq_len"] > config["original_seq_len"]:
        enter_yarn(config, facts)


# fmt: off
_SAID: list[configs.Entry | Sequence[configs.Entry]] = [
    *DECODER,
    key("dim", "hidden"),
    key("n_layers", "layers", type=values.layers),
    key("vocab_size", "tokens.vocabulary", "tokens.padded_vocabulary"),
    note("max_seq_len", "max_positions"),
    ignore("depth_init", why="how weights were initialised"),
    # block_causal ends attention where a document ends: eos_id says where, and a prompt has one document
    ignore("attn_mask_type", "eos_id", why="how documents in one sequence are kept apart while training"),
    ignore("attn_type", "use_flex_attn", why="which function computes attention"),
]
_HEADS: list[configs.Entry | Sequence[configs.Entry]] = [
    *(fact_is(f"{norm}.kind", "rms") for norm in NORMS),
    key("n_heads", "attention.heads"),
    key("n_kv_heads", "attention.groups", default=same_as("n_heads")),
    key("rope_theta", "attention.rotary.theta"),
]

LLAMA3 = Config("torchtitan's TransformerModelArgs", [
    *_SAID,
    *_HEADS,
    derived(None, "attention.head_dim", "dim / n_heads"),
    decided(["ffn_dim_multiplier", "multiple_of"], ["mlp.ffn"], read=_read_width, uses=["dim"],
            values={"ffn_dim_multiplier": [None], "multiple_of": [configs.value_of("mlp.ffn")]},
            why="two thirds of 4 dim, times ffn_dim_multiplier, rounded up to multiple_of"),
    key("norm_eps", *(f"{norm}.eps" for norm in NORMS)),
    fact_is("head.tied", False),
    # precompute_freqs_cis scales always; versions without the field do not, and their dumps are refused
    nested("rope_scaling_args", [
        fact_is("attention.rotary.scaling.kind", schema.RotaryKind.LLAMA3),
        key("scaling_factor", "attention.rotary.scaling.factor"),
        key("low_freq_factor", "attention.rotary.scaling.low_frequency_factor"),
        key("high_freq_factor", "attention.rotary.scaling.high_frequency_factor"),
        key("original_max_position_embeddings", "attention.rotary.scaling.original_positions"),
    ]),
])

_QWEN3: list[configs.Entry | Sequence[configs.Entry]] = [
    *_SAID,
    *_HEADS,
    key("head_dim", "attention.head_dim"),
    fact_is("attention.qk_norm.kind", "rms"),
    key("norm_eps", *(f"{norm}.eps" for norm in (*NORMS, "attention.qk_norm"))),
    key_is("qk_norm", True, why="without these norms nothing tells the model from llama3, which rotates other elements"),
    key("enable_weight_tying", "head.tied"),
]
_EXPERTS: list[configs.Entry | Sequence[configs.Entry]] = [
    key("num_experts", "mlp.moe.experts"),
    decided(["num_shared_experts"], ["mlp.moe.shared.ffn"], read=_read_shared, uses=["moe_inter_dim"],
            values={"num_shared_experts": range(9)}, why="one expert as wide as all that are shared"),
    *ROUTING,
    key_is("gate_bias", False, or_absent=True),  # since 0.2.1, as are groups
    key("score_before_experts", f"{ROUTER}.on_input"),  # since 0.3 never
    key_is("_debug_force_load_balance", False, why="tokens are dealt out in turn, whatever their scores"),
    ignore("use_grouped_mm", why="which function computes experts"),
]

QWEN3 = Config("torchtitan's Qwen3ModelArgs", [
    *_QWEN3,
    key_is("moe_enabled", False),
    key("hidden_dim", "mlp.ffn"),
    ignore("moe_inter_dim", "moe_args", why="of experts, which this model does not have"),
])

QWEN3_MOE = Config("torchtitan's Qwen3ModelArgs with experts", [
    *_QWEN3,
    key_is("moe_enabled", True),
    key("moe_inter_dim", "mlp.moe.ffn"),
    nested("moe_args", [
        *_EXPERTS,
        BIAS_ASKED_OF_TENSORS,
    ]),
    ignore("hidden_dim", why="of dense layers, which this model does not have"),
])

DEEPSEEK_V3 = Config("torchtitan's DeepSeekV3ModelArgs", [
    *_SAID,
    *(fact_is(f"{norm}.kind", "rms") for norm in _LATENT_NORMS),
    # transformers and DeepSeek's own code have 1e-6 in the norms of latents, whatever the others have
    key("norm_eps", *(f"{norm}.eps" for norm in _LATENT_NORMS)),
    configs.where(f"{LATENT}.q_rank", [fact_is(f"{LATENT}.q_norm.kind", "rms"), configs.fact_as(f"{LATENT}.q_norm.eps", f"{LATENT}.kv_norm.eps")]),
    *LATENT_SIZES,
    key("rope_theta", f"{LATENT}.rotary.theta"),
    decided([*YARN, "mscale"], YARN_CLAIMS, read=_read_yarn, uses=["max_seq_len", *YARN_USES], values={}, why=YARN_WHY),
    configs.in_other_layers("inter_dim", "mlp.ffn", than="mlp.moe", unused="dense_ffn"),
    by_layer("n_dense_layers", "mlp.moe", rules.some(~rules.first_layers())),
    key("moe_inter_dim", "mlp.moe.ffn"),
    nested("moe_args", [
        *_EXPERTS,
        BIAS_ON_SCORES,
    ]),
    fact_is("head.tied", False),
    ignore("n_expert_groups", "n_limited_groups", why="of 0.2.0, which does not use them"),
    ignore("max_batch_size", "moe_impl", "expert_parallel_comm_backend", why="how it runs"),
])
# fmt: on


def table_of(args: Mapping[str, Any]) -> Config | None:
    """The table of a dump; None if it is not one. `depth_init` tells it from the `params.json` of Meta's own code, which has the other names, too."""
    if {"dim", "n_layers", "n_dense_layers", "kv_lora_rank"} <= args.keys():
        return DEEPSEEK_V3
    if not {"dim", "n_layers", "depth_init"} <= args.keys():
        return None
    if "qk_norm" not in args:
        return LLAMA3
    return QWEN3_MOE if args.get("moe_enabled") else QWEN3
