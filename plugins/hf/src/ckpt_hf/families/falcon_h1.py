"""Falcon-H1: in every layer a Mamba-2 block beside attention, then an MLP, and a number by which almost every projection is multiplied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Activation, CkptError, Facts, configs, decided, fact_is, ignore, key, key_is, layouts, values
from ckpt_hf import heads
from ckpt_hf.common import NORMS, Family, groups
from ckpt_hf.families.bamba import BAMBA_LAYER, BAMBA_MODEL
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.families.mamba import chunks, head_width, step_limit

_ONES = [1.0] * 5


def _numbers(config: Mapping[str, Any], name: str, count: int) -> list[float]:
    given = config.get(name)
    if given is None:
        return [1.0] * count
    if not isinstance(given, list) or len(given) != count:
        raise CkptError(f"key {name!r} is not a list of {count} numbers", found=str(given)[:80])
    return [float(values.checked(name, one, values.number)) for one in given]


def _read_keys(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    factor = values.checked("key_multiplier", config.get("key_multiplier", 1.0), values.number)
    if factor != 1.0:
        facts["attention.scale"] = factor * facts["attention.head_dim"] ** -0.5


def _key_multiplier(scale: float, head_dim: int) -> float:
    return float(f"{scale * head_dim**0.5:.15g}")


def _read_mlp(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    facts["mlp.gate_scale"], facts["mlp.out_scale"] = _numbers(config, "mlp_multipliers", 2)


def _read_projections(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    scales = _numbers(config, "ssm_multipliers", 5)
    if scales != _ONES:
        facts["mamba.scales"] = tuple(scales)


def _read_norm(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    def flag(name: str, default: bool) -> bool:
        return values.checked(name, config.get(name, default), values.flag)

    before = flag("mamba_norm_before_gate", True)
    if flag("mamba_rms_norm", False):
        facts["mamba.gated_norm.kind"], facts["mamba.norm_before_gate"] = "rms", before
        facts["mamba.gated_norm.eps"] = values.checked("rms_norm_eps", config.get("rms_norm_eps", 1e-5), values.number)


def _scale(name: str, path: str) -> configs.Entry:
    return key(name, path, default=1.0, null=configs.REQUIRED)


_NORM = ("mamba_rms_norm", "mamba_norm_before_gate")

# fmt: off
FALCON_H1 = LLAMA.replace("FalconH1ForCausalLM",
    groups(8),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    _scale("embedding_multiplier", "tokens.scale"),
    _scale("lm_head_multiplier", "head.scale"),
    _scale("attention_in_multiplier", "attention.in_scale"),
    _scale("attention_out_multiplier", "attention.out_scale"),
    _scale("ssm_in_multiplier", "mamba.in_scale"),
    _scale("ssm_out_multiplier", "mamba.out_scale"),
    decided(["key_multiplier"], ["attention.scale"], read=_read_keys, uses=["attention.head_dim"],
            values={"key_multiplier": [1.0, configs.value_of("attention.scale", "attention.head_dim", by=_key_multiplier)]},
            why="keys are multiplied by it, and so are the scores, which are divided by the root of head_dim"),
    decided(["mlp_multipliers"], ["mlp.gate_scale", "mlp.out_scale"], read=_read_mlp,
            values={"mlp_multipliers": [configs.value_of("mlp.gate_scale", "mlp.out_scale")]},
            why="two numbers, of the gate and of the output; 1 by default"),
    decided(["ssm_multipliers"], ["mamba.scales"], read=_read_projections,
            values={"ssm_multipliers": [configs.value_of("mamba.scales", by=list), _ONES]},
            why="five numbers, of the projections z, x, b, c and dt; 1 by default"),
    key("mamba_n_heads", "mamba.heads", default=128),
    head_width("mamba_n_heads", "mamba_d_head", "mamba_expand", inner="mamba_d_ssm"),
    key("mamba_n_groups", "mamba.groups", "mamba.norm_groups", default=1),
    key("mamba_d_state", "mamba.state", default=256),
    key("mamba_d_conv", "mamba.conv", default=4),
    key("mamba_conv_bias", "mamba.conv_bias", default=True),
    key("mamba_proj_bias", "mamba.bias", default=False),
    configs.repeats("projectors_bias", "mamba_proj_bias", default=False),  # of the last projection alone
    decided(_NORM, ["mamba.gated_norm.*", "mamba.norm_before_gate"], read=_read_norm, uses=["rms_norm_eps"],
            values={_NORM: [(False, False), (True, configs.value_of("mamba.norm_before_gate"))]},
            why="mamba_rms_norm says whether there is a norm beside the gate, whose eps is rms_norm_eps, and mamba_norm_before_gate where it is"),
    step_limit(),
    # the convolutions of the blocks have the activation of the MLP, which the schema knows as SiLU alone
    key_is("hidden_act", "silu", or_absent=True),
    fact_is("mlp.activation", Activation.SILU),
    key_is("mamba_use_mlp", True, or_absent=True, written=False),
    key_is("attn_layer_indices", None, or_absent=True, written=False),
    ignore("time_step_rank", "time_step_min", "time_step_max", "time_step_floor", why="of the initialisation"),
    chunks("mamba_chunk_size"),
    ignore("mlp_expansion_factor", why="the width is intermediate_size"),
)
# fmt: on

FAMILIES = [
    Family("falcon_h1", FALCON_H1, layouts.Tables([BAMBA_MODEL, BAMBA_LAYER]), heads=(heads.BARE,), padding=0),
]
