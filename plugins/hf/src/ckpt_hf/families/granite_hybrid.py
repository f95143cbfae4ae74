"""Granite 4: layers with Mamba-2 blocks and layers that attend, each before an MLP or a mixture, under the multipliers of Granite 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    Activation,
    CkptError,
    Facts,
    configs,
    decided,
    fact_is,
    key,
    key_is,
    layouts,
    row,
    rules,
    tagged,
    values,
)
from ckpt_hf import heads
from ckpt_hf.common import Family
from ckpt_hf.families.granite import GRANITE, GRANITE_EXPERTS, SHARED_EXPERT
from ckpt_hf.families.mamba import MAMBA, OF_LAYERS, block, enter_mamba_layers
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import LAYER, MLP, MODEL, NAMES

# transformers 5.24 has other names for the kinds of layers, and takes the published ones for them.
_NEWER = {"full_attention": "attention", "linear_attention": "mamba"}
_KINDS = rules.each(having="attention", lacking="mamba")


def _read_kinds(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    kinds = config.get("layer_types")
    published = [_NEWER.get(str(kind), kind) for kind in kinds] if isinstance(kinds, list) else None
    attends = _KINDS.read(published, facts["layers"])
    if attends is None or not any(attends):
        raise CkptError(
            "key 'layer_types' is not one of two kinds per layer, some of which attend",
            found=str(kinds)[:80],
            expected="mamba and attention",
        )
    enter_mamba_layers(facts, attends)


def _read_experts(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    def size(name: str, default: int, kind: values.ValueType = values.whole) -> int:
        return values.checked(name, config.get(name, default), kind)

    experts, shared = size("num_local_experts", 8, values.count), size("shared_intermediate_size", 1024)
    if experts:
        facts["mlp.moe.experts"], facts["mlp.moe.router.top_k"] = experts, size("num_experts_per_tok", 2)
        facts["mlp.moe.ffn"], facts["mlp.moe.shared.ffn"] = size("intermediate_size", 11008), shared
    else:
        facts["mlp.ffn"] = shared


_EXPERTS = ("num_local_experts", "num_experts_per_tok", "intermediate_size", "shared_intermediate_size")
_MIXTURE = ("mlp.moe.experts", "mlp.moe.router.top_k", "mlp.moe.ffn", "mlp.moe.shared.ffn")
_WIDTH = configs.value_of("mlp.ffn")

# fmt: off
GRANITE_HYBRID = GRANITE.replace("GraniteMoeHybridForCausalLM",
    decided(["layer_types"], OF_LAYERS, read=_read_kinds, uses=["layers"],
            values={"layer_types": [configs.layers_of("attention", _KINDS)]},
            why="layer_types says which layers attend and which have a Mamba-2 block; some attend, or all"),
    configs.where("mamba", block(), otherwise={"mamba_n_heads": 1}),  # without a block, 128 heads must fit the width all the same
    decided(_EXPERTS, [*_MIXTURE, "mlp.ffn"], read=_read_experts,
            values={_EXPERTS: [tuple(map(configs.value_of, _MIXTURE)), (0, configs.LEFT_OUT, _WIDTH, _WIDTH)]},
            why="shared_intermediate_size is the width of the shared expert, and of the MLP where num_local_experts is 0"),
    configs.where("mlp.moe", [fact_is("mlp.moe.router.score", "softmax"), fact_is("mlp.moe.router.normalise", True)]),
    tagged(None, tag="position_embedding_type", default="nope", when={"rope": "attention.rotary", "nope": "!attention.rotary"},
           kinds={"rope": [rotary_keys()], "nope": []}),
    # the convolutions of the blocks have the activation of the MLP, which the schema knows as SiLU alone
    key_is("hidden_act", "silu", or_absent=True),
    fact_is("mlp.activation", Activation.SILU),
    key("num_key_value_heads", "attention.groups", default=configs.same_as("num_attention_heads")),
    without=["mlp_bias"],
)

# A layer has an MLP where it has no experts, under the names of the shared expert.
DENSE = (
    row("shared_mlp.input_linear.weight",  "((gate + up) f) h", "mlp.{part}.weight"),
    row("shared_mlp.output_linear.weight", "h f",               "mlp.down.weight"),
)
# fmt: on

FAMILIES = [
    Family(
        "granitemoehybrid",
        GRANITE_HYBRID,
        layouts.Tables([MODEL, LAYER.without(*MLP).extend(*GRANITE_EXPERTS, *SHARED_EXPERT, *DENSE, *MAMBA)], [NAMES]),
        heads=(heads.BARE,),
    )
]
