"""Mistral 3 that sees, with the language model of Mistral Small 3.1 or of Ministral 3: a Pixtral tower, of which four patches become one token.

Pixtral turns by row and column with the frequencies of a whole head, dealt out to both in turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import Facts, Table, configs, decided, derived, fact_is, ignore, key, key_is, note, row, values
from ckpt_hf.common import ACTIVATION, NORMS, Family, norms
from ckpt_hf.families import llama
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.seeing import sees, tower
from ckpt_hf.wholes import beside_the_tower, within

# versions 5 before 5.24 know `default` alone, and 5.24 takes it for `axial` (configuration_pixtral.py)
_KINDS = ("axial", "default")
_MINISTRAL = "ministral3"


def _read_theta(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    rotary = config.get("rope_parameters") or {}
    if rotary.get("rope_type", "axial") not in _KINDS or rotary.keys() - {"rope_type", "rope_theta"}:
        raise ValueError("its tower turns by row and column alone")
    said = {one["rope_theta"] for one in (config, rotary) if one.get("rope_theta") is not None}
    if len(said) > 1:
        raise ValueError(f"two bases, {sorted(said)}")
    facts["vision.attention.rotary.theta"] = values.checked(
        "rope_theta", float(said.pop()) if said else 10000.0, values.positive
    )


def _axial(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


def _read_type(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    if config.get("model_type", "mistral") not in ("mistral", _MINISTRAL):
        raise ValueError("the language model is another one")


def _ministral(interval: int) -> str:
    return _MINISTRAL


# fmt: off
_TOWER = tower("pixtral",
    key("hidden_size", "vision.hidden", "vision.projector.folded", default=1024, type=values.whole),
    key("intermediate_size", "vision.mlp.ffn", default=4096, type=values.whole),
    key("num_hidden_layers", "vision.layers", default=24, type=values.layers),
    key("num_attention_heads", "vision.attention.heads", "vision.attention.groups", default=16, type=values.whole),
    # the class takes no other width of a head, whatever the key says (PixtralVisionConfig.__post_init__)
    derived(None, "vision.attention.head_dim", "hidden_size / num_attention_heads"),
    decided(["head_dim"], [], read=lambda config, facts, notes: None, values={"head_dim": [configs.value_of("vision.attention.head_dim")]},
            uses=["vision.attention.head_dim"], why="the class computes it from the width and the heads"),
    key("num_channels", "vision.channels", default=3, type=values.whole),
    key("patch_size", "vision.patch", default=16, type=values.whole),
    note("image_size", "largest_image", default=1024),
    ignore("vocab_size", why="version 5.24 saves it in the config of the tower, too, where no module has a vocabulary"),
    key("hidden_act", "vision.mlp.activation", default="gelu", via=ACTIVATION),
    decided(["rope_parameters", "rope_theta"], ["vision.attention.rotary.theta"], read=_read_theta,
            values={"rope_parameters": [configs.value_of("vision.attention.rotary.theta", by=_axial)],
                    "rope_theta": [configs.value_of("vision.attention.rotary.theta")]},
            why="always axial; version 4 has the base beside it, and version 5 in rope_parameters"),
    # modeling_pixtral.py, PixtralAttentionLayer and PixtralVisionModel: no key says it
    norms("rms", "vision.attention.norm", "vision.mlp.norm", "vision.input_norm", eps=1e-5),
    [fact_is(f"vision.{name}", value) for name, value in {
        "causal": False, "mlp.gated": True, "attention.rotary.axial": True, "attention.rotary.interleaved": True,
    }.items()],
)

# The two types of language model are read and written as one: a Ministral 3 is one whose queries grow with their position.
_TEXT = llama.MISTRAL.replace("Mistral3's language model",
    # the projector has the width and the epsilon of the language model (modeling_mistral3.py, Mistral3MultiModalProjector)
    key("hidden_size", "hidden", "vision.projector.ffn"),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in (*NORMS, "vision.projector.norm")), default=1e-6),
    rotary_keys(by_position=_MINISTRAL, inert={"max_position_embeddings"}),
    without=["model_type"],
)
_TYPE = decided(["model_type"], [], read=_read_type, uses=["attention.temperature.interval"],
    values={"model_type": [configs.value_of("attention.temperature.interval", by=_ministral), "mistral"]},
    why="ministral3, where queries grow with their position")

_BESIDE = [
    key("image_token_index", "vision.token", also=["image_token_id"], default=10, type=values.count),
    key("spatial_merge_size", "vision.projector.merge", default=2, type=values.whole),
    key("projector_hidden_act", "vision.projector.activation", default="gelu", via=ACTIVATION),
    key("multimodal_projector_bias", "vision.projector.bias", default=False, type=values.flag),
    key_is("vision_feature_layer", -1, or_absent=True, why="the projector reads what comes out of the last layer"),
    norms("rms", "vision.projector.norm"),
]

_PIXTRAL = [
    row("patch_conv.weight", "h ch y z", "patches.weight"),
    row("ln_pre.weight",     "h",        "input_norm.weight"),
]
_PIXTRAL_LAYER = [
    row("attention_norm.weight",         "h",         "attention.norm.weight"),
    row("attention.q_proj.weight",       "(g r d) h", "attention.q.weight"),
    row("attention.k_proj.weight",       "(g d) h",   "attention.k.weight"),
    row("attention.v_proj.weight",       "(g d) h",   "attention.v.weight"),
    row("attention.o_proj.weight",       "h (g r d)", "attention.out.weight"),
    row("ffn_norm.weight",               "h",         "mlp.norm.weight"),
    row("feed_forward.gate_proj.weight", "f h",       "mlp.gate.weight"),
    row("feed_forward.up_proj.weight",   "f h",       "mlp.up.weight"),
    row("feed_forward.down_proj.weight", "h f",       "mlp.down.weight"),
]
_PROJECTOR = [
    row("norm.weight",                       "h",           "projector.norm.weight"),
    # as torch unfolds an image: the channel first, then rows and columns
    row("patch_merger.merging_layer.weight", "i (h my mz)", "projector.fold.weight"),
    row("linear_1.weight",                   "f i",         "projector.up.weight"),
    row("linear_1.bias",                     "f",           "projector.up.bias"),
    row("linear_2.weight",                   "w f",         "projector.down.weight"),
    row("linear_2.bias",                     "w",           "projector.down.bias"),
]
_TABLES = [
    table
    for place, module in (("stored", ""), ("held", "model."))
    for table in (
        Table(f"{module}vision_tower", to="vision", rows=_PIXTRAL, under={"places": place}),
        Table(f"{module}vision_tower.transformer.layers.{{l}}", to="vision.layers.{l}", rows=_PIXTRAL_LAYER, under={"places": place}),
        Table(f"{module}multi_modal_projector", to="vision", rows=_PROJECTOR, under={"places": place}),
    )
]
# fmt: on


FAMILIES: list[Family] = [
    sees(
        "mistral3",
        next(family for family in llama.FAMILIES if family.model_type == "mistral"),
        _TEXT,
        [_TOWER],
        *_BESIDE,
        called=_TYPE,
        tables=_TABLES,
        places={"stored": within, "held": beside_the_tower},
    )
]
