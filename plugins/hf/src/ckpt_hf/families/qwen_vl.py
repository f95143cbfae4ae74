"""The Qwens that see: Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5, dense and mixtures; and EXAONE 4.5, whose tower is that of Qwen2.5-VL.

Their towers turn patches by row and column. Qwen2.5-VL sees most through squares of patches, and the others see all at once, the later ones at
learned positions besides. Qwen3-VL adds what some layers of the tower say to the first layers of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import (
    Activation,
    Architecture,
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
    layouts,
    note,
    row,
    rules,
    schema,
    values,
)
from ckpt_hf.common import ACTIVATION, Family, norms, usual_head_dim
from ckpt_hf.families import exaone4, qwen, qwen3_next
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.seeing import sees, tower, width
from ckpt_hf.weights import EXPERTS, INPUT_FIRST, MODEL, NAMES
from ckpt_hf.wholes import beside_the_tower, has_input_first

_NORMS = ("vision.attention.norm", "vision.mlp.norm", "vision.projector.norm")
_AXIAL = {"rope_type": "axial", "rope_theta": 10000.0}
_WINDOWS = ("window_size", "fullatt_block_indexes")


def _read_theta(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    rotary = config.get("rope_parameters") or {}
    if rotary.get("rope_type", "axial") != "axial" or rotary.keys() - _AXIAL.keys():
        raise ValueError("its tower turns by row and column alone")
    facts["vision.attention.rotary.theta"] = float(rotary.get("rope_theta", 10000.0))


def _read_windows(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    whole = config.get("fullatt_block_indexes", [7, 15, 23, 31])
    chosen = (~rules.indices()).read(whole, facts["vision.layers"])
    if chosen is None:
        raise ValueError(f"fullatt_block_indexes = {whole}")
    if any(chosen):
        # in patches that are merged, as many as there is place for
        patch, merge = facts["vision.patch"], facts["vision.projector.merge"]
        facts["vision.attention.chunk"] = config.get("window_size", 112) // merge // patch * merge
        if not all(chosen):
            facts["vision.attention.chunk?"] = schema.PerLayer(chosen)


def _pixels(chunk: int, patch: int) -> int:
    return chunk * patch


def _theta(theta: float) -> dict[str, Any]:
    return {**_AXIAL, "rope_theta": theta}


# fmt: off
def _ffn(default: int) -> configs.Entry:
    return key("intermediate_size", "vision.mlp.ffn", default=default, type=values.whole)

def _tower(kind: str, depth: int, hidden: int, ffn: configs.Entry, patch: int, *lines: Any, taps: bool = False, act: str = "gelu_pytorch_tanh",
           own: str = "hidden_size", out: str = "out_hidden_size", sharing: Any = ()) -> Any:
    """The section of a tower of `depth` layers where it says none; `own` is the key of its width, and `out` that of the language model's.
    `sharing` says how heads share keys, if they do."""
    both = ("projector", "tapped") if taps else ("projector",)
    return tower(kind,
        width(out),
        ffn,
        key("depth", "vision.layers", default=depth, type=values.layers),
        key(own, "vision.hidden", default=hidden, type=values.whole),
        key("num_heads", "vision.attention.heads", *([] if sharing else ["vision.attention.groups"]), default=16, type=values.whole),
        *sharing,
        derived(None, "vision.attention.head_dim", f"{own} / num_heads"),
        key("hidden_act", "vision.mlp.activation", default=act, via=ACTIVATION),
        # the files of Qwen2.5-VL on the Hub call it in_chans, and the patch once more spatial_patch_size
        key("in_channels", "vision.channels", also=["in_chans"], default=3, type=values.whole),
        configs.repeats("spatial_patch_size", "patch_size", written=False),
        key("patch_size", "vision.patch", default=patch, type=values.whole),
        key("temporal_patch_size", "vision.frames", default=2, type=values.whole),
        key("spatial_merge_size", *(f"vision.{one}.merge" for one in both), default=2, type=values.whole),
        derived(None, [f"vision.{one}.ffn" for one in both], f"{own} * spatial_merge_size ** 2"),
        decided(["rope_parameters"], ["vision.attention.rotary.theta"], read=_read_theta,
                values={"rope_parameters": [configs.LEFT_OUT, configs.value_of("vision.attention.rotary.theta", by=_theta)]},
                why="always axial; the base is a key since transformers 5"),
        [fact_is(f"vision.{name}", value) for name, value in {
            "causal": False, "attention.rotary.axial": True, "attention.q_bias": True, "attention.k_bias": True, "attention.v_bias": True,
            "attention.out_bias": True, "mlp.up_bias": True, "mlp.down_bias": True,
            **{f"{one}.{name}": value for one in both for name, value in (("activation", Activation.GELU_ERF), ("bias", True))},
        }.items()],
        *lines,
    )

def _deep(kind: str, *lines: Any, taps: bool) -> Any:
    """The tower of Qwen3-VL, with or without `taps`."""
    tapped = [
        key("deepstack_visual_indexes", "vision.taps", default=[8, 16, 24], via=values.whole_numbers),
        norms("layer", "vision.tapped.norm", eps=1e-6, bias=True),
        fact_is("vision.tapped.norm_merged", True),
    ] if taps else []
    return _tower(kind, 27, 1152, _ffn(4304), 16,
        key("num_position_embeddings", "vision.positions.count", default=2304, type=values.whole),
        fact_is("vision.bias", True),
        fact_is("vision.mlp.gated", False),
        norms("layer", *_NORMS, eps=1e-6, bias=True),
        *tapped,
        *lines,
        taps=taps,
    )

def _tokens(image: int, start: int) -> list[Any]:
    """The ids of tokens that stand for images and videos, and those around them, which follow from `start` on."""
    return [
        key("image_token_id", "vision.token", default=image, type=values.count),
        key("video_token_id", "vision.video_token", default=image + 1, type=values.count),
        note("vision_start_token_id", "vision_start", default=start),
        note("vision_end_token_id", "vision_end", default=start + 1),
    ]

_QWEN2_TEXT = qwen.QWEN2.replace("Qwen2VLTextModel",
    usual_head_dim(),
    rotary_keys(default_theta=1000000.0, sections=(16, 24, 24), called={"mrope": "default"}),
)
_QWEN2_TOWER = _tower("qwen2_vl_vision", 32, 1280, key("mlp_ratio", "vision.mlp.ffn", default=4, type=values.whole, times="embed_dim"), 14,
    fact_is("vision.mlp.gated", False),
    norms("layer", *_NORMS, eps=1e-6, bias=True),
    act="quick_gelu",
    own="embed_dim",
    out="hidden_size",
)
_SQUARES = [
    fact_is("vision.mlp.gated", True),
    norms("rms", *_NORMS, eps=1e-6),
    decided(_WINDOWS, ["vision.attention.chunk", "vision.attention.chunk?"], read=_read_windows,
            values={_WINDOWS: [(configs.value_of("vision.attention.chunk", "vision.patch", by=_pixels),
                                configs.layers_of("vision.attention.chunk", ~rules.indices(), layers="vision.layers")),
                               (112, configs.layers_of("vision.attention.chunk", ~rules.indices(), layers="vision.layers"))]},
            uses=["vision.layers", "vision.patch", "vision.projector.merge"],
            why="the side of the squares in pixels, and the layers that see all patches; the usual ones are 7, 15, 23 and 31"),
]
_QWEN2_5_TOWER = _tower("qwen2_5_vl_vision", 32, 3584, _ffn(3420), 14,
    *_SQUARES,
    # time in videos alone: how many positions a second is
    note("tokens_per_second", "tokens_per_second", default=4),
    act="silu",
)

_EXAONE_TOWER = _tower("exaone4_5_vision", 32, 3584, _ffn(3420), 14,
    *_SQUARES,
    act="silu",
    sharing=[key("num_key_value_heads", "vision.attention.groups", default=8, type=values.whole)],
)
_EXAONE_TEXT = exaone4.EXAONE4.replace("Exaone4Model", ignore("num_nextn_predict_layers", "mtp_share_layers", "mtp_loss_scaling_factor",
    why="of layers that predict further tokens, which transformers does not load"))

_QWEN3_ROTARY = rotary_keys(sections=(24, 20, 20), interleaved=True)
_QWEN3_TEXT = qwen.QWEN3.replace("Qwen3VLTextModel", _QWEN3_ROTARY, without=["attention.window"])
_QWEN3_MOE_TEXT = qwen.QWEN3_MOE.replace("Qwen3VLMoeTextModel",
    _QWEN3_ROTARY,
    fact_is("mlp.moe.router.normalise", True),
    key_is("norm_topk_prob", True, or_absent=True, written=False),
    ignore("use_sliding_window", "sliding_window", "max_window_layers", why="no layer of the class has a window"),
    without=["attention.window"],
)
# Fused in all files, and in those of the Hub with the input first.
_EXPERTS = layouts.Tables([MODEL, qwen.QWEN3_LAYER.extend(
    EXPERTS[0],
    *(replace(one, under=(("names", ("stored",)),)) for one in INPUT_FIRST),
    *(one for one in EXPERTS if ("names", ("held",)) in one.under),
)], [NAMES])
_QWEN3_5_ROTARY = rotary_keys(partial=0.25, sections=(11, 11, 10), interleaved=True)

_BLOCK = [
    row("norm1.weight",     "h",                              "attention.norm.weight"),
    row("attn.qkv.weight",  "(q[g r d] + k[g d] + v[g d]) h", "attention.{part}.weight"),
    row("attn.qkv.bias",    "(q[g r d] + k[g d] + v[g d])",   "attention.{part}.bias"),
    row("attn.proj.weight", "h (g r d)",                      "attention.out.weight"),
    row("attn.proj.bias",   "h",                              "attention.out.bias"),
    row("norm2.weight",     "h",                              "mlp.norm.weight"),
]
_OF_2_5 = [
    row("patch_embed.proj.weight", "h ch fr y z", "patches.weight"),
    row("merger.ln_q.weight",      "h",           "projector.norm.weight"),
    row("merger.mlp.0.weight",     "f (my mz h)", "projector.up.weight"),
    row("merger.mlp.0.bias",       "f",           "projector.up.bias"),
    row("merger.mlp.2.weight",     "w f",         "projector.down.weight"),
    row("merger.mlp.2.bias",       "w",           "projector.down.bias"),
]
_BLOCK_OF_2_5 = [
    *_BLOCK,
    row("mlp.gate_proj.weight", "f h", "mlp.gate.weight"),
    row("mlp.gate_proj.bias",   "f",   "mlp.gate.bias"),
    row("mlp.up_proj.weight",   "f h", "mlp.up.weight"),
    row("mlp.up_proj.bias",     "f",   "mlp.up.bias"),
    row("mlp.down_proj.weight", "h f", "mlp.down.weight"),
    row("mlp.down_proj.bias",   "h",   "mlp.down.bias"),
]
_TABLES_OF_2 = [
    table
    for place, visual in (("stored", "visual"), ("held", "model.visual"))
    for table in (
        Table(visual, to="vision", under={"places": place}, rows=[*_OF_2_5, row("merger.ln_q.bias", "h", "projector.norm.bias")]),
        Table(f"{visual}.blocks.{{l}}", to="vision.layers.{l}", under={"places": place}, rows=[
            *_BLOCK,
            row("norm1.bias",     "h",   "attention.norm.bias"),
            row("norm2.bias",     "h",   "mlp.norm.bias"),
            row("mlp.fc1.weight", "f h", "mlp.up.weight"),
            row("mlp.fc1.bias",   "f",   "mlp.up.bias"),
            row("mlp.fc2.weight", "h f", "mlp.down.weight"),
            row("mlp.fc2.bias",   "h",   "mlp.down.bias"),
        ]),
    )
]
_TABLES_OF_2_5 = [
    table
    # transformers 5 saves it as the Hub has it, and version 4.52 saved what is held
    for place, visual in (("stored", "visual"), ("held", "model.visual"))
    for table in (
        Table(visual, to="vision", rows=_OF_2_5, under={"places": place}),
        Table(f"{visual}.blocks.{{l}}", to="vision.layers.{l}", rows=_BLOCK_OF_2_5, under={"places": place}),
    )
]
_TABLES_OF_EXAONE = [
    Table("model.visual", to="vision", rows=_OF_2_5),
    Table("model.visual.blocks.{l}", to="vision.layers.{l}", rows=_BLOCK_OF_2_5),
]
_TABLES_OF_3 = [
    Table("model.visual", to="vision", rows=[
        row("patch_embed.proj.weight",   "h ch fr y z", "patches.weight"),
        row("patch_embed.proj.bias",     "h",           "patches.bias"),
        row("pos_embed.weight",          "p h",         "positions.weight"),
        row("merger.norm.weight",        "h",           "projector.norm.weight"),
        row("merger.norm.bias",          "h",           "projector.norm.bias"),
        row("merger.linear_fc1.weight",  "f (my mz h)", "projector.up.weight"),
        row("merger.linear_fc1.bias",    "f",           "projector.up.bias"),
        row("merger.linear_fc2.weight",  "w f",         "projector.down.weight"),
        row("merger.linear_fc2.bias",    "w",           "projector.down.bias"),
        row("deepstack_merger_list.{tap}.norm.weight",       "(my mz h)",   "taps.norm.weight"),
        row("deepstack_merger_list.{tap}.norm.bias",         "(my mz h)",   "taps.norm.bias"),
        row("deepstack_merger_list.{tap}.linear_fc1.weight", "f (my mz h)", "taps.up.weight"),
        row("deepstack_merger_list.{tap}.linear_fc1.bias",   "f",           "taps.up.bias"),
        row("deepstack_merger_list.{tap}.linear_fc2.weight", "w f",         "taps.down.weight"),
        row("deepstack_merger_list.{tap}.linear_fc2.bias",   "w",           "taps.down.bias"),
    ]),
    Table("model.visual.blocks.{l}", to="vision.layers.{l}", rows=[
        *_BLOCK,
        row("norm1.bias",            "h",   "attention.norm.bias"),
        row("norm2.bias",            "h",   "mlp.norm.bias"),
        row("mlp.linear_fc1.weight", "f h", "mlp.up.weight"),
        row("mlp.linear_fc1.bias",   "f",   "mlp.up.bias"),
        row("mlp.linear_fc2.weight", "h f", "mlp.down.weight"),
        row("mlp.linear_fc2.bias",   "h",   "mlp.down.bias"),
    ]),
]
# fmt: on


def _family(kind: str) -> Family:
    return next(
        family for family in (*qwen.FAMILIES, *qwen3_next.FAMILIES, *exaone4.FAMILIES) if family.model_type == kind
    )


def _order(architecture: Architecture, shapes: Mapping[str, tuple[int, ...]]) -> layouts.Chosen:
    return {"names": "stored" if has_input_first(architecture.hidden, shapes) else "held"}


def _beside(kind: str, language: Family, text: Any, tower: Any, *lines: Any) -> Family:
    places: dict[layouts.Value, Any] = {"stored": beside_the_tower}
    return sees(kind, language, text, [tower], *lines, tables=_TABLES_OF_3, places=places)


FAMILIES = [
    *(
        sees(
            kind,
            _family("qwen2"),
            _QWEN2_TEXT,
            [seen],
            *_tokens(151655, 151652),
            note("vision_token_id", "vision_token"),
            tables=tables,
            places={"stored": lambda name: name, "held": beside_the_tower},
        )
        for kind, seen, tables in (
            ("qwen2_vl", _QWEN2_TOWER, _TABLES_OF_2),
            ("qwen2_5_vl", _QWEN2_5_TOWER, _TABLES_OF_2_5),
        )
    ),
    sees(
        "exaone4_5",
        _family("exaone4"),
        _EXAONE_TEXT,
        [_EXAONE_TOWER],
        *_tokens(67, 73),
        note("vision_token_id", "vision_token"),
        tables=_TABLES_OF_EXAONE,
        places={"stored": beside_the_tower},
        leftovers=[drop("mtp.*", why="the layer that predicts a further token; transformers does not load it")],
    ),
    _beside("qwen3_vl", _family("qwen3"), _QWEN3_TEXT, _deep("qwen3_vl_vision", taps=True), *_tokens(151655, 151652)),
    replace(
        _beside(
            "qwen3_vl_moe",
            replace(_family("qwen3_moe"), tables=_EXPERTS),
            _QWEN3_MOE_TEXT,
            _deep("qwen3_vl_moe_vision", taps=True),
            *_tokens(151655, 151652),
        ),
        by_shapes=_order,
    ),
    _beside(
        "qwen3_5",
        _family("qwen3_5_text"),
        qwen3_next.QWEN3_5.replace("Qwen3_5TextModel", _QWEN3_5_ROTARY),
        _deep("qwen3_5_vision", taps=False),
        *_tokens(248056, 248053),
    ),
    _beside(
        "qwen3_5_moe",
        _family("qwen3_5_moe_text"),
        qwen3_next.QWEN3_5_MOE.replace("Qwen3_5MoeTextModel", _QWEN3_5_ROTARY),
        _deep("qwen3_5_moe_vision", taps=False),
        *_tokens(248056, 248053),
    ),
]
