"""Hunyuan, dense and mixtures: norms of q and k after their rotation; a mixture has one shared expert as wide as the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, configs, decided, fact_is, ignore, key, key_is, layouts, row, values
from ckpt_hf import heads
from ckpt_hf.common import ALL_BIASES_OR_NONE, NORMS, Family, norms, unbiased
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import EXPERTS, LAYER, MLP, MODEL, NAMES


def _read_top_k(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    given = config.get("moe_topk", 1)
    one, *others = given if isinstance(given, list) and given else [given]
    if isinstance(given, list) and len(given) < facts["layers"]:
        raise CkptError("key 'moe_topk' has no number for every layer", found=f"{len(given)} numbers")
    if any(other != one for other in others):
        raise CkptError("key 'moe_topk' differs between layers", found=str(given)[:80], expected="one number")
    facts["mlp.moe.router.top_k"] = values.checked("moe_topk", one, values.whole)


# fmt: off
HUNYUAN = LLAMA.replace("HunYuanDenseV1ForCausalLM",
    key("rms_norm_eps", *(f"{norm}.eps" for norm in (*NORMS, "attention.qk_norm")), default=1e-5),
    norms("rms", "attention.qk_norm"),
    fact_is("attention.qk_norm_after_rotary", True),
    rotary_keys(alpha=True),
    ignore("eod_token_id", why="an id of the tokenizer"),
    # Of the code that came with the first files; other values would be another model.
    key_is("use_qk_norm", True, or_absent=True, written=False),
    key_is("use_rotary_pos_emb", True, or_absent=True, written=False),
    key_is("use_cla", False, or_absent=True, written=False),
    unbiased("mlp_bias"),
)

HUNYUAN_MOE = HUNYUAN.replace("HunYuanMoEV1ForCausalLM",
    key("intermediate_size", "mlp.moe.ffn", "mlp.moe.shared.ffn"),
    key("num_experts", "mlp.moe.experts", also=["num_local_experts"], type=values.whole),
    decided(["moe_topk"], ["mlp.moe.router.top_k"], read=_read_top_k, values={"moe_topk": [configs.value_of("mlp.moe.router.top_k")]}, uses=["layers"],
            why="how many experts a token takes, or a list with the same number for every layer"),
    fact_is("mlp.moe.router.score", "softmax"),
    fact_is("mlp.moe.router.normalise", True),
    without=["mlp.ffn"],
)

HUNYUAN_LAYER = LAYER.extend(
    row("self_attn.query_layernorm.weight", "d", "attention.q_norm.weight"),
    row("self_attn.key_layernorm.weight",   "d", "attention.k_norm.weight"),
)

HUNYUAN_MOE_LAYER = HUNYUAN_LAYER.without(*MLP).extend(
    *EXPERTS[1:],
    row("mlp.gate.wg.weight",              "x h", "mlp.router.weight"),
    row("mlp.shared_mlp.gate_proj.weight", "f h", "mlp.shared.gate.weight"),
    row("mlp.shared_mlp.up_proj.weight",   "f h", "mlp.shared.up.weight"),
    row("mlp.shared_mlp.down_proj.weight", "h f", "mlp.shared.down.weight"),
)
# fmt: on

FAMILIES = [
    Family(
        "hunyuan_v1_dense",
        HUNYUAN,
        layouts.Tables([MODEL, HUNYUAN_LAYER]),
        rewrites=ALL_BIASES_OR_NONE,
        heads=(heads.BARE, heads.SCORED),
        padding=0,
    ),
    Family(
        "hunyuan_v1_moe",
        HUNYUAN_MOE,
        layouts.Tables([MODEL, HUNYUAN_MOE_LAYER], [NAMES]),
        rewrites=ALL_BIASES_OR_NONE,
        heads=(heads.BARE, heads.SCORED),
        padding=0,
    ),
]
