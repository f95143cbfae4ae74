"""Rotary positions of usual attention (rotary_pos_embedding.py)."""

from __future__ import annotations

from typing import Any

from ckpt_core.sdk import CkptError, Facts, Refusal, configs, schema
from ckpt_megatron.args.values import Args, chosen_layers, flag, positive

# _apply_scaling: all but the factor are constants of the code
_LLAMA3 = {"low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "original_positions": 8192}
_ROTARY = "attention.rotary"


def read_rotary(args: Args, facts: Facts) -> None:
    """Enter the rotary positions, and which layers have none."""
    facts[f"{_ROTARY}.theta"] = positive(args, "rotary_base", 10000.0)
    facts[f"{_ROTARY}.fraction"] = positive(args, "rotary_percent", 1.0)
    scaling: dict[str, object] = {}
    if flag(args, "use_rope_scaling"):
        scaling = {"kind": schema.RotaryKind.LLAMA3, "factor": positive(args, "rope_scaling_factor", 8.0), **_LLAMA3}
    interpolation = positive(args, "rotary_seq_len_interpolation_factor", 1.0)
    if interpolation != 1.0:
        if scaling:
            raise CkptError(
                "positions are both interpolated and scaled",
                found=f"rotary_seq_len_interpolation_factor = {interpolation}",
            )
        scaling = {"kind": schema.RotaryKind.LINEAR, "factor": interpolation}
    facts.update({f"{_ROTARY}.scaling.{name}": said for name, said in scaling.items()})
    unrotated = chosen_layers(args, "no_rope_freq", lambda index, n: (index + 1) % n == 0) or []
    if any(unrotated):
        facts[f"{_ROTARY}?"] = schema.PerLayer(not here for here in unrotated)


def write_rotary(facts: Facts, args: dict[str, Any]) -> None:
    """Enter the args; `Refusal` for a scaling that they cannot say."""
    args["rotary_percent"] = configs.uniform(facts, f"{_ROTARY}.fraction")
    rotated = facts.present(_ROTARY)
    if isinstance(rotated, schema.PerLayer):
        args["no_rope_freq"] = [int(not here) for here in rotated]
    prefix = f"{_ROTARY}.scaling."
    scaling = {name.removeprefix(prefix): configs.uniform(facts, name) for name in facts if name.startswith(prefix)}
    kind = scaling.pop("kind", None)
    if kind is schema.RotaryKind.LLAMA3:
        wrong = {name: scaling[name] for name, value in _LLAMA3.items() if scaling.get(name) != value}
        if wrong:
            raise Refusal("use_rope_scaling has these numbers built in", found=str(wrong), expected=str(_LLAMA3))
        args |= {"use_rope_scaling": True, "rope_scaling_factor": scaling["factor"]}
    elif kind is schema.RotaryKind.LINEAR:
        args["rotary_seq_len_interpolation_factor"] = scaling["factor"]
    elif kind is not None:
        raise Refusal(
            "it has no such scaling of rotary positions",
            found=f"{prefix}kind = {kind}",
            expected="linear or llama3",
        )
