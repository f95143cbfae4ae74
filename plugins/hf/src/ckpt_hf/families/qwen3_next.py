"""Qwen3-Next and Qwen 3.5: three layers of four are gated delta nets, and the attention of the fourth has a gate on its output."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ckpt_core.sdk import (
    Activation,
    CkptError,
    Facts,
    Table,
    configs,
    decided,
    fact_is,
    ignore,
    key,
    key_is,
    layouts,
    row,
    rules,
    schema,
    values,
)
from ckpt_hf import heads
from ckpt_hf import predictors as predicting
from ckpt_hf.common import NORMS, Family, groups, head_dim, norms
from ckpt_hf.families.qwen import QWEN3, QWEN3_LAYER, QWEN3_MOE, SHARED_EXPERT
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import EXPERTS, MODEL, NAMES

_FULL, _LINEAR = "full_attention", "linear_attention"


def delta_layers(usual: Callable[[int, Mapping[str, Any]], list[bool]], *keys: str) -> configs.Entry:
    """`layer_types` says which layers are delta nets; left out, the class has the rule `usual`, which may look at its `keys`.

    `usual` gets the number of layers and the config, and says for each layer whether it attends. A model has layers of both kinds.
    """

    def read(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
        kinds = config.get("layer_types")
        if kinds is None:
            kinds = [_FULL if attends else _LINEAR for attends in usual(facts["layers"], config)]
        if (
            not isinstance(kinds, list)
            or len(kinds) != facts["layers"]
            or any(kind not in (_FULL, _LINEAR) for kind in kinds)
        ):
            raise CkptError("key 'layer_types' is not one known kind per layer", found=str(kinds)[:80])
        if len({*kinds}) < 2:
            raise CkptError(
                "key 'layer_types' has one kind of layer only",
                found=str(kinds)[:80],
                expected=f"both {_FULL} and {_LINEAR}",
            )
        facts["attention?"] = schema.PerLayer(kind == _FULL for kind in kinds)
        facts["delta?"] = schema.PerLayer(kind == _LINEAR for kind in kinds)

    return decided(
        ["layer_types", *keys],
        ["attention?", "delta?"],
        read=read,
        values={"layer_types": [configs.layers_of("delta", rules.each(having=_LINEAR, lacking=_FULL))]},
        uses=["layers"],
        why="layer_types says which layers attend and which are delta nets; without it the class has a rule",
    )


def _every_nth(layers: int, config: Mapping[str, Any]) -> list[bool]:
    interval = values.checked("full_attention_interval", config.get("full_attention_interval", 4), values.whole)
    return [(index + 1) % interval == 0 for index in range(layers)]


_CENTRED = (*NORMS, "attention.qk_norm", "delta.norm")

# fmt: off
_HYBRID: list[Any] = [
    head_dim(default=256),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in (*_CENTRED, "delta.head_norm")), default=1e-6),
    norms("rms", *_CENTRED, zero_centred=True),
    norms("rms", "delta.head_norm"),
    # the convolutions of the delta nets have the activation of the MLP, which the schema knows as SiLU alone
    key_is("hidden_act", "silu", or_absent=True),
    fact_is("mlp.activation", Activation.SILU),
    fact_is("attention.out_gate", True),
    key_is("attn_output_gate", True, or_absent=True, written=False),
    delta_layers(_every_nth, "full_attention_interval"),
    key("linear_num_key_heads", "delta.key_heads", default=16),
    key("linear_num_value_heads", "delta.value_heads", default=32),
    key("linear_key_head_dim", "delta.key_dim", default=128),
    key("linear_value_head_dim", "delta.value_dim", default=128),
    key("linear_conv_kernel_dim", "delta.conv", default=4),
    key_is("use_sliding_window", False, or_absent=True, written=False),
    ignore("sliding_window", "max_window_layers", why="no layer of the class has a window"),
    ignore("mamba_ssm_dtype", why="every tensor knows its own dtype"),
    ignore("mtp_use_dedicated_embeddings", why="whether there is one is for the names of tensors to say"),
]

QWEN3_NEXT = QWEN3_MOE.replace("Qwen3NextForCausalLM",
    *_HYBRID,
    groups(2),
    rotary_keys(partial=0.25),
    key("num_experts", "mlp.moe.experts", also=["num_local_experts"], default=512, null=configs.REQUIRED),
    key("num_experts_per_tok", "mlp.moe.router.top_k", default=10),
    key("moe_intermediate_size", "mlp.moe.ffn", default=512),
    key("norm_topk_prob", "mlp.moe.router.normalise", default=True),
    key("shared_expert_intermediate_size", "mlp.moe.shared.ffn", default=512, type=values.whole),
    fact_is("mlp.moe.shared.gate", True),
    predicting.predictors(none=configs.LEFT_OUT),
    without=["attention.window"],
)

# Of the three rows of positions that images have, a text has one, three times over: it does not matter which frequencies take which.
_SECTIONS = rotary_keys(partial=0.25, inert=("mrope_section", "mrope_interleaved"))

_PREDICTORS = predicting.predictors(predicting.QWEN, none=configs.LEFT_OUT)

QWEN3_5 = QWEN3.replace("Qwen3_5ForCausalLM",
    *_HYBRID,
    groups(4),
    _SECTIONS,
    _PREDICTORS,
    without=["attention.window"],
)

QWEN3_5_MOE = QWEN3_NEXT.replace("Qwen3_5MoeForCausalLM",
    _SECTIONS,
    _PREDICTORS,
    key("num_experts", "mlp.moe.experts", also=["num_local_experts"], default=256, null=configs.REQUIRED),
    key("num_experts_per_tok", "mlp.moe.router.top_k", default=8),
    fact_is("mlp.moe.router.normalise", True),
    key_is("norm_topk_prob", True, or_absent=True, written=False),
    ignore("intermediate_size", "decoder_sparse_step", "mlp_only_layers", why="every layer of the class is a mixture"),
    without=["mlp.ffn", "mlp.moe?", predicting.KEY],
)

DELTA = (
    row("input_layernorm.weight",         "h",                                             "delta.norm.weight"),
    row("linear_attn.conv1d.weight",      "(q_conv[g dk] + k_conv[g dk] + v_conv[g r dv]) 1 t", "delta.{part}.weight"),
    row("linear_attn.A_log",              "(g r)",                                         "delta.a_log.weight"),
    row("linear_attn.dt_bias",            "(g r)",                                         "delta.dt_bias.weight"),
    row("linear_attn.norm.weight",        "dv",                                            "delta.head_norm.weight"),
    row("linear_attn.out_proj.weight",    "h (g r dv)",                                    "delta.out.weight"),
)

_HYBRID_LAYER = QWEN3_LAYER.replace(
    row("self_attn.q_proj.weight", "(g r (q + gate) d) h", "attention.{part}.weight"),
    row("self_attn.q_proj.bias",   "(g r (q + gate) d)",   "attention.{part}.bias"),
).extend(*DELTA)

# The layers that predict further tokens attend, as the last layer does.
_PREDICTOR_NAMES = layouts.Choice("predictor_names", ("stored", "held"), default="stored",
    help="how the experts of layers that predict further tokens are kept: with tensors of their own (Qwen 3.5), or in one (Qwen 3.6)")


_MIXTURE = (*EXPERTS, *SHARED_EXPERT)
# The experts of a predicting layer are kept by the same names, by a choice of their own.
_PREDICTING_EXPERTS = tuple(
    replace(one, under=tuple((_PREDICTOR_NAMES.name, kept) for _, kept in one.under)) for one in EXPERTS
)
_IN_PREDICTORS = _HYBRID_LAYER.extend(*_PREDICTING_EXPERTS, *SHARED_EXPERT)
_PREDICTING = (
    predicting.QWEN_PREDICTOR,
    Table(predicting.QWEN_BLOCK, to=predicting.BLOCK, rows=_HYBRID_LAYER.rows),
)
_PREDICTING_MIXTURE = (
    predicting.QWEN_PREDICTOR,
    Table(predicting.QWEN_BLOCK, to=predicting.BLOCK, rows=_IN_PREDICTORS.rows),
)

QWEN3_NEXT_LAYER = _HYBRID_LAYER.extend(
    row("linear_attn.in_proj_qkvz.weight", "(g (q[dk] + k[dk] + v[r dv] + z[r dv])) h", "delta.{part}.weight"),
    row("linear_attn.in_proj_ba.weight",   "(g (b + a) r) h",                           "delta.{part}.weight"),
    *_MIXTURE,
)

QWEN3_5_LAYER = _HYBRID_LAYER.extend(
    row("linear_attn.in_proj_qkv.weight", "(q[g dk] + k[g dk] + v[g r dv]) h", "delta.{part}.weight"),
    row("linear_attn.in_proj_z.weight",   "(g r dv) h",                        "delta.z.weight"),
    row("linear_attn.in_proj_b.weight",   "(g r) h",                           "delta.b.weight"),
    row("linear_attn.in_proj_a.weight",   "(g r) h",                           "delta.a.weight"),
)
# fmt: on

_as_stored = functools.partial(predicting.stored_predictors, key=predicting.QWEN)

FAMILIES = [
    Family(
        "qwen3_next",
        QWEN3_NEXT,
        layouts.Tables([MODEL, QWEN3_NEXT_LAYER, *_PREDICTING_MIXTURE], [NAMES, _PREDICTOR_NAMES]),
        leftovers=predicting.LEFT,
        as_stored=predicting.stored_predictors,
    ),
    Family(
        "qwen3_5_text",
        QWEN3_5,
        layouts.Tables([MODEL, QWEN3_5_LAYER, *_PREDICTING]),
        leftovers=predicting.LEFT,
        as_stored=_as_stored,
        heads=(heads.BARE, heads.SCORED),
    ),
    Family(
        "qwen3_5_moe_text",
        QWEN3_5_MOE,
        layouts.Tables([MODEL, QWEN3_5_LAYER.extend(*_MIXTURE), *_PREDICTING_MIXTURE], [NAMES, _PREDICTOR_NAMES]),
        leftovers=predicting.LEFT,
        as_stored=_as_stored,
        heads=(heads.BARE,),
    ),
]
