"""Phi-3, 3.5 and 4: Llama with fused projections, partly rotated heads and longrope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Architecture, CkptError, Facts, Refusal, configs, custom, key, key_is, layouts, row, schema
from ckpt_hf.common import Family, unbiased
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import LAYER, MLP, MODEL

_ORIGINAL = "original_max_position_embeddings"
_ROTARY = rotary_keys(partial=1.0)


def _rotary() -> configs.Custom:
    """longrope alone, under three names; it stretches by `max_position_embeddings` / `original_max_position_embeddings`.

    Version 4 accepts exactly three keys in `rope_scaling`, so no factor can be written beside the lists.
    """

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        changed = {
            key: _usual(config[key], config, key)
            for key in ("rope_scaling", "rope_parameters")
            if config.get(key) is not None
        }
        _ROTARY.read({**config, **changed}, facts, notes)

    def write(facts: Facts, notes: Mapping[str, Any], config: dict[str, Any]) -> None:
        _ROTARY.write(facts, notes, config)
        kind = configs.uniform(facts, "attention.rotary.scaling.kind")
        if kind is None:
            return
        if kind is not schema.RotaryKind.LONGROPE:
            raise Refusal("it has longrope only", found=f"attention.rotary.scaling.kind = {kind}")
        if facts.get("attention.rotary.scaling.attention_factor") is not None:
            raise Refusal(
                "transformers 4 accepts no attention_factor for it", found="attention.rotary.scaling.attention_factor"
            )
        original = facts["attention.rotary.scaling.original_positions"]
        factor = facts.get("attention.rotary.scaling.factor")
        positions = factor and round(factor * original)
        if not positions or positions / original != factor:
            raise Refusal(
                "its factor is a ratio of two lengths",
                found=f"attention.rotary.scaling.factor = {factor} of {original}",
            )
        lists = {key: config["rope_parameters"][key] for key in ("short_factor", "long_factor")}
        kept = {key: config["rope_parameters"][key] for key in ("rope_theta", "partial_rotary_factor")}
        config["rope_scaling"] = {"type": "longrope", **lists}
        config["rope_parameters"] = {"rope_type": "longrope", **lists, **kept, _ORIGINAL: original}
        config[_ORIGINAL], config["max_position_embeddings"] = original, positions

    return custom(
        [*_ROTARY.keys, _ORIGINAL],
        _ROTARY.claims,
        read=read,
        write=write,
        uses=(),
        why="longrope alone, under three names, whose factor is the ratio of two lengths that are keys of their own",
    )


def _usual(parameters: object, config: Mapping[str, Any], key: str) -> object:
    """Rotary parameters as other classes say them."""
    if not isinstance(parameters, dict):
        return parameters
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    kind = "longrope" if kind in ("su", "yarn") else kind  # what early files called it
    if kind not in ("default", "longrope"):
        raise CkptError(
            f"key {key!r}: Phi-3 has no such rope_type", found=repr(kind)[:60], expected="default, longrope"
        )
    usual = {name: value for name, value in parameters.items() if name != "type"} | {"rope_type": kind}
    if kind == "longrope":
        original = config.get(_ORIGINAL, 4096)
        if usual.setdefault(_ORIGINAL, original) != original:
            raise CkptError(
                f"key {_ORIGINAL!r} disagrees with {key}, and overrules it", found=f"{original} and {usual[_ORIGINAL]}"
            )
    return usual


def _usual_heads(architecture: Architecture) -> str | None:
    """transformers 5 counts the factors of longrope by hidden_size / num_attention_heads, even with head_dim given."""
    attention = architecture.decoder.layers[0].attention if architecture.decoder else None
    if (
        attention
        and attention.rotary
        and attention.rotary.scaling
        and attention.head_dim != architecture.hidden // attention.heads
    ):
        return f"transformers counts longrope factors by hidden_size / num_attention_heads, not by attention.head_dim={attention.head_dim}"
    return None


# fmt: off
PHI3 = LLAMA.replace("Phi3ForCausalLM",
    key("rms_norm_eps", "attention.norm.eps", "mlp.norm.eps", "final_norm.eps", default=1e-5),
    key("sliding_window", "attention.window", default=None),
    _rotary(),
    unbiased("attention_bias", "mlp_bias"),
    # Of the code beside Phi-4-mini, in which other values would mix kinds of attention and stretch positions.
    key_is("full_attn_mod", 1, or_absent=True, written=False),
    key_is("interpolate_factor", 1, or_absent=True, written=False),
)

PHI3_LAYER = LAYER.without(
    *(f"self_attn.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")), *MLP,
).extend(
    row("self_attn.qkv_proj.weight", "((q[g r] + k[g] + v[g]) d) h", "attention.{part}.weight"),
    row("mlp.gate_up_proj.weight",   "((gate + up) f) h",            "mlp.{part}.weight"),
    row("mlp.down_proj.weight",      "h f",                          "mlp.down.weight"),
)
# fmt: on

FAMILIES = [Family("phi3", PHI3, layouts.Tables([MODEL, PHI3_LAYER]), _usual_heads, padding=32000)]
