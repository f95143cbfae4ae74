"""Positions: learned, rotary, or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, Refusal, configs, custom
from ckpt_megatron.args.latent_rotary import LATENT_ROTARY_KEYS, read_latent_rotary, write_latent_rotary
from ckpt_megatron.args.rotary import read_rotary, write_rotary
from ckpt_megatron.args.values import Args, flag
from ckpt_megatron.args.yarn import ARGUMENTS, check_arguments, is_yarn, without_scaling

_POSITIONS = 2048
_KINDS = ("learned_absolute", "rope", "yarn", "none")
_WITHOUT_YARN = (
    "rotary_percent",
    "use_rope_scaling",
    "rotary_seq_len_interpolation_factor",
)  # which yarn does not look at
_KEYS = (
    "position_embedding_type",
    "use_rotary_position_embeddings",
    "add_position_embedding",
    "max_position_embeddings",
    "seq_length",
    "rotary_base",
    "rotary_percent",
    "rotary_seq_len_interpolation_factor",
    "use_rope_scaling",
    "rope_scaling_factor",
    "no_rope_freq",
    "rope_type",
)


def positions(attention: str) -> configs.Custom:
    """Learned or rotary positions of a model whose attention facts lie under `attention`."""
    latent = attention == "latent_attention"

    def read(args: Args, facts: Facts, notes: dict[str, Any]) -> None:
        kind = _kind(args, latent)
        if args.get("max_position_embeddings") is not None:
            notes["max_positions"] = args["max_position_embeddings"]
        if kind == "learned_absolute":
            facts["positions.count"] = args["max_position_embeddings"]
        if latent:  # MLASelfAttention rotates by itself, whatever the model's embedding type
            read_latent_rotary(args, facts)
        elif kind == "yarn":
            check_arguments(args)
            read_rotary({key: value for key, value in args.items() if key not in _WITHOUT_YARN}, facts)
            ARGUMENTS.read(args, facts)
        elif kind == "rope":
            read_rotary(args, facts)

    def write(facts: Facts, notes: Mapping[str, Any], args: dict[str, Any]) -> None:
        learned, theta = learned_or_rotary(facts, attention)
        kind = "learned_absolute" if learned is not None else "none" if theta is None else "rope"
        args |= {"position_embedding_type": kind, "use_rotary_position_embeddings": False}
        # check_checkpoint_args compares it with the command line, where it is True unless turned off
        args["add_position_embedding"] = True
        args["max_position_embeddings"] = learned or notes.get("max_positions") or _POSITIONS
        args["seq_length"] = args["max_position_embeddings"]
        args |= {"rotary_base": 10000, "rotary_percent": 1.0, "rotary_seq_len_interpolation_factor": None}
        args |= {"use_rope_scaling": False, "rope_scaling_factor": 8.0, "rope_type": "rope", "no_rope_freq": None}
        if theta is None:
            return
        args["rotary_base"] = int(theta) if theta == int(theta) else theta  # --rotary-base is an integer
        if latent:
            write_latent_rotary(facts, args)
        elif is_yarn(facts):
            args["position_embedding_type"] = "yarn"
            write_rotary(without_scaling(facts), args)
            ARGUMENTS.write(facts, args)
        else:
            write_rotary(facts, args)

    claims = ["positions.count", f"{attention}.rotary.*", f"{attention}.rotary?"]
    claims += ["latent_attention.scale"] if latent else []
    why = "which of the kinds of positions there is decides which of the other args are looked at, and how"
    uses = ["num_layers", "layers"]
    if latent:
        uses += ["layernorm_epsilon", "latent_attention.nope_dim", "latent_attention.rope_dim"]
    keys = [*_KEYS, *dict.fromkeys([*LATENT_ROTARY_KEYS, *ARGUMENTS.keys])]
    return custom(keys, claims, read=read, write=write, uses=uses, why=why)


def learned_or_rotary(facts: Facts, attention: str) -> tuple[int | None, float | None]:
    """How many positions are learned, and the base of rotary ones; a `Refusal` if a model has both, or latent attention has none."""
    learned, theta = facts.get("positions.count"), configs.uniform(facts, f"{attention}.rotary.theta")
    if learned is not None and theta is not None:
        raise Refusal(
            "positions are either learned or rotary",
            found=f"positions.count = {learned}, {attention}.rotary.theta = {theta}",
        )
    if attention == "latent_attention" and theta is None:
        # the rotary part is rotated whatever position_embedding_type says (multi_latent_attention.py)
        raise Refusal("latent attention always rotates", found="no latent_attention.rotary")
    return learned, theta


def _kind(args: Args, latent: bool) -> str:
    kind = args.get("position_embedding_type")
    if flag(args, "use_rotary_position_embeddings"):
        kind = "rope"
    elif kind in (None, "learned_absolute"):  # --no-position-embedding, before there was a type
        kind = "learned_absolute" if flag(args, "add_position_embedding", default=True) else "none"
    if kind not in _KINDS and not (latent and kind == "mrope"):
        raise CkptError(
            "key 'position_embedding_type' has a value that is not supported",
            found=repr(kind),
            expected=", ".join(_KINDS),
        )
    return kind
