"""MiniMax M2: a mixture in every layer, chosen by sigmoids and a learned offset, and norms on the whole width of q and k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_core.sdk import CkptError, Facts, decided, fact_is, ignore, key, key_is, layouts, row
from ckpt_hf import heads
from ckpt_hf.common import NORMS, Family, groups, head_dim, norms, unbiased
from ckpt_hf.families.llama import LLAMA
from ckpt_hf.families.mixtral import MIXTRAL_LAYER
from ckpt_hf.rotary import rotary_keys
from ckpt_hf.weights import MODEL, NAMES, WHOLE_QK_NORMS


def _read_kinds(config: Mapping[str, Any], facts: Facts, notes: dict[str, Any]) -> None:
    kinds = config.get("attn_type_list")
    if kinds is not None and kinds != [1] * facts["layers"]:
        raise CkptError(
            "key 'attn_type_list' has a kind of attention that is not supported",
            found=str(kinds)[:80],
            expected="1 for every layer",
        )


# fmt: off
MINIMAX_M2 = LLAMA.replace("MiniMaxM2ForCausalLM",
    groups(8),
    head_dim(default=128),
    key("rms_norm_eps", *(f"{norm}.eps" for norm in (*NORMS, "attention.qk_norm")), default=1e-6),
    norms("rms", "attention.qk_norm"),
    fact_is("attention.qk_norm_whole", True),
    rotary_keys(default_theta=5000000.0, partial=1.0, width_key="rotary_dim"),
    key("num_local_experts", "mlp.moe.experts", also=["num_experts"], default=256),
    key("intermediate_size", "mlp.moe.ffn"),
    key("num_experts_per_tok", "mlp.moe.router.top_k", default=8),
    fact_is("mlp.moe.router.score", "sigmoid"),
    fact_is("mlp.moe.router.normalise", True),
    fact_is("mlp.moe.router.correction_bias", True),
    unbiased("attention_bias", "mlp_bias"),
    # Of the code beside the published files, in which other values would be another model.
    key_is("use_qk_norm", True, or_absent=True, written=False),
    key_is("qk_norm_type", "per_layer", or_absent=True, written=False),
    key_is("scoring_func", "sigmoid", or_absent=True, written=False),
    key_is("use_routing_bias", True, or_absent=True, written=False),
    key_is("shared_intermediate_size", 0, or_absent=True, written=False),
    key_is("sliding_window", None, or_absent=True, written=False),
    *(key_is(f"layernorm_{part}_beta", 1.0, or_absent=True, written=False) for part in ("full_attention", "linear_attention", "mlp")),
    decided(["attn_type_list"], [], read=_read_kinds, values={}, uses=["layers"], why="every layer is of kind 1, full attention"),
    ignore("mlp_intermediate_size", "shared_moe_mode", why="of layers and experts that the model does not have"),
    ignore("use_mtp", "num_mtp_modules", "mtp_transformer_layers", why="of layers that predict further tokens, which the files do not have"),
    without=["mlp.ffn"],
)

MINIMAX_LAYER = MIXTRAL_LAYER.extend(
    *WHOLE_QK_NORMS,
    row("block_sparse_moe.e_score_correction_bias", "x", "mlp.router.correction_bias", under={"names": "stored"}),
    row("mlp.e_score_correction_bias",              "x", "mlp.router.correction_bias", under={"names": "held"}),
)
# fmt: on

FAMILIES = [Family("minimax_m2", MINIMAX_M2, layouts.Tables([MODEL, MINIMAX_LAYER], [NAMES]), heads=(heads.BARE,))]
