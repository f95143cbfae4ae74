"""Falcon-H1 (Bridge's FalconH1ModelProvider): attention and a Mamba-2 block side by side in every layer, and a number for almost every projection.

Its source is `models/falcon_h1` of Megatron-Bridge 0.6, whose layer computes what transformers' does where no linear layer has a bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Config,
    Facts,
    Refusal,
    configs,
    decided,
    fact_is,
    ignore,
    key,
    key_is,
    note,
    values,
)
from ckpt_megatron.args.router import ROUTER_KEYS
from ckpt_megatron.transformer_config.config_fields import inert, listed
from ckpt_megatron.transformer_config.delta import no_delta_nets

_SPEC, _SPECS = "falconh1_stack_spec", ("get_default_falconh1_stack_spec", "falconh1_stack_spec")
_LEARNED = "learned_absolute"
_SCALE, _KEYS = "softmax_scale", "key_multiplier"
_NORM = ("rmsnorm", "norm_before_gate")
_ONES = [1.0] * 5
# Fields of the class, and of GPTModel's the ones that it has too, beside those of core. The ids of special tokens are written as for every
# class, of which Bridge leaves out what it does not know.
_OWN = frozenset(
    "chunk_size conv_bias d_conv expand norm_before_gate rmsnorm embedding_multiplier lm_head_multiplier key_multiplier attention_in_multiplier "
    "attention_out_multiplier ssm_in_multiplier ssm_out_multiplier mlp_multipliers ssm_multipliers falconh1_ratio use_mamba use_attention use_mlp "
    "seq_length share_embeddings_and_output_weights position_embedding_type rotary_percent rotary_base seq_len_interpolation_factor "
    "make_vocab_size_divisible_by vocab_size should_pad_vocab generation_config".split()
)


def _numbers(config: Mapping[str, Any], name: str, count: int) -> list[float]:
    given = config.get(name, [1.0] * count)
    if not isinstance(given, list | tuple) or len(given) != count:
        raise CkptError(f"key {name!r} is not a list of {count} numbers", found=str(given)[:80])
    return [float(values.checked(name, one, values.number)) for one in given]


def _read_scale(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    factor = values.checked(_KEYS, config.get(_KEYS, 1.0), values.number)
    scale = config.get(_SCALE)
    usual = facts["attention.head_dim"] ** -0.5
    if factor != 1.0 or scale is not None:
        facts["attention.scale"] = factor * (usual if scale is None else values.checked(_SCALE, scale, values.positive))


def _key_multiplier(scale: float, head_dim: int) -> float:
    return float(f"{scale * head_dim**0.5:.15g}")


def _read_mlp(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    facts["mlp.gate_scale"], facts["mlp.out_scale"] = _numbers(config, "mlp_multipliers", 2)


def _read_projections(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    scales = _numbers(config, "ssm_multipliers", 5)
    if scales != _ONES:
        facts["mamba.scales"] = tuple(scales)


def _read_norm(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    if values.checked("rmsnorm", config.get("rmsnorm", True), values.flag):
        # whatever layernorm_epsilon is (core/ssm/mamba_mixer.py)
        facts["mamba.gated_norm.kind"], facts["mamba.gated_norm.eps"] = "rms", 1e-5
        before = config.get("norm_before_gate", False)
        facts["mamba.norm_before_gate"] = values.checked("norm_before_gate", before, values.flag)


def _read_nothing(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    return


def _expanded(width: int, heads: int, hidden: int) -> int:
    """What the class multiplies by the hidden size, and asks to be divided by the width of a head, before it takes the heads."""
    return width * heads // hidden if width * heads % hidden == 0 else width


def _check_spec(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    spec = config.get(_SPEC)
    name = spec.get("_target_") if isinstance(spec, dict) else spec
    if name is not None and str(name).rpartition(".")[2] not in _SPECS:
        raise CkptError(f"key {_SPEC!r} makes other layers", found=str(name)[:120], expected=_SPECS[0])
    if config.get("position_embedding_type") == _LEARNED:
        raise CkptError(
            "key 'position_embedding_type' adds learned positions, which the class multiplies by embedding_multiplier, too",
            found=_LEARNED,
            expected="rope or none",
        )


# fmt: off
def falcon_h1(usual: Config, name: str) -> Config:
    """The table of Falcon-H1's models, from that of the usual ones with the same fields."""
    return usual.replace(name,
        key("num_layers", "layers"),
        key("ffn_hidden_size", "mlp.ffn"),
        no_delta_nets(),
        key("embedding_multiplier", "tokens.scale", default=1.0),
        key("lm_head_multiplier", "head.scale", default=1.0),
        key("attention_in_multiplier", "attention.in_scale", default=1.0),
        key("attention_out_multiplier", "attention.out_scale", default=1.0),
        key("ssm_in_multiplier", "mamba.in_scale", default=1.0),
        key("ssm_out_multiplier", "mamba.out_scale", default=1.0),
        decided([_KEYS, _SCALE], ["attention.scale"], read=_read_scale, uses=["attention.head_dim"],
                values={(_KEYS, _SCALE): [(1.0, None), (configs.value_of("attention.scale", "attention.head_dim", by=_key_multiplier), None)]},
                why="keys are multiplied by it, and so are the scores"),
        decided(["mlp_multipliers"], ["mlp.gate_scale", "mlp.out_scale"], read=_read_mlp,
                values={"mlp_multipliers": [configs.value_of("mlp.gate_scale", "mlp.out_scale")]},
                why="two numbers, of the gate and of the output"),
        decided(["ssm_multipliers"], ["mamba.scales"], read=_read_projections,
                values={"ssm_multipliers": [configs.value_of("mamba.scales", by=list), _ONES]},
                why="five numbers, of the projections z, x, b, c and dt"),
        key("mamba_num_heads", "mamba.heads"),
        key("mamba_head_dim", "mamba.head_dim", default=64),
        key("mamba_num_groups", "mamba.groups", "mamba.norm_groups", default=1),
        key("mamba_state_dim", "mamba.state", default=128),
        key("d_conv", "mamba.conv", default=4),
        key("conv_bias", "mamba.conv_bias", default=True),
        decided(_NORM, ["mamba.gated_norm.*", "mamba.norm_before_gate"], read=_read_norm,
                values={_NORM: [(False, False), (True, configs.value_of("mamba.norm_before_gate"))]},
                why="rmsnorm says whether there is a norm beside the gate, of epsilon 1e-5, and norm_before_gate where it is"),
        decided(["expand"], [], read=_read_nothing, uses=["mamba.heads", "mamba.head_dim", "hidden"],
                values={"expand": [configs.value_of("mamba.head_dim", "mamba.heads", "hidden", by=_expanded)]},
                why="the heads are mamba_num_heads of mamba_head_dim, whatever it is"),
        # with a bias the output of attention would have it beside attention_out_multiplier, and not below it
        key_is("add_bias_linear", False, or_absent=True),
        key("add_qkv_bias", *(f"attention.{part}_bias" for part in "qkv"), default=False),
        *(fact_is(path, False) for path in ("attention.out_bias", "mlp.up_bias", "mlp.down_bias", "mamba.bias")),
        # its attention has no norms of q and k, and its MLP cuts the gate before it is multiplied
        inert("qk_layernorm", False),
        inert("activation_func_clamp_value"),
        inert("glu_linear_offset", 0.0),
        *(key_is(part, True, or_absent=True) for part in ("use_mamba", "use_attention", "use_mlp")),
        key_is("falconh1_ratio", 1.0, or_absent=True),
        inert("hybrid_override_pattern"),
        *(inert(name, 0.0) for name in ("hybrid_attention_ratio", "hybrid_mlp_ratio")),
        inert("D_has_hdim", False),
        inert("mtp_num_layers", 0),
        ignore("mtp_use_repeated_layer", why="of layers that predict further tokens, which this model does not have"),
        decided([_SPEC], [], read=_check_spec, values={}, uses=["position_embedding_type"], why="the layers of the class, and no learned positions"),
        ignore("A_init_dist", "A_init_range", "conv_init", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", why="how parameters start"),
        note("chunk_size", "chunk_size"),
        ignore("mamba_chunk_size", why="how to run it, not what it computes"),
        ignore(*ROUTER_KEYS, "num_moe_experts", "moe_layer_freq", "moe_ffn_hidden_size", "moe_shared_expert_intermediate_size", "moe_shared_expert_gate",
               why="of experts, which this model does not have"),
    )
# fmt: on


def fields_of_the_class(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the written fields that the class has. Raises `Refusal` where another one says something."""
    if fields["position_embedding_type"] == _LEARNED:
        raise Refusal(
            "FalconH1ModelProvider multiplies learned positions by embedding_multiplier, too",
            found=f"position_embedding_type = {_LEARNED}",
            fact="positions.count",
        )
    known = _OWN | {row.name for row in listed()[0] if row.core}
    others = {name: value for name, value in fields.items() if name not in known}
    if said := {name: value for name, value in others.items() if value not in (None, False)}:
        raise Refusal(
            "FalconH1ModelProvider has no such field",
            found=", ".join(f"{name} = {value}" for name, value in said.items()),
        )
    return {name: value for name, value in fields.items() if name in known}
