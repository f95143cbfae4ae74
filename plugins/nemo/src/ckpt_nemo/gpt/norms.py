"""Norms: all of a model are of one kind, with one epsilon."""

from __future__ import annotations

from typing import Any

from ckpt_core.sdk import CkptError, Custom, Facts, PerLayer, Refusal, custom
from ckpt_nemo.gpt.values import Values, given

_NORMS = ("attention.norm", "mlp.norm", "final_norm")
_KINDS = {
    "layernorm": ("layer", False),
    "layernorm1p": ("layer", True),  # the stored weight is gamma - 1
    "rmsnorm": ("rms", False),
    "low_precision_layernorm": ("layer", False),
}


def norms(zero_centred_flag: bool) -> Custom:
    """Norms before attention, before the MLP and at the end; with qk_layernorm, on queries and keys too."""
    keys = [
        "normalization",
        "layernorm_epsilon",
        *(["layernorm_zero_centered_gamma", "qk_layernorm"] if zero_centred_flag else []),
    ]

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        name = given(config, "normalization", "layernorm")
        if str(name).lower() not in _KINDS:
            raise CkptError("key 'normalization' has an unknown value", found=repr(name), expected=", ".join(_KINDS))
        kind, centred = _KINDS[str(name).lower()]
        centred = centred or bool(zero_centred_flag and given(config, "layernorm_zero_centered_gamma", False))
        names = [*_NORMS, *(["attention.qk_norm"] if zero_centred_flag and config.get("qk_layernorm") else [])]
        for norm in names:
            facts[f"{norm}.kind"], facts[f"{norm}.bias"] = kind, kind == "layer"
            facts[f"{norm}.eps"] = float(given(config, "layernorm_epsilon", 1e-5))
            facts[f"{norm}.zero_centred"] = centred

    def write(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
        inner = zero_centred_flag and facts.present("attention.qk_norm")
        names = [*_NORMS, *(["attention.qk_norm"] if inner else [])]
        kind, eps, centred = _one_kind(facts, names)
        if kind == "rms" and centred and not zero_centred_flag:
            raise Refusal("models before Megatron-Core have no zero-centred rmsnorm", fix="use -o names=mcore")
        config["normalization"] = "rmsnorm" if kind == "rms" else "layernorm1p" if centred else "layernorm"
        config["layernorm_epsilon"] = eps
        if kind == "rms" and centred:
            config["layernorm_zero_centered_gamma"] = True
        if inner:
            config["qk_layernorm"] = True

    claims = [f"{norm}.*" for norm in (*_NORMS, *(["attention.qk_norm"] if zero_centred_flag else []))]
    return custom(keys, claims, read=read, write=write)


def _one_kind(facts: Facts, names: list[str]) -> tuple[str, float, bool]:
    parts = ("kind", "eps", "weight", "bias", "zero_centred")
    kinds = {tuple(facts.get(f"{name}.{part}") for part in parts) for name in names}
    found = "; ".join(f"{name}: " + " ".join(str(facts.get(f"{name}.{part}")) for part in parts[:4]) for name in names)
    first = next(iter(kinds))
    if len(kinds) > 1 or any(isinstance(value, PerLayer) for value in first):
        raise Refusal("all norms of a model are of one kind", found=found)
    kind, eps, weight, bias, centred = first
    if kind is None or eps is None or not weight or bias != (kind == "layer"):
        raise Refusal(
            "it has a norm before attention, before the MLP and at the end, a LayerNorm with a bias", found=found
        )
    return str(kind), float(eps), bool(centred)
