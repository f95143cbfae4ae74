"""In words: how a NeMo T5 differs from one of transformers, and what its config says about what no class there can hold.

Five settings decide it. NVIDIA's own script for the other direction (hf_t5-v1_1_to_nemo.py, r1.16) sets all five in its base
YAML, so that its reverse is right for models that came through it, and for no model born in NeMo.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Activation, Architecture, schema
from ckpt_nemo.t5.config import SECTIONS
from ckpt_nemo.t5.weights import CROSS_TABLE, HEAD_BIAS, Blocks
from ckpt_nemo.values import flag

Values = Mapping[str, Any]


def differences(config: Values, blocks: Blocks, architecture: Architecture) -> list[str]:
    """The five differences, each with the keys that decide it; where there is none it says so."""
    return [
        f"1 scores: {_each(config, 'normalize_attention_scores', True, _scores, architecture)}",
        f"2 fused rows: {_rows(blocks)}",
        f"3 relative bias: {_each(config, 'apply_query_key_layer_scaling', True, _bias, architecture)}",
        f"4 activation: {_activations(config, architecture)}",
        f"5 head: {_head(architecture)}",
    ]


def _each(config: Values, key: str, default: bool, say: Any, architecture: Architecture) -> str:
    """What a key says in both sections, once if they agree."""
    said = {}
    for section in SECTIONS:
        value = flag(config, f"{section}.{key}", default)
        said[section] = f"{key} {str(value).lower()}, {say(getattr(architecture, section), value)}"
    return (
        said["encoder"]
        if said["encoder"] == said["decoder"]
        else "; ".join(f"{section}: {text}" for section, text in said.items())
    )


def _attention(stack: schema.Stack) -> schema.Attention:
    attention = stack.layers[0].attention
    assert attention is not None  # T5 has no other
    return attention


def _scores(stack: schema.Stack, value: bool) -> str:
    width = _attention(stack).head_dim
    if not value:
        return "nothing divides q.k, as in transformers' T5"
    return f"q.k is divided by sqrt({width}); transformers' T5 divides by nothing, so {width}**-0.5 = {width**-0.5:.6g} is multiplied into q"


def _rows(blocks: Blocks) -> str:
    held = {"encoder": blocks.encoder, "decoder": blocks.decoder, "cross attention": blocks.cross}
    said = {
        True: "q, k and v are blocks in each rank, as NVIDIA's script makes them",
        False: "q, k and v lie head by head, and are taken apart",
    }
    if len(set(held.values())) == 1:
        return (
            f"megatron_legacy {str(blocks.encoder).lower()}, {said[blocks.encoder]}, those of the cross attention too"
        )
    return "megatron_legacy differs; " + "; ".join(f"{name}: {said[flag]}" for name, flag in held.items())


def _bias(stack: schema.Stack, value: bool) -> str:
    if stack.relative_bias is None:
        return "without effect, as there is no relative bias"
    if not value:
        return "every layer adds the same bias, as in transformers' T5"
    return "layer L adds L times the bias: only UMT5, with a table in every layer, can hold that"


_TOLD = {
    Activation.GELU_TANH: "the tanh form of GELU, which transformers calls gated-gelu (gelu_new without a gate)",
    Activation.GELU_ERF: "the erf form of GELU, which transformers calls gated-gelu_python (gelu without a gate); gated-gelu would be the tanh form",
}


def _activations(config: Values, architecture: Architecture) -> str:
    said = {}
    for section in SECTIONS:
        function = getattr(architecture, section).layers[0].mlp.activation
        named = ", ".join(
            f"{key} {str(config[f'{section}.{key}']).lower()}"
            for key in ("activation", "openai_gelu", "bias_activation_fusion")
            if f"{section}.{key}" in config
        )
        text = f"{named}: {_TOLD.get(function, function.value)}"
        if function == Activation.GELU_TANH and config.get(f"{section}.activation") in ("swiglu", "reglu"):
            text += "; openai_gelu overrides the name: if this model came from a gated-silu one by NVIDIA's script and was never trained since, it is not that model any more"
        said[section] = text
    return (
        said["encoder"]
        if said["encoder"] == said["decoder"]
        else "; ".join(f"{section}: {text}" for section, text in said.items())
    )


def _head(architecture: Architecture) -> str:
    head = architecture.head
    assert head is not None  # a T5 has one
    tied = (
        "tied to the embedding and not scaled; a tied head of transformers' T5 is scaled by d_model**-0.5"
        if head.tied
        else "a matrix of its own, as in T5 1.1"
    )
    return tied + ("; and a bias, which only Blenderbot has" if head.bias else "")


def explanations(config: Values, architecture: Architecture, largest: Mapping[str, float]) -> dict[str, str]:
    """What the config says about the facts that a class of transformers may lack, and what would change without them."""
    found = {}

    def say(fact: str, key: str, default: object, why: str) -> None:
        found[fact] = f"{key}: {str(config.get(key, default)).lower()}. {why}"

    if architecture.head is not None and architecture.head.bias:
        say(
            "head.bias",
            "tokens_head_bias",
            True,
            f"tokens_head.bias is trained: without it logits move by up to {largest[HEAD_BIAS]:.3g}",
        )
    for section in SECTIONS:
        stack = getattr(architecture, section)
        if stack.cross_relative_bias is not None:
            why = (
                f"every cross attention adds a learned bias: without it scores move by up to {largest[CROSS_TABLE]:.3g}"
            )
            say(f"{section}.cross_relative_bias", f"{section}.relative_position_bias_self_attention_only", True, why)
        if stack.positions is not None:
            say(
                f"{section}.positions",
                f"{section}.position_embedding_type",
                "learned_absolute",
                "T5 has no table of positions: without it the model does not know the order of tokens",
            )
        elif stack.relative_bias is not None:
            say(
                f"{section}.attention.relative_bias_scale",
                f"{section}.apply_query_key_layer_scaling",
                True,
                "layer L adds L times the relative bias: with one bias for all layers the scores of later layers are off by (L - 1) times it",
            )
            say(
                f"{section}.relative_bias",
                f"{section}.position_embedding_type",
                "learned_absolute",
                "one table of relative biases serves the whole stack",
            )
        say(
            f"{section}.final_norm.kind",
            f"{section}.normalization",
            "layernorm",
            "T5 has RMS norms alone, Blenderbot LayerNorm alone",
        )
        say(
            f"{section}.final_norm.eps",
            f"{section}.layernorm_epsilon",
            1e-5,
            "a class with one epsilon needs both stacks to have the same",
        )
        say(
            f"{section}.attention.q_bias",
            f"{section}.bias",
            True,
            "T5 has no biases: without them every projection is shifted",
        )
        say(
            f"{section}.mlp.activation",
            f"{section}.activation",
            "gelu",
            "openai_gelu and bias_activation_fusion decide the function with it",
        )
        say(f"{section}.attention.head_dim", f"{section}.kv_channels", None, "the width of a head")
        say(
            f"{section}.attention.heads",
            f"{section}.num_attention_heads",
            None,
            "a class with one number of heads needs it in both stacks",
        )
        say(f"{section}.mlp.ffn", f"{section}.ffn_hidden_size", None, "a class with one width needs it in both stacks")
    return found
