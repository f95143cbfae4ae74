"""Llama 4's language model: chunks and rotation in all layers but some, which see everything and whose queries grow with their position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, configs, decided, fact_is, ignore, key, layouts, row, rules, schema, values
from ckpt_hf import heads
from ckpt_hf.common import ALL_BIASES_OR_NONE, NORMS, Family, given_layers, groups, head_dim, unbiased
from ckpt_hf.families.llama import LLAMA, ROPE_LAYERS
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import ADJACENT, LAYER, MLP, MODEL

_CHUNKED, _FULL = "chunked_attention", "full_attention"
_CHUNK = ("attention_chunk_size", "layer_types")
_TEMPERATURE = ("attn_temperature_tuning", "floor_scale", "attn_scale")
_MOE = ("moe_layers", "interleave_moe_layer_step")


def _rotated(facts: Facts) -> schema.PerLayer:
    """Which layers rotate."""
    present = facts.present("attention.rotary")
    return present if isinstance(present, schema.PerLayer) else schema.PerLayer([present] * facts["layers"])


def _enter(facts: Facts, path: str, present: schema.PerLayer, **fields: object) -> None:
    """Enter the fields of a thing that the layers in `present` have."""
    facts.update({f"{path}.{name}": value for name, value in fields.items()})
    if not all(present):
        facts[f"{path}?"] = present


def _read_chunks(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    size = config.get("attention_chunk_size", 8192)
    chunked = given_layers("layer_types", config, facts["layers"], having=_CHUNKED, lacking=_FULL)
    if chunked is None:
        chunked = schema.PerLayer(size is not None and rotated for rotated in _rotated(facts))
    if any(chunked):
        facts["attention.chunk"] = values.checked("attention_chunk_size", size, values.whole)
        if not all(chunked):
            facts["attention.chunk?"] = chunked


def _read_temperature(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    tuned = config.get("attn_temperature_tuning", True)
    if type(tuned) not in (bool, int):  # the first published files say 4
        raise CkptError("key 'attn_temperature_tuning' is not true or false", found=repr(tuned)[:60])
    still = schema.PerLayer(not rotated for rotated in _rotated(facts))
    if tuned and any(still):
        interval = values.checked("floor_scale", config.get("floor_scale", 8192), values.whole)
        scale = values.checked("attn_scale", config.get("attn_scale", 0.1), values.positive)
        _enter(facts, "attention.temperature", still, interval=interval, scale=scale, shift=1)


def _read_qk_norm(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    rotated = _rotated(facts)
    if values.checked("use_qk_norm", config.get("use_qk_norm", True), values.flag) and any(rotated):
        _enter(facts, "attention.qk_norm", rotated, kind="rms", weight=False, eps=facts["attention.norm.eps"])
        facts["attention.qk_norm_after_rotary"] = True if all(rotated) else rotated


def _read_moe(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    given, step = config.get("moe_layers"), config.get("interleave_moe_layer_step", 1)
    name, value, rule = (_MOE[1], step, rules.every_nth()) if given is None else (_MOE[0], given, rules.indices())
    present = rule.read(value, facts["layers"])
    if present is None or not any(present):
        raise CkptError(
            f"key {name!r} does not choose the layers with experts", found=str(value)[:80], expected=rule.words
        )
    if not all(present):
        facts["mlp.moe?"] = schema.PerLayer(present)


def _first_moe(present: tuple[bool, ...]) -> int:
    return present.index(True) + 1


_CHUNKED_LAYERS = configs.layers_of("attention.chunk", rules.each(having=_CHUNKED, lacking=_FULL))
_TEMPERATURE_FACTS = [configs.value_of(f"attention.temperature.{name}") for name in ("interval", "scale")]

# fmt: off
LLAMA4 = LLAMA.replace("Llama4ForCausalLM",
    groups(8),
    head_dim(default=128),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    rotary_keys(default_theta=500000.0, always=False),
    ROPE_LAYERS,
    decided(_CHUNK, ["attention.chunk", "attention.chunk?"], read=_read_chunks, uses=["layers", "attention.rotary.*", "attention.rotary?"],
            values={_CHUNK: [(configs.value_of("attention.chunk"), _CHUNKED_LAYERS), (None, _CHUNKED_LAYERS)]},
            why="layer_types says which layers attend within chunks; without it those that rotate do, unless attention_chunk_size is null"),
    decided(_TEMPERATURE, ["attention.temperature.*", "attention.temperature?"], read=_read_temperature,
            uses=["layers", "attention.rotary.*", "attention.rotary?"], values={_TEMPERATURE: [(True, *_TEMPERATURE_FACTS), (False, 8192, 0.1)]},
            why="of the layers that do not rotate; the first position counts as 1"),
    decided(["use_qk_norm"], ["attention.qk_norm.*", "attention.qk_norm?", "attention.qk_norm_after_rotary"], read=_read_qk_norm,
            uses=["layers", "attention.rotary.*", "attention.rotary?", "attention.norm.eps"], values={"use_qk_norm": [True, False]},
            why="of the layers that rotate, after it, and without weights"),
    key("intermediate_size", "mlp.moe.ffn", "mlp.moe.shared.ffn", default=8192),
    configs.in_other_layers("intermediate_size_mlp", "mlp.ffn", than="mlp.moe", unused="unused_ffn", fallback="mlp.moe.ffn",
                            type=values.whole, default=16384),
    decided(_MOE, ["mlp.moe?"], read=_read_moe, uses=["layers"],
            values={_MOE: [(configs.layers_of("mlp.moe", rules.indices()), configs.layers_of("mlp.moe", _first_moe))]},
            why="moe_layers lists the layers with experts; without it every n-th has them, by interleave_moe_layer_step"),
    key("num_local_experts", "mlp.moe.experts", default=16),
    key("num_experts_per_tok", "mlp.moe.router.top_k", default=1),
    fact_is("mlp.moe.router.score", "sigmoid"),
    fact_is("mlp.moe.router.on_input", True),
    ignore("for_llm_compressor", why="how to run it, not what it computes"),
    unbiased("mlp_bias"),
)

# Experts are stored as the matrices [in, out] that x is multiplied by, in one tensor of all of them.
LLAMA4_LAYER = LAYER.without(*MLP).replace(*ADJACENT).extend(
    row("feed_forward.gate_proj.weight",               "f h",                 "mlp.gate.weight"),
    row("feed_forward.up_proj.weight",                 "f h",                 "mlp.up.weight"),
    row("feed_forward.down_proj.weight",               "h f",                 "mlp.down.weight"),
    row("feed_forward.router.weight",                  "x h",                 "mlp.router.weight"),
    row("feed_forward.experts.gate_up_proj",           "x h ((gate + up) f)", "mlp.experts.{part}.weight"),
    row("feed_forward.experts.down_proj",              "x f h",               "mlp.experts.down.weight"),
    row("feed_forward.shared_expert.gate_proj.weight", "f h",                 "mlp.shared.gate.weight"),
    row("feed_forward.shared_expert.up_proj.weight",   "f h",                 "mlp.shared.up.weight"),
    row("feed_forward.shared_expert.down_proj.weight", "h f",                 "mlp.shared.down.weight"),
)
# fmt: on

FAMILIES = [
    Family(
        "llama4_text", LLAMA4, layouts.Tables([MODEL, LLAMA4_LAYER]), rewrites=ALL_BIASES_OR_NONE, heads=(heads.BARE,)
    )
]
