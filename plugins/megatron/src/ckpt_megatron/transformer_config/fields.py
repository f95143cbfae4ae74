"""What the fields of a config class mean: one table for models with usual attention, one for latent attention.

How many rows the vocabulary has is not here: the formats say it in ways of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Config,
    Custom,
    Entry,
    Facts,
    Refusal,
    custom,
    fact_is,
    ignore,
    key,
    note,
    one_of,
    same_as,
)
from ckpt_megatron.args.attention import biases, head_dim, window
from ckpt_megatron.args.mlp import widths
from ckpt_megatron.args.norms import norms
from ckpt_megatron.transformer_config.activation import activation
from ckpt_megatron.transformer_config.config_fields import AT_DEFAULT, HARMLESS, inert
from ckpt_megatron.transformer_config.generation import generation
from ckpt_megatron.transformer_config.positions import positions

_RENAMED = {"num_experts": "num_moe_experts"}  # argument: field
_ARGUMENTS_ALONE = frozenset({"disable_bias_linear", "norm_epsilon", "apply_layernorm_1p"})
_BALANCED = ("aux_loss", "seq_aux_loss", "global_aux_loss", "none")
# The block that a model of the tables is built of; NeMo and Bridge have one function each, Megatron-Core another.
_SPECS = (
    "default_layer_spec",
    "local_layer_spec",
    "transformer_engine_layer_spec",
    "get_gpt_decoder_block_spec",
    "get_gpt_layer_local_spec",
    "get_gpt_layer_with_transformer_engine_spec",
)


def of_fields(line: Entry) -> Custom:
    """A line about arguments as one about fields: under the fields' names, without what is an argument alone."""
    names = {key: _RENAMED.get(key, key) for key in line.keys if key not in _ARGUMENTS_ALONE}

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        known = {key: value for key, value in config.items() if key not in _ARGUMENTS_ALONE}
        line.read(known | {key: config[name] for key, name in names.items() if name in config}, facts, notes)

    def write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        args: dict[str, Any] = {}
        line.write(facts, notes, args)
        config |= {names[key]: value for key, value in args.items() if key in names}

    return custom(names.values(), line.claims, read=read, write=write)


def _balancing() -> Custom:
    """Sinkhorn chooses other experts; the others only add a loss. Since core 0.14 it may be a list."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        kinds = config.get("moe_router_load_balancing_type", "none")
        for kind in kinds if isinstance(kinds, list) else [kinds]:
            if kind not in _BALANCED:
                raise CkptError(
                    "key 'moe_router_load_balancing_type' asks for something that is not supported",
                    found=repr(kind)[:80],
                    expected=" or ".join(_BALANCED),
                )

    return custom(["moe_router_load_balancing_type"], [], read=read, write=lambda facts, notes, config: None)


def _layer_spec() -> Custom:
    """What a layer is made of: one of the specs of the usual blocks, as a function or a partial of one."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        spec = config.get("transformer_layer_spec")
        name = spec.get("_target_") if isinstance(spec, dict) else spec
        if name is not None and str(name).rpartition(".")[2].partition("(")[0] not in _SPECS:
            raise CkptError(
                "key 'transformer_layer_spec' makes layers that we do not know",
                found=str(name)[:120],
                expected=" or ".join(_SPECS),
                fix="if they are layers of the usual kind, leave it out with -o ignore_keys=transformer_layer_spec",
            )

    return custom(["transformer_layer_spec"], [], read=read, write=lambda facts, notes, config: None)


def _common(attention: str, package: str, *, yarn: bool = False) -> list[Entry]:
    latent = attention == "latent_attention"
    return [
        fact_is("kind", "decoder"),
        fact_is("causal", True),
        key("hidden_size", "hidden"),
        key("num_attention_heads", f"{attention}.heads"),
        of_fields(widths()),
        activation(package),
        of_fields(biases(latent)),
        of_fields(norms(latent)),
        positions(attention, yarn=yarn),
        key("share_embeddings_and_output_weights", "head.tied", default=True),
        key("apply_residual_connection_post_layernorm", "residual_from_norm", default=False),
        custom(
            ["vocab_size", "make_vocab_size_divisible_by", "should_pad_vocab"],
            ["tokens.vocabulary", "tokens.padded_vocabulary"],
            read=lambda config, facts, notes: None,
            write=lambda facts, notes, config: None,
        ),
        note("init_method_std", "initializer_range"),
        generation(),
        _balancing(),
        _layer_spec(),
        *AT_DEFAULT,
        *HARMLESS,
    ]


def usual(name: str, package: str, *, yarn: bool = False) -> Config:
    """The table of models with usual attention. `package` has the activations that torch does not have; see `positions`."""
    return Config(
        name,
        [
            *_common("attention", package, yarn=yarn),
            inert("multi_latent_attention", False),
            note("rotary_interleaved", "interleaved"),
            key("num_query_groups", "attention.groups", default=same_as("num_attention_heads")),
            head_dim(),
            window(),
            key(
                "softmax_type", "attention.sinks", default="vanilla", via=one_of({"vanilla": False, "learnable": True})
            ),
            key("softmax_scale", "attention.scale", default=None),
            ignore(*_LATENT, why="fields of latent attention, which this model does not have"),
        ],
    )


_LATENT = ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")


def latent(name: str, package: str) -> Config:
    """The table of models with latent attention. Ranks and widths come first: norms and yarn ask for them."""
    return Config(
        name,
        [
            custom(
                ["multi_latent_attention"],
                [],
                read=lambda config, facts, notes: None,
                write=lambda facts, notes, config: config.update(multi_latent_attention=True),
            ),
            key("q_lora_rank", "latent_attention.q_rank", default=None),
            key("kv_lora_rank", "latent_attention.kv_rank"),
            key("qk_head_dim", "latent_attention.nope_dim"),
            key("qk_pos_emb_head_dim", "latent_attention.rope_dim"),
            key("v_head_dim", "latent_attention.value_dim"),
            *_common("latent_attention", package),
            inert("rotary_interleaved", False),
            inert("window_size"),
            inert("softmax_type", "vanilla"),
            inert("softmax_scale"),
            ignore("kv_channels", "num_query_groups", "window_attn_skip_freq", why="latent attention has no groups"),
        ],
    )


def scaled_embedding() -> Custom:
    """No field says it: the models of Gemma multiply the embedding by the square root of hidden_size."""

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        facts["tokens.scale"] = config["hidden_size"] ** 0.5

    def write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        if not math.isclose(facts["tokens.scale"], facts["hidden"] ** 0.5, rel_tol=1e-6):
            scale = facts["tokens.scale"]
            raise Refusal("the embedding is scaled by the square root of hidden_size", found=f"tokens.scale = {scale}")

    return custom([], ["tokens.scale"], read=read, write=write)
