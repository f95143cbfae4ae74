"""Positions: learned or rotary, how rotary ones are scaled, and the scale of the embedding."""

from __future__ import annotations

import math
from typing import Any

from ckpt_core.sdk import CkptError, Custom, Facts, PerLayer, Refusal, RotaryKind, custom, uniform
from ckpt_megatron.args.positions import learned_or_rotary
from ckpt_nemo.gpt.values import Values, given, since

# rotary_pos_embedding.py of Megatron-Core, _apply_scaling: constants of the code
_LLAMA3 = {"factor": 8.0, "low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "original_positions": 8192}
_POSITIONS = 2048
_POSITION_KEYS = (
    "position_embedding_type",
    "max_position_embeddings",
    "encoder_seq_length",
    "rotary_percentage",
    "rotary_base",
    "seq_len_interpolation_factor",
)


def positions(count: str, *more: str) -> Custom:
    """`count`: the key that says how many learned positions there are."""
    claims = ["positions.count", "attention.rotary.*", "attention.rotary?"]

    def read(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
        _read_positions(config, facts, notes, count)

    def write(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
        _write_positions(facts, notes, config, count, scaled=bool(more))

    return custom([*_POSITION_KEYS, *more], claims, read=read, write=write)


def _read_positions(config: Values, facts: Facts, notes: dict[str, Any], count: str) -> None:
    kind = given(config, "position_embedding_type", "learned_absolute")
    longest = given(config, "max_position_embeddings", config.get("encoder_seq_length"))
    if longest is not None:
        notes["max_positions"] = longest
    if config.get("encoder_seq_length") not in (None, longest):
        notes["sequence_length"] = config["encoder_seq_length"]
    if kind == "learned_absolute":
        facts["positions.count"] = given(config, count, longest)
    elif kind == "rope":
        facts["attention.rotary.theta"] = _theta(config)
        facts["attention.rotary.fraction"] = float(given(config, "rotary_percentage", 1.0))
        _read_scaling(config, facts)
    elif kind != "none":
        raise CkptError(
            "key 'position_embedding_type' has a value that is not supported",
            found=repr(kind),
            expected="learned_absolute, rope or none",
        )


def _theta(config: Values) -> float:
    base = float(given(config, "rotary_base", 10000.0))
    if base != 10000.0 and not since(config, (1, 22), "rotary_base"):
        raise CkptError(
            "NeMo ignores rotary_base before 1.22",
            found=f"rotary_base = {base:g}, nemo_version = {config['nemo_version']}",
            fix="say which version trained the model: -o nemo_version=1.22 (or later), or remove the key",
        )
    return base


def _read_scaling(config: Values, facts: Facts) -> None:
    interpolation, scaling = config.get("seq_len_interpolation_factor"), "attention.rotary.scaling"
    if config.get("scale_positional_embedding"):
        facts.update({f"{scaling}.{name}": value for name, value in {"kind": RotaryKind.LLAMA3, **_LLAMA3}.items()})
    if interpolation not in (None, 1, 1.0):
        if config.get("scale_positional_embedding"):
            raise CkptError(
                "positions are both interpolated and scaled", found=f"seq_len_interpolation_factor = {interpolation}"
            )
        facts[f"{scaling}.kind"], facts[f"{scaling}.factor"] = RotaryKind.LINEAR, float(interpolation)


def _write_positions(facts: Facts, notes: Values, config: dict[str, Any], count: str, scaled: bool) -> None:
    learned, theta = learned_or_rotary(facts, "attention")
    if isinstance(facts.present("attention.rotary"), PerLayer):
        raise Refusal("all layers have rotary positions, or none has", found="attention.rotary? differs between layers")
    config["position_embedding_type"] = (
        "learned_absolute" if learned is not None else "none" if theta is None else "rope"
    )
    config["max_position_embeddings"] = learned or notes.get("max_positions") or _POSITIONS
    config["encoder_seq_length"] = notes.get("sequence_length") or config["max_position_embeddings"]
    if learned is not None:
        config[count] = learned
    config |= {"rotary_percentage": 1.0, "seq_len_interpolation_factor": None}
    if theta is None:
        return
    config["rotary_percentage"] = uniform(facts, "attention.rotary.fraction")
    if theta != 10000.0:
        config["rotary_base"] = int(theta) if theta == int(theta) else theta
    scaling = {
        name.rpartition(".")[2]: uniform(facts, name) for name in facts if name.startswith("attention.rotary.scaling.")
    }
    kind = scaling.pop("kind", None)
    if kind is RotaryKind.LINEAR:
        config["seq_len_interpolation_factor"] = scaling["factor"]
    elif kind is RotaryKind.LLAMA3 and scaled:
        if scaling != _LLAMA3:
            raise Refusal(
                "scale_positional_embedding has these numbers built in", found=str(scaling), expected=str(_LLAMA3)
            )
        config["scale_positional_embedding"] = True
    elif kind is not None:
        raise Refusal("it has no such scaling of rotary positions", found=f"attention.rotary.scaling.kind = {kind}")


def read_scale(config: Values, facts: Facts, notes: dict[str, Any]) -> None:
    """Gemma's embeddings: EmbeddingScalingMixin multiplies what the embedding gives, positions included."""
    if not given(config, "apply_embedding_scaling", False):
        return
    if given(config, "position_embedding_type", "learned_absolute") == "learned_absolute":
        raise CkptError(
            "apply_embedding_scaling multiplies learned positions too; that is not supported",
            found="apply_embedding_scaling = True",
        )
    facts["tokens.scale"] = float(config["hidden_size"]) ** 0.5


def write_scale(facts: Facts, notes: Values, config: dict[str, Any]) -> None:
    scale, hidden = facts.get("tokens.scale", 1.0), facts["hidden"]
    if scale == 1.0:
        return
    if not math.isclose(scale, float(hidden) ** 0.5, rel_tol=1e-9) or facts.get("positions.count") is not None:
        raise Refusal(
            "embeddings are multiplied by the root of the hidden size, or not at all", found=f"tokens.scale = {scale}"
        )
    config["apply_embedding_scaling"] = True
