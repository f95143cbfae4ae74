"""GLM-4.5V: the mixtures of GLM-4.5 with a tower whose positions are stretched by bicubic curves, and whose patches a convolution folds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Facts,
    Table,
    configs,
    decided,
    derived,
    fact_is,
    key,
    key_is,
    note,
    row,
    values,
)
from ckpt_hf.common import ACTIVATION, QKV_BIASES, Family, norms
from ckpt_hf.families import glm
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.seeing import sees, tower
from ckpt_hf.wholes import beside_the_tower

_EPS = [f"vision.{norm}.eps" for norm in ("norm", "attention.norm", "mlp.norm", "final_norm")]


def _read_theta(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    rotary = config.get("rope_parameters") or {}
    if rotary.get("rope_type", "axial") not in ("axial", "default") or rotary.keys() - {"rope_type", "rope_theta"}:
        raise ValueError("its tower turns by row and column alone")
    facts["vision.attention.rotary.theta"] = float(rotary.get("rope_theta", 10000.0))


def _axial(theta: float) -> dict[str, Any]:
    return {"rope_type": "axial", "rope_theta": theta}


def _read_width(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    if config.get("out_hidden_size", 4096) != facts["hidden"]:
        raise CkptError(
            "key 'out_hidden_size' is not the width of the language model",
            found=f"out_hidden_size = {config.get('out_hidden_size', 4096)!r}, hidden_size = {facts['hidden']}",
        )
    facts["vision.projector.folded"] = facts["vision.mlp.ffn"] = facts["hidden"]


def _read_positions(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    image = values.checked("image_size", config.get("image_size", 336), values.whole)
    facts["vision.positions.count"] = (image // facts["vision.patch"]) ** 2


def _image(count: int, patch: int) -> int:
    return math.isqrt(count) * patch


# fmt: off
_TOWER = tower("glm4v_moe_vision",
    # the blocks of the tower are as wide between their matrices as the language model is, and the merger as intermediate_size says
    decided(["out_hidden_size"], ["vision.projector.folded", "vision.mlp.ffn"], read=_read_width, uses=["hidden"],
            values={"out_hidden_size": [configs.value_of("hidden")]}, why="the width of the language model"),
    key("intermediate_size", "vision.projector.ffn", default=13696, type=values.whole),
    key("depth", "vision.layers", also=["num_hidden_layers"], default=24, type=values.layers),
    key("hidden_size", "vision.hidden", default=1536, type=values.whole),
    key("num_heads", "vision.attention.heads", "vision.attention.groups", also=["num_attention_heads"], default=12, type=values.whole),
    derived(None, "vision.attention.head_dim", "hidden_size / num_heads"),
    key("hidden_act", "vision.mlp.activation", "vision.projector.activation", default="silu", via=ACTIVATION),
    key("attention_bias", *(f"vision.{bias}" for bias in QKV_BIASES), default=False, type=values.flag),
    key("in_channels", "vision.channels", default=3, type=values.whole),
    key("patch_size", "vision.patch", default=14, type=values.whole),
    decided(["image_size"], ["vision.positions.count"], read=_read_positions, uses=["vision.patch"],
            values={"image_size": [configs.value_of("vision.positions.count", "vision.patch", by=_image)]},
            why="the side of an image that has as many patches as the table of positions"),
    key("temporal_patch_size", "vision.frames", default=2, type=values.whole),
    key("spatial_merge_size", "vision.projector.merge", default=2, type=values.whole),
    key("rms_norm_eps", *_EPS, default=1e-5, type=values.positive),
    decided(["rope_parameters"], ["vision.attention.rotary.theta"], read=_read_theta,
            values={"rope_parameters": [configs.LEFT_OUT, configs.value_of("vision.attention.rotary.theta", by=_axial)]},
            why="always axial; the base is a key since transformers 5"),
    norms("rms", "vision.norm", "vision.attention.norm", "vision.mlp.norm", "vision.final_norm"),
    # modeling_glm4v_moe.py, Glm4vMoeVisionPatchMerger: LayerNorm's own epsilon
    norms("layer", "vision.projector.refined", eps=1e-5, bias=True),
    [fact_is(f"vision.{name}", value) for name, value in {
        "causal": False, "bias": True, "cubic": True, "mlp.gated": True, "attention.rotary.axial": True,
        "projector.fold_bias": True, "projector.gated": True,
    }.items()],
)

_TEXT = glm.GLM4_MOE.replace("Glm4vMoeTextModel",
    key("attention_bias", *QKV_BIASES, default=True),
    rotary_keys(partial=0.5, sections=(8, 12, 12)),
    # Megatron-Bridge asks for it; the class of transformers has no norms of q and k (modeling_glm4v_moe.py)
    key_is("use_qk_norm", False, or_absent=True),
    without=["attention.qk_norm.*"],
)

_TOKENS = [
    key("image_token_id", "vision.token", default=151363, type=values.count),
    # the frames of a video stand there under the token of images
    note("video_token_id", "video_token", default=151364),
    note("image_start_token_id", "vision_start", default=151339),
    note("image_end_token_id", "vision_end", default=151340),
    note("video_start_token_id", "video_start", default=151341),
    note("video_end_token_id", "video_end", default=151342),
]

_TABLES = [
    Table("model.visual", to="vision", rows=[
        row("patch_embed.proj.weight",              "h ch fr y z", "patches.weight"),
        row("patch_embed.proj.bias",                "h",           "patches.bias"),
        row("post_conv_layernorm.weight",           "h",           "norm.weight"),
        row("embeddings.position_embedding.weight", "p h",         "positions.weight"),
        row("post_layernorm.weight",                "h",           "final_norm.weight"),
        row("downsample.weight",                    "i h my mz",   "projector.fold.weight"),
        row("downsample.bias",                      "i",           "projector.fold.bias"),
        row("merger.proj.weight",                   "j i",         "projector.refine.weight"),
        row("merger.post_projection_norm.weight",   "j",           "projector.refined.weight"),
        row("merger.post_projection_norm.bias",     "j",           "projector.refined.bias"),
        row("merger.gate_proj.weight",              "f j",         "projector.gate.weight"),
        row("merger.up_proj.weight",                "f j",         "projector.up.weight"),
        row("merger.down_proj.weight",              "w f",         "projector.down.weight"),
    ]),
    Table("model.visual.blocks.{l}", to="vision.layers.{l}", rows=[
        row("norm1.weight",         "h",                              "attention.norm.weight"),
        row("attn.qkv.weight",      "(q[g r d] + k[g d] + v[g d]) h", "attention.{part}.weight"),
        row("attn.qkv.bias",        "(q[g r d] + k[g d] + v[g d])",   "attention.{part}.bias"),
        row("attn.proj.weight",     "h (g r d)",                      "attention.out.weight"),
        row("norm2.weight",         "h",                              "mlp.norm.weight"),
        row("mlp.gate_proj.weight", "f h",                            "mlp.gate.weight"),
        row("mlp.up_proj.weight",   "f h",                            "mlp.up.weight"),
        row("mlp.down_proj.weight", "h f",                            "mlp.down.weight"),
    ]),
]
# fmt: on


FAMILIES: list[Family] = [
    sees(
        "glm4v_moe",
        next(family for family in glm.FAMILIES if family.model_type == "glm4_moe"),
        _TEXT,
        [_TOWER],
        *_TOKENS,
        tables=_TABLES,
        places={"stored": beside_the_tower},
    )
]
