"""What the args of a Megatron checkpoint mean.

A checkpoint stores the whole command line, 70 attributes in 2020 and 820 in core 0.19. The lines below name those
that say what the model is; `neutral` are those that would make it something we do not describe, with the values
that do not. All others tell how to train, and are left aside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    Architecture,
    Config,
    Facts,
    Refusal,
    configs,
    decided,
    fact_is,
    key,
    key_is,
    note,
    schema,
    values,
)
from ckpt_megatron.args.attention import biases, groups, head_dim, softmax, window
from ckpt_megatron.args.mlp import activation, clamped, widths
from ckpt_megatron.args.norms import norms
from ckpt_megatron.args.positions import positions
from ckpt_megatron.args.predictors import predictors
from ckpt_megatron.args.router import undisturbed
from ckpt_megatron.args.values import flag, neutral
from ckpt_megatron.args.vocabulary import head, vocabulary


def _read_interleaved(args: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    notes["interleaved"] = flag(args, "rotary_interleaved")


def _common(attention: str) -> list[configs.Entry | list[configs.Entry]]:
    """The lines that models with usual and with latent attention share; `attention` is the path of theirs."""
    latent = attention == "latent_attention"
    return [
        fact_is("kind", "decoder"),
        fact_is("causal", True),
        key("hidden_size", "hidden"),
        key("num_attention_heads", f"{attention}.heads"),
        widths(),
        activation(),
        biases(latent),
        norms(latent),
        positions(attention),
        vocabulary(),
        head(),
        key("apply_residual_connection_post_layernorm", "residual_from_norm", default=False, type=values.switch),
        note("init_method_std", "initializer_range"),
        # Megatron asks its tokenizer for these; they are kept in the args for formats that have them in a config.
        note("bos_token_id", "bos"),
        note("eos_token_id", "eos"),
        note("pad_token_id", "pad"),
        note("decoder_start_token_id", "decoder_start"),
        # what would make it another model
        key_is(
            "enable_gpt_oss",
            False,
            None,
            or_absent=True,
            written=False,
            why="ModelOpt's builder replaces the positions by those of gpt-oss, whatever the args say (post_training/model_builder.py)",
        ),
        neutral("qk_l2_norm", False),
        neutral("attention_output_gate", False),
        neutral("experimental_attention_variant", None),
        neutral("linear_attention_freq", None),
        neutral("is_hybrid_model", False),
        neutral("hybrid_override_pattern", None),
        neutral("hybrid_layer_pattern", None),
        neutral("heterogeneous_layers_config_path", None),
        neutral("heterogeneous_layers_config_encoded_json", None),
        neutral("heterogeneous_block_specs", False),
        neutral("retro_add_retriever", False),
        clamped(),
        neutral("moe_latent_size", None),
        neutral("moe_apply_probs_on_input", False),
        neutral("moe_router_topk_limited_devices", None),
        neutral("moe_router_force_load_balancing", False),
        neutral("moe_token_dropping", False),
        undisturbed(),
        predictors(),
        neutral("use_mup", False),
    ]


GPT = Config(
    "Megatron's GPTModel",
    [
        *_common("attention"),
        neutral("multi_latent_attention", False),
        decided(
            ["rotary_interleaved"],
            [],
            read=_read_interleaved,
            values={"rotary_interleaved": [False]},
            why="whether rotary pairs are neighbours, which is a matter of how q and k are arranged; never written so",
        ),
        groups(),
        head_dim(),
        window(),
        softmax(),
    ],
)

# The ranks and widths come first: norms and yarn ask for them.
MLA = Config(
    "Megatron's GPTModel with latent attention",
    [
        neutral("multi_latent_attention", True),
        key("q_lora_rank", "latent_attention.q_rank", default=None),
        key("kv_lora_rank", "latent_attention.kv_rank", default=512),
        key("qk_head_dim", "latent_attention.nope_dim", default=128),
        key("qk_pos_emb_head_dim", "latent_attention.rope_dim", default=64),
        key("v_head_dim", "latent_attention.value_dim", default=128),
        *_common("latent_attention"),
        neutral("rotary_interleaved", False),
        neutral("window_size", None),
        neutral("softmax_type", "vanilla"),
    ],
)


def decoder_of(architecture: Architecture) -> schema.Stack:
    """The one stack of a GPTModel; `Refusal` for an architecture with an encoder."""
    if architecture.decoder is None or architecture.encoder is not None:
        raise Refusal("Megatron's GPTModel is a decoder", found="an encoder")
    return architecture.decoder


def table_for(architecture: Architecture) -> Config:
    """The table of the kind of attention that an architecture has."""
    return GPT if decoder_of(architecture).layers[0].latent_attention is None else MLA


def table_of(args: Mapping[str, Any]) -> Config:
    """The table of the kind of attention that the args name."""
    return MLA if args.get("multi_latent_attention") else GPT


def read_args(args: Mapping[str, Any], file: str) -> tuple[Facts, dict[str, Any]]:
    """What the args of a checkpoint say about its model."""
    table = table_of(args)
    return table.read({key: value for key, value in args.items() if key in table.keys}, file)
