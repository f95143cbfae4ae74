"""Layers that are gated delta nets (core/ssm/gated_delta_net.py), and the gate on the output of attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Activation, CkptError, Facts, Refusal, configs, decided, ignore, key, rules, schema, values
from ckpt_megatron.args.norms import ALIKE
from ckpt_megatron.transformer_config.config_fields import inert

_GATE = "attention_output_gate"
_VARIANT, _FREQUENCY, _NET = "experimental_attention_variant", "linear_attention_freq", "gated_delta_net"
_SIZES = {
    "linear_num_key_heads": ("delta.key_heads", 16),
    "linear_num_value_heads": ("delta.value_heads", 32),
    "linear_key_head_dim": ("delta.key_dim", 128),
    "linear_value_head_dim": ("delta.value_dim", 128),
    "linear_conv_kernel_dim": ("delta.conv", 4),
}
# A list with a 1 for each delta net, or a number n: all but every n-th layer are (get_linear_attention_pattern).
_LAYERS = rules.each() | ~rules.every_nth()
SPEC = "megatron.core.models.gpt.experimental_attention_variant_module_specs.get_transformer_block_with_experimental_attention_variant_spec"
"""The function that makes the layers, without which the fields of delta nets are not looked at."""


def _read_gate(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    facts["attention.out_gate"] = values.checked(_GATE, config.get(_GATE, False), values.switch)


def _read_layers(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    variant, frequency = config.get(_VARIANT), config.get(_FREQUENCY)
    if variant is None and frequency is None:
        return
    layers = _LAYERS.read(frequency, facts["layers"]) if variant == _NET else None
    if layers is None or len({*layers}) < 2:
        raise CkptError(
            f"keys {_VARIANT!r} and {_FREQUENCY!r} say something that is not supported",
            found=f"{variant!r}, {str(frequency)[:60]}",
            expected=f"{_NET} in some layers of {facts['layers']} and attention in the others, or neither key",
        )
    if facts.get("mlp.activation") is not Activation.SILU or facts.get("mlp.up_bias"):
        raise CkptError(
            f"{_VARIANT} = {_NET} is supported with the activation SiLU and without biases of linear layers alone",
            found=f"mlp.activation = {facts.get('mlp.activation')}, mlp.up_bias = {facts.get('mlp.up_bias')}",
        )
    facts["delta?"], facts["attention?"] = schema.PerLayer(layers), schema.PerLayer(not one for one in layers)


def no_delta_nets() -> list[configs.Entry]:
    """The lines of models that have no delta nets: their fields change nothing where no layer is one."""
    return [
        inert(_GATE, False),
        inert(_VARIANT),
        inert(_FREQUENCY),
        *ignore(*_SIZES, why="sizes of delta nets, which this model does not have"),
    ]


def delta_nets() -> list[configs.Entry]:
    """The lines of models some of whose layers are delta nets. Where none is, nothing is written."""
    together = (_VARIANT, _FREQUENCY)
    return [
        decided(
            [_GATE],
            ["attention.out_gate"],
            read=_read_gate,
            values={_GATE: [configs.LEFT_OUT, True]},
            why="whether linear_qkv has a gate for each query, whose sigmoid multiplies the output of attention",
        ),
        decided(
            together,
            ["attention?", "delta?"],
            read=_read_layers,
            values={
                together: [
                    (configs.LEFT_OUT, configs.LEFT_OUT),
                    (_NET, configs.layers_of("delta", rules.each())),
                ]
            },
            uses=["layers", "mlp.activation", "mlp.up_bias"],
            why="a gated delta net in the layers that linear_attention_freq chooses, attention in the others",
        ),
        configs.where(
            "delta",
            [
                *(key(field, path, default=default) for field, (path, default) in _SIZES.items()),
                configs.all_agree("attention.norm", "delta.norm", why=ALIKE),
                # out_norm is stored around zero where the others are, which is a matter of its row
                configs.fact_as("delta.head_norm.kind", "attention.norm.kind"),
                configs.fact_as("delta.head_norm.eps", "attention.norm.eps"),
            ],
        ),
    ]


def refuse_unwritten(facts: Facts, version: str, newest: str, names: str) -> None:
    """`Refusal` for a version of Bridge, or modules, of whose delta nets nothing is known."""
    if facts.present("delta") is False and not facts.get("attention.out_gate"):
        return
    if version != newest:
        raise Refusal(
            "delta nets and gates on the output of attention are written for the newest Bridge alone",
            found=f"bridge_version = {version}, " + ("delta" if facts.present("delta") else "attention.out_gate"),
            fix=f"-o bridge_version={newest}",
        )
    if names != "te":
        raise Refusal(
            "delta nets are made of TransformerEngine's modules", found="names = local, delta", fix="-o names=te"
        )
