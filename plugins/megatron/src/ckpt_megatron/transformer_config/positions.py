"""Positions: learned or rotary, as many as seq_length, and how rotary ones are scaled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, Refusal, configs, custom, schema
from ckpt_megatron.args.latent_rotary import LATENT_ROTARY_KEYS, read_latent_rotary, write_latent_rotary
from ckpt_megatron.args.positions import learned_or_rotary
from ckpt_megatron.args.rotary import read_rotary, write_rotary
from ckpt_megatron.args.yarn import FIELDS, is_yarn, refuse_yarn_elsewhere, without_scaling

# The classes of Llama 3.1 (NeMo 2, Bridge until 0.3) scale by these fields, and no other class has them.
LLAMA31_FIELDS = {
    "scale_factor": "factor",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "old_context_len": "original_positions",
}
# rope_scaling of GPTModel (Bridge since 0.4): all but the factor are constants of rotary_pos_embedding.py
_BUILT_IN = {"low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "original_positions": 8192}
_ARGUMENTS = {"rope_scaling": "use_rope_scaling", "seq_len_interpolation_factor": "rotary_seq_len_interpolation_factor"}
_ROTARY = "attention.rotary"
_SCALING = f"{_ROTARY}.scaling."
_WITHOUT_YARN = ("rotary_percent", "rope_scaling", "seq_len_interpolation_factor")  # which yarn does not look at
_POSITIONS = 2048
_KEYS = (
    "position_embedding_type",
    "seq_length",
    "rotary_base",
    "rotary_percent",
    "seq_len_interpolation_factor",
    "rope_scaling",
    "rope_scaling_factor",
    "no_rope_freq",
    "rope_type",
    "max_position_embeddings",
)


def positions(attention: str, *, yarn: bool = False, sections: bool | None = None) -> configs.Custom:
    """Positions of a model whose attention facts lie under `attention`; `yarn`: the class has the fields of it. `sections`: it has m-rope
    alone, whose sections are interleaved or not.

    A Llama 3.1 scaling is written in both ways: by the fields of the class, and by rope_scaling where that can say it.
    The writer of a format keeps those of the class that it names.
    """
    latent = attention == "latent_attention"
    kinds = ("rope", "none", "yarn") if yarn else ("rope", "none")

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        kind = config.get("position_embedding_type") or "learned_absolute"
        if sections is not None:
            kind = _read_sections(config, sections, facts)
        if config.get("seq_length") is not None:
            notes["max_positions"] = config["seq_length"]
        if kind == "learned_absolute":
            facts["positions.count"] = config["seq_length"]
        elif kind not in kinds:
            raise CkptError(
                "key 'position_embedding_type' has a value that is not supported",
                found=repr(kind),
                expected=f"learned_absolute, {' or '.join(kinds)}",
            )
        if latent:
            read_latent_rotary(_latent_arguments(config), facts)
        elif kind == "yarn":
            _read_rotary({key: value for key, value in config.items() if key not in _WITHOUT_YARN}, facts)
            FIELDS.read(config, facts)
        elif kind == "rope":
            refuse_yarn_elsewhere(config)
            _read_rotary(config, facts)

    def write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        learned, theta = learned_or_rotary(facts, attention)
        config["position_embedding_type"] = "learned_absolute" if learned else "none" if theta is None else "rope"
        config["seq_length"] = learned or notes.get("max_positions") or _POSITIONS
        if theta is None:
            return
        config["rotary_base"] = theta
        if sections is not None:
            _write_sections(facts, sections, config)
        elif not latent and facts.get(f"{_ROTARY}.sections") is not None:
            raise Refusal(
                "its positions have one coordinate", found=f"{_ROTARY}.sections = {facts[f'{_ROTARY}.sections']}"
            )
        if latent:
            write_latent_rotary(facts, config)
            config["max_position_embeddings"] = config.get("original_max_position_embeddings")
        elif yarn and is_yarn(facts):
            config["position_embedding_type"] = "yarn"
            _write_rotary(without_scaling(facts), config)
            FIELDS.write(facts, config)
        else:
            _write_rotary(facts, config)

    claims = ["positions.count", f"{attention}.rotary.*", f"{attention}.rotary?"]
    claims += ["latent_attention.scale"] if latent else []
    why = "which of the kinds of positions there is decides which of the other fields are looked at, and how"
    uses = ["num_layers", "layers"]
    if latent:
        uses += ["layernorm_epsilon", "latent_attention.nope_dim", "latent_attention.rope_dim"]
    keys = [
        *_KEYS,
        *LATENT_ROTARY_KEYS,
        *LLAMA31_FIELDS,
        *FIELDS.keys,
        *(["mrope_section"] if sections is not None else []),
    ]
    return custom(keys, claims, read=read, write=write, uses=uses, why=why)


def _read_sections(config: Mapping[str, Any], interleaved: bool, facts: Facts) -> str:
    """Enter how time, row and column share the angles; the kind of positions that these are but for that."""
    said = config.get("mrope_section")
    if config.get("position_embedding_type") != "mrope" or not isinstance(said, list):
        raise CkptError(
            "the fields say no m-rope, which the class always has",
            found=f"position_embedding_type = {config.get('position_embedding_type')!r}, mrope_section = {said!r}",
        )
    scaled = {name: config[name] for name in ("rope_scaling", "seq_len_interpolation_factor") if config.get(name)}
    if scaled:
        raise CkptError("the angles of m-rope are not scaled", found=", ".join(f"{k} = {v}" for k, v in scaled.items()))
    facts[f"{_ROTARY}.sections"], facts[f"{_ROTARY}.interleaved"] = tuple(said), interleaved
    return "rope"


def _write_sections(facts: Facts, interleaved: bool, config: dict[str, Any]) -> None:
    said, lies = (configs.uniform(facts, f"{_ROTARY}.{name}") for name in ("sections", "interleaved"))
    if said is None or lies != interleaved or facts.present(f"{_ROTARY}.scaling") is not False:
        raise Refusal(
            "it has m-rope without a scaling, " + ("interleaved" if interleaved else "one section after the other"),
            found=f"{_ROTARY}.sections = {said}, {_ROTARY}.interleaved = {lies}",
            fact=f"{_ROTARY}.*",
        )
    config["position_embedding_type"], config["mrope_section"] = "mrope", list(said)


def _latent_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as arguments of latent attention. Until core 0.13 one of them had another name."""
    said = {"rope_type": "yarn", **config}
    if config.get("original_max_position_embeddings") is None:
        said["original_max_position_embeddings"] = config.get("max_position_embeddings")
        said.pop("layernorm_epsilon", None)  # which would tell that core is 0.16 or later
    return said


def _read_rotary(config: Mapping[str, Any], facts: Facts) -> None:
    read_rotary({_ARGUMENTS.get(key, key): value for key, value in config.items()}, facts)
    if config.get("old_context_len") is None:
        return
    if f"{_ROTARY}.scaling.kind" in facts:
        found = f"old_context_len = {config['old_context_len']}, and {facts[f'{_ROTARY}.scaling.kind']}"
        raise CkptError("positions are scaled twice", found=found)
    facts[f"{_ROTARY}.scaling.kind"] = schema.RotaryKind.LLAMA3
    facts.update({f"{_ROTARY}.scaling.{name}": config[key] for key, name in LLAMA31_FIELDS.items()})


def _write_rotary(facts: Facts, config: dict[str, Any]) -> None:
    prefix = _SCALING
    scaling = {name.removeprefix(prefix): configs.uniform(facts, name) for name in facts if name.startswith(prefix)}
    if scaling.get("kind") is schema.RotaryKind.LLAMA3:
        config |= {key: scaling[name] for key, name in LLAMA31_FIELDS.items()}
        if all(scaling[name] == value for name, value in _BUILT_IN.items()):
            config |= {"rope_scaling": True, "rope_scaling_factor": scaling["factor"]}
        facts = without_scaling(facts)
    args: dict[str, Any] = {"rotary_seq_len_interpolation_factor": None}
    write_rotary(facts, args)
    fields = {argument: key for key, argument in _ARGUMENTS.items()}
    config |= {fields.get(key, key): value for key, value in args.items()}
