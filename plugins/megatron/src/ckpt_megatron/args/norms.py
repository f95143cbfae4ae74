"""Norms: all of a model are of one kind, with one epsilon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Custom, Facts, PerLayer, Refusal, custom
from ckpt_megatron.args.values import Args, flag

_KINDS = {"LayerNorm": "layer", "RMSNorm": "rms"}
_KEYS = (
    "normalization",
    "layernorm_epsilon",
    "norm_epsilon",
    "layernorm_zero_centered_gamma",
    "apply_layernorm_1p",
    "qk_layernorm",
)


def norms(latent: bool) -> Custom:
    """Norms before attention, before the MLP and at the end; with --qk-layernorm, on queries and keys too."""
    blocks = ["latent_attention.norm" if latent else "attention.norm", "mlp.norm", "final_norm"]
    inside = ["latent_attention.kv_norm", "latent_attention.q_norm"] if latent else ["attention.qk_norm"]

    def inner(facts: Facts) -> list[str]:
        return inside[:1] if latent and facts.get("latent_attention.q_rank") is None else inside

    def read(args: Args, facts: Facts, notes: dict[str, Any]) -> None:
        kind = _KINDS.get(str(args.get("normalization") or "LayerNorm"))
        if kind is None:
            raise CkptError(
                "key 'normalization' has an unknown value",
                found=repr(args["normalization"]),
                expected=", ".join(_KINDS),
            )
        # norm_epsilon from core 0.4 to 0.15, layernorm_epsilon before and since; apply_layernorm_1p until 0.15.
        eps = _agreed(args, "layernorm_epsilon", "norm_epsilon")
        centred = _agreed(args, "layernorm_zero_centered_gamma", "apply_layernorm_1p")
        inside_too = flag(args, "qk_layernorm")
        if latent and not inside_too:
            raise CkptError(
                "latent attention without --qk-layernorm has no norms on its latents; that is not supported",
                found="qk_layernorm = False",
            )
        for name in [*blocks, *(inner(facts) if inside_too else [])]:
            facts[f"{name}.kind"], facts[f"{name}.eps"] = kind, 1e-5 if eps is None else eps
            facts[f"{name}.bias"], facts[f"{name}.zero_centred"] = kind == "layer", centred is not None and centred

    def write(facts: Facts, notes: Mapping[str, Any], args: dict[str, Any]) -> None:
        present = latent or facts.present("attention.qk_norm")
        names = [*blocks, *(inner(facts) if present else [])]
        kind, eps, centred = _one_kind(facts, names)
        args["normalization"] = next(name for name, value in _KINDS.items() if value == kind)
        args |= {"layernorm_epsilon": eps, "norm_epsilon": eps}
        args |= {"layernorm_zero_centered_gamma": centred, "apply_layernorm_1p": centred, "qk_layernorm": bool(present)}

    return custom(_KEYS, [f"{name}.*" for name in [*blocks, *inside]], read=read, write=write)


def _agreed(args: Args, *names: str) -> Any:
    """The value that an arg of several names has, of which one or all may be there."""
    values = {args[name] for name in names if args.get(name) is not None}
    if len(values) > 1:
        raise CkptError(
            "two names of one arg have different values", found=", ".join(f"{name} = {args[name]}" for name in names)
        )
    return values.pop() if values else None


def _one_kind(facts: Facts, names: list[str]) -> tuple[str, Any, Any]:
    """Kind, epsilon and centring of all the norms in `names`; `Refusal` if they differ."""
    parts = ("kind", "eps", "weight", "bias", "zero_centred")
    kinds: set[tuple[Any, ...]] = {tuple(facts.get(f"{name}.{part}") for part in parts) for name in names}
    found = "; ".join(f"{name}: " + " ".join(str(facts.get(f"{name}.{part}")) for part in parts[:4]) for name in names)
    if len(kinds) > 1 or any(isinstance(value, PerLayer) for value in next(iter(kinds))):
        raise Refusal("all norms of a model are of one kind", found=found)
    ((kind, eps, weight, bias, centred),) = kinds
    if kind is None:
        raise Refusal("it has a norm before attention, before the MLP and at the end", found=found)
    if not weight or bias != (kind == "layer"):
        raise Refusal("a LayerNorm has weight and bias, an RMSNorm a weight", found=found)
    return kind, eps, centred
