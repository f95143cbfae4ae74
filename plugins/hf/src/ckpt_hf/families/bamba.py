"""Bamba: Llama whose layers have Mamba-2 blocks, but for a few that attend and rotate half of each head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import Activation, CkptError, Facts, configs, decided, fact_is, ignore, key, key_is, layouts, rules
from ckpt_hf import heads
from ckpt_hf.common import ATTENTION_BIASES, Family, groups, head_dim
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.families.mamba import MAMBA, OF_LAYERS, block, enter_mamba_layers
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import LAYER, MODEL

_ATTENDING = rules.indices()


def _read_layers(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    attending = config.get("attn_layer_indices")
    attends = _ATTENDING.read([] if attending is None else attending, facts["layers"])
    if attends is None:
        raise CkptError("key 'attn_layer_indices' is not a list of layers, counted from 0", found=str(attending)[:80])
    enter_mamba_layers(facts, attends)


# fmt: off
BAMBA = LLAMA.replace("BambaForCausalLM",
    decided(["attn_layer_indices"], OF_LAYERS, read=_read_layers, uses=["layers"],
            values={"attn_layer_indices": [configs.layers_of("attention", _ATTENDING)]},
            why="attn_layer_indices lists the layers that attend; the others have a Mamba-2 block"),
    configs.where("attention", [
        key("num_attention_heads", "attention.heads", default=32),
        groups(8),
        head_dim(),
        key("attention_bias", *ATTENTION_BIASES, default=False),
        configs.fact_as("attention.norm.eps", "mlp.norm.eps"),
        rotary_keys(partial=0.5),
    ]),
    # without a block, 128 heads must fit the width all the same
    configs.where("mamba", block(), otherwise={"mamba_n_heads": 1}),
    # the convolutions of the blocks have the activation of the MLP, which the schema knows as SiLU alone
    key_is("hidden_act", "silu", or_absent=True),
    fact_is("mlp.activation", Activation.SILU),
    key("rms_norm_eps", "mlp.norm.eps", "final_norm.eps", default=1e-5),
    ignore("attn_rotary_emb", why="of the code that trained it; the class rotates by partial_rotary_factor, half a head by default"),
    ignore("z_loss_coefficient", why="training only"),
)
# fmt: on

_CALLED = {"mlp.": "feed_forward.", "post_attention_layernorm.": "pre_ff_layernorm."}


def _called(native: str) -> str:
    return next((new + native.removeprefix(old) for old, new in _CALLED.items() if native.startswith(old)), native)


# Llama's tables under the names that Bamba and what grew out of it have.
BAMBA_MODEL = MODEL.renamed(lambda native: native.replace("model.norm.", "model.final_layernorm."))
BAMBA_LAYER = LAYER.with_rows([*(replace(one, native=_called(one.native)) for one in LAYER.rows), *LAYER.drops]).extend(
    *MAMBA
)

FAMILIES = [
    Family(
        "bamba",
        BAMBA,
        layouts.Tables([BAMBA_MODEL, BAMBA_LAYER]),
        heads=(heads.BARE,),
        padding=0,
    )
]
