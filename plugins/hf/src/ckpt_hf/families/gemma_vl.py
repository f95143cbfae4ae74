"""Gemma 3 that sees: a SigLIP tower for images of one size, whose patches are averaged before the language model sees all of them at once."""

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
    drop,
    fact_is,
    ignore,
    key,
    key_is,
    note,
    row,
    values,
)
from ckpt_hf.common import ACTIVATION, Family, norms
from ckpt_hf.families import gemma
from ckpt_hf.seeing import sees, tower
from ckpt_hf.wholes import beside_the_tower, within

_LAYER_NORMS = ("vision.attention.norm", "vision.mlp.norm", "vision.final_norm")
_EPS = tuple(f"{norm}.eps" for norm in (*_LAYER_NORMS, "vision.projector.norm"))


def _read_merge(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    tokens = values.checked("mm_tokens_per_image", config.get("mm_tokens_per_image", 256), values.whole)
    patches, side = facts["vision.image"] // facts["vision.patch"], math.isqrt(tokens)
    if side * side != tokens or patches % side:
        raise CkptError(
            "key 'mm_tokens_per_image' is not a square into which the patches of an image can be merged",
            found=f"{tokens} tokens of {patches} x {patches} patches",
        )
    facts["vision.projector.merge"] = patches // side


def _tokens(image: int, patch: int, merge: int) -> int:
    return (image // patch // merge) ** 2


# fmt: off
_TOWER = tower("siglip_vision_model",
    key("hidden_size", "vision.hidden", default=768, type=values.whole),
    key("intermediate_size", "vision.mlp.ffn", default=3072, type=values.whole),
    key("num_hidden_layers", "vision.layers", default=12, type=values.layers),
    key("num_attention_heads", "vision.attention.heads", "vision.attention.groups", default=12, type=values.whole),
    derived(None, "vision.attention.head_dim", "hidden_size / num_attention_heads"),
    key("num_channels", "vision.channels", default=3, type=values.whole),
    key("image_size", "vision.image", default=224, type=values.whole),
    key("patch_size", "vision.patch", default=16, type=values.whole),
    derived(None, "vision.positions.count", "(image_size / patch_size) ** 2"),
    key("hidden_act", "vision.mlp.activation", default="gelu_pytorch_tanh", via=ACTIVATION),
    # the projector has the epsilon of the tower (modeling_gemma3.py, Gemma3MultiModalProjector)
    key("layer_norm_eps", *_EPS, default=1e-6, type=values.positive),
    norms("layer", *_LAYER_NORMS, bias=True),
    key_is("vision_use_head", False, True, default=True, why="a head over what is seen, which no language model reads"),
    [fact_is(f"vision.{name}", value) for name, value in {
        "causal": False, "bias": True, "mlp.gated": False,
        **{f"attention.{part}_bias": True for part in ("q", "k", "v", "out")}, "mlp.up_bias": True, "mlp.down_bias": True,
    }.items()],
)

_TEXT = gemma.GEMMA3.replace("Gemma3TextModel",
    key_is("final_logit_softcapping", None, or_absent=True, why="the class that sees never applies it (modeling_gemma3.py, 5.24)"),
)

_BESIDE = [
    key("image_token_index", "vision.token", also=["image_token_id"], default=262144, type=values.count),
    note("boi_token_index", "image_start", default=255999),
    note("eoi_token_index", "image_end", default=256000),
    ignore("boi_token_id", "eoi_token_id", why="the same under another name"),
    decided(["mm_tokens_per_image"], ["vision.projector.merge"], read=_read_merge, uses=["vision.image", "vision.patch"],
            values={"mm_tokens_per_image": [configs.value_of("vision.image", "vision.patch", "vision.projector.merge", by=_tokens)]},
            why="the square of as many tokens as a row of patches becomes"),
    norms("rms", "vision.projector.norm", zero_centred=True),
    fact_is("vision.projector.norm_merged", True),
    fact_is("vision.projector.mean", True),
    fact_is("vision.both_ways", True),
]

_SIGLIP = [
    row("embeddings.patch_embedding.weight",    "h ch y z", "patches.weight"),
    row("embeddings.patch_embedding.bias",      "h",        "patches.bias"),
    row("embeddings.position_embedding.weight", "p h",      "positions.weight"),
    row("post_layernorm.weight",                "h",        "final_norm.weight"),
    row("post_layernorm.bias",                  "h",        "final_norm.bias"),
]
_SIGLIP_LAYER = [
    row("layer_norm1.weight",        "h",         "attention.norm.weight"),
    row("layer_norm1.bias",          "h",         "attention.norm.bias"),
    row("self_attn.q_proj.weight",   "(g r d) h", "attention.q.weight"),
    row("self_attn.q_proj.bias",     "(g r d)",   "attention.q.bias"),
    row("self_attn.k_proj.weight",   "(g d) h",   "attention.k.weight"),
    row("self_attn.k_proj.bias",     "(g d)",     "attention.k.bias"),
    row("self_attn.v_proj.weight",   "(g d) h",   "attention.v.weight"),
    row("self_attn.v_proj.bias",     "(g d)",     "attention.v.bias"),
    row("self_attn.out_proj.weight", "h (g r d)", "attention.out.weight"),
    row("self_attn.out_proj.bias",   "h",         "attention.out.bias"),
    row("layer_norm2.weight",        "h",         "mlp.norm.weight"),
    row("layer_norm2.bias",          "h",         "mlp.norm.bias"),
    row("mlp.fc1.weight",            "f h",       "mlp.up.weight"),
    row("mlp.fc1.bias",              "f",         "mlp.up.bias"),
    row("mlp.fc2.weight",            "h f",       "mlp.down.weight"),
    row("mlp.fc2.bias",              "h",         "mlp.down.bias"),
]
_PROJECTOR = [
    row("mm_soft_emb_norm.weight",    "h",   "projector.norm.weight"),
    row("mm_input_projection_weight", "h w", "projector.down.weight"),
]
_TABLES = [
    table
    for place, module, siglip in (
        ("stored", "", "vision_tower.vision_model"),  # on the Hub
        ("saved", "", "vision_tower"),  # as newer versions save it
        ("held", "model.", "model.vision_tower"),
    )
    for table in (
        Table(siglip, to="vision", rows=_SIGLIP, under={"places": place}),
        Table(f"{siglip}.encoder.layers.{{l}}", to="vision.layers.{l}", rows=_SIGLIP_LAYER, under={"places": place}),
        Table(f"{module}multi_modal_projector", to="vision", rows=_PROJECTOR, under={"places": place}),
    )
]
# fmt: on


FAMILIES: list[Family] = [
    sees(
        "gemma3",
        next(family for family in gemma.FAMILIES if family.model_type == "gemma3_text"),
        _TEXT,
        [_TOWER],
        *_BESIDE,
        tables=_TABLES,
        places={"stored": within, "saved": within, "held": beside_the_tower},
        tied=True,
        leftovers=[
            drop(f"{tower}.head.*", why="a head over what is seen, which no language model reads")
            for tower in ("vision_tower.vision_model", "vision_tower", "model.vision_tower")
        ],
    )
]
