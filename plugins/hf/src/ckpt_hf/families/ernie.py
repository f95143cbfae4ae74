"""ERNIE 4.5, dense and mixtures: Llama with adjacent rotary pairs; experts are chosen with a learned offset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import (
    CkptError,
    Facts,
    Table,
    configs,
    decided,
    drop,
    fact_is,
    ignore,
    key,
    key_is,
    layouts,
    row,
    schema,
    values,
)
from ckpt_hf import heads
from ckpt_hf.common import ATTENTION_BIASES, MLP_BIASES, NORMS, Family, dense_width, groups, head_dim
from ckpt_hf.families.deepseek import PREDICTORS_LEFT, SHARED_EXPERTS
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import ADJACENT, EXPERTS, LAYER, MODEL, NAMES

_SPARSE = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")


def _read_sparse_layers(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    start, end, step = config.get(_SPARSE[0], 1), config.get(_SPARSE[1], -1), config.get(_SPARSE[2], 1)
    if any(type(one) is not int for one in (start, end, step)) or step < 1 or end < -1 or start < 0:
        raise CkptError("keys of the layers with experts are not whole numbers", found=f"{start}, {end}, {step}")
    last = facts["layers"] - 1 if end == -1 else end
    sparse = schema.PerLayer((index + 1) % step == 0 and start <= index <= last for index in range(facts["layers"]))
    if not any(sparse):
        raise CkptError("no layer has experts", found=", ".join(f"{key} = {config.get(key)}" for key in _SPARSE))
    if not all(sparse):
        facts["mlp.moe?"] = sparse


def _chosen(sparse: tuple[bool, ...]) -> list[int]:
    return [index for index, here in enumerate(sparse) if here]


def _first(sparse: tuple[bool, ...]) -> int:
    return _chosen(sparse)[0]


def _last(sparse: tuple[bool, ...]) -> int:
    return _chosen(sparse)[-1]


def _step(sparse: tuple[bool, ...]) -> int:
    first, second = [*_chosen(sparse), _last(sparse) + 1][:2]
    return second - first


# fmt: off
ERNIE4_5 = LLAMA.replace("Ernie4_5ForCausalLM",
    groups(2),
    head_dim(default=128),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in NORMS), default=1e-5),
    key("use_bias", *ATTENTION_BIASES, *MLP_BIASES, default=False),
    key("tie_word_embeddings", "head.tied", default=True),
    rotary_keys(default_theta=500000.0),
    key_is("use_rmsnorm", True, or_absent=True, written=False),
    without=["attention_bias", "mlp_bias"],
)

ERNIE4_5_MOE = ERNIE4_5.replace("Ernie4_5_MoeForCausalLM",
    groups(4),
    head_dim(),
    key_is("use_bias", False, or_absent=True, why="the head and the dense layers then have biases, and the experts have none"),
    key("num_hidden_layers", "layers", type=values.layers),
    dense_width(),
    decided(_SPARSE, ["mlp.moe?"], read=_read_sparse_layers, uses=["layers", "mlp.moe.*"],
            values={_SPARSE: [tuple(configs.layers_of("mlp.moe", rule) for rule in (_first, _last, _step))]},
            why="every n-th layer from the first to the last one has experts"),
    key("moe_num_experts", "mlp.moe.experts", default=64),
    key("moe_intermediate_size", "mlp.moe.ffn"),
    key("moe_num_shared_experts", "mlp.moe.shared.ffn", default=2, null=configs.REQUIRED, type=values.whole, times="moe_intermediate_size"),
    key("moe_k", "mlp.moe.router.top_k", default=6),
    fact_is("mlp.moe.router.score", "softmax"),
    fact_is("mlp.moe.router.normalise", True),
    fact_is("mlp.moe.router.correction_bias", True),
    key_is("moe_norm_min", 1e-12, or_absent=True, why="shares are divided by no less than it"),
    key_is("moe_use_aux_free", True, or_absent=True, written=False),
    ignore("moe_capacity", why="training only"),
    PREDICTORS_LEFT,
)

ERNIE_LAYER = LAYER.replace(*ADJACENT)
ERNIE_MOE_LAYER = ERNIE_LAYER.extend(
    *EXPERTS,
    *SHARED_EXPERTS,
    # in float32 in every file
    row("mlp.moe_statics.e_score_correction_bias",      "1 x", "mlp.router.correction_bias", dtype="fp32", under={"names": "stored"}),
    row("mlp.gate.moe_statics.e_score_correction_bias", "1 x", "mlp.router.correction_bias", dtype="fp32", under={"names": "held"}),
)
# fmt: on

FAMILIES = [
    Family("ernie4_5", ERNIE4_5, layouts.Tables([MODEL, ERNIE_LAYER]), heads=(heads.BARE,)),
    Family(
        "ernie4_5_moe",
        ERNIE4_5_MOE,
        layouts.Tables([MODEL, ERNIE_MOE_LAYER], [NAMES]),
        leftovers=Table(
            rows=[drop("model.mtp_*", why="the layers that predict further tokens; transformers does not load them")]
        ),
        heads=(heads.BARE,),
    ),
]
